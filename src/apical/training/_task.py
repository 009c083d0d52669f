"""What a run learns: how a batch becomes a loss, and by which numbers a network is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Metric:
    """A number by which a network is judged.

    Attributes:
        name: in history and summary, after `train_`, `eval_` and `test_`: ``"accuracy"``.
        heading: of its column, with the unit: ``"acc %"``.
        pattern: how the scaled number is written: ``"{:.2f}"``.
        scale: what the number is multiplied with to be shown: 100 for a share in per cent.
        unit: what follows the scaled number in a sentence: ``" %"``.
        higher_is_better: whether more is better.

    Example:
        >>> Metric("accuracy", "acc %", scale=100, unit=" %").text(0.9137)
        '91.37 %'
    """

    name: str
    heading: str
    pattern: str = "{:.2f}"
    scale: float = 1.0
    unit: str = ""
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """The number as people see it, with its unit."""
        return self.pattern.format(self.scale * value) + self.unit


@dataclass(frozen=True)
class BatchResult:
    """What a model made of a batch.

    Attributes:
        loss: mean loss, to be differentiated  # ()
        weight: how many items the loss is the mean of: labels, pixels, words.
        samples: how many examples were computed, in the unit that the MACs are counted for.
        counts: sums over the batch from which the metrics follow; they add up over batches  # any fixed shape
    """

    loss: Tensor
    weight: int | Tensor
    samples: int
    counts: Tensor


class Task(Protocol):
    """Loss and metrics of a kind of problem. The first metric is the one that tables show.

    What its examples are called, such as ``"images"``, may stand in an attribute `unit`.
    """

    @property
    def name(self) -> str:
        """Such as ``"classification"``."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What networks are judged by, the most telling first."""
        ...

    def begin(self, training: bool) -> None:
        """A new pass over training or evaluation data begins: whatever was carried over from batch to batch is void."""
        ...

    def batch(self, model: nn.Module, inputs: Tensor, targets: Tensor, training: bool) -> BatchResult:
        """Run the model on a batch, under the loop's autocast; without gradients if not `training`."""
        ...

    def results(self, loss: float, counts: Tensor, /) -> dict[str, float]:
        """Every metric by name, from the mean loss and the summed counts of a pass."""
        ...


@runtime_checkable
class StreamTask(Task, Protocol):
    """A task that hands a recurrent state on from batch to batch."""

    state: Any
    """Between two batches, what the model returned last, detached; None at the beginning of a pass. A method that
    restructures between steps resizes it."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and top-1 accuracy of logits (batch, classes) against labels (batch,).

    Attributes:
        label_smoothing: of the training loss, in [0, 1).

    Example:
        >>> labels = torch.tensor([0, 1, 1])
        >>> result = Classification().batch(nn.Identity(), torch.eye(3), labels, training=False)
        >>> Classification().results(float(result.loss), result.counts)
        {'accuracy': 0.6666666666666666}
    """

    label_smoothing: float = 0.0
    name = "classification"
    unit = "images"
    metrics = (Metric("accuracy", "acc %", scale=100.0, unit=" %"),)

    def begin(self, training: bool) -> None:
        """Nothing is carried over."""

    def batch(self, model: nn.Module, inputs: Tensor, targets: Tensor, training: bool) -> BatchResult:
        """Images (batch, ...) to loss and hits."""
        outputs = model(inputs)
        if training:
            loss = F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        else:
            loss = F.cross_entropy(outputs.float(), targets)
        hits = (outputs.detach().argmax(1) == targets).sum()
        size = targets.shape[0]
        return BatchResult(loss, size, size, torch.stack([hits, torch.full_like(hits, size)]))

    def results(self, _loss: float, counts: Tensor, /) -> dict[str, float]:
        """Hits over labels."""
        hits, labels = counts.tolist()
        return {"accuracy": hits / max(1, labels)}


def task_facts(task: Task) -> dict[str, Any]:
    """A task as plain containers, for config.json and whoever reads it."""
    return {"name": task.name, "metrics": [asdict(metric) for metric in task.metrics]}


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as history and summary name them."""
    return {f"{prefix}_{name}": value for name, value in values.items()}
