"""Corpora of three text files, and the streams that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apical.data import TokenStream, Vocabulary, load_images, open_images, open_voc, read_bytes, read_corpus
from apical.errors import ConfigError, DataError


def write(folder: Path, pattern: str = "{}.txt", **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split, text in {"train": "a b a\n\nb a\n", "valid": "a c\n", "test": "d b d\n", **texts}.items():
        (folder / pattern.format(split)).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("pattern", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens", "wiki-{}-v1.raw"])
def test_the_usual_file_names_are_recognised(pattern: str, tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, pattern))
    words = corpus.vocabulary.words
    assert words == ("<eos>", "a", "b", "<unk>")
    assert [words[n] for n in corpus.train.tolist()] == ["a", "b", "a", "<eos>", "<eos>", "b", "a", "<eos>"]
    assert [words[n] for n in corpus.test.tolist()] == ["<unk>", "b", "<unk>", "<eos>"]
    assert corpus.unknown == {"train": 0, "validation": 1, "test": 2}


def test_a_validation_file_may_be_called_val_or_validation(tmp_path: Path) -> None:
    for name in ("val", "validation"):
        folder = write(tmp_path / name)
        (folder / "valid.txt").rename(folder / f"{name}.txt")
        assert len(read_corpus(folder).validation) == 3


def test_written_unknown_words_are_words(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, train="a <unk> a\n", valid="<unk> x\n"))
    assert corpus.vocabulary.words.count("<unk>") == 1
    assert corpus.unknown["validation"] == 1
    assert corpus.validation.tolist().count(corpus.vocabulary.words.index("<unk>")) == 2


def test_a_limited_vocabulary_keeps_the_most_frequent_words(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, train="c c c b b a\n" * 2), max_words=4)
    assert corpus.vocabulary.words == ("c", "b", "<eos>", "<unk>")
    assert corpus.unknown["train"] == 2
    assert len(Vocabulary.of(["a b c"] * 3, 3)) == 3
    with pytest.raises(ConfigError, match=r"max_words=2, expected at least 3"):
        read_corpus(tmp_path, max_words=2)


def test_a_limit_takes_the_first_tokens_and_counts_what_it_read(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path, test="a x\n" * 50), limit=5)
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [5, 3, 5]
    assert corpus.unknown["test"] == 2


def test_windows_line_ends_and_a_missing_last_line_end_change_nothing(tmp_path: Path) -> None:
    unix = read_corpus(write(tmp_path / "unix"))
    windows = write(tmp_path / "windows")
    (windows / "train.txt").write_bytes(b"\xef\xbb\xbfa b a\r\n\r\nb a")
    assert torch.equal(read_corpus(windows).train, unix.train)


def test_a_name_is_looked_up_below_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ptb")
    monkeypatch.chdir(tmp_path / "ptb")
    monkeypatch.delenv("APICAL_DATA", raising=False)
    with pytest.raises(DataError, match="no folder here, and there is no data folder"):
        read_corpus("ptb")
    monkeypatch.setenv("APICAL_DATA", str(tmp_path))
    assert len(read_corpus("ptb").train) == 8
    with pytest.raises(DataError, match=r"neither a folder here nor in .* which has ptb/"):
        read_corpus("wiki")


def test_damaged_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        read_corpus(tmp_path / "nowhere")
    folder = write(tmp_path / "a")
    (folder / "test.txt").unlink()
    (folder / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"no validation and no test file; it has train.txt"):
        read_corpus(folder)
    folder = write(tmp_path / "b", test=" \n\n")
    with pytest.raises(DataError, match=r"test.txt is empty"):
        read_corpus(folder)
    folder = write(tmp_path / "c")
    (folder / "valid.txt").write_bytes("Köln\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"valid.txt is not UTF-8: byte 1 is 0xf6. Convert it"):
        read_corpus(folder)
    folder = write(tmp_path / "d")
    (folder / "ptb.train.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"ptb.train.txt, train.txt are all called train"):
        read_corpus(folder)


def test_consecutive_windows_continue_every_stream() -> None:
    tokens = torch.arange(47)
    stream = TokenStream(tokens, batch_size=3, window=4)
    assert len(stream) == 4  # streams of 15 tokens: 14 targets
    inputs, targets = zip(*stream, strict=True)
    assert [len(window) for window in inputs] == [4, 4, 4, 2]
    read, followed = torch.cat(inputs), torch.cat(targets)
    assert torch.equal(read, tokens[:45].view(3, 15).T[:14])
    assert torch.equal(followed, read + 1)
    whole = TokenStream(tokens, 3, 4, drop_last=True)
    assert [len(window) for window, _ in whole] == [4, 4, 4]
    assert len(whole) == 3


def test_a_stream_is_always_the_same_and_recognises_another() -> None:
    stream = TokenStream(torch.arange(40), 2, 4)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(stream, stream, strict=True))
    stream.load_state_dict(stream.state_dict())
    with pytest.raises(ConfigError, match="is it another text"):
        stream.load_state_dict(TokenStream(torch.arange(80), 2, 4).state_dict())


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 tokens are too few for 2 streams"):
        TokenStream(torch.arange(3), 2, 4)
    with pytest.raises(ConfigError, match="with a window of 4"):
        TokenStream(torch.arange(8), 2, 4, drop_last=True)
    with pytest.raises(ConfigError, match="expected at least 1 each"):
        TokenStream(torch.arange(8), 0, 4)


def test_bytes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes("/proc/self/mem")


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "~nobody-of-this-name/x"])
@pytest.mark.parametrize("read", [read_bytes, read_corpus, load_images, open_images, open_voc])
def test_names_that_no_folder_has_are_refused_in_words(read: Callable[[str], object], name: str) -> None:
    with pytest.raises(DataError, match="is not the name of a folder here"):
        read(name)
