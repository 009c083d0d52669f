"""Random damage to data folders of every layout: a `DataError`, or data that are consistent; no other exception."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.data import load_images, open_images, open_voc, read_bytes, read_corpus
from apical.data._voc import check_mask, voc_classes
from apical.errors import ApicalError
from data.layout_writers import write_cifar10, write_idx, write_image_folder, write_parquet_splits
from voc_folder import write_voc

IGNORED = 255


def write_texts(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text("one word and another word\n\nand a line\n" * 5)


def read_images(folder: Path) -> None:
    """Both ways of reading, which agree."""
    arrays = load_images(folder)
    assert len(arrays.images) == len(arrays.labels) > 0
    assert arrays.images.dtype == torch.uint8
    assert 0 <= int(arrays.labels.min()) <= int(arrays.labels.max()) < len(arrays.classes) < 10_000


def read_lazily(folder: Path) -> None:
    images = open_images(folder)
    for index in range(len(images)):
        image, label = images[index]
        assert image.dtype == torch.uint8
        assert 0 <= label < len(images.classes) < 10_000


def read_masks(folder: Path) -> None:
    split = open_voc(folder)
    classes = voc_classes(split, IGNORED)
    for index in range(len(split)):
        image, mask = split[index]
        assert image.shape[1:] == mask.shape
        check_mask(mask, len(classes), IGNORED, split.names[index])


def read_words(folder: Path) -> None:
    corpus = read_corpus(folder)
    assert int(corpus.train.max()) < len(corpus.vocabulary)


def read_any_text(folder: Path) -> None:
    assert len(read_bytes(folder).train) > 0


LAYOUTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], None]]] = {
    "cifar": (write_cifar10, read_images),
    "idx": (lambda folder: write_idx(folder, packed=False), read_images),
    "packed idx": (write_idx, read_images),
    "parquet": (write_parquet_splits, read_images),
    "parquet, lazily": (write_parquet_splits, read_lazily),
    "image folder": (write_image_folder, read_images),
    "image folder, lazily": (write_image_folder, read_lazily),
    "voc": (write_voc, read_masks),
    "words": (write_texts, read_words),
    "bytes": (write_texts, read_any_text),
}

DAMAGES = ["bytes", "bits", "cut", "insert", "repeat", "empty", "remove", "exchange", "folder", "other text"]
TEXTS = ["", "\0", "²", "\ud800", "a\n" * 3, "../../etc/passwd", "-1", "1e400", "{}", "PAR1", "99999999999 x"]


def damage(folder: Path, how: str, which: int, where: float, value: int) -> None:
    """Change one file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return
    file = files[which % len(files)]
    content = bytearray(file.read_bytes())
    at = min(int(where * len(content)), len(content) - 1)
    if how == "bytes":
        content[at : at + 1 + value % 8] = bytes([value % 256] * (1 + value % 8))
    elif how == "bits":
        content[at] ^= 1 << value % 8
    elif how == "cut":
        del content[at:]
    elif how == "insert":
        content[at:at] = bytes([value % 256] * (1 + value % 16))
    elif how == "repeat":
        content += content[at:]
    elif how == "empty":
        content.clear()
    elif how == "other text":
        content[:] = TEXTS[value % len(TEXTS)].encode("utf-8", "surrogatepass")
    file.write_bytes(content)
    if how == "remove":
        file.unlink()
    elif how == "exchange":
        other = files[value % len(files)]
        ours, theirs = file.read_bytes(), other.read_bytes()
        file.write_bytes(theirs)
        other.write_bytes(ours)
    elif how == "folder":
        file.unlink()
        file.mkdir()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each layout."""
    root = tmp_path_factory.mktemp("intact")
    for name, (write, read) in LAYOUTS.items():
        write(root / name)
        read(root / name)
    return root


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")  # of the image library, about what it can make of a damaged file
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=2 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(
    damages=st.lists(
        st.tuples(st.sampled_from(DAMAGES), st.integers(0, 999), st.floats(0, 1), st.integers(0, 9999)),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_any_damage(intact: Path, tmp_path: Path, layout: str, damages: list[tuple[str, int, float, int]]) -> None:
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact / layout, folder)
    for how, which, where, value in damages:
        damage(folder, how, which, where, value)
    with suppress(ApicalError):
        LAYOUTS[layout][1](folder)
