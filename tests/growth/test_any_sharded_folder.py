"""Any damage to a folder of `save_sharded`: the project's own error, or a Grower that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.errors import ApicalError
from apical.growth import load_sharded, save_sharded
from data.test_any_damage import DAMAGES, damage
from growth.sharding_cases import EPOCHS, made, train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What one process saved that divides its model among itself."""
    folder = tmp_path_factory.mktemp("sharded") / "checkpoint"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, optimizer, grower = made("whole")
        train(model, optimizer, grower, range(2))
        save_sharded(folder, grower, optimizer)
        yield folder
    finally:
        dist.destroy_process_group()


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(phases=[Phase.explicit, Phase.generate])
@given(
    damages=st.lists(
        st.tuples(st.sampled_from(DAMAGES), st.integers(0, 999), st.floats(0, 1), st.integers(0, 9999)),
        min_size=1, max_size=3,
    ),
    sums=st.booleans(),
)  # fmt: skip
def test_any_damage_to_a_sharded_folder(saved: Path, tmp_path: Path, damages: list[Any], sums: bool) -> None:
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    if not sums:  # as before there were any
        (folder / "checksums.json").unlink()
    for one in damages:
        damage(folder, *one)
    model, optimizer, grower = made("whole")
    with suppress(ApicalError):
        load_sharded(folder, grower, optimizer)
        train(model, optimizer, grower, range(2, EPOCHS))
