"""The folder of a saved model: what `architecture.json` says, and reading it without trusting it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from apical._reading import read_record
from apical.errors import LoadError
from apical.resizing._stand_in import StandIn
from apical.structure import Returned
from apical.structure._sizes import stated_sizes

ARCHITECTURE = "architecture.json"
WEIGHTS = "model.safetensors"
FORMAT = "apical-architecture"
VERSION = 1
VERSION_WITH_STAND_INS = 2  # which a reader that does not know them refuses
VERSION_PACKED = 3  # likewise; with or without stand-ins
MAX_JSON_BYTES = 64 * 2**20
MAX_RANK = 8


@dataclass(frozen=True)
class SavedTensor:
    """Shape, type and kind of one saved parameter or buffer."""

    shape: tuple[int, ...]
    dtype: str
    kind: str  # "parameter" or "buffer"


@dataclass(frozen=True)
class Architecture:
    """The shape of a saved model."""

    model: str  # qualified name of the class, for messages
    tensors: Mapping[str, SavedTensor]  # every parameter and buffer, shared ones under their first name
    aliases: Mapping[str, str]  # other names of shared tensors
    removed: tuple[str, ...]  # paths at which the model has ``nn.Identity`` or another stand-in of a skipped block
    attributes: Mapping[str, Mapping[str, int]]  # sizes that modules state about themselves
    stand_ins: Mapping[str, Returned] = field(default_factory=dict)  # by path, of those that are no Identity
    quantized: Mapping[str, int] = field(default_factory=dict)  # bits of each; if any, the weights file is packed

    def to_json(self, weights_sha256: str) -> str:
        """Text for `ARCHITECTURE`, with the digests of the weights file and of itself."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self), "weights_sha256": weights_sha256}
        del data["stand_ins"], data["quantized"]
        if self.stand_ins:
            stand_ins = {path: returns.to_dict() for path, returns in self.stand_ins.items()}
            data |= {"version": VERSION_WITH_STAND_INS, "stand_ins": stand_ins}
        if self.quantized:
            data |= {"version": VERSION_PACKED, "quantized": dict(self.quantized), "packed": list(self.tensors)}
        return json.dumps({**data, "sha256": digest(data)}, indent=1) + "\n"


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the architecture's canonical JSON without its own entry ``sha256``."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha.update(chunk)
    return sha.hexdigest()


def size_attributes(model: nn.Module) -> dict[str, dict[str, int]]:
    """The sizes that the model's modules state about themselves, by module path."""
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, StandIn):
            continue
        values = stated_sizes(module)
        if values:
            found[path] = values
    return found


def read_architecture(path: Path) -> tuple[Architecture, str]:
    """Parse and check an `ARCHITECTURE` file; returns it with the digest that its weights must have."""
    data = read_record(path, MAX_JSON_BYTES, FORMAT, "a folder that apical.save wrote")
    plain = VERSION_WITH_STAND_INS if "stand_ins" in data else VERSION
    if data.get("version") != (VERSION_PACKED if "quantized" in data else plain):
        raise LoadError(
            f"{path} has format version {data.get('version')!r}; this apical reads version {VERSION}, "
            f"{VERSION_WITH_STAND_INS} where there are stand_ins, and {VERSION_PACKED} where weights are quantized"
        )
    if data.get("sha256") != digest(data):
        raise LoadError(f"{path} is damaged: its contents do not have the digest that it states; save the model again")
    try:
        return _parse(data), _text(data["weights_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise LoadError(f"{path} is damaged: {type(problem).__name__}: {problem}") from problem


def _parse(data: Mapping[str, Any]) -> Architecture:
    tensors = {_text(name): _tensor(name, t) for name, t in data["tensors"].items()}
    # Packed weights are told apart by their order, and JSON's objects have none. Before this list was written, theirs
    # was taken.
    order = [_text(name) for name in data.get("packed", tensors)]
    if sorted(order) != sorted(tensors):
        raise ValueError("packed must name every tensor once")
    return Architecture(
        model=_text(data["model"]),
        tensors={name: tensors[name] for name in order},
        aliases={_text(a): _text(n) for a, n in data["aliases"].items()},
        removed=tuple(_text(p) for p in data["removed"]),
        attributes={
            _text(path): {_text(a): _size(v, f"{path}.{a}") for a, v in values.items()}
            for path, values in data["attributes"].items()
        },
        stand_ins={_text(path): Returned.from_dict(r) for path, r in data.get("stand_ins", {}).items()},
        quantized={_text(name): _bits(name, data["tensors"], b) for name, b in data.get("quantized", {}).items()},
    )


def _bits(name: str, tensors: Mapping[str, Any], value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8 or name not in tensors:
        raise ValueError(f"quantized.{name} must be 2 to 8 bits of a tensor, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _size(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(f"{where} must be a size, got {value!r}")
    return value


def _tensor(name: str, data: Mapping[str, Any]) -> SavedTensor:
    shape = data["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ValueError(f"the shape of {name} must be a list of at most {MAX_RANK} sizes, got {shape!r}")
    if data["kind"] not in ("parameter", "buffer"):
        raise ValueError(f"{name} is a {data['kind']!r}, expected parameter or buffer")
    return SavedTensor(tuple(_size(s, f"{name}.shape") for s in shape), _text(data["dtype"]), data["kind"])
