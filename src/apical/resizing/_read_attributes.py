"""Which attributes a forward pass reads: a size that nothing reads cannot be what keeps a group from shrinking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from apical.resizing._copying import sharing_copy
from apical.resizing._testbed import Example


class ReadAttributes:
    """The attributes that a module's code reads in one call of the model.

    Args:
        model: any module; it is not changed.
        example: a call of it.

    Example:
        >>> import torch
        >>> net = torch.nn.Flatten()
        >>> net.unused = 4
        >>> read = ReadAttributes(net, Example((torch.zeros(1, 2),), {}))
        >>> ("", "start_dim") in read, ("", "unused") in read
        (True, False)
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        twin = sharing_copy(model)
        self._read: dict[str, set[str]] = {path: set() for path, _ in model.named_modules()}
        self._untold: set[str] = set()
        for path, module in twin.named_modules():
            try:
                module.__class__ = _telling(type(module), self._read[path].add)
            except Exception:  # noqa: BLE001 (a class that allows no subclass, whatever it raises)
                self._untold.add(path)
        try:
            example.run(twin)
        except Exception:  # noqa: BLE001 (code that asks for its class, whatever it raises)
            self._untold.update(self._read)

    def __contains__(self, attribute: tuple[str, str]) -> bool:
        """Whether the module at a path may have read this attribute, or something in it (``config.width``)."""
        path, name = attribute
        return path in self._untold or name.partition(".")[0] in self._read[path]


def _telling(kind: type, note: Callable[[str], None]) -> type:
    """A subclass that hands on the name of each attribute that is read."""
    plain: Any = kind.__getattribute__

    def read(self: Any, name: str) -> Any:
        note(name)
        return plain(self, name)

    return type(kind)(kind.__name__, (kind,), {"__module__": kind.__module__, "__getattribute__": read})
