"""Every damaged or foreign folder is refused, with the model as it was."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.errors import LoadError
from export.folders import (
    ARCHITECTURE,
    NETS,
    WEIGHTS,
    Build,
    assert_same_model,
    edit,
    edit_weights,
    fresh,
    refused,
    small_resnet,
    structure_of,
)
from structure.nets import LanguageModel, Residual, image, tiny_resnet, unit


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
    refused(folder / WEIGHTS, "expected a folder that apical.save wrote")


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read as JSON"),
    "cut": (b'{"format": "apical-arch', "cannot be read as JSON"),
    "binary": (bytes(range(256)), "cannot be read as JSON"),
    "utf-16": ("{}".encode("utf-16"), 'cannot be read as JSON|"format"'),
    "deeply nested": (b"[" * 100_000, "cannot be read as JSON"),
    "endless number": (b'{"version": ' + b"9" * 10_000 + b"}", "JSON|format"),
    "list": (b"[]", "holds no object"),
    "null": (b"null", "holds no object"),
    "other format": (b'{"format": "onnx", "version": 1}', '"format"'),
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
    refused(folder, "more than the .* that such a file needs")


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, [1]])
def test_other_versions(folder: Path, version: Any) -> None:
    edit(folder, lambda d: d.update(version=version), signed=True)
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


# What fits the model in every respect that can be checked: only the digest tells.
ONLY_THE_DIGEST = {"removed holds an activation", "norm attributes that contradict"}


@pytest.mark.parametrize("name", EDITS)
def test_edited_architectures(folder: Path, name: str) -> None:
    edit(folder, EDITS[name])
    refused(folder)


@pytest.mark.parametrize("name", sorted(EDITS.keys() - ONLY_THE_DIGEST))
def test_edited_architectures_with_a_right_digest(folder: Path, name: str) -> None:
    """Nothing that could harm is taken over, whoever wrote it."""
    edit(folder, EDITS[name], signed=True)
    refused(folder, r"^(?!.*digest)")


@pytest.mark.parametrize(
    "change", [lambda d: d.pop("sha256"), lambda d: d.update(sha256=3), lambda d: d.update(weights_sha256="0" * 64)]
)
def test_digests_that_are_missing_or_wrong(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder, change)
    refused(folder, "digest")


def test_no_digest_of_the_weights(folder: Path) -> None:
    edit(folder, lambda d: d.pop("weights_sha256"), signed=True)
    refused(folder, "weights_sha256")


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
    build, inputs, _ = NETS[name]
    model, structure = build(), structure_of(name)
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


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", WEIGHT_EDITS)
def test_edited_weights(folder: Path, name: str, signed: bool) -> None:
    edit_weights(folder, WEIGHT_EDITS[name], signed=signed)
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
    model, structure = tiny_resnet(), structure_of("resnet")
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


def test_a_folder_that_hides_its_stand_ins(folder: Path) -> None:
    edit(folder, lambda d: d.update(stand_ins={"3": {"kind": "zeros", "position": 0}}), signed=True)
    refused(folder, "format version 1; this apical reads version 1, 2 where there are stand_ins")


@pytest.mark.parametrize("stand_ins", [[], {"3": 1}, {"3": {}}, {"3": {"kind": "input"}}, {"1": {"kind": "value"}}])
def test_damaged_stand_ins(folder: Path, stand_ins: Any) -> None:
    edit(folder, lambda d: d.update(version=2, stand_ins=stand_ins), signed=True)
    refused(folder, "damaged|where it removes nothing")


def test_packed_weights_do_not_depend_on_the_order_of_an_object(packed: Path, tmp_path: Path) -> None:
    """Which other programs change when they write JSON, and which no digest covers."""
    data = json.loads((packed / ARCHITECTURE).read_text())
    shutil.copy(packed / WEIGHTS, tmp_path / WEIGHTS)
    data["tensors"] = dict(reversed(data["tensors"].items()))
    (tmp_path / ARCHITECTURE).write_text(json.dumps(data))
    whole, other = (apical.load(tiny_resnet(), folder) for folder in (packed, tmp_path))
    assert_same_model(whole, other, image())
    edit(tmp_path, lambda content: content["packed"].pop(), signed=True)
    refused(tmp_path, "packed must name every tensor once")
