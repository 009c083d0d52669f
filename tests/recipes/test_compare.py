"""`compare`: the plan, what is done, resumed and left alone, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from apical.cli import main
from apical.errors import BudgetError, CheckpointError, ConfigError
from apical.recipes import get_recipe
from apical.recipes._settings import split_options
from apical.runs import compare
from apical.runs._compare import plan
from apical.training import make_progress
from recipes.test_run import TINY, StopAfter, tiny

SMALL = ("epochs=2", "limit=32", "batch_size=32")


def do(methods: list[str], out: Path, *settings: str, seeds: tuple[int, ...] = (0,), **options: Any) -> list[str]:
    lines: list[str] = []
    given = {"latency": False, "progress": lambda: make_progress("quiet"), "message": lines.append, **options}
    compare(tiny(*SMALL, *settings), methods, seeds, out, **given)
    return lines


def test_runs_are_planned_seed_by_seed_and_repetitions_come_last() -> None:
    planned = plan(get_recipe("digits"), ["final-same-macs", "uniform", "scs"], [3, 4], "out")
    assert [(p.method, p.seed) for p in planned] == [
        ("uniform", 3), ("scs", 3), ("final-same-macs", 3), ("uniform", 4), ("scs", 4), ("final-same-macs", 4)
    ]  # fmt: skip
    assert planned[2].config.method_options == {"run": str(Path("out/scs-seed3"))}
    assert {(p.config.training.seed, p.config.growth.seed) for p in planned} == {(3, 3), (4, 4)}


@pytest.mark.parametrize(("methods", "seeds", "options", "message"), [
    (["grown", "unifrom"], [0], {}, "did you mean 'uniform'"),
    (["grown", "grown"], [0], {}, "expected each once"),
    (["grown"], [1, 1], {}, "seeds: got 1, 1"),
    ([], [0], {}, "methods: got none"),
    (["final-same-macs", "uniform"], [0], {}, "add one of grown, scs"),
    (["grown"], [0], {"l1": {"prune_at": 0.5}}, "got some for l1"),
    (["dense", "l1"], [0], {"l1": {"prune_art": 0.3}}, "method l1: unknown key 'prune_art'; did you mean 'prune_at'"),
    (["dense", "scs"], [0], {"scs": {"lamda": 3}}, "did you mean 'lambda_base'"),
    (["grown", "dense"], [0], {"dense": {"foo": 1}}, "dense has no options"),
])  # fmt: skip
def test_impossible_plans_are_refused(methods: list[str], seeds: list[int], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(get_recipe("digits"), methods, seeds, "out", options)


def test_too_few_epochs_for_a_method_are_refused_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method slimming: got epochs=1; expected at least 2"):
        do(["dense", "slimming"], tmp_path, "epochs=1")
    assert not list(tmp_path.iterdir())


def test_budgets_that_only_growth_can_meet_are_refused_before_the_first_run(tmp_path: Path) -> None:
    for budget, odd in (("50% latency", "50% latency"), ("60% macs, 10% size", "10% size")):
        with pytest.raises(BudgetError, match=f"method uniform goes by macs and params, got the budget {odd},"):
            do(["grown", "dense", "uniform"], tmp_path / "all", f"budget={budget}")
    assert not (tmp_path / "all").exists()


def test_options_are_told_apart_from_settings_of_all_runs() -> None:
    assert split_options(["lr=0.1", "l1.prune_at=0.7", "l1.order=random", "model.width=8"], ("grown", "l1")) == (
        ["lr=0.1", "model.width=8"], {"l1": {"prune_at": 0.7, "order": "random"}}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"METHOD\.OPTION"):
        plan(tiny("method=l1", "method.prune_at=0.5"), ["l1"], [0], "out")


def test_a_method_has_growth_settings_of_its_own_where_it_reads_them() -> None:
    options = {"grown": {"divisor": 8, "damping": 0.5}, "uniform": {"divisor": 4}, "random": {"divisor": 2}}
    planned = plan(get_recipe("digits"), ["grown", "uniform", "random", "dense"], [5], "out", options)
    growth = {p.method: p.config.growth for p in planned}
    assert {name: g.divisor for name, g in growth.items()} == {"grown": 8, "uniform": 4, "random": 2, "dense": 1}
    assert growth["grown"].damping == 0.5
    assert {g.seed for g in growth.values()} == {5}
    assert all(p.config.method_options == {} for p in planned)
    with pytest.raises(ConfigError, match="divisor must be a whole number"):
        plan(get_recipe("digits"), ["uniform"], [5], "out", {"uniform": {"divisor": 0}})


def test_growth_settings_that_a_method_does_not_read_do_not_matter(tmp_path: Path) -> None:
    methods = ["dense", "uniform"]
    do(methods, tmp_path)
    lines = do(methods, tmp_path, "growth.growth_end=0.3")
    assert [line.split(": ")[1] for line in lines] == ["done before", "done before"]
    with pytest.raises(CheckpointError, match=r"uniform-seed0 .* growth\.divisor was 1 and is 2"):
        do(methods, tmp_path, "growth.divisor=2")


def test_finished_runs_are_left_alone_and_stopped_ones_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        do(["uniform", "l1"], tmp_path, "epochs=3", progress=lambda: StopAfter(2))
    assert not (tmp_path / "uniform-seed0" / "summary.json").exists()
    assert do(["uniform"], tmp_path, "epochs=3") == ["uniform, seed 0 (1 of 1): resumed and done"]
    stamp = (tmp_path / "uniform-seed0" / "summary.json").stat().st_mtime_ns
    lines = do(["uniform", "l1"], tmp_path, "epochs=3")
    assert lines == ["uniform, seed 0 (1 of 2): done before", "l1, seed 0 (2 of 2): done"]
    assert (tmp_path / "uniform-seed0" / "summary.json").stat().st_mtime_ns == stamp
    content = json.loads((tmp_path / "compare.json").read_text())
    assert [row["method"] for row in content["methods"]] == ["uniform", "l1"]
    assert content["methods"][1]["against"]["verdict"] == "one seed"


def test_runs_with_other_settings_are_refused_or_done_again(tmp_path: Path) -> None:
    do(["uniform"], tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.optimizer\.lr was 0\.05 and is 0\.01.*--overwrite"):
        do(["uniform"], tmp_path, "lr=0.01")
    do(["slimming"], tmp_path)
    with pytest.raises(CheckpointError, match=r"method_options\.penalty"):
        do(["slimming"], tmp_path, options={"slimming": {"penalty": 0.5}})
    assert do(["uniform"], tmp_path, "lr=0.01", overwrite=True) == ["uniform, seed 0 (1 of 1): done"]
    assert do(["uniform"], tmp_path, "lr=0.01", overwrite=True) == ["uniform, seed 0 (1 of 1): done before"]


def test_the_final_architecture_is_that_of_the_grown_run_of_the_same_seed(tmp_path: Path) -> None:
    do(["grown", "final-same-epochs", "final-same-macs"], tmp_path, "epochs=4", seeds=(0, 1))
    for seed in (0, 1):
        grown, long, short = (
            json.loads((tmp_path / f"{name}-seed{seed}" / "summary.json").read_text())
            for name in ("grown", "final-same-epochs", "final-same-macs")
        )
        assert grown["widths"] == long["widths"] == short["widths"]
        assert (long["seed"], long["epochs"]) == (seed, 4)
        assert short["epochs"] < 4
    rows = {row["method"]: row for row in json.loads((tmp_path / "compare.json").read_text())["methods"]}
    spent = [rows[name]["train_macs_vs_final"]["mean"] for name in ("grown", "final-same-macs", "final-same-epochs")]
    assert spent[0] <= spent[1] < spent[2] == 1
    assert do(["grown", "final-same-macs"], tmp_path, "epochs=4") == [
        "grown, seed 0 (1 of 2): done before", "final-same-macs, seed 0 (2 of 2): done before"
    ]  # fmt: skip


def test_the_table_names_the_program_that_makes_it_again(tmp_path: Path) -> None:
    for program in ("apical compare", "python peer.py"):
        do(["uniform"], tmp_path, program=program)
        command = json.loads((tmp_path / "compare.json").read_text())["command"]
        assert command.startswith(f"{program} digits --set ")
        assert f"{program} digits --set " in (tmp_path / "compare.md").read_text()


def test_the_command_line_writes_table_and_page(tmp_path: Path) -> None:
    settings = [f"--set={text}" for text in (*TINY, *SMALL)]
    arguments = ["compare", "digits", *settings, "--methods", "uniform,slimming", "--seeds", "0,1",
                 "--set=slimming.penalty=1e-3", "--out", str(tmp_path), "--quiet"]  # fmt: skip
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "| slimming | 2 |" in result.output
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["command"].endswith("--set slimming.penalty=0.001 --methods uniform,slimming --seeds 0,1")
    assert set(content["dense_latency"]) == {"1", "128"}
    assert all(row["latency_vs_dense"]["128"] > 0 for row in content["methods"])
    assert "uniform-seed0/report.html" in (tmp_path / "compare.html").read_text()
    for wrong, message in ((["--seeds", "a"], "no seed"), (["--methods", "slimmin"], "did you mean 'slimming'"),
                           (["--methods", "l1"], "got some for slimming")):  # fmt: skip
        result = CliRunner().invoke(main, [*arguments, *wrong], catch_exceptions=False)
        assert result.exit_code == 2
        assert message in result.output
