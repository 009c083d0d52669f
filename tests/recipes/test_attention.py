"""The recipes of transformers: a GPT on words and on bytes, a vision transformer on images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from apical.data import read_bytes
from apical.errors import ConfigError, DataError
from apical.recipes import apply_settings, get_recipe
from apical.runs import load_run, run
from apical.training import make_progress

GPT = ("model.embedding_size=16", "model.num_layers=2", "model.num_heads=4", "model.dropout=0", "bptt=8",
       "eval_streams=2", "batch_size=4", "epochs=3", "device=cpu", "amp=none", "lr=0.01",
       "warmup_epochs=0")  # fmt: skip


@pytest.mark.run
@pytest.mark.parametrize("unit", ["words", "bytes"])
def test_a_gpt_grows_on_text(unit: str, tmp_path: Path) -> None:
    line = "the cat saw the dog and the dog saw the cat .\n"
    if unit == "words":
        data = tmp_path / "corpus"
        data.mkdir()
        for split in ("train", "valid", "test"):
            (data / f"{split}.txt").write_text(line * (120 if split == "train" else 6))
    else:
        data = tmp_path / "notes.md"
        data.write_text(line * 40)
    config = apply_settings(
        get_recipe("gpt-wikitext2" if unit == "words" else "gpt-bytes"), [f"data.path={data}", *GPT]
    )
    result = run(config, tmp_path / "run", progress=make_progress("quiet"))
    assert result.summary["macs_fraction"] == pytest.approx(0.5, abs=0.02)
    vocabulary = result.summary["vocab_size"]
    assert vocabulary == (256 if unit == "bytes" else 8)
    assert result.summary["test_perplexity"] < 0.5 * vocabulary
    model, *_ = load_run(tmp_path / "run")
    logits, state = model(torch.zeros(8, 2, dtype=torch.long))
    assert (logits.shape, state) == ((8, 2, vocabulary), ())


@pytest.mark.run
def test_a_vision_transformer_grows_on_images(tmp_path: Path) -> None:
    settings = ["data.path=synthetic", "limit=64", "batch_size=16", "epochs=2", "model.embedding_size=16",
                "model.num_layers=2", "model.num_heads=4", "device=cpu", "amp=none", "warmup_epochs=0"]  # fmt: skip
    result = run(apply_settings(get_recipe("vit-cifar10"), settings), tmp_path, progress=make_progress("quiet"))
    assert result.summary["macs_fraction"] == pytest.approx(0.5, abs=0.02)
    assert math.isfinite(result.summary["test_accuracy"])


def test_bytes_of_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 2)
    corpus = read_bytes(tmp_path / "file", limit=100)
    assert corpus.train.tolist() == list(range(100))
    assert (len(corpus.validation), len(corpus.test)) == (26, 26)
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(DataError, match="expected at least 2"):
        read_bytes(tmp_path / "short")
    with pytest.raises(ConfigError, match="max_words counts words"):
        apply_settings(get_recipe("gpt-wikitext2"), ["data.unit=bytes"])
