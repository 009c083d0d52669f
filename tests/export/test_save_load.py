"""Exact round trips through saved folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import apical
from apical.errors import LoadError, ResizeError, SaveError, TraceError
from export.folders import ARCHITECTURE, NETS, WEIGHTS, assert_same_model, compact, fresh
from marks import quick
from resizing.reference import assert_unchanged, snapshot
from structure.nets import Net, image, tiny_resnet, vectors


@pytest.mark.parametrize("seed", quick(range(3), [0]))
@pytest.mark.parametrize("name", NETS)
def test_round_trip(tmp_path: Path, name: str, seed: int) -> None:
    model, inputs = compact(name, seed)
    assert apical.save(model, tmp_path / "compact") == tmp_path / "compact"
    assert sorted(p.name for p in (tmp_path / "compact").iterdir()) == [ARCHITECTURE, WEIGHTS]
    loaded = fresh(name)
    assert apical.load(loaded, tmp_path / "compact") is loaded
    assert_same_model(loaded, model, inputs)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("skip", [("1",), ("2",), ("1", "2"), ()])
def test_a_weight_shared_with_a_dropped_block(tmp_path: Path, skip: tuple[str, ...]) -> None:
    model, inputs = compact("sharing", 1, skip)
    apical.save(model, tmp_path)
    loaded = apical.load(fresh("sharing"), tmp_path)
    assert_same_model(loaded, model, inputs)
    if not skip:
        assert loaded[1].conv1.weight is loaded[2].conv1.weight


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, _ = compact("tied")
    apical.save(model, tmp_path)
    loaded = apical.load(fresh("tied"), tmp_path)
    assert loaded.decoder.weight is loaded.embedding.weight
    assert len(load_file(tmp_path / WEIGHTS)) == len(list(model.parameters()))


def test_a_full_size_model_round_trips(tmp_path: Path) -> None:
    model = tiny_resnet()
    apical.save(model, tmp_path)
    assert_same_model(apical.load(fresh("resnet"), tmp_path), model, image())


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for seed in range(3):
        model, inputs = compact("resnet", seed)
        apical.save(model, tmp_path)
        assert_same_model(apical.load(fresh("resnet"), tmp_path), model, inputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == [ARCHITECTURE, WEIGHTS]


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, _ = compact("resnet")
    before = snapshot(model)
    apical.save(model, tmp_path)
    assert_unchanged(before, snapshot(model))


def test_loaded_models_train_and_resize_on(tmp_path: Path) -> None:
    model, inputs = compact("resnet", 1)
    apical.save(model, tmp_path)
    loaded = apical.load(fresh("resnet"), tmp_path)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    before = [p.detach().clone() for p in loaded.parameters()]
    loaded(*inputs).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(loaded.parameters(), before, strict=True))
    structure = apical.trace(loaded, inputs)
    apical.resize_(loaded, structure, {g.name: [0] for g in structure.groups}, optimizer=optimizer)
    loaded(*inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_mode_and_flags_are_the_models_own(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = compact("resnet")
    apical.save(model, tmp_path)
    target = fresh("resnet").to(dtype).eval()
    target[0][0].weight.requires_grad_(False)
    loaded = apical.load(target, tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert not any(m.training for m in loaded.modules())
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["0.0.weight"]
    assert torch.equal(loaded[6].weight, model[6].weight.to(dtype))


def test_models_in_other_dtypes_are_saved_as_they_are(tmp_path: Path) -> None:
    model = compact("resnet")[0].bfloat16()
    apical.save(model, tmp_path)
    assert all(t.dtype in (torch.bfloat16, torch.int64) for t in load_file(tmp_path / WEIGHTS).values())
    assert_same_model(apical.load(fresh("resnet").bfloat16(), tmp_path), model, (image()[0].bfloat16(),))


def test_transposed_and_shared_storage_is_saved_right(tmp_path: Path) -> None:
    """Parameters that are views of one storage, and not contiguous."""
    base = torch.randn(6, 4)
    model = Net(lambda m, x: x @ m.a @ m.b, a=nn.Parameter(base.t()), b=nn.Parameter(base[:, :3]))
    apical.save(model, tmp_path)
    loaded = apical.load(
        Net(lambda m, x: x @ m.a @ m.b, a=nn.Parameter(torch.zeros(4, 6)), b=nn.Parameter(torch.zeros(6, 3))), tmp_path
    )
    assert torch.equal(loaded.a, base.t())
    assert torch.equal(loaded.b, base[:, :3])


def test_a_registered_module_restates_its_attributes_after_loading(tmp_path: Path) -> None:
    class Slots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.slots = nn.Linear(4, 8), nn.Linear(8, 4), 8

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).reshape(-1, self.slots))

    @apical.register_module(Slots)
    def refresh(module: Slots) -> None:
        module.slots = module.up.out_features

    model = nn.Sequential(nn.Linear(4, 4), Slots(), nn.Linear(4, 2))
    structure = apical.trace(model, vectors(2, 4))
    apical.resize_(model, structure, {"1.up": [0, 3]})
    apical.save(model, tmp_path)
    loaded = apical.load(nn.Sequential(nn.Linear(4, 4), Slots(), nn.Linear(4, 2)), tmp_path)
    assert loaded[1].slots == 2
    assert_same_model(loaded, model, vectors(2, 4))


def test_nothing_in_the_folder_is_a_pickle(tmp_path: Path) -> None:
    apical.save(compact("resnet")[0], tmp_path)
    data = json.loads((tmp_path / ARCHITECTURE).read_text())
    assert data["format"] == "apical-architecture"
    header = (tmp_path / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", header[:8])
    assert isinstance(json.loads(header[8 : 8 + length]), dict)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for model in (nn.DataParallel(nn.Linear(2, 2)), nn.Linear(2, 2, device="meta"), torch.compile(nn.Linear(2, 2))):
        with pytest.raises(ResizeError):
            apical.save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        apical.save(nn.Linear(2, 2), tmp_path / "file")


@pytest.mark.parametrize("name", NETS)
def test_loaded_tensors_lie_in_fresh_storage(tmp_path: Path, name: str) -> None:
    """Not as views into the file, at odd addresses that make kernels add in another order."""
    apical.save(compact(name)[0], tmp_path)
    tensors = [t for t in apical.load(fresh(name), tmp_path).state_dict().values() if t.numel()]
    assert {t.data_ptr() % 64 for t in tensors} == {0}
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in tensors)


def test_an_average_is_refused_as_by_trace(tmp_path: Path) -> None:
    model = tiny_resnet()
    average = AveragedModel(model)
    message = "wrapped in AveragedModel: pass its .module"
    with pytest.raises(TraceError, match=message):
        apical.trace(average, image())
    with pytest.raises(ResizeError, match=message):
        apical.save(average, tmp_path)
    assert not list(tmp_path.iterdir())
    apical.save(average.module, tmp_path)
    with pytest.raises(LoadError, match=message):
        apical.load(AveragedModel(tiny_resnet()), tmp_path)
    assert_same_model(apical.load(tiny_resnet(), tmp_path), average.module, image())


@pytest.mark.parametrize("path", [3, None, b"x", []])
def test_what_is_no_path_is_refused_in_words(path: Any) -> None:
    model = tiny_resnet()
    structure = apical.trace(model, image())
    for call, error in (
        (lambda: apical.save(model, path), SaveError),
        (lambda: apical.load(model, path), LoadError),
        (lambda: apical.save_structure(structure, path), SaveError),
        (lambda: apical.load_structure(path, model), LoadError),
    ):
        with pytest.raises(error, match="must be a path, such as 'runs/a', got"):
            call()


def test_names_that_no_folder_can_have_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="null"):
        apical.load(tiny_resnet(), "a\0b")
    with pytest.raises(SaveError, match=r"structure must be the Structure .* got 3"):
        apical.save_structure(3, tmp_path / "a.json")  # type: ignore[arg-type]
