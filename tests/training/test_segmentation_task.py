"""Loss, confusion counts and mIoU against slow and obvious computations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.recipes.tasks.segmentation import Segmentation, class_iou, confusion
from apical.training import TrainingConfig, evaluate


def labels(shape: tuple[int, ...], classes: int = 5, ignored: float = 0.2) -> Tensor:
    found = torch.randint(classes, shape)
    return torch.where(torch.rand(shape) < ignored, 255, found)


def test_confusion_counts_pixel_by_pixel() -> None:
    truth, predicted = labels((2, 6, 7)), torch.randint(5, (2, 6, 7))
    expected = torch.zeros(5, 5, dtype=torch.long)
    for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert torch.equal(confusion(predicted, truth, 5), expected)


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    truth = torch.tensor([[0, 0, 1, 1, 255]])
    predicted = torch.tensor([[0, 1, 1, 1, 4]])  # the 4 lies under the ignore label
    counts = confusion(predicted, truth, 5)
    assert class_iou(counts) == [pytest.approx(1 / 2), pytest.approx(2 / 3), None, None, None]
    results = Segmentation(5).results(0.0, counts)
    assert results["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert results["pixel_accuracy"] == pytest.approx(3 / 4)
    missed = confusion(torch.tensor([[0, 0, 2, 2, 0]]), truth, 5)  # class 1 missed, class 2 made up: both count as 0
    assert Segmentation(5).results(0.0, missed)["miou"] == pytest.approx(1 / 3)


class TwoHeads(nn.Module):
    def __init__(self, aux: bool = True) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1) if aux else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(x)} | ({} if self.aux is None else {"aux": self.aux(x)})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_auxiliary_loss_counts_in_training_only(smoothing: float) -> None:
    model, x, truth = TwoHeads(), torch.randn(2, 3, 6, 7), labels((2, 6, 7))
    task = Segmentation(5, aux_weight=0.4, label_smoothing=smoothing)
    outputs = model(x)

    def entropy(logits: Tensor, smoothing: float) -> Tensor:
        return F.cross_entropy(logits, truth, ignore_index=255, label_smoothing=smoothing)

    training = task.batch(model, x, truth, training=True)
    expected = entropy(outputs["out"], smoothing) + 0.4 * entropy(outputs["aux"], smoothing)
    assert training.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    judged = task.batch(model, x, truth, training=False)
    assert judged.loss.item() == pytest.approx(entropy(outputs["out"], 0.0).item(), rel=1e-5)
    assert (judged.samples, int(judged.weight)) == (2, int((truth != 255).sum()))
    alone = task.batch(TwoHeads(aux=False), x, truth.to(torch.uint8), training=True)
    assert alone.loss.isfinite()


def test_a_batch_without_labels_gives_no_gradient_and_no_nan() -> None:
    model, x = TwoHeads(), torch.randn(1, 3, 4, 4)
    result = Segmentation(5).batch(model, x, torch.full((1, 4, 4), 255), training=True)
    result.loss.backward()
    assert result.loss.item() == 0
    assert model.out.weight.grad is not None
    assert not model.out.weight.grad.any()
    assert not result.counts.any()


def test_miou_is_of_all_images_together_and_not_a_mean_over_batches() -> None:
    model, truth = TwoHeads(), labels((3, 6, 7))
    x = torch.randn(3, 3, 6, 7)
    task, config = Segmentation(5), TrainingConfig(device="cpu")
    at_once = evaluate(model, [(x, truth)], config, torch.device("cpu"), task=task)
    in_turn = evaluate(
        model, [(x[i : i + 1], truth[i : i + 1]) for i in range(3)], config, torch.device("cpu"), task=task
    )
    assert in_turn.metrics == at_once.metrics
    assert in_turn.loss == pytest.approx(at_once.loss, rel=1e-6)
