"""Saved folders: exact round trips, and every damaged or foreign folder refused with the model as it was."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import apical
from apical.errors import ApicalError, LoadError, ResizeError
from resizing.reference import assert_unchanged, snapshot
from structure.contract import generic_, random_keep, random_skip
from structure.nets import (
    Attention,
    LanguageModel,
    Net,
    Residual,
    SqueezeExcite,
    conv,
    head,
    image,
    recurrent,
    tiny_resnet,
    tokens,
    unit,
    vectors,
)

ARCHITECTURE, WEIGHTS = "architecture.json", "model.safetensors"
Build = Callable[[], nn.Module]


def sharing_blocks() -> nn.Module:
    """Two blocks that share a weight, so that it stays when one of them goes."""
    net = nn.Sequential(unit(3, 8), Residual(8, 8, 6), Residual(8, 8, 6), head(8))
    net[2].conv1.weight = net[1].conv1.weight
    return net


def mobile() -> nn.Module:
    return nn.Sequential(unit(3, 8), unit(8, 8, groups=8), SqueezeExcite(8, 4), conv(8, 12), nn.GroupNorm(4, 12),
                         nn.PReLU(12), nn.ConvTranspose2d(12, 6, 2, 2, groups=2), head(6))  # fmt: skip


NETS: dict[str, tuple[Build, tuple[Any, ...], tuple[int, ...]]] = {
    "resnet": (tiny_resnet, image(), ()),
    "mobile": (mobile, image(), ()),
    "sharing": (sharing_blocks, image(), ()),
    "lstm": (lambda: recurrent("LSTM", 2, True), vectors(2, 5, 3), ()),
    "gru": (lambda: recurrent("GRU"), vectors(2, 5, 3), ()),
    "tied": (lambda: LanguageModel(tied=True), tokens(), (1,)),
    "untied": (lambda: LanguageModel(tied=False, layers=2, width=7), tokens(), (1,)),
    "attention": (lambda: nn.Sequential(nn.Linear(3, 8), Attention(8, 4, 3), nn.Linear(8, 2)), vectors(2, 5, 3), ()),
    "no_children": (lambda: nn.Linear(3, 4), vectors(2, 3), ()),
}  # fmt: skip


def compact(name: str, seed: int = 0, skip: tuple[str, ...] | None = None) -> tuple[nn.Module, tuple[Any, ...]]:
    """A shrunk net with generic weights in float32, in training mode."""
    build, inputs, states = NETS[name]
    torch.manual_seed(seed)
    model = build()
    if name != "no_children":
        structure = apical.trace(model, inputs, state_outputs=states)
        skip = random_skip(structure, seed) if skip is None else skip
        apical.resize_(model, structure, random_keep(structure, seed), skip)
    return generic_(model).float().train(), inputs


def fresh(name: str) -> nn.Module:
    torch.manual_seed(99)
    return NETS[name][0]()


def assert_same_model(a: nn.Module, b: nn.Module, inputs: tuple[Any, ...]) -> None:
    assert str(a) == str(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    results = [torch.utils._pytree.tree_leaves(copy.deepcopy(m).eval()(*inputs)) for m in (a, b)]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
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


# ---- damaged and foreign folders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    apical.save(small_resnet(), folder)
    return folder


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = tiny_resnet()
    structure = apical.trace(model, image())
    apical.resize_(model, structure, {"0.0": [1, 2, 5, 7], "1.conv1": [0, 4], "2.conv2": [0, 2, 3, 9]}, ["3"])
    return generic_(model).float()


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "folder"))


def refused(folder: Path, message: str | None = None, model: nn.Module | None = None) -> None:
    model = tiny_resnet() if model is None else model
    before = snapshot(model)
    with pytest.raises(LoadError, match=message) as caught:
        apical.load(model, folder)
    assert isinstance(caught.value, (ApicalError, ValueError))
    assert_unchanged(before, snapshot(model))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / ARCHITECTURE).read_text())
    change(data)
    (folder / ARCHITECTURE).write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_the_folder_of_these_tests_loads(folder: Path) -> None:
    model = apical.load(tiny_resnet(), folder)
    assert type(model[3]) is nn.Identity
    folder.chmod(0o500)
    for file in folder.iterdir():
        file.chmod(0o400)
    apical.load(tiny_resnet(), folder)
    apical.load(tiny_resnet(), str(folder))


MISSING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder": (shutil.rmtree, "does not exist; expected a folder that apical.save wrote"),
    "architecture": (lambda f: (f / ARCHITECTURE).unlink(), r"architecture\.json does not exist"),
    "weights": (lambda f: (f / WEIGHTS).unlink(), r"model\.safetensors does not exist"),
    "architecture is a folder": (
        lambda f: ((f / ARCHITECTURE).unlink(), (f / ARCHITECTURE).mkdir()), "cannot be read"),
    "weights are a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_missing(folder: Path, name: str) -> None:
    change, message = MISSING[name]
    change(folder)
    refused(folder, message)


def test_a_file_instead_of_the_folder(folder: Path) -> None:
    refused(folder / WEIGHTS)


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read as JSON"),
    "cut": (b'{"format": "apical-arch', "cannot be read as JSON"),
    "binary": (bytes(range(256)), "cannot be read as JSON"),
    "utf-16": ("{}".encode("utf-16"), "cannot be read as JSON|not an apical architecture"),
    "deeply nested": (b"[" * 100_000, "cannot be read as JSON"),
    "endless number": (b'{"version": ' + b"9" * 10_000 + b"}", "JSON|architecture"),
    "list": (b"[]", "not an apical architecture"),
    "null": (b"null", "not an apical architecture"),
    "other format": (b'{"format": "onnx", "version": 1}', "not an apical architecture"),
    "only the head": (b'{"format": "apical-architecture", "version": 1}', "damaged"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_architecture(folder: Path, name: str) -> None:
    text, message = TEXTS[name]
    (folder / ARCHITECTURE).write_bytes(text)
    refused(folder, message)


def test_an_architecture_that_is_too_large(folder: Path) -> None:
    with (folder / ARCHITECTURE).open("r+b") as file:
        file.truncate(2**27)  # sparse
    refused(folder, "more than any architecture needs")


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, [1]])
def test_other_versions(folder: Path, version: Any) -> None:
    edit(folder, lambda d: d.update(version=version))
    refused(folder, "format version .*; this apical reads version 1")


W = "1.conv1.weight"
EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no tensors": lambda d: d.pop("tensors"),
    "tensors are a list": lambda d: d.update(tensors=[]),
    "no removed": lambda d: d.pop("removed"),
    "removed is null": lambda d: d.update(removed=None),
    "removed holds a number": lambda d: d["removed"].append(3),
    "removed holds the root": lambda d: d["removed"].append(""),
    "removed holds an unknown module": lambda d: d["removed"].append("1.conv9"),
    "removed holds a module with its tensors": lambda d: d["removed"].append("1"),
    "removed holds an activation": lambda d: d["removed"].append("0.2"),
    "removed forgets a block": lambda d: d["removed"].remove("3"),
    "no aliases": lambda d: d.pop("aliases"),
    "an alias too many": lambda d: d["aliases"].update({"2.conv1.weight": W}),
    "model is a number": lambda d: d.update(model=3),
    "a tensor is missing": lambda d: d["tensors"].pop(W),
    "a tensor too many": lambda d: d["tensors"].update({"7.weight": d["tensors"][W]}),
    "a tensor under another name": lambda d: d["tensors"].update({"1.conv9.weight": d["tensors"].pop(W)}),
    "names swapped": lambda d: d["tensors"].update({W: d["tensors"]["6.weight"], "6.weight": d["tensors"][W]}),
    "a size that is too large": lambda d: d["tensors"][W].update(shape=[7, 4, 3, 3]),
    "a huge size": lambda d: d["tensors"][W].update(shape=[2**39, 4, 3, 3]),
    "an even larger size": lambda d: d["tensors"][W].update(shape=[2**70, 4, 3, 3]),
    "a negative size": lambda d: d["tensors"][W].update(shape=[-1, 4, 3, 3]),
    "a size of zero": lambda d: d["tensors"][W].update(shape=[0, 4, 3, 3]),
    "a smaller size than the weights": lambda d: d["tensors"][W].update(shape=[1, 1, 3, 3]),
    "a fraction": lambda d: d["tensors"][W].update(shape=[2.0, 4, 3, 3]),
    "true as a size": lambda d: d["tensors"][W].update(shape=[True, 4, 3, 3]),
    "another rank": lambda d: d["tensors"][W].update(shape=[2, 4, 9]),
    "a rank of a thousand": lambda d: d["tensors"][W].update(shape=[1] * 1000),
    "a shape in words": lambda d: d["tensors"][W].update(shape="2x4x3x3"),
    "another dtype": lambda d: d["tensors"][W].update(dtype="int8"),
    "an unknown dtype": lambda d: d["tensors"][W].update(dtype="os.system"),
    "a dtype that is none": lambda d: d["tensors"][W].update(dtype=None),
    "a parameter as buffer": lambda d: d["tensors"][W].update(kind="buffer"),
    "a buffer as parameter": lambda d: d["tensors"]["1.bn1.running_mean"].update(kind="parameter"),
    "an unknown kind": lambda d: d["tensors"][W].update(kind="module"),
    "attributes are a list": lambda d: d.update(attributes=[]),
    "attributes of an unknown module": lambda d: d["attributes"].update({"1.conv9": {"groups": 1}}),
    "an attribute that the module does not have": lambda d: d["attributes"]["1.conv1"].update(hidden_size=3),
    "an attribute that is no size": lambda d: d["attributes"]["1.conv1"].update(training=1),
    "a method as attribute": lambda d: d["attributes"]["1.conv1"].update(forward=1),
    "a private attribute": lambda d: d["attributes"]["1.conv1"].update(_parameters=1),
    "an attribute that is too large": lambda d: d["attributes"]["1.conv1"].update(out_channels=100),
    "an attribute of zero": lambda d: d["attributes"]["1.conv1"].update(out_channels=0),
    "a negative attribute": lambda d: d["attributes"]["1.conv1"].update(out_channels=-2),
    "an attribute in words": lambda d: d["attributes"]["1.conv1"].update(out_channels="2"),
    "an attribute that contradicts the weight": lambda d: d["attributes"]["6"].update(in_features=1),
    "a forgotten attribute": lambda d: d["attributes"].pop("6"),
    "norm attributes that contradict": lambda d: d["attributes"]["1.bn1"].update(num_features=1),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_architectures(folder: Path, name: str) -> None:
    edit(folder, EDITS[name])
    refused(folder)


# net, module, attribute, a wrong value that is smaller than the full one
CONTRADICTIONS: list[tuple[str, str, str, int]] = [
    ("mobile", "1.0", "groups", 1),
    ("mobile", "4", "num_groups", 1),
    ("mobile", "4", "num_channels", 1),
    ("mobile", "5", "num_parameters", 1),
    ("mobile", "6", "groups", 1),
    ("lstm", "rnn", "hidden_size", 1),
    ("lstm", "rnn", "input_size", 1),
    ("untied", "embedding", "embedding_dim", 1),
    ("attention", "1", "num_heads", 1),
]


@pytest.mark.parametrize(("name", "module", "attribute", "value"), CONTRADICTIONS)
def test_attributes_that_contradict_the_weights(
    tmp_path: Path, name: str, module: str, attribute: str, value: int
) -> None:
    """A wrong number here would change what the model computes, or fail only in the first forward pass."""
    build, inputs, states = NETS[name]
    model = build()
    structure = apical.trace(model, inputs, state_outputs=states)
    apical.resize_(model, structure, {g.name: range(g.size // 2 + 1) for g in structure.groups})
    apical.save(model, tmp_path)
    assert_same_model(apical.load(fresh(name), tmp_path), model, inputs)

    def change(data: dict[str, Any]) -> None:
        assert data["attributes"][module][attribute] > value
        data["attributes"][module][attribute] = value

    edit(tmp_path, change)
    refused(tmp_path, model=fresh(name))


WEIGHT_EDITS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a tensor is missing": lambda t: t.pop(W),
    "a tensor too many": lambda t: t.update(extra=torch.zeros(1)),
    "a tensor under another name": lambda t: t.update({"1.conv9.weight": t.pop(W)}),
    "names swapped": lambda t: t.update({W: t["6.weight"], "6.weight": t[W]}),
    "another shape": lambda t: t.update({W: t[W][:1].clone()}),
    "another dtype": lambda t: t.update({W: t[W].to(torch.int32)}),
    "half the precision": lambda t: t.update({W: t[W].half()}),
    "no tensors": lambda t: t.clear(),
}


@pytest.mark.parametrize("name", WEIGHT_EDITS)
def test_edited_weights(folder: Path, name: str) -> None:
    edit_weights(folder, WEIGHT_EDITS[name])
    refused(folder)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 20, 200, -1, -1000])
def test_truncated_weights(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    refused(folder, "safetensors")


HEADERS: dict[str, bytes] = {
    "zeros": b"\0" * 100,
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "an endless header": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"abcd",
    "a pickle": b"\x80\x04\x95" + b"\0" * 50,
    "an offset outside": struct.pack("<Q", 63) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}',
    "text": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_other_weights(folder: Path, name: str) -> None:
    (folder / WEIGHTS).write_bytes(HEADERS[name])
    refused(folder, "safetensors")


def test_a_flipped_bit_in_the_weights(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 0x10
    (folder / WEIGHTS).write_bytes(data)
    refused(folder)


def test_weights_of_another_save_with_the_same_shapes(folder: Path, tmp_path: Path) -> None:
    """Two folders mixed up: everything fits, and the model would be another one."""
    other = small_resnet()
    with torch.no_grad():
        other[6].bias.add_(1.0)
    apical.save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, folder / WEIGHTS)
    refused(folder)


FOREIGN: dict[str, Build] = {
    "another net": lambda: LanguageModel(tied=False),
    "a narrower net": lambda: nn.Sequential(unit(3, 8), Residual(8, 8, 1), *list(tiny_resnet())[2:]),
    "a net without its last layer": lambda: nn.Sequential(*list(tiny_resnet())[:6]),
    "a net with another head": lambda: nn.Sequential(*list(tiny_resnet())[:6], nn.Linear(12, 4)),
    "a net with more": lambda: nn.Sequential(*tiny_resnet(), nn.Linear(5, 5)),
    "nothing like it": lambda: nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_models_that_the_folder_does_not_belong_to(folder: Path, name: str) -> None:
    refused(folder, "does not fit this", FOREIGN[name]())


def test_untied_weights_into_tied_ones_and_back(tmp_path: Path) -> None:
    for tied in (False, True):
        apical.save(LanguageModel(tied=tied), tmp_path / str(tied))
        refused(tmp_path / str(tied), "does not fit this", LanguageModel(tied=not tied))


def test_a_model_that_was_shrunk_already(folder: Path) -> None:
    """A folder never makes a model larger."""
    model = tiny_resnet()
    structure = apical.trace(model, image())
    apical.resize_(model, structure, {g.name: [0] for g in structure.groups})
    refused(folder, "no part of", model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models(folder: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    refused(folder, "is wrapped in", wrap(tiny_resnet()))


def test_models_on_meta_and_no_models(folder: Path) -> None:
    refused(folder, "meta device", tiny_resnet().to("meta"))
    with pytest.raises(LoadError, match=r"expected a torch\.nn\.Module"):
        apical.load({}, folder)  # type: ignore[type-var]


def test_a_module_that_refuses_half_way(folder: Path) -> None:
    """Something raises while tensors are being installed: everything goes back."""

    class Stubborn(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "bias" and "bias" in vars(self).get("_parameters", {}):
                raise RuntimeError("no")
            super().__setattr__(name, value)

    model = tiny_resnet()
    model[6] = Stubborn(12, 5)
    refused(folder, "model is unchanged", model)


# ---- fuzzing --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["3", W, "groups"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[Any], None]:
    """One to three changes anywhere: another value, a neighbouring number, a deletion, an exchange, a new entry."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["replace", "nudge", "delete", "exchange", "add", "rename"]),
                st.integers(0, 2**30), st.integers(0, 2**30), JSON,
            ),
            min_size=1, max_size=3,
        )
    )  # fmt: skip

    def mutate(tree: Any) -> None:
        for how, one, two, value in steps:
            found = places(tree)
            if not found:
                return
            (box, key), (other, second) = found[one % len(found)], found[two % len(found)]
            if how == "replace":
                box[key] = value
            elif how == "nudge" and isinstance(box[key], int):
                box[key] += two % 5 - 2
            elif how == "delete":
                del box[key]
            elif how == "exchange":
                box[key], other[second] = copy.deepcopy(other[second]), copy.deepcopy(box[key])
            elif how == "add" and isinstance(box, dict):
                box[str(value)[:10]] = value
            elif how == "rename" and isinstance(box, dict):
                box[str(second)] = box.pop(key)

    return mutate


def load_anything(folder: Path, model: nn.Module, intact: nn.Module) -> None:
    """Either the model that was saved comes out, or a `LoadError` and the model as it was."""
    before = snapshot(model)
    try:
        apical.load(model, folder)
    except LoadError:
        assert_unchanged(before, snapshot(model))
    else:
        assert_same_model(model, intact, image())


@settings(max_examples=8 * settings().max_examples)
@given(mutate=mutations())
def test_any_edit_of_the_architecture(original: Path, tmp_path: Path, mutate: Callable[[Any], None]) -> None:
    data = json.loads((original / ARCHITECTURE).read_text())
    intact = apical.load(tiny_resnet(), original)
    mutate(data)
    shutil.copy(original / WEIGHTS, tmp_path / WEIGHTS)
    (tmp_path / ARCHITECTURE).write_text(json.dumps(data))
    load_anything(tmp_path, tiny_resnet(), intact)


@settings(max_examples=4 * settings().max_examples)
@given(
    name=st.sampled_from([ARCHITECTURE, WEIGHTS]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.floats(0.5, 1.2),
)
def test_any_damage_to_the_bytes(
    original: Path, tmp_path: Path, name: str, edits: list[tuple[float, int]], end: float
) -> None:
    intact = apical.load(tiny_resnet(), original)
    for file in (ARCHITECTURE, WEIGHTS):
        shutil.copy(original / file, tmp_path / file)
    data = bytearray((original / name).read_bytes())
    if end < 1.0:
        data = data[: int(end * len(data))]
    for where, value in edits:
        data[min(int(where * len(data)), len(data) - 1)] = value
    (tmp_path / name).write_bytes(data)
    load_anything(tmp_path, tiny_resnet(), intact)
