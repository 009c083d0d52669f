"""Every method that `--method` knows: it has a card, runs, refuses wrong options, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apical.errors import ConfigError
from apical.recipes import apply_settings, get_recipe
from apical.recipes._settings import reproducing_command, setting_types
from apical.runs import methods, read_config, run
from apical.runs._final import epochs_for_macs
from apical.runs._methods import method_named
from marks import quick
from recipes.test_run import StopAfter, do, resumed_as_whole, tiny

CARDS = Path(__file__).resolve().parents[2] / "docs" / "methods"
OWN = [name for name in methods() if not name.startswith("final")]


def test_every_method_has_a_card_and_every_card_a_method() -> None:
    cards = {path.stem: path.read_text(encoding="utf-8") for path in CARDS.glob("*.md")}
    index = cards.pop("README")
    # the peer is registered by its benchmark, bits come with a budget
    assert set(cards) == {*methods(), "torch-pruning", "bits"}
    for name, text in cards.items():
        assert text.startswith(f"# {name}\n")
        for part in ("**What it is.**", "**Source.**", "**Settings.**", "**Deviations"):
            assert part in text, f"{name}.md lacks {part}"
        assert f"[{name}]({name}.md)" in index


@pytest.mark.parametrize("method", quick(OWN, ["grown", "dense", "slimming"]))
def test_every_method_runs_to_its_budget_and_resumes(method: str, tmp_path: Path) -> None:
    whole = resumed_as_whole(tiny(f"method={method}", "model.width=16", "batch_size=32"), tmp_path)
    assert whole.summary["method"] == method
    expected = 1.0 if method == "dense" else 0.5
    assert whole.summary["macs_fraction"] == pytest.approx(expected, rel=0.01)


def test_a_final_architecture_is_repeated_for_the_same_epochs_or_the_same_macs(tmp_path: Path) -> None:
    source = do(tiny("method=grown", "epochs=6", "batch_size=32"), tmp_path / "source").summary
    shared = ("epochs=6", "batch_size=32", f"method.run={tmp_path / 'source'}")
    long = do(tiny("method=final-same-epochs", *shared), tmp_path / "long")
    assert long.summary["widths"] == source["widths"]
    assert long.summary["skipped"] == source["skipped"]
    assert (long.summary["macs"], long.summary["epochs"]) == (source["macs"], 6)
    short = do(tiny("method=final-same-macs", *shared), tmp_path / "short").summary
    assert short["epochs"] == epochs_for_macs(6, source["train_macs_vs_final"])
    assert source["train_macs"] <= short["train_macs"] < source["train_macs"] + short["train_macs"] / short["epochs"]
    assert short["epochs"] < 6
    # its own full schedule: the learning rate falls from its peak to near zero in fewer epochs
    rates = [json.loads(line)["lr"] for line in (tmp_path / "short" / "history.jsonl").read_text().splitlines()]
    assert rates[-1] < 0.2 * max(rates)
    # the run repeats from its own config, without the folder that it came from
    (tmp_path / "source" / "summary.json").unlink()
    config = read_config(tmp_path / "short")
    assert method_named(config.method).resolve(config) == config
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", progress=StopAfter(1))
    again = do(read_config(tmp_path / "cut"), tmp_path / "cut", resume=True)
    assert again.summary["test_loss"] == short["test_loss"]


@pytest.mark.slow
def test_more_training_than_dense_is_repeated_too(tmp_path: Path) -> None:
    source = do(tiny("method=slimming"), tmp_path / "source").summary
    assert source["train_macs_vs_final"] > 1
    longer = do(tiny("method=final-same-macs", f"method.run={tmp_path / 'source'}"), tmp_path / "long").summary
    assert longer["epochs"] > 4


def test_options_of_a_method_are_set_checked_and_repeated() -> None:
    config = tiny("method=l1", "method.prune_at=0.75", "method.order=random")
    assert config.method_options == {"prune_at": 0.75, "order": "random"}
    command = reproducing_command(config, "runs/a")
    assert "--set method.prune_at=0.75 --set method.order=random" in command
    assert "method_options" not in setting_types(config)
    changed = apply_settings(get_recipe("digits"), ["method=scs", "method.birth=preserving"])
    assert changed.method_options == {"birth": "preserving"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=l1", "method.prune=0.5"], r"method l1: unknown key 'prune'; did you mean 'prune_at'\?"),
        (["method=l1", "method.prune_at=much"], "method l1: prune_at: expected a number, got 'much'"),
        (["method=slimming", "method.prune_at=1"], "method slimming: prune_at=1"),
        (["method=uniform", "method.ratio=0.5"], "method uniform has no options of its own, got ratio"),
        (["method=grown", "method.divisor=2"], "growth is set by growth.NAME"),
        (["method=random", "method.score=learned"], r"no option 'score'; did you mean 'scores'\?"),
        (["method=scs", "method.birth=spontaneous"], "birth must be"),
        (["method=scs", "method.brith=random"], r"no option 'brith'; did you mean 'birth'\?"),
        (["method=final-same-macs"], "needs the run whose final architecture"),
        (["method=final-same-macs", "method.run=nowhere"], r"nowhere/summary\.json does not exist"),
        (["method=taylr"], "did you mean 'taylor'"),
        (["method=thinet"], "'thinet' is gone"),
        (["method=l1", "epochs=1"], "epochs=1; expected at least 2"),
    ],
)
def test_wrong_options_are_named(settings: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        do(tiny(*settings), tmp_path)
    assert not (tmp_path / "history.jsonl").exists()


def test_a_final_architecture_of_another_model_is_refused(tmp_path: Path) -> None:
    do(tiny("method=uniform"), tmp_path / "source")
    with pytest.raises(ConfigError, match="another model"):
        do(tiny("method=final-same-epochs", f"method.run={tmp_path / 'source'}", "model.width=4"), tmp_path / "a")
    (tmp_path / "source" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say widths, epochs, train_macs_vs_final"):
        do(tiny("method=final-same-epochs", f"method.run={tmp_path / 'source'}"), tmp_path / "b")
