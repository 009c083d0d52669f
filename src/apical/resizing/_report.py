"""What a resize changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorChange:
    """A parameter or buffer whose shape changed."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class ResizeReport:
    """What `resize_` did.

    Attributes:
        changed: tensors that were replaced.
        dropped: blocks that were replaced by ``nn.Identity``.
        restored: blocks that were put back.
        attributes: module attributes that were set, as ``"path.attribute": value``.
        reset: optimizer state that could not be carried and was dropped, as asked for.
        sizes: units of each group that are present now.
        seconds: wall time of the resize.
    """

    changed: tuple[TensorChange, ...]
    dropped: tuple[str, ...]
    restored: tuple[str, ...]
    attributes: Mapping[str, int]
    reset: tuple[str, ...]
    sizes: Mapping[str, int]
    seconds: float

    def __repr__(self) -> str:
        return f"<ResizeReport: {self}>"

    def __str__(self) -> str:
        parts = [f"{len(self.changed)} tensors changed"]
        parts += [f"dropped {', '.join(self.dropped)}"] if self.dropped else []
        parts += [f"restored {', '.join(self.restored)}"] if self.restored else []
        parts += [f"optimizer state reset for {', '.join(self.reset)}"] if self.reset else []
        return f"{'; '.join(parts)} ({1000 * self.seconds:.0f} ms)"
