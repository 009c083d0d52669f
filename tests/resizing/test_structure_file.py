"""A structure that was saved spares the trace; one of another model is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import apical
from apical.baselines import Comparator, Dense
from apical.errors import ApicalError, LoadError, ResizeError, SaveError
from apical.resizing._structure_file import _digest
from data.test_any_damage import DAMAGES, damage
from export.test_folder_fuzz import mutations
from resizing.reference import assert_unchanged, snapshot
from structure.nets import LanguageModel, Residual, image, tiny_resnet, tiny_structure, tokens


class Heads(nn.Module):
    """The same weights for any number of heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, self.heads, 8 // self.heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, apical.Structure]:
    file = tmp_path_factory.mktemp("structure") / "structure.json"
    structure = tiny_structure()
    apical.save_structure(structure, file)
    return file, structure


def test_growth_with_a_saved_structure_is_growth_with_a_trace(saved: tuple[Path, apical.Structure]) -> None:
    widths = []
    for known in (True, False):
        torch.manual_seed(0)
        model = tiny_resnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        structure = apical.load_structure(saved[0], model) if known else None
        grower = apical.Grower(model, optimizer, image(), "50% macs", epochs=2, structure=structure)
        widths.append([tuple(p.shape) for p in model.parameters()])
        assert grower.structure == saved[1]
    assert widths[0] == widths[1]


def test_state_and_shared_weights_come_back(tmp_path: Path) -> None:
    model = LanguageModel(tied=True)
    structure = apical.trace(model, tokens(), state_outputs=(1,))
    apical.save_structure(structure, tmp_path / "a.json")
    assert apical.load_structure(tmp_path / "a.json", model) == structure


def test_the_parameter_that_does_not_fit_is_named(saved: tuple[Path, apical.Structure]) -> None:
    wider = tiny_resnet()
    wider[1].conv1.weight = nn.Parameter(torch.zeros(9, *wider[1].conv1.weight.shape[1:]))
    expected = tuple(tiny_resnet()[1].conv1.weight.shape)
    with pytest.raises(LoadError, match="another model") as refused:
        apical.load_structure(saved[0], wider)
    assert f"1.conv1.weight has shape (9, {expected[1]}, 3, 3), expected {expected}" in str(refused.value)
    with pytest.raises(LoadError, match="is missing"):
        apical.load_structure(saved[0], nn.Linear(3, 2))
    more = tiny_resnet()
    more[1].extra = nn.Linear(2, 2)
    with pytest.raises(LoadError, match=r"1\.extra\.weight is new"):
        apical.load_structure(saved[0], more)


def test_a_model_that_has_shrunk_is_refused(saved: tuple[Path, apical.Structure]) -> None:
    small = tiny_resnet()
    apical.resize_(small, saved[1], {"1.conv1": [0]})
    with pytest.raises(LoadError, match=r"1\.conv1\.weight has shape \(1, "):
        apical.load_structure(saved[0], small)


def test_other_heads_of_the_same_weights_are_refused(tmp_path: Path) -> None:
    model = Heads(4)
    apical.save_structure(apical.trace(model, torch.randn(2, 5, 8)), tmp_path / "a.json")
    assert apical.load_structure(tmp_path / "a.json", Heads(4)).groups[0].size == 4
    with pytest.raises(LoadError, match="heads is 2, expected 4"):
        apical.load_structure(tmp_path / "a.json", Heads(2))


def test_damage_is_told_from_other_files(saved: tuple[Path, apical.Structure], tmp_path: Path) -> None:
    file, model = tmp_path / "b.json", tiny_resnet()
    whole = saved[0].read_text()
    with pytest.raises(LoadError, match="does not exist"):
        apical.load_structure(file, model)
    for text, message in [
        (whole[:200], "cannot be read as JSON"),
        ("[1]", "holds no object"),
        ("{}", 'no "format"'),
        (whole.replace('"version":1', '"version":7'), "version 7"),
        (whole.replace('"size":', '"size":1', 1), "damaged"),
    ]:
        file.write_text(text)
        with pytest.raises(LoadError, match=message):
            apical.load_structure(file, model)


def test_a_forged_file_cannot_point_outside(saved: tuple[Path, apical.Structure], tmp_path: Path) -> None:
    file, model = tmp_path / "c.json", tiny_resnet()
    whole = json.loads(saved[0].read_text())

    def refused(change: str, value: object, match: str) -> None:
        data = copy.deepcopy(whole)
        place = data["structure"]
        *way, last = change.split("/")
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value
        file.write_text(json.dumps({**data, "sha256": _digest(data["structure"])}))
        with pytest.raises(LoadError, match=match):
            apical.load_structure(file, model)

    refused("groups/0/members/0/positions/0/0", 10**6, "contradicts itself")
    refused("groups/0/members/0/tensor", "nothing.weight", "contradicts itself")
    refused("groups/0/members/0/positions/0", [0, 1], "contradicts itself")
    refused("groups/0/members/0/positions/0/0", 1, "has positions that other units have")
    refused("terms/0/coefficient", 10**30, r"terms\[0\]\.coefficient: expected a whole number, got .* 100 bits")
    refused("terms/0/coefficient", -(10**12), "contradicts itself: it has -.* multiply-adds")
    refused("attributes/0/attribute", 0.5, r"attributes\[0\]\.attribute: expected text, got 0\.5")
    refused("terms/0/axes/0/base", float("nan"), r"base: expected a whole number, got nan")
    refused("terms/0/modules/0", 3, r"terms\[0\]\.modules: expected names .*, got \(3,")
    refused("tensors/1.conv1.weight/shape/0", {"a": 1}, r"'1\.conv1\.weight'\]\.shape: expected whole numbers")
    refused("attributes/0/axis/counts", [[99, 1]], "follows a group that is not one of")
    refused("attributes/0/attribute", "training", "is True, expected")
    refused("blocks/0/name", "nowhere", "no module nowhere")
    refused("blocks/0/gate_site/0", "nothing.weight", "the gate nothing.weight of block .* is not there")
    refused("groups", None, "damaged")


def test_a_forged_group_that_lacks_a_tensor_is_refused_before_anything_changes(
    saved: tuple[Path, apical.Structure], tmp_path: Path
) -> None:
    """Its names and shapes fit; that the smaller model does not run is seen in a run only."""
    data = json.loads(saved[0].read_text())
    for group in data["structure"]["groups"]:
        group["members"] = [m for m in group["members"] if not m["tensor"].endswith("running_mean")]
    file = tmp_path / "d.json"
    file.write_text(json.dumps({**data, "sha256": _digest(data["structure"])}))
    model = tiny_resnet()
    structure = apical.load_structure(file, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ResizeError, match=r"is not one of this .*the forward pass fails: .*running_"):
        apical.Grower(model, optimizer, image(), "50% macs", epochs=2, structure=structure)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def use(file: Path) -> None:
    """Load a structure and grow by it; whatever is refused leaves the model as it was."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    try:
        structure = apical.load_structure(file, model)
        grower = apical.Grower(model, optimizer, torch.zeros(2, 3, 4, 4), "50% macs", epochs=2, structure=structure)
    except ApicalError:
        assert_unchanged(before, snapshot(model))
        return
    model(torch.zeros(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    with suppress(ApicalError):
        grower.end_epoch()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 8, 6), nn.Flatten(),
                         nn.Linear(128, 3))  # fmt: skip


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("small") / "structure.json"
    apical.save_structure(apical.trace(small(), torch.zeros(2, 3, 4, 4)), file)
    use(file)
    return file


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(phases=[Phase.explicit, Phase.generate])
@given(mutate=mutations(), signed=st.sampled_from([True, True, True, False]))
def test_any_edit_of_a_structure(small_file: Path, tmp_path: Path, mutate: Callable[[Any], None], signed: bool) -> None:
    data = json.loads(small_file.read_text())
    mutate(data["structure"] if signed else data)
    if signed:
        data["sha256"] = _digest(data["structure"])
    (tmp_path / "structure.json").write_text(json.dumps(data))
    use(tmp_path / "structure.json")


@pytest.mark.attack
@settings(phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.tuples(st.sampled_from(DAMAGES), st.just(0), st.floats(0, 1), st.integers(0, 9999)), min_size=1))
def test_any_damage_to_a_structure(small_file: Path, tmp_path: Path, damages: list[Any]) -> None:
    shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    shutil.copytree(small_file.parent, tmp_path / "damaged")
    for one in damages:
        damage(tmp_path / "damaged", *one)
    use(tmp_path / "damaged" / small_file.name)


class Helped(nn.Module):
    """Reads a head of its own in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.aux = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        return self.last(y) + self.aux(y) if self.training else self.last(y)


@pytest.mark.parametrize("way", ["grower", "comparator"])
def test_a_structure_that_lacks_what_only_training_reads_is_refused(way: str) -> None:
    model = Helped()
    structure = apical.trace(model, torch.zeros(2, 4))
    (group,) = structure.groups
    lacking = replace(group, members=tuple(m for m in group.members if m.tensor != "aux.weight"))
    structure = replace(structure, groups=(lacking,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = (model, optimizer, torch.zeros(2, 4), "50% macs", 2)
    begin = apical.Grower if way == "grower" else partial(Comparator, Dense())
    with pytest.raises(ResizeError, match=r"is not one of this Helped: .*the forward pass fails"):
        begin(*arguments, structure=structure)


def test_a_comparator_refuses_the_structure_of_another_size() -> None:
    small, large = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3)) for n in (32, 64))
    structure = apical.trace(small, torch.zeros(2, 4))
    with pytest.raises(ResizeError, match="the model does not fit the structure"):
        Comparator(Dense(), large, None, torch.zeros(2, 4), "50% macs", epochs=2, structure=structure)


def test_a_disk_that_refuses_leaves_the_older_file(saved: tuple[Path, apical.Structure], tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="cannot write"):
        apical.save_structure(saved[1], tmp_path / "no" / "folder.json")
    apical.save_structure(saved[1], tmp_path / "a.json")
    apical.save_structure(saved[1], tmp_path / "a.json")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
