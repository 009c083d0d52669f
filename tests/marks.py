"""Which cases of a table are tried on every change, and which only by `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], is_quick: Callable[[Any], bool] | Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, of which those outside a choice are marked `slow`.

    Args:
        cases: values, or tuples of values.
        is_quick: says of a case whether it stays in the quick tests, or lists those that do.
    """
    chosen = is_quick if callable(is_quick) else list(is_quick).__contains__
    return [case if chosen(case) else slow(*(case if isinstance(case, tuple) else (case,))) for case in cases]


def slow(*values: Any) -> Any:
    """A case that only `make test-all` tries."""
    return pytest.param(*values, marks=pytest.mark.slow)
