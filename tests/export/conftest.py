"""A saved folder, and a copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import apical
from apical.quantize import QuantizedTensor
from export.folders import small_resnet


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    apical.save(small_resnet(), folder)
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are saved as whole numbers of a few bits."""
    folder, model = tmp_path_factory.mktemp("packed"), small_resnet()
    quantized = {"0.0.weight": QuantizedTensor(3, 0.5), "1.conv1.weight": QuantizedTensor(5, 0.25)}
    with torch.no_grad():
        for name, q in quantized.items():
            weight = model.get_parameter(name)
            weight.copy_(torch.arange(weight.numel()).view_as(weight) % 3 * q.scale - q.scale)
    apical.save(model, folder, quantized=quantized)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "folder"))
