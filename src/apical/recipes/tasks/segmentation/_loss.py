"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.training._task import BatchResult, Metric


@dataclass(frozen=True)
class Segmentation:
    """Cross-entropy of every pixel, mean intersection over union, and pixel accuracy.

        loss  = CE(out) + a · CE(aux)      the second in training only, where the model has an auxiliary head
        IoU_c = C_cc / (Σ_j C_cj + Σ_i C_ic − C_cc),     mIoU = mean of IoU_c over classes that occur

    C counts the pixels of true class i that were predicted as j over the whole pass; a class occurs if it is in the
    truth or in a prediction. Pixels of the ignore label count nowhere. Inputs are images (batch, channels, H, W),
    targets (batch, H, W), and the model returns logits (batch, classes, H, W), alone or as ``{"out": …, "aux": …}``.

    Attributes:
        num_classes: c, at least 2.
        ignore_label: value of the pixels that nobody labelled.
        aux_weight: a, of the auxiliary loss; 0.4 as in Zhao et al. 2017 (arXiv:1612.01105).
        label_smoothing: of the training loss, in [0, 1).

    Example:
        >>> truth = torch.tensor([[[0, 0, 1, 255]]])  # (1, 1, 4)
        >>> logits = torch.tensor([[4.0, 0.0, 0.0, 4.0], [0.0, 4.0, 4.0, 0.0]]).reshape(1, 2, 1, 4)
        >>> task = Segmentation(2)
        >>> result = task.batch(nn.Identity(), logits, truth, training=False)
        >>> task.results(float(result.loss), result.counts)
        {'miou': 0.5, 'pixel_accuracy': 0.6666666666666666}
    """

    num_classes: int
    ignore_label: int = 255
    aux_weight: float = 0.4
    label_smoothing: float = 0.0
    name = "segmentation"
    unit = "images"
    metrics = (
        Metric("miou", "mIoU %", scale=100.0, unit=" %"),
        Metric("pixel_accuracy", "pixel acc %", scale=100.0, unit=" %"),
    )

    def begin(self, training: bool) -> None:
        """Nothing is carried over."""

    def batch(self, model: nn.Module, inputs: Tensor, targets: Tensor, training: bool) -> BatchResult:
        """Images to loss and confusion counts."""
        outputs = model(inputs)
        out: Tensor = outputs["out"] if isinstance(outputs, Mapping) else outputs
        targets = targets.long()
        labelled = (targets != self.ignore_label).sum()
        smoothing = self.label_smoothing if training else 0.0
        loss = self._cross_entropy(out, targets, labelled, smoothing)
        if training and isinstance(outputs, Mapping) and "aux" in outputs:
            loss = loss + self.aux_weight * self._cross_entropy(outputs["aux"], targets, labelled, smoothing)
        counts = confusion(out.detach().argmax(1), targets, self.num_classes, self.ignore_label)
        return BatchResult(loss, labelled, inputs.shape[0], counts)

    def _cross_entropy(self, logits: Tensor, targets: Tensor, labelled: Tensor, smoothing: float) -> Tensor:
        """Mean over the labelled pixels; 0 where there is none, for which torch's own mean is not a number."""
        total = F.cross_entropy(
            logits.float(), targets, ignore_index=self.ignore_label, label_smoothing=smoothing, reduction="sum"
        )
        return total / labelled.clamp(min=1)

    def results(self, _loss: float, counts: Tensor, /) -> dict[str, float]:
        """Both metrics."""
        right, labelled = counts.diagonal().sum().item(), counts.sum().item()
        present = [value for value in class_iou(counts) if value is not None]
        return {"miou": sum(present) / max(1, len(present)), "pixel_accuracy": right / max(1, labelled)}


def confusion(predicted: Tensor, truth: Tensor, num_classes: int, ignore_label: int = 255) -> Tensor:
    """How many pixels of each class were taken for which.

    Args:
        predicted: classes  # any shape
        truth: classes or the ignore label  # the same shape
        num_classes: c.
        ignore_label: of pixels that are left out.

    Returns:
        int64, row: truth, column: prediction  # (c, c)

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2)
        tensor([[1, 1],
                [0, 0]])
    """
    cells = torch.where(truth == ignore_label, num_classes**2, truth * num_classes + predicted)
    cells = cells.reshape(-1)
    # not bincount, which waits for the device to find its length
    counts = cells.new_zeros(num_classes**2 + 1).scatter_add_(0, cells, torch.ones_like(cells))
    return counts[:-1].reshape(num_classes, num_classes)


def class_iou(counts: Tensor) -> list[float | None]:
    """Intersection over union of every class; None for a class that is neither in the truth nor predicted.

    Args:
        counts: from `confusion`, summed over images  # (c, c)

    Example:
        >>> class_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        [0.75, 0.8, None]
    """
    inside = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - inside
    return [i / u if u else None for i, u in zip(inside.tolist(), union.tolist(), strict=True)]
