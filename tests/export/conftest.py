"""A saved folder, and a copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import apical
from export.folders import small_resnet


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    apical.save(small_resnet(), folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "folder"))
