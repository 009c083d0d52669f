"""A network that `fully_shard` divides among processes grows as it does in one: same widths, weights and moments."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.torch_version import TorchVersion

from apical.errors import CheckpointError, ConfigError
from apical.growth._sharded_checkpoint import _described
from apical.resizing._sharding import Sharding
from fork_server import ForkServer

SERVED = "growth.sharding_cases"


def states(server: ForkServer, folder: Path, function: str, *arguments: Any, count: int) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    ended = server.run(f"{SERVED}:{function}", str(folder), *arguments, count=count, folder=folder)
    assert all(e.code == 0 for e in ended), "\n".join(e.output for e in ended)
    return [torch.load(folder / f"state-{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def alone(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What one process ends with, by its optimizer; trained once."""

    @cache
    def trained(optimizer: str) -> dict[str, Any]:
        (state,) = states(server, tmp_path_factory.mktemp("one"), "run", None, optimizer, count=1)
        return state

    return trained


def assert_as_one(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    for state in together:
        for entry in ("widths", "skipped", "counts"):
            assert state[entry] == alone[entry]
        for kind in ("model", "moments", "store"):
            assert state[kind].keys() == alone[kind].keys()
            for name, tensor in state[kind].items():
                assert torch.allclose(tensor, alone[kind][name], rtol=1e-11, atol=1e-12), (kind, name)
        assert torch.allclose(state["values"], alone["values"], rtol=1e-9, atol=1e-14)
    assert all(state["sharded"] for state in together)
    assert len({str(w) for w in alone["widths"]}) > 3, "the network did change"
    assert len({str(s) for s in alone["skipped"]}) > 1, "blocks, too"


def assert_even(alone: dict[str, Any], together: list[dict[str, Any]], parts: int) -> None:
    """Each process holds its part of the parameters and of what is dormant, and no more."""
    size = sum(p.numel() for p in alone["model"].values())
    rows = sum(p[0].numel() for p in alone["model"].values())
    for state in together:  # at most a row more of each tensor than an even share
        assert state["parts"] <= size / parts + rows
    copies = len(together) // parts
    assert sum(s["parts"] for s in together) == size * copies
    assert sum(s["store_parts"] for s in together) == sum(t.numel() for t in alone["store"].values()) * copies


WAYS = [(3, "each", "AdamW"), (2, "each", "AdamW"), (3, "whole", "SGD"), (4, "pairs", "AdamW")]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "way", "optimizer"), WAYS)
def test_sharded_processes_are_one(
    server: ForkServer, alone: Callable[[str], Any], tmp_path: Path, count: int, way: str, optimizer: str
) -> None:
    """In float64, through births, deaths, and blocks that leave and come back."""
    one = alone(optimizer)
    together = states(server, tmp_path / "many", "run", way, optimizer, count=count)
    assert_as_one(one, together)
    assert_even(one, together, 2 if way == "pairs" else count)


def test_what_is_gathered_is_what_the_paper_says(server: ForkServer, tmp_path: Path) -> None:
    for state in states(server, tmp_path / "counted", "counted", count=2):
        known = [e for e in state["epochs"] if not e["returned"]]  # of a block that never lived there are no moments
        assert [e["counted"] for e in known] == [e["paper"] for e in known]
        assert sum(e["counted"] > 0 for e in known) >= 2
        assert state["held"] == state["dormant"]


@pytest.mark.parametrize(("before", "after"), [(2, 3)])
def test_resumed_by_other_processes(
    server: ForkServer, alone: Callable[[str], Any], tmp_path: Path, before: int, after: int
) -> None:
    """What two processes saved three load; it goes on as one that was never stopped. `finish` makes it plain."""
    folder = tmp_path / "many"
    folder.mkdir()
    ended = server.run(f"{SERVED}:saved", str(folder), "each", count=before, folder=folder)
    assert all(e.code == 0 for e in ended), "\n".join(e.output for e in ended)
    together = states(server, folder, "resumed", "each", count=after)
    assert_as_one(alone("AdamW"), together)
    assert_even(alone("AdamW"), together, after)
    for state in together:
        assert state["plain"].keys() == state["model"].keys()
        assert all(type(t) is torch.Tensor for t in state["plain"].values())
        assert all(torch.equal(t, state["model"][name]) for name, t in state["plain"].items())
        assert state["same"]
        assert not any("FSDP" in kind for kind in state["kinds"])


def test_a_damaged_checkpoint_is_refused_by_all_in_the_same_words(server: ForkServer, tmp_path: Path) -> None:
    one, other = (state["said"] for state in states(server, tmp_path, "damaged", count=2))
    assert one == other
    assert one.pop("untouched") == "loaded"
    assert "cannot be read" in one.pop("old and cut"), "from before there were checksums"
    for kind, text in one.items():
        assert "__0_0.distcp" in text or "__1_0.distcp" in text, (kind, text)
        assert "holds no checkpoint of save_sharded" in text


def test_what_is_refused(server: ForkServer, tmp_path: Path) -> None:
    for state in states(server, tmp_path, "refused", count=2):
        sharded, again, nothing, half, copies, missing = state["said"]
        assert "shard=fully_shard" in sharded
        assert "shard=fully_shard" in again
        assert "did not shard anything" in nothing
        assert "shard failed (RuntimeError: half of it is sharded)" in half
        assert "copies" in copies
        assert "no checkpoint" in missing


def test_an_old_torch_cannot_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    with pytest.raises(ConfigError, match="needs PyTorch 2"):
        Sharding(lambda model: None)


class ByName:
    """Pickled as enumerations are by some releases of Python 3.11: by ``getattr``."""

    def __init__(self, owner: Any, name: str) -> None:
        self.found = owner, name

    def __reduce__(self) -> Any:
        return getattr, self.found


def test_members_of_enumerations_are_read_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    def described(rest: Any) -> Any:
        (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata({}, storage_data=rest)))
        return _described(tmp_path)

    assert described(ByName(_MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT")) == {}
    for owner, name in ((_MEM_FORMAT_ENCODING, "__class__"), (torch.Size, "numel")):
        with pytest.raises(CheckpointError, match=f"it asks for '{name}'"):
            described(ByName(owner, name))
