"""A training run on paper: what each epoch costs in arithmetic, memory, communication and, if measured, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apical.budget import DeviceTable
from apical.errors import ConfigError
from apical.training._results import epoch_train_macs


@dataclass(frozen=True)
class Conditions:
    """How the run is done."""

    samples: int  # training examples of an epoch
    batch_size: int  # examples a step, in all processes together
    processes: int = 1  # how many
    numbers: int = 3  # float32 numbers held for each parameter: itself, gradient, optimizer's, copies
    sharded: bool = False  # whether the model is divided among the processes (``fully_shard``), not copied to each
    table: DeviceTable | None = None  # measured step times; without it, seconds are None

    def __post_init__(self) -> None:
        if self.table is not None and self.table.batch_size != self.share:
            raise ConfigError(
                f"the device table was measured with {self.table.batch_size} examples a step, a process takes "
                f"{self.share} of a batch of {self.batch_size} here; measure it with that batch"
            )

    @property
    def share(self) -> int:
        """Examples of a step that a process takes."""
        return -(-self.batch_size // self.processes)

    def sent_bytes(self, num_params: int) -> int:
        """Bytes that each process sends a step, to the others in a ring (float32).

        Gradients are averaged, which takes 2 (n − 1) / n numbers a parameter (Patarasuk and Yuan, Bandwidth optimal
        all-reduce algorithms, 2009). Where each holds a part, weights go round twice and gradients once, 3 (n − 1) / n
        (Rajbhandari et al., ZeRO: memory optimizations toward training trillion parameter models, 2020).

        Example:
            >>> [Conditions(64, 16, 4, sharded=sharded).sent_bytes(1_000_000) for sharded in (False, True)]
            [6000000, 9000000]
        """
        rounds = 3 if self.sharded else 2
        return round(4 * rounds * (self.processes - 1) / self.processes * num_params)

    def held_bytes(self, num_params: int, dormant: int, at_work: int) -> int:
        """Bytes of a process without activations; of a divided model its part, and whole the layers at work."""
        held = 4 * (num_params * self.numbers + dormant)
        return -(-held // self.processes) + 4 * at_work if self.sharded else held

    def record(
        self, epoch: int, macs: int, num_params: int, *, activations: int, dormant: int, at_work: int
    ) -> dict[str, Any]:
        """What an epoch costs.

        Communication is not hidden behind the backward pass: an upper bound.

        Args:
            epoch: from 1.
            macs: multiply-adds of a forward pass on one example.
            num_params: parameters.
            activations: bytes that a training step on one example keeps for its backward pass; 0 if not known.
            dormant: numbers in the store of absent weights.
            at_work: of a divided model, the parameters that a process holds whole at a time within a step.
        """
        sent, table = self.sent_bytes(num_params), self.table
        step = None if table is None else table.step_seconds(macs)
        speak = None if table is None or table.allreduce_gb_per_s is None else sent / (1e9 * table.allreduce_gb_per_s)
        steps = max(1, self.samples // self.batch_size)
        return {
            "epoch": epoch,
            "macs": macs,
            "num_params": num_params,
            "train_macs": epoch_train_macs(macs, self.samples),
            "memory_bytes": self.held_bytes(num_params, dormant, at_work) + activations * self.share,
            "sent_bytes_per_step": sent,
            "step_seconds": step,
            "communication_seconds": speak,
            "seconds": None if step is None else steps * (step + (speak or 0.0)),
        }


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
