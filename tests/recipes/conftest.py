"""Runs are tested here, not tracing."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _traced_once(traced_once: None) -> None:
    pass
