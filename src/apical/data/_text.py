"""Word-level text as language models read it: three plain files, a vocabulary, parallel streams of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apical.data._place import EpochPlace, PlacedLoader, check_rank, contents
from apical.data._splits import ALIASES, Split, listed, locate, named_path, read_utf8, read_whole
from apical.errors import ConfigError, DataError

UNKNOWN, END = "<unk>", "<eos>"
_SUFFIXES = (".txt", ".tokens", ".raw")
_LAYOUT = "expected three text files, one for each split: train.txt, valid.txt, test.txt or ptb.train.txt, ..."


@dataclass(frozen=True)
class Vocabulary:
    """Words by their number.

    Attributes:
        words: each once, ``<unk>`` and ``<eos>`` among them.

    Example:
        >>> vocabulary = Vocabulary.of(["the cat saw the dog", "the end"], max_words=4)
        >>> vocabulary.words
        ('the', '<eos>', 'cat', '<unk>')
        >>> vocabulary.encode("the bird")
        ([0, 3, 1], 1)
    """

    words: tuple[str, ...]

    @staticmethod
    def of(lines: list[str], max_words: int | None = None) -> Vocabulary:
        """The words of these lines, the most frequent first, ties in alphabetical order.

        Args:
            lines: each ends with an ``<eos>``, blank ones too.
            max_words: keep only so many, ``<unk>`` and ``<eos>`` included; None keeps all.
        """
        counts = Counter(word for line in lines for word in line.split())
        counts[END] += len(lines)
        counts[UNKNOWN] += 0
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        if max_words is not None:
            kept = {*[word for word in ranked if word not in (END, UNKNOWN)][: max_words - 2], END, UNKNOWN}
            ranked = [word for word in ranked if word in kept]
        return Vocabulary(tuple(ranked))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, line: str) -> tuple[list[int], int]:
        """The numbers of a line's words and of the ``<eos>`` after them, and how many words were not known.

        A word that the text itself writes as ``<unk>`` is known.
        """
        numbers, unknown = self._numbers, self._numbers[UNKNOWN]
        words = line.split()
        found = [numbers.get(word, -1) for word in words]
        missing = found.count(-1)
        return [*(unknown if number < 0 else number for number in found), numbers[END]], missing


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, as numbers of words.

    Attributes:
        vocabulary: of the training part.
        train: tokens in their order  # (tokens,) int64
        validation: likewise.
        test: likewise.
        unknown: by split, how many tokens were not in the vocabulary and became ``<unk>``.
    """

    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor
    test: Tensor
    unknown: Mapping[str, int]


def read_corpus(path: str | Path, *, max_words: int | None = None, limit: int | None = None) -> Corpus:
    """Read a corpus of three UTF-8 text files with words between blanks, a sentence or paragraph a line.

    The files are called after their splits: ``train.txt``, ``valid.txt``, ``test.txt``, with any prefix
    (``ptb.train.txt``, ``wiki.train.tokens``); ``val`` and ``validation`` are understood, too. The vocabulary is that
    of the training file. Every line, a blank one too, ends with the token ``<eos>``.

    Args:
        path: the folder, looked up here, then below the data root.
        max_words: vocabulary of the most frequent words only, ``<unk>`` and ``<eos>`` included, at least 3.
        limit: at most so many tokens of each split, its first ones.

    Raises:
        DataError: the folder or a file is missing, a split has several files, or a file is empty or not UTF-8.
        ConfigError: ``max_words`` or ``limit`` is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "valid", "test"):
        ...         _ = Path(folder, f"{name}.txt").write_text("a b a\\n" if name == "train" else "b c\\n")
        ...     corpus = read_corpus(folder)
        >>> corpus.vocabulary.words, corpus.train.tolist(), corpus.test.tolist(), corpus.unknown["test"]
        (('a', '<eos>', 'b', '<unk>'), [0, 2, 0, 1], [2, 3, 1], 1)
    """
    if max_words is not None and max_words < 3:
        raise ConfigError(f"max_words={max_words}, expected at least 3: one word, {UNKNOWN} and {END}")
    if limit is not None and limit < 2:
        raise ConfigError(f"limit={limit}, expected at least 2 tokens")
    files = corpus_files(locate(path))
    lines = {split: _lines(file) for split, file in files.items()}
    vocabulary = Vocabulary.of(lines["train"], max_words)
    tokens: dict[str, Tensor] = {}
    unknown: dict[str, int] = {}
    for split, text in lines.items():
        numbers: list[int] = []
        unknown[split] = 0
        for line in text:
            found, missing = vocabulary.encode(line)
            numbers += found
            unknown[split] += missing
            if limit is not None and len(numbers) >= limit:
                break
        tokens[split] = torch.tensor(numbers[:limit])
    return Corpus(vocabulary, tokens["train"], tokens["validation"], tokens["test"], unknown)


def read_bytes(path: str | Path, *, limit: int | None = None) -> Corpus:
    """Read any text, or any file at all, as bytes: 256 tokens, none of them unknown.

    Args:
        path: a folder of three files as for `read_corpus`, or a single file, of which the last tenth is left for
            validation and test, half of it for each.
        limit: at most so many bytes of each split, its first ones, at least 2.

    Raises:
        DataError: the folder or a file is missing, a split has several files, or a file is too short.
        ConfigError: ``limit`` is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "notes").write_bytes(b"abc" * 20)
        ...     corpus = read_bytes(Path(folder, "notes"))
        >>> len(corpus.vocabulary), len(corpus.train), corpus.test.tolist(), corpus.vocabulary.words[97]
        (256, 54, [97, 98, 99], '61')
    """
    if limit is not None and limit < 2:
        raise ConfigError(f"limit={limit}, expected at least 2 tokens")
    single = named_path(path)
    if single.is_file():
        whole = read_whole(single)
        ends = (0, len(whole) * 9 // 10, len(whole) * 19 // 20, len(whole))
        parts = {
            split: whole[a:b] for split, a, b in zip(("train", "validation", "test"), ends, ends[1:], strict=False)
        }
    else:
        parts = {split: read_whole(file) for split, file in corpus_files(locate(path)).items()}
    short = [split for split, text in parts.items() if len(text) < 2]
    if short:
        raise DataError(f"{path} has {len(parts[short[0]])} bytes for {short[0]}, expected at least 2")
    tokens = {
        split: torch.frombuffer(bytearray(text[:limit]), dtype=torch.uint8).long() for split, text in parts.items()
    }
    words = Vocabulary(tuple(f"{value:02x}" for value in range(256)))
    return Corpus(words, tokens["train"], tokens["validation"], tokens["test"], dict.fromkeys(parts, 0))


def corpus_files(folder: Path) -> dict[Split, Path]:
    """The text file of each split."""
    if not folder.is_dir():
        hint = ". The recipe gpt-bytes reads the bytes of a single file (data.unit=bytes)" if folder.is_file() else ""
        raise DataError(f"{folder} is not a folder; {_LAYOUT}{hint}")
    names = [file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES and file.is_file()]
    found: dict[Split, Path] = {}
    for split in ("train", "validation", "test"):
        mine = [file for file in names if _words(file) & set(ALIASES[split])]
        if len(mine) > 1:
            raise DataError(f"{folder}: {', '.join(f.name for f in mine)} are all called {split}; keep one of them")
        if mine:
            found[split] = mine[0]
    missing = [split for split in ("train", "validation", "test") if split not in found]
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)} file; it has {listed(folder)}; {_LAYOUT}")
    return found


def _words(file: Path) -> set[str]:
    return set(file.stem.lower().replace("-", ".").replace("_", ".").split("."))


def _lines(file: Path) -> list[str]:
    text = read_utf8(file, most=None)
    if not text.strip():
        raise DataError(f"{file} is empty; expected lines of words with blanks between")
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


class TokenStream(PlacedLoader):
    """Windows of parallel streams: a long text cut into ``batch_size`` equal pieces that are read side by side.

        stream b is text[b n : (b + 1) n],  n = ⌊tokens / batch_size⌋;   window i covers positions i T … (i + 1) T

    A window's targets are the tokens that follow its inputs, so that consecutive windows continue every stream: a
    model may hand its state on from one to the next. At most ``batch_size - 1`` tokens at the end are left out, and
    with ``drop_last`` a last, shorter window.

    Args:
        tokens: the text  # (tokens,) int64
        batch_size: number of streams, B.
        window: tokens of a window, T.
        drop_last: leave out a last, shorter window.
        device: where the tokens live.
        rank: of this process.
        world_size: number of processes; each reads every ``world_size``-th of the B streams.

    Raises:
        ConfigError: the text is too short for one window, a number is below 1, there is no such rank, or there are
            fewer streams than processes.

    Example:
        >>> stream = TokenStream(torch.arange(10), batch_size=2, window=2)
        >>> [(inputs.T.tolist(), targets.T.tolist()) for inputs, targets in stream]
        [([[0, 1], [5, 6]], [[1, 2], [6, 7]]), ([[2, 3], [7, 8]], [[3, 4], [8, 9]])]
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        window: int,
        *,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or window < 1:
            raise ConfigError(f"batch_size={batch_size} and window={window}, expected at least 1 each")
        check_rank(rank, world_size)
        if batch_size < world_size:
            raise ConfigError(f"{batch_size} streams cannot be shared by {world_size} processes; read more of them")
        length = len(tokens) // batch_size
        if length < (window + 1 if drop_last else 2):
            raise ConfigError(
                f"{len(tokens)} tokens are too few for {batch_size} streams with a window of {window}; lower the batch "
                "size or the window, or read more text"
            )
        streams = tokens[: length * batch_size].view(batch_size, length).t().contiguous()  # (n, B)
        self._contents = contents(streams.numel(), streams)
        self._streams = streams[:, rank::world_size].contiguous().to(device)
        self.rank, self.world_size = rank, world_size
        self._window = window
        self._count = (length - 1) // window if drop_last else -(-(length - 1) // window)
        self._place = EpochPlace()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._place.begin()
        for number in self._place.rest(self._count):
            start = number * self._window
            end = min(start + self._window, len(self._streams) - 1)
            yield self._streams[start:end], self._streams[start + 1 : end + 1]  # (T, own streams) each

    def contents(self) -> dict[str, Any]:
        """The tokens that are read by all processes, by number and value."""
        return dict(self._contents)

    def state_dict(self) -> dict[str, Any]:
        """The position, and the number of windows, to recognise another text: the order never changes."""
        return {"windows": self._count, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: the state is that of another text, batch size or window, or of another kind of loader.
        """
        rest = {name: value for name, value in state.items() if name != "windows"}
        if state.get("windows") != self._count:
            raise ConfigError(
                f"the saved stream had {state.get('windows')!r:.40} windows, this one has {self._count}: is it another "
                "text?"
            )
        super().load_state_dict(rest)
