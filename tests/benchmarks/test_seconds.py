"""The pure parts of the benchmark of seconds: statistics, targets, report and check. Nothing is timed in earnest."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical._memory_format import has_channels_last
from apical.errors import ConfigError
from apical.recipes import apply_settings, get_recipe
from benchmarks.seconds import check, report
from benchmarks.seconds.__main__ import main
from benchmarks.seconds.cases import CASES
from benchmarks.seconds.cases.loop import own_share
from benchmarks.seconds.cases.settings import settings
from benchmarks.seconds.cases.training import saved_share
from benchmarks.seconds.findings import Findings, NotAvailableError, Target, read
from benchmarks.seconds.spread import along_epochs, exponent, ratio, spread, take_turns
from benchmarks.seconds.steps import Growth, Options, distinct, recorded, simulated, training_step

ROOT = Path(__file__).resolve().parents[2]
WITH_EXAMPLES = ("spread", "report", "check", "steps", "cases.training", "cases.loop", "cases.staircase")


def content(found: Findings, **changes: Any) -> dict[str, Any]:
    """What the runner would write."""
    machine = {"device": "a machine", "threads": 2, "cores": 2, "versions": {"torch": "2"}}
    base = {"quick": False, "command": "run it", "started": "today", "machine": machine}
    return json.loads(json.dumps({**base, "cases": {"one": found.to_dict()}, **changes}))


def found_things() -> Findings:
    found = Findings("A case")
    found.table("Times", [("what", ""), ("ms", ".1f"), ("n", "d")], [("a|b", spread([1.0, 2.0, 3.0]), None)], "A note.")
    found.table("Much", [("ms", ".1f")], [(2.0,)], detail=True)
    found.target("fast", spread([0.9, 1.0, 1.2]), 1.02)
    found.target("saved", 0.7, 0.8, "at least")
    return found


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"benchmarks.seconds.{name}"))
    assert attempted > 0
    assert failed == 0


def test_ratios_are_taken_within_a_round() -> None:
    """A slow round, which meets both variants, does not show in their ratio."""
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 30.0, "b": 60.0}, {"a": 2.0, "b": 4.0}]
    assert ratio(rounds, "a", "b") == spread([0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="at least one"):
        spread([])
    assert spread([3.0]).samples == 1


def test_turns_end_when_the_time_is_up_but_not_before_the_least_rounds() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name) or sum(range(300_000))) for name in "ab"}
    rounds = take_turns(variants, 0.0, least=3, most=9)
    assert len(rounds) == 3
    assert all(set(sample) == {"a", "b"} and min(sample.values()) > 0 for sample in rounds)
    assert calls.count("a") == calls.count("b")
    assert len(take_turns(variants, 60.0, least=1, most=4)) == 4


def test_epochs_between_two_timed_ones_are_interpolated() -> None:
    assert along_epochs(6, {1: 2.0, 3: 4.0}) == [2.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    assert along_epochs(3, {0: 5.0}) == [5.0] * 3


def test_networks_to_time_are_the_first_the_last_and_some_between() -> None:
    records = [{"widths": {"a": min(n, 10)}, "skipped": []} for n in range(1, 21)]
    assert distinct(records, 99) == list(range(10))
    assert distinct(records, 4) == [0, 3, 6, 9]
    assert distinct([{"widths": {"a": 1}, "skipped": ["b"]}, {"widths": {"a": 1}, "skipped": []}], 5) == [0, 1]


SMALL = ("model.width=4", "batch_size=4", "amp=none")


@pytest.fixture(scope="module")
def growth() -> Growth:
    return simulated("cifar10-resnet20", SMALL, 4)


def check_networks(growth: Growth) -> None:
    """What is timed for an epoch has the size that the epoch's record says."""
    for epoch in (0, len(growth.records) - 1):
        network = growth.at(epoch)
        assert sum(p.numel() for p in network.parameters()) == growth.records[epoch]["num_params"]
    growth.step(network, torch.device("cpu"))()


@pytest.mark.parametrize(("register", "channels_last"), [(8, False), (0, True)])
def test_steps_are_timed_in_an_order_in_which_torch_is_safe(
    growth: Growth, monkeypatch: pytest.MonkeyPatch, register: int, channels_last: bool
) -> None:
    monkeypatch.setattr("apical._memory_format.safe_channels", lambda: register)
    options = Options(torch.device("cpu"), float32=True)
    training = apply_settings(growth.config, [*options.fast, "batch_size=4"]).training
    assert training.amp == "none"
    assert training.channels_last
    network = growth.dense()  # its shortcuts are 1x1 convolutions with a stride
    training_step(network, training, growth.shape, growth.classes, options.device)  # a step would damage memory
    assert has_channels_last(network) is channels_last


class Heads(nn.Module):
    """Logits of every pixel by two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(x), "aux": self.aux(x)}


def test_a_step_of_a_segmentation_trains_every_head_on_every_pixel() -> None:
    training = apply_settings(get_recipe("camvid-deeplabv3-small"), ["batch_size=2", "amp=none"]).training
    model = Heads()
    training_step(model, training, (3, 4, 6), 5, torch.device("cpu"), labelled=(4, 6))()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_only_runs_needs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["seconds", "--out", str(tmp_path / "new"), "--only", "training", "--only-runs"])
    with pytest.raises(SystemExit):
        main()
    assert "name the folder of a finished one with --run" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def run_folder(folder: Path, growth: Growth, accuracy: float) -> Path:
    """The files of a run that are read."""
    folder.mkdir()
    config = {**growth.config.to_mapping(), "input": dict(growth.facts), "versions": {}}
    records = [{**record, "steps": 8 // (2 if i == 0 else 1), "batch_size": 4 * (2 if i == 0 else 1)}
               for i, record in enumerate(growth.records)]  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shares = {"macs_fraction": 0.5, "train_macs_fraction": 0.4, "compile_seconds": 1.0}
    (folder / "summary.json").write_text(json.dumps({"test_accuracy": accuracy, **shares}))
    return folder


@pytest.mark.slow
@pytest.mark.run
def test_settings_are_compared_seed_by_seed_with_the_first_one(growth: Growth, tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name, growth, accuracy) for name, accuracy in
            (("plain-seed0", 0.5), ("other-seed0", 0.6))]  # fmt: skip
    found = Findings("Settings")
    settings(Options(torch.device("cpu"), quick=True, runs=tuple(runs)), found)
    assert not found.errors
    assert set(found.skipped) <= {"seed 0, onnx"}
    (_, first), (_, second) = ((row[0], row[1:]) for row in found.tables[0].rows)
    assert [first[1], second[1]] == [50.0, 60.0]
    assert first[-1]["median"] == 1.0
    assert 0.1 < second[-1]["median"] < 10  # the same networks, with one second of compiling each
    assert {row[1:3] for row in found.tables[1].rows} >= {("eager", 1), ("eager", 4)}

    again = Findings("Settings")
    settings(Options(torch.device("cpu"), quick=True, runs=(runs[0], runs[0])), again)
    assert "was given twice" in again.errors["seed 0"]
    with pytest.raises(NotAvailableError, match="give two or more with --run"):
        settings(Options(torch.device("cpu"), quick=True), Findings("None"))


def test_seconds_of_a_run_whose_batch_changes(growth: Growth, tmp_path: Path) -> None:
    """An epoch of half as many steps of twice the batch takes as long, if an example does."""
    growth = recorded(run_folder(tmp_path / "a", growth, 0.5), ())
    assert [growth.batch(epoch) for epoch in range(4)] == [8, 4, 4, 4]
    assert [growth.examples(epoch) for epoch in range(4)] == [32] * 4
    assert math.isclose(growth.seconds({0: 16.0, 1: 8.0, 3: 8.0}), 4 * 8 * 0.008)
    assert distinct(growth.records, 9)[0] == 0


def test_networks_of_a_simulated_growth_and_of_a_runs_folder(growth: Growth, tmp_path: Path) -> None:
    assert growth.steps == 12_500
    assert growth.records[0]["macs"] < growth.records[-1]["macs"] < growth.structure.macs()
    check_networks(growth)

    lines = [json.dumps({**record, "steps": 7}) for record in growth.records]
    config = {**growth.config.to_mapping(), "input": dict(growth.facts), "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    found = recorded(tmp_path, SMALL)
    assert (found.steps, len(found.records)) == (7, 4)
    check_networks(found)

    (tmp_path / "history.jsonl").write_text(lines[0])
    with pytest.raises(ConfigError, match="has 1 of 4 epochs; expected a finished run"):
        recorded(tmp_path, SMALL)
    (tmp_path / "history.jsonl").write_text(json.dumps({"epoch": 1, "num_params": 5}) + "\n")
    with pytest.raises(ConfigError, match="does not give the widths and MACs"):
        recorded(tmp_path, SMALL)


def test_figures() -> None:
    assert saved_share(0.5, 0.5) == 1.0
    assert saved_share(1.0, 0.5) == 0.0
    assert own_share({"bare": 1.0, "turn": 1.0, "fixed": 0.0}) == 0.0
    assert math.isclose(own_share({"bare": 1.0, "turn": 1.0, "fixed": 10.0}, 90), 0.1)
    assert math.isclose(exponent([1, 10, 100], [2, 20, 200]), 1.0)


@pytest.mark.parametrize(
    ("target", "met", "words"),
    [
        (Target("t", 1.0, 1.0), True, "met by 0.0 %"),
        (Target("t", 1.1, 1.0), False, "missed by 10.0 %"),
        (Target("t", 0.8, 0.8, "at least"), True, "met by 0.0 %"),
        (Target("t", 0.6, 0.8, "at least"), False, "missed by 25.0 %"),
        (
            Target("t", 1.1, 1.0, "at most", 0.9, 1.2),
            False,
            "missed by 10.0 %, but the limit lies within the quartiles",
        ),
        (Target("t", 1.1, 1.0, "at most", 1.05, 1.2), False, "missed by 10.0 %"),
        (Target("t", math.nan, 1.0), False, "missed by nan %"),
    ],
)
def test_verdicts(target: Target, met: bool, words: str) -> None:
    verdict = check.judge("case", target)
    assert (verdict.met, verdict.words) == (met, words)


def test_a_missed_target_a_failed_part_and_nothing_at_all_fail_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.print_verdicts(content(found_things())) == 1
    assert "MISSED one: saved: 0.7, at least 0.8: missed by 12.5 %" in capsys.readouterr().out

    good = Findings("Good")
    good.target("fast", 1.0, 1.02)
    with good.part("elsewhere"):
        raise NotAvailableError("not installed")
    assert check.print_verdicts(content(good)) == 0
    assert "skipped one: elsewhere: not installed" in capsys.readouterr().out
    with good.part("here"):
        raise RuntimeError("broken")
    assert check.print_verdicts(content(good)) == 1
    assert "MISSED one: here" in capsys.readouterr().out

    assert check.print_verdicts(content(Findings("Empty"))) == 1


def test_what_was_found_before_a_failure_is_kept_and_interrupts_go_through() -> None:
    found = Findings("A case")
    with found.part("first"):
        found.target("fast", 1.0, 1.02)
        raise KeyError("gone")
    assert found.errors["first"].startswith("KeyError: 'gone' (")
    assert len(found.targets) == 1
    with pytest.raises(KeyboardInterrupt), found.part("second"):
        raise KeyboardInterrupt


def test_the_page_shows_tables_targets_and_failures(tmp_path: Path) -> None:
    found = found_things()
    with found.part("a part"):
        raise RuntimeError("broken")
    (tmp_path / "seconds.json").write_text(json.dumps(content(found, quick=True)))
    page = report.write(tmp_path).read_text()
    assert "Its numbers mean nothing" in page
    assert "| a\\|b | 2.0 (1.5–2.5) | – |" in page
    assert "<details><summary>Much</summary>" in page
    assert "| one | saved | 0.7 | at least 0.8 | missed by 12.5 % |" in page
    assert "**failed**: a part: RuntimeError: broken" in page
    assert read(tmp_path)["machine"]["threads"] == 2


def test_a_folder_without_results_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"run `python -m benchmarks.seconds --out"):
        read(tmp_path)
    (tmp_path / "seconds.json").write_text("{}")
    with pytest.raises(SystemExit, match="has no 'cases'"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.run
def test_the_runner_runs_a_case_and_goes_on_after_one_that_fails(tmp_path: Path) -> None:
    code = (
        "import sys; import benchmarks.seconds.cases as c\n"
        "def broken(options, found): raise RuntimeError('broken')\n"
        "c.CASES['staircase'] = ('Broken', broken)\n"
        "from benchmarks.seconds.__main__ import main\n"
        f"sys.argv = ['x', '--quick', '--check', '--only', 'staircase,overhead', '--out', {str(tmp_path)!r}]\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    cases = read(tmp_path)["cases"]
    assert cases["staircase"]["errors"]["the whole case"].startswith("RuntimeError: broken")
    assert not cases["overhead"]["errors"]
    assert len(cases["overhead"]["targets"]) == 2
    assert (tmp_path / "seconds.md").exists()


def test_every_case_is_named_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "benchmarks.md").read_text(encoding="utf-8")
    assert not [name for name in CASES if f"`{name}`" not in guide]
