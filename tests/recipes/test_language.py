"""Language runs on a generated text in the layout that people have: train, resume, export, report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import apical
from apical.cli import main
from apical.data import read_corpus
from apical.errors import ConfigError, DataError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.runs import load_run, load_serving
from apical.training._optimizer import lr_factor
from marks import slow
from recipes.test_run import StopAfter, do, resumed_as_whole

RECIPES = ("ptb-lstm-small", "ptb-lstm-large", "wikitext2-lstm")
TINY = (
    "model.embedding_size=12",
    "model.hidden_sizes=16,12",
    "bptt=6",
    "batch_size=4",
    "epochs=3",
    "eval_streams=2",
    "device=cpu",
    "lr=6",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a small grammar; the test text has words that the training text has not."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    nouns, verbs = [f"n{i}" for i in range(9)], [f"v{i}" for i in range(5)]

    def sentence() -> str:
        a, b = torch.randint(9, (2,), generator=generator).tolist()
        return f"the {nouns[a]} {verbs[(a + b) % 5]} the {nouns[b]} ."

    for split, lines in (("train", 120), ("valid", 30), ("test", 30)):
        text = "\n".join(sentence() for _ in range(lines)) + ("\nunseen words" if split == "test" else "")
        (folder / f"ptb.{split}.txt").write_text(text + "\n")
    return folder


def tiny(corpus: Path, *settings: str, recipe: str = "ptb-lstm-small") -> RunConfig:
    return apply_settings(get_recipe(recipe), [f"data.path={corpus}", *TINY, *settings])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_complete(recipe: str, corpus: Path) -> None:
    config = get_recipe(recipe)
    assert RunConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
    assert config.task == "language"
    training = config.training
    norm = 10 if recipe == "ptb-lstm-large" else 5  # Zaremba's, of the loss summed over a window
    assert training.optimizer.lr == config.data.bptt
    assert training.clip_grad_norm == pytest.approx(norm / config.data.bptt)
    assert (training.optimizer.momentum, training.optimizer.weight_decay) == (0, 0)
    for epochs in (3, 7, 100):
        other = config.with_epochs(epochs).training
        ends = [lr_factor(t.epochs - 1e-6, t.epochs, t.schedule) for t in (training, other)]
        assert ends[1] == pytest.approx(ends[0])


@pytest.mark.parametrize("method", ["grown", slow("dense"), slow("uniform"), slow("iss")])
def test_every_method_leaves_a_whole_run_folder(method: str, corpus: Path, tmp_path: Path) -> None:
    result = do(tiny(corpus, f"method={method}", "epochs=4"), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_perplexity"] > 1
    assert summary["valid_perplexity"] == result.history[-1]["eval_perplexity"]
    assert summary["unknown_tokens"] == {"train": 0, "validation": 0, "test": 2}
    assert summary["tokens_per_sample"] == 6
    words = (tmp_path / "vocabulary.txt").read_text().splitlines()
    assert words == list(read_corpus(corpus).vocabulary.words)
    assert list(summary["widths"]) == ["embedding", "layers.0", "layers.1"]
    window = torch.zeros(6, 1, dtype=torch.long)
    assert apical.trace(result.model, window).macs() == summary["macs"]
    if method != "dense":
        assert summary["params_fraction"] == pytest.approx(0.5, rel=0.05)
    report = (tmp_path / "report.html").read_text()
    assert "Perplexity" in report
    steps = (len(read_corpus(corpus).train) // 4 - 1) // 6
    assert all(record["steps"] == steps and record["samples"] == 4 * steps for record in result.history)


def test_growing_between_steps_is_priced_by_the_step(corpus: Path, tmp_path: Path) -> None:
    result = do(tiny(corpus, "growth.interval_unit=steps", "growth.interval=5", "epochs=2"), tmp_path)
    first, last = result.history
    assert first["mean_macs"] < first["macs"] <= last["macs"]
    spent = sum(record["mean_macs"] * record["samples"] for record in result.history)
    assert result.summary["train_macs"] == pytest.approx(3 * spent)
    assert result.summary["params_fraction"] == pytest.approx(0.5, rel=0.05)


class StopWithin(StopAfter):
    """Stops in the middle of the next epoch."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        if epoch > self.epochs and step == steps // 2:
            raise KeyboardInterrupt

    def epoch(self, record: Any) -> None: ...


@pytest.mark.parametrize(
    "settings",
    [
        slow(("growth.interval_unit=steps", "growth.interval=4", "growth.growth_end=0.9")),
        slow(("method=iss",)),
        ("model.cell=gru", "model.dropout=0.3"),
    ],
)
def test_a_resumed_run_ends_as_if_it_had_not_been_stopped(
    settings: tuple[str, ...], corpus: Path, tmp_path: Path
) -> None:
    resumed_as_whole(tiny(corpus, *settings), tmp_path, StopWithin(1))


@pytest.mark.parametrize("cell", ["lstm", slow("gru")])
def test_the_exported_file_goes_on_with_a_stream(cell: str, corpus: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    do(tiny(corpus, f"model.cell={cell}", "epochs=1"), tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path), "--format", "onnx"])
    assert stopped.value.code in (0, None)
    model, _, call = load_serving(tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    parts = 4 if cell == "lstm" else 2
    assert names == ["tokens", *(f"state_{n}" for n in range(parts))]
    assert [v.name for v in session.get_outputs()] == ["logits", *(f"next_state_{n}" for n in range(parts))]
    tokens = torch.randint(10, (9, 5))
    with torch.no_grad():
        expected, _ = model(tokens)
    state = [torch.zeros(1, 5, leaf.shape[2]).numpy() for leaf in torch.utils._pytree.tree_leaves(call.args[1])]
    got = []
    for token in tokens:
        feed = dict(zip(names, [token.unsqueeze(0).numpy(), *state], strict=True))
        logits, *state = session.run(None, feed)
        got.append(torch.from_numpy(logits))
    torch.testing.assert_close(torch.cat(got), expected, rtol=1e-4, atol=1e-5)


def test_the_saved_network_is_that_of_the_run(corpus: Path, tmp_path: Path) -> None:
    result = do(tiny(corpus, "epochs=1", "model.tied=true"), tmp_path)
    model, full_model, (example,) = load_run(tmp_path)
    assert tuple(example.shape) == (6, 1)
    assert full_model.layers[0].hidden_size == 16 > model.layers[0].hidden_size
    assert torch.equal(model(example)[0], result.model.eval()(example)[0])


def test_the_guide_runs_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "guides" / "language-models.md"
    names: dict[str, Any] = {"__name__": "guide"}
    blocks = re.findall(r"^```python\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    exec(compile(blocks[0], str(guide), "exec"), names)
    sizes = json.loads(capsys.readouterr().out)
    assert all(size <= 24 for size in sizes)
    assert sum(sizes) < 24 * len(sizes)  # half of the parameters
    model, text = names["LSTMLanguageModel"](50, 16, (24, 24)), names["text"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    names["grower"] = apical.Grower(model, optimizer, text[:5, :1], "50% params", 4)
    names["state"] = model(text[:5])[1]
    exec(compile(blocks[1], str(guide), "exec"), names)
    logits, _ = model(text[5:10], names["state"])
    assert logits.shape == (5, 4, 50)


def test_what_cannot_be_trained_is_refused_before_training(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        do(tiny(corpus, f"data.path={tmp_path / 'nowhere'}"), tmp_path)
    with pytest.raises(ConfigError, match="name the folder of the text files"):
        do(tiny(corpus, "data.path="), tmp_path)
    with pytest.raises(ConfigError, match="hidden_sizes must name the size of each layer"):
        do(tiny(corpus, "model.hidden_sizes=16"), tmp_path)
    with pytest.raises(ConfigError, match="too few for 4 streams"):
        do(tiny(corpus, "limit=8"), tmp_path)
    stateless = RunConfig.from_mapping({**tiny(corpus).to_mapping(), "model": {"name": "GPT", "options": {}}})
    with pytest.raises(ConfigError, match=r"model GPT returns logits \(2, 1, \d+\) and no state .* expected the pair"):
        do(stateless, tmp_path)
    with pytest.raises(ConfigError, match=r"data: bptt=1, expected at least 2; eval_streams=0"):
        tiny(corpus, "bptt=1", "eval_streams=0")
    assert not (tmp_path / "config.json").exists()
