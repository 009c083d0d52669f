"""What tests of resizing share."""

from __future__ import annotations

import pytest

from apical import Structure
from structure.nets import tiny_structure


@pytest.fixture
def structure() -> Structure:
    """That of `tiny_resnet`, unless a module has one of its own."""
    return tiny_structure()
