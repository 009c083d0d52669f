"""A training run on paper: what each epoch costs in arithmetic, memory, communication and, if measured, time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from apical._checks import check
from apical.errors import ConfigError

STEP_FACTOR = 3  # a training step is counted as three forward passes


@dataclass(frozen=True)
class NetworkCost:
    """One network of a growth run.

    Attributes:
        macs: multiply-adds of a forward pass on one example.
        num_params: parameters.
        activation_bytes: what a training step on one example keeps for its backward pass; 0 if not known.
        whole_params: of a divided model, the parameters that a process holds whole at a time within a step.
    """

    macs: int
    num_params: int
    activation_bytes: int
    whole_params: int = 0


@dataclass(frozen=True)
class DeviceTable:
    """How fast a device trains a model at several sizes, as measured.

    Attributes:
        device: in words.
        model: whose steps were measured; times of another model are another table.
        batch_size: examples a step, in one process.
        points: (macs of a forward pass on one example, seconds of a training step), by rising macs.
        allreduce_gb_per_s: what each process sends and receives when gradients are averaged; None if not measured.
    """

    device: str
    model: str
    batch_size: int
    points: tuple[tuple[float, float], ...]
    allreduce_gb_per_s: float | None = None

    def __post_init__(self) -> None:
        numbers = [value for point in self.points for value in point]
        rules = {
            f"batch_size={self.batch_size}, expected at least 1": self.batch_size >= 1,
            f"{len(self.points)} points, expected at least 2": len(self.points) >= 2,
            "macs and seconds must be positive and finite": all(0 < v < math.inf for v in numbers),
            "macs must rise from point to point": all(a[0] < b[0] for a, b in pairwise(self.points)),
            f"allreduce_gb_per_s={self.allreduce_gb_per_s}, expected a positive number": self.allreduce_gb_per_s is None
            or 0 < self.allreduce_gb_per_s < math.inf,
        }
        check("device table", rules)

    def step_seconds(self, macs: float) -> float:
        """Seconds of a step of a network: linear between the points, and on their outermost lines beyond them.

        Example:
            >>> table = DeviceTable("d", "m", 8, ((1e6, 0.01), (3e6, 0.02)))
            >>> round(table.step_seconds(2e6), 3), round(table.step_seconds(5e6), 3)
            (0.015, 0.03)
        """
        inner = [i for i in range(1, len(self.points) - 1) if self.points[i][0] < macs]
        (x0, y0), (x1, y1) = self.points[len(inner)], self.points[len(inner) + 1]
        return max(0.0, y0 + (y1 - y0) * (macs - x0) / (x1 - x0))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Any) -> DeviceTable:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: it is no such table.
        """
        expected = '{"device": ..., "model": ..., "batch_size": ..., "points": [[macs, seconds], ...]}'
        try:
            points = tuple((float(macs), float(seconds)) for macs, seconds in data["points"])
            rate = data.get("allreduce_gb_per_s")
            return DeviceTable(
                str(data["device"]), str(data["model"]), int(data["batch_size"]), points,
                None if rate is None else float(rate),
            )  # fmt: skip
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"this is no device table ({error!r}); expected {expected}") from error


@dataclass(frozen=True)
class Setting:
    """How the run is done.

    Attributes:
        samples: training examples of an epoch.
        batch_size: examples a step, in all processes together.
        processes: how many.
        optimizer_slots: numbers that the optimizer keeps for each parameter: 1 for momentum, 2 for Adam.
        copies: further copies of the weights, such as a moving average.
        dormant_bytes: of the store of absent weights.
        sharded: whether the model is divided among the processes (``fully_shard``), not copied to each.
    """

    samples: int
    batch_size: int
    processes: int = 1
    optimizer_slots: int = 1
    copies: int = 0
    dormant_bytes: int = 0
    sharded: bool = False


def allreduce_bytes(num_params: int, processes: int) -> int:
    """Bytes that each process sends a step for averaging float32 gradients in a ring.

        4 · 2 (n − 1) / n · num_params

    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009.

    Example:
        >>> allreduce_bytes(1_000_000, 4)
        6000000
    """
    return round(4 * 2 * (processes - 1) / processes * num_params)


def sharded_bytes(num_params: int, processes: int) -> int:
    """Bytes that each process sends a step where each holds a part: weights twice, float32 gradients once.

        4 · 3 (n − 1) / n · num_params

    Source: Rajbhandari et al., ZeRO: memory optimizations toward training trillion parameter models, 2020.

    Example:
        >>> sharded_bytes(1_000_000, 4)
        9000000
    """
    return round(4 * 3 * (processes - 1) / processes * num_params)


def memory_bytes(cost: NetworkCost, setting: Setting) -> int:
    """Bytes of a process' weights, gradients, optimizer state, copies, activations and dormant weights (float32).

    Where the model is sharded, a process holds its part of them, and the layers that are at work whole.
    """
    held = 4 * cost.num_params * (2 + setting.optimizer_slots + setting.copies) + setting.dormant_bytes
    if setting.sharded:
        held = -(-held // setting.processes) + 4 * cost.whole_params
    share = -(-setting.batch_size // setting.processes)
    return held + cost.activation_bytes * share


def project(
    networks: Sequence[NetworkCost], setting: Setting, table: DeviceTable | None = None
) -> list[dict[str, Any]]:
    """What each epoch of a run costs.

    Args:
        networks: the network of each epoch.
        setting: how the run is done.
        table: measured step times; without it, seconds are None.

    Returns:
        A record per epoch: `epoch` (from 1), `macs`, `num_params`, `train_macs`, `memory_bytes`, `sent_bytes_per_step`,
        `step_seconds`, `communication_seconds` (not hidden behind the backward pass: an upper bound), and `seconds`
        of the epoch's steps.

    Raises:
        ConfigError: the table's batch is not what a process takes of a batch here.

    Example:
        >>> dense = NetworkCost(2_000_000, 1000, 0)
        >>> table = DeviceTable("d", "m", 8, ((1e6, 0.01), (3e6, 0.02)))
        >>> project([dense], Setting(samples=80, batch_size=8), table)[0]["seconds"]
        0.15
    """
    share = -(-setting.batch_size // setting.processes)
    if table is not None and table.batch_size != share:
        raise ConfigError(
            f"the device table was measured with {table.batch_size} examples a step, a process takes {share} of a "
            f"batch of {setting.batch_size} here; measure it with that batch"
        )
    steps = max(1, setting.samples // setting.batch_size)
    records = []
    for epoch, cost in enumerate(networks, 1):
        sent = (sharded_bytes if setting.sharded else allreduce_bytes)(cost.num_params, setting.processes)
        step = None if table is None else table.step_seconds(cost.macs)
        speak = None if table is None or table.allreduce_gb_per_s is None else sent / (1e9 * table.allreduce_gb_per_s)
        records.append(
            {
                "epoch": epoch,
                "macs": cost.macs,
                "num_params": cost.num_params,
                "train_macs": STEP_FACTOR * cost.macs * setting.samples,
                "memory_bytes": memory_bytes(cost, setting),
                "sent_bytes_per_step": sent,
                "step_seconds": step,
                "communication_seconds": speak,
                "seconds": None if step is None else steps * (step + (speak or 0.0)),
            }
        )
    return records


def totals(records: Sequence[Mapping[str, Any]], dense: Mapping[str, Any]) -> dict[str, Any]:
    """Sums over the epochs, and as fractions of the whole model's for as many epochs."""
    epochs = len(records)
    known = dense["seconds"] is not None
    seconds = sum(r["seconds"] for r in records) if known else None
    return {
        "train_macs": sum(r["train_macs"] for r in records),
        "train_macs_fraction": sum(r["train_macs"] for r in records) / (epochs * dense["train_macs"]),
        "peak_memory_bytes": max(r["memory_bytes"] for r in records),
        "dense_memory_bytes": dense["memory_bytes"],
        "sent_fraction": sum(r["num_params"] for r in records) / (epochs * dense["num_params"]),
        "seconds": seconds,
        "dense_seconds": epochs * dense["seconds"] if known else None,
        "seconds_fraction": None if seconds is None else seconds / (epochs * dense["seconds"]),
    }
