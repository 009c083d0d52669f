"""The text classifier's benchmark: texts as they are read and divided, the state after the last word, kept runs."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_script import script

texts = script("text_classification")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four files of 60 texts in 20 documents: good or bad is said once, among words of the source's own."""
    draw = random.Random(0)
    for source, name in enumerate(texts.SOURCES):
        lines = []
        for number in range(60):
            rating = draw.choice([-2.0, 2.0])
            words = [f"{'abcd'[source]}{draw.randrange(5)}" for _ in range(draw.randint(2, 9))]
            words.insert(draw.randrange(len(words)), "Good" if rating > 0 else "Bad")
            lines.append(f"{number // 3}_{number % 3}\t{rating}\t{' '.join(words)}.")
        (tmp_path / f"{name}_GroundTruth.txt").write_text("\r\n".join(lines) + "\r\n")
    return tmp_path


def test_a_text_is_read_once_and_not_when_nobody_minds_it(corpus: Path) -> None:
    whole = texts.read_texts(corpus)
    with (corpus / "tweets_GroundTruth.txt").open("a") as file:
        file.write("90_1\t1.2\tIt's  NEW, isn't it?\n91_1\t-1.2\tit's new, isn't it?\n92_1\t0.4\tso so\n")
    more = texts.read_texts(corpus)
    assert len(more) == len(whole) + 1
    assert more[-1] == texts.Text(3, "tweets 90", 1.2, ("it's", "new", ",", "isn't", "it", "?"))


def test_what_is_no_corpus_is_refused_with_the_place(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (corpus / "tweets_GroundTruth.txt").open("a") as file:
        file.write("90_1\tsad\tno number\n")
    with pytest.raises(SystemExit, match=r"tweets_GroundTruth.txt, line 61: expected identity, mean rating and text"):
        texts.read_texts(corpus)
    with pytest.raises(SystemExit, match="takes the folder hutto_ICWSM_2014"):
        texts.read_texts(tmp_path_factory.mktemp("empty"))


def test_sentences_of_a_document_are_in_one_split(corpus: Path) -> None:
    found = texts.read_texts(corpus)
    splits = texts.split(found)
    documents = [{text.document for text in split} for split in splits]
    assert sum(map(len, splits)) == len(found)
    assert not documents[0] & documents[1] | documents[0] & documents[2] | documents[1] & documents[2]
    assert [len(d) / 80 for d in documents] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_batches_have_every_text_once_with_its_label(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BATCH", 8)
    (train, _, _), words = texts.parts(texts.read_texts(corpus), "source")
    assert max(int(t.max()) for t in train.texts) < words
    for generator in (None, torch.Generator().manual_seed(0)):
        found = []
        for tokens, lengths, labels in texts.batches(train, generator):
            assert len(tokens) == lengths.max()
            found += [(tokens[:n, b].tolist(), int(labels[b])) for b, n in enumerate(lengths.tolist())]
        all_of = [(t.tolist(), int(label)) for t, label in zip(train.texts, train.labels, strict=True)]
        expected = len(all_of) if generator is None else len(all_of) // 8 * 8
        assert len(found) == expected
        left = list(all_of)
        for each in found:
            left.remove(each)


def test_the_classifier_reads_the_state_after_the_last_word() -> None:
    torch.manual_seed(0)
    model = texts.Classifier(9, 3, embedding=4, hidden=5, gates=True).eval()
    tokens = torch.randint(9, (6, 2))
    alone = model(tokens[:4, :1], torch.tensor([4]))
    torch.testing.assert_close(model(tokens, torch.tensor([4, 6]))[:1], alone)


def test_runs_are_kept_and_shown(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "BATCH": 8,
        "EPOCHS": 4,
        "EMBEDDING": 6,
        "HIDDEN": 16,
        "TYPICAL": 5,
        "LEARNING_RATE": 0.03,
    }.items():
        monkeypatch.setattr(texts, name, value)
    monkeypatch.setattr(texts.Classifier.__init__, "__defaults__", (6, 16, 0.0, False))
    out = tmp_path / "runs.jsonl"

    def called(*arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["text_classification.py", "--out", str(out), *arguments])
        texts.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    runs = called("--data", str(corpus), "--task", "source", "--seeds", "3")
    assert [run["method"] for run in runs] == ["gates", "units", "uniform", "dense"]
    assert all(0.2 < run["macs_fraction"] <= 0.255 for run in runs[:3])
    assert all(run["last"]["widths"]["embedding"] == 6 for run in runs), "word vectors keep their width"
    assert set(runs[0]["last"]["gates"]) == {"units", "i", "f", "g", "o"}
    assert runs[3]["accuracy"] > 0.9, "the words say the source"
    assert called("--data", str(corpus), "--task", "source", "--seeds", "3") == runs
    capsys.readouterr()
    called("--table")
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6
    assert shown[2].startswith("| source | gates (1 seeds) |")
    with pytest.raises(SystemExit):
        called("--task", "source")
