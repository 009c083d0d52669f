"""Image data sets in Parquet files, laid out as on the Hugging Face Hub."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apical._optional import import_optional
from apical._reading import is_regular, lies_inside, regular
from apical.data._arrays import ImageArrays
from apical.data._decoding import Decode, decode_all
from apical.data._splits import ALIASES, Split, canonical_split, choose_split
from apical.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
_MOST_CLASSES = 2**16


class _Block(NamedTuple):
    """One row group of one file."""

    path: Path
    row_group: int
    first_row: int  # in the file
    num_rows: int


def find_parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Group the Parquet files in a folder and its direct subfolders by split.

    The file's name tells the split, else its folder's: ``train-00000-of-00002.parquet``, ``data/val.parquet`` and
    ``test/0000.parquet`` are all understood; others are listed under ``""``.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted((*folder.glob("*.parquet"), *folder.glob("*/*.parquet"))):
        if not is_regular(path):
            continue
        names = (path.stem, *path.relative_to(folder).parent.parts)
        split = next((found for found in map(canonical_split, names) if found), "")
        files.setdefault(split, []).append(path)
    return files


def is_parquet_folder(folder: Path) -> bool:
    """Whether there are Parquet files in the folder or its direct subfolders."""
    return any(find_parquet_files(folder).values())


class ParquetImages(Dataset[tuple[Tensor, int]]):
    """Images of one split, read and decoded one by one; works with a DataLoader and its workers.

    Compressed images are fetched by row group, and the last few groups are kept. Shuffle with `BlockShuffleSampler`,
    which stays within a few groups at a time, rather than with ``shuffle=True``.

    Args:
        folder: holds the Parquet files, directly or one folder below.
        split: which of them.
        decode: how to turn bytes into a tensor; give a size where images differ.
        transform: applied to each decoded image (uint8, (C, H, W)).
        cached_images: row groups are kept up to this many images in each process.

    Attributes:
        labels: int64, (N,).
        classes: names from the Hub's metadata, else the labels as text.
        block_lengths: number of images in each row group, in order.

    Raises:
        DataError: there are no files of this split, a column is missing, or labels are missing or out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        decode: Decode | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        cached_images: int = 4096,
    ) -> None:
        self.decode = Decode() if decode is None else decode
        self.transform = transform
        self.cached_images = cached_images
        files = find_parquet_files(Path(folder))
        paths = _files_of_split(files, split, Path(folder))
        labelled = [path for name, group in files.items() if name for path in group]
        self._image_column = _column(paths, IMAGE_COLUMNS)
        self.labels, self.classes = _read_labels(paths, labelled)
        self._blocks = [block for path in paths for block in _row_groups(path)]
        self.block_lengths = tuple(block.num_rows for block in self._blocks)
        self._ends = list(accumulate(self.block_lengths))
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        source, where = self._source(index)
        image = self.decode(source, where)
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    @property
    def names(self) -> list[str]:
        """Of the files' row groups, with their sizes: images have no names that can be told without reading them."""
        return [f"{block.path.name} {block.row_group} {block.num_rows}" for block in self._blocks]

    def sources(self) -> Iterator[tuple[bytes | Path, str]]:
        """All encoded images with their place (file and row), in order."""
        return map(self._source, range(len(self)))

    def _source(self, index: int) -> tuple[bytes | Path, str]:
        number = bisect_right(self._ends, index)
        block = self._blocks[number]
        offset = index - (self._ends[number] - block.num_rows)
        where = f"{block.path} row {block.first_row + offset}"
        value = self._read(number)[offset].as_py()
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            value = content if content is not None else self._beside(block.path.parent, path, where) if path else None
        if not isinstance(value, (bytes, Path)):
            raise DataError(f"{where}: no image; bytes, or a struct of bytes and path, expected")
        return value, where

    def _beside(self, folder: Path, name: Any, where: str) -> Path:
        if not isinstance(name, str) or not lies_inside(name) or not is_regular(folder / name):
            raise DataError(f"{where}: the image is said to be in {name!r}; expected a file below {folder}")
        return folder / name

    def _read(self, number: int) -> Any:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        block = self._blocks[number]
        with _reading(block.path, f"row group {block.row_group}") as file:
            # Arrow's threads do not survive a fork into a DataLoader's workers.
            table = file.read_row_group(block.row_group, columns=[self._image_column], use_threads=False)
        self._cache[number] = table.column(0)
        while len(self._cache) > 1 and sum(map(len, self._cache.values())) > self.cached_images:
            self._cache.popitem(last=False)
        return self._cache[number]


def read_parquet(folder: str | Path, split: Split = "train", decode: Decode | None = None) -> ImageArrays:
    """Read all images of a split into memory."""
    images = ParquetImages(folder, split, decode, cached_images=1)
    return ImageArrays(decode_all(images.sources(), len(images), images.decode), images.labels, images.classes)


@contextmanager
def _reading(path: Path, what: str = "the Parquet file") -> Iterator[Any]:
    """An open file, about which Arrow may complain in any way and at any time."""
    parquet = import_optional("pyarrow.parquet", "pyarrow", "data", "reading Parquet")
    try:
        with parquet.ParquetFile(regular(path)) as file:
            yield file
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot read {what}: {error}") from error


def _files_of_split(files: dict[str, list[Path]], split: str, folder: Path) -> Sequence[Path]:
    named = {name: group for name, group in files.items() if name}
    if not named:
        found = ", ".join(path.name for path in files.get("", [])[:5]) or "none"
        splits = ", ".join(ALIASES)
        raise DataError(
            f"{folder}: Parquet files or their folders must be named after a split ({splits}), found {found}"
        )
    chosen = choose_split(named, split, folder)
    if len({path.parent for path in chosen}) > 1:
        parents = sorted({str(path.parent.relative_to(folder)) for path in chosen})
        raise DataError(f"{folder}: several folders hold a {split!r} split, name one of them: {', '.join(parents)}")
    return chosen


def _column(paths: Sequence[Path], candidates: Sequence[str]) -> str:
    for path in paths:
        with _reading(path) as file:
            names = file.schema_arrow.names
        found = [name for name in candidates if name in names]
        if not found:
            raise DataError(f"{path}: no column named {' or '.join(candidates)}; it has {', '.join(names)}")
    return found[0]


def _row_groups(path: Path) -> Iterator[_Block]:
    first_row = 0
    with _reading(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    for number, num_rows in enumerate(sizes):
        yield _Block(path, number, first_row, num_rows)
        first_row += num_rows


def _read_labels(paths: Sequence[Path], labelled: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels of ``paths``; without names in the metadata, the classes are those of all ``labelled`` files together."""
    column = _column(paths, LABEL_COLUMNS)
    values = [value for path in paths for value in _label_column(path, column)]
    names = _class_names(paths[0], column)
    if not names:
        found = set(values).union(*(_label_column(path, column) for path in labelled if path not in paths))
        names = _names_of(found, paths[0].parent)
    position = {name: number for number, name in enumerate(names)}
    numbers = [value if isinstance(value, int) else position.get(value, -1) for value in values]
    wrong = [number for number, label in enumerate(numbers) if not 0 <= label < len(names)]
    if wrong:
        raise DataError(
            f"{paths[0].parent}: {len(wrong)} of {len(numbers)} labels are none of the {len(names)} classes, the "
            f"first is {values[wrong[0]]!r} (-1 marks splits published without labels: use another split)"
        )
    return torch.tensor(numbers, dtype=torch.int64), names


def _names_of(found: Set[Any], folder: Path) -> tuple[str, ...]:
    """Texts are sorted; whole numbers are places among the classes, so that those between them are classes, too."""
    if len({isinstance(value, str) for value in found}) > 1:
        raise DataError(f"{folder}: some labels are whole numbers and some are texts; expected one kind")
    if not all(isinstance(value, int) for value in found):
        return tuple(sorted(found))
    highest = max(found, default=-1)
    if highest >= _MOST_CLASSES:
        raise DataError(
            f"{folder}: a label is {highest:,}, which would make as many classes of {len(found):,} different labels; "
            f"expected less than {_MOST_CLASSES:,}. Number the classes from 0 without gaps."
        )
    return tuple(str(number) for number in range(highest + 1))


def _label_column(path: Path, column: str) -> list[Any]:
    with _reading(path) as file:
        if column not in file.schema_arrow.names:
            return []
        values: list[Any] = file.read(columns=[column], use_threads=False).column(0).to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, (int, str)):
            raise DataError(f"{path} row {row}: the label must be a whole number or a text, got {value!r}")
    return values


def _class_names(path: Path, column: str) -> tuple[str, ...]:
    with _reading(path) as file:
        metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata)["info"]["features"][column]["names"] if metadata else None
    except (ValueError, KeyError, TypeError, RecursionError):  # metadata without class names is common
        return ()
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise DataError(f"{path}: the metadata's class names must be a list of different texts, got {names!r:.80}")
    return tuple(names)
