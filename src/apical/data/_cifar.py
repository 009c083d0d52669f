"""The ``cifar-10-batches-py`` and ``cifar-100-python`` folders, as their authors publish them.

These files are pickles. They are read by an unpickler that can build numbers, strings, containers and NumPy arrays,
and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from apical._reading import regular
from apical.data._arrays import ImageArrays
from apical.data._splits import Split, choose_split
from apical.errors import DataError

# The functions that NumPy's pickles call, up to protocol 4 and from 5 on.
_RECONSTRUCT = cast(Callable[..., Any], np.empty(0).__reduce__()[0])
_FROM_BUFFER = cast(Callable[..., Any], np.empty(0).__reduce_ex__(5)[0])

_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): lambda text, encoding: str(text).encode(str(encoding)),
}

# folder marker -> (names file, key of the names, key of the labels, files of each split)
_VARIANTS: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "batches.meta": (
        "label_names",
        "labels",
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    ),
    "meta": ("fine_label_names", "fine_labels", {"train": ("train",), "test": ("test",)}),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it wants to load {module}.{name}; only NumPy arrays and plain values are read") from None


def is_cifar_folder(folder: Path) -> bool:
    """Whether the folder has the files of CIFAR-10 or CIFAR-100 for Python."""
    return _variant(folder) is not None


def _variant(folder: Path) -> str | None:
    for marker, (_, _, files) in _VARIANTS.items():
        if (folder / marker).is_file() and any((folder / name).is_file() for name in files["test"] + files["train"]):
            return marker
    return None


def read_cifar(folder: str | Path, split: Split = "train") -> ImageArrays:
    """Read CIFAR-10 or CIFAR-100 (fine labels) in the authors' Python version.

    Args:
        folder: holds ``batches.meta``, ``data_batch_1`` ... and ``test_batch``, or ``meta``, ``train`` and ``test``.
        split: ``"train"`` or ``"test"``.
    """
    folder = Path(folder)
    marker = _variant(folder)
    if marker is None:
        raise DataError(f"{folder} is no CIFAR folder: it has neither batches.meta nor meta with their data files")
    names_key, labels_key, files = _VARIANTS[marker]
    paths = [folder / name for name in choose_split(files, split, folder)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; unpack the whole archive into it")
    classes = _names(_field(_load(folder / marker), names_key, folder / marker), folder / marker)
    images, labels = zip(*(_read_batch(path, labels_key) for path in paths), strict=True)
    return ImageArrays(torch.cat(images), torch.cat(labels), classes)


def _read_batch(path: Path, labels_key: str) -> tuple[torch.Tensor, torch.Tensor]:
    content = _load(path)
    data, labels = _field(content, "data", path), _field(content, labels_key, path)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: data must be uint8 (N, 3072), got {shape}")
    return torch.from_numpy(data.copy()).reshape(-1, 3, 32, 32), _labels(labels, len(data), path)


def _names(found: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(found, (list, tuple)) or not all(isinstance(name, (bytes, str)) for name in found):
        raise DataError(f"{path}: the class names must be a list of texts, got {found!r:.80}")
    try:
        return tuple(name.decode("utf-8") if isinstance(name, bytes) else name for name in found)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a class name is not UTF-8: {error.object!r:.80}") from error


def _labels(found: Any, count: int, path: Path) -> torch.Tensor:
    """The labels of a batch  # (count,) int64"""
    if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iu":
        found = found.tolist()
    if not isinstance(found, (list, tuple)):
        raise DataError(f"{path}: the labels must be a list of whole numbers, got {found!r:.80}")
    if len(found) != count:
        raise DataError(f"{path}: {count} images but {len(found)} labels")
    for place, label in enumerate(found):
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool) or not 0 <= label < 2**31:
            raise DataError(f"{path}: label {place} is {label!r:.40}, expected a whole number from 0")
    return torch.tensor([int(label) for label in found], dtype=torch.int64)


def _load(path: Path) -> dict[Any, Any]:
    try:
        with regular(path).open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: cannot read the pickle: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a dictionary expected, got {type(content).__name__}")
    return content


def _field(content: dict[Any, Any], key: str, path: Path) -> Any:
    for name in (key.encode(), key):  # Python 2 wrote bytes
        if name in content:
            return content[name]
    raise DataError(f"{path}: no entry {key!r}; it has {sorted(map(str, content))}")
