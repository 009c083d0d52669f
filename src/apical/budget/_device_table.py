"""Measured times of training steps, by size of the network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from apical._checks import check
from apical.errors import ConfigError


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
