"""A comparison: what is summed up, what is called a difference, and a page that stands alone."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apical.errors import DataError
from apical.reporting import Comparison, Latency, MeanStd, Run, difference, mean_std, read_run, rows, write_comparison
from apical.reporting._compare_page import render_markdown, render_page, verdict
from apical.reporting._comparison import cost_curve
from apical.reporting._svg import BOTTOM, HEIGHT, LEFT, MARGIN, RIGHT, TOP, WIDTH
from reporting.test_report import Checker

FINITE = st.floats(-1e3, 1e3)
METRIC = {"name": "accuracy", "pattern": "{:.2f}", "scale": 100.0, "unit": " %", "higher_is_better": True}
EPOCHS = 4
DOT = 4  # radius of a point


def make_run(folder: Path, accuracy: float, macs: list[float], samples: int = 100, **extra: Any) -> Path:
    folder.mkdir(parents=True)
    history = [
        {
            "epoch": i,
            "samples": samples,
            "macs": 1000 * m,
            "macs_fraction": m,
            "eval_accuracy": accuracy - 0.1 + 0.02 * i,
        }
        for i, m in enumerate(macs, 1)
    ]
    summary = {
        "test_accuracy": accuracy,
        "macs_fraction": macs[-1],
        "params_fraction": 0.4,
        "train_macs_fraction": statistics.fmean(macs),
        "train_macs_vs_final": statistics.fmean(macs) / macs[-1],
        "train_seconds": 10.0,
        "epochs": len(macs),
        **extra,
    }
    (folder / "config.json").write_text(json.dumps({"recipe": "digits"}))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history))
    return folder


def latency(ms: float) -> dict[int, Latency]:
    return {1: Latency(ms, ms, ms), 128: Latency(50 * ms, 50 * ms, 50 * ms)}


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    runs = []
    for seed, accuracy in enumerate((0.90, 0.91, 0.92)):
        folder = make_run(tmp_path / f"grown-seed{seed}", accuracy, [0.1, 0.3, 0.5, 0.5])
        runs.append(Run("grown", seed, read_run(folder), latency(0.5)))
        folder = make_run(tmp_path / f"short-seed{seed}", accuracy - 0.05, [0.5, 0.5, 0.5])
        runs.append(Run("short<&", seed, read_run(folder), latency(1.0 + seed)))
        folder = make_run(tmp_path / f"near-seed{seed}", accuracy + 0.005, [1.0] * 4)
        runs.append(Run("near", seed, read_run(folder), latency(2.0)))
    facts = {"device": "cpu", "threads": 1, "versions": {"torch": "2"}, "command": "apical compare digits"}
    return Comparison("digits <50%>", EPOCHS, "grown", METRIC, runs, latency(2.0), facts)


@given(st.lists(FINITE, min_size=2, max_size=6))
def test_mean_and_deviation_are_those_of_the_textbook(values: list[float]) -> None:
    found = mean_std(values)
    assert found is not None
    mean = sum(values) / len(values)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    expected = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert found.std == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_no_value_has_no_mean_and_one_value_no_deviation() -> None:
    assert mean_std([]) is None
    assert mean_std([3.0]) == MeanStd(3.0, None, 1)
    assert MeanStd(3.0, None, 1).text() == "3.00"


@given(FINITE, FINITE, st.floats(0, 10), st.floats(0, 10), st.booleans())
def test_a_difference_counts_only_beyond_the_spread(a: float, b: float, s: float, t: float, higher: bool) -> None:
    found = difference(MeanStd(a, s, 3), MeanStd(b, t, 3), higher)
    back = difference(MeanStd(b, t, 3), MeanStd(a, s, 3), higher)
    assert found.mean == a - b
    if (a - b) ** 2 > (s * s + t * t) * (1 + 1e-9):
        assert found.verdict == ("better" if (a > b) == higher else "worse")
        assert {found.verdict, back.verdict} == {"better", "worse"}
    elif (a - b) ** 2 < (s * s + t * t) * (1 - 1e-9):
        assert found.verdict == back.verdict == "within the spread"
    assert difference(MeanStd(a, None, 1), MeanStd(b, t, 3)).verdict == "one seed"


def test_rows_hold_means_over_seeds_and_costs_against_the_comparisons_epochs(comparison: Comparison) -> None:
    grown, short, near = rows(comparison)
    assert (grown.method, short.method, near.method) == ("grown", "short<&", "near")
    assert grown.test is not None
    assert (grown.test.mean, grown.test.std) == (pytest.approx(0.91), pytest.approx(0.01))
    assert grown.against is not None
    assert grown.against.verdict == "reference"
    assert short.against is not None
    assert (short.against.mean, short.against.verdict) == (pytest.approx(-0.05), "worse")
    assert near.against is not None
    assert near.against.verdict == "within the spread"
    # three epochs of half the MACs are 3/8 of four dense epochs, and 3/4 of four epochs of the final network
    assert short.train_macs_vs_dense is not None
    assert short.train_macs_vs_dense.mean == pytest.approx(0.375)
    assert short.train_macs_vs_final is not None
    assert short.train_macs_vs_final.mean == pytest.approx(0.75)
    assert short.latency_ms == {1: 2.0, 128: 100.0}
    assert short.latency_vs_dense == {1: 1.0, 128: 1.0}


def test_the_curve_ends_at_the_training_cost(comparison: Comparison) -> None:
    curve = cost_curve(comparison, "grown")
    assert [x for x, _ in curve] == pytest.approx([2.5, 10.0, 22.5, 35.0])
    assert curve[0][1] == pytest.approx(83.0)
    assert cost_curve(comparison, "near")[-1][0] == pytest.approx(100.0)


def test_the_curve_counts_what_an_epoch_cost_where_the_network_changes_between_steps(comparison: Comparison) -> None:
    run = comparison.runs[0]
    history = [{**r, "mean_macs": 0.5 * r["macs"]} for r in run.record.history]
    halved = replace(comparison, runs=[replace(run, record=replace(run.record, history=history))])
    assert [x for x, _ in cost_curve(halved, "grown")] == pytest.approx([1.25, 5.0, 11.25, 17.5])


def test_table_json_and_page_say_the_same(comparison: Comparison, tmp_path: Path) -> None:
    data, table, page = write_comparison(comparison, tmp_path)
    text = table.read_text(encoding="utf-8")
    assert text == render_markdown(comparison, rows(comparison))
    assert "| short<& | 3 | 86.00 ± 1.00 | −5.00 (worse) | 50.0 ± 0.0 | 40.0 ± 0.0 | 37.5 ± 0.0 | 75.0 ± 0.0 |" in text
    assert "| near | 3 | 91.50 ± 1.00 | +0.50 (within the spread) |" in text
    content = json.loads(data.read_text(encoding="utf-8"))
    assert [row["method"] for row in content["methods"]] == ["grown", "short<&", "near"]
    assert len(content["runs"]) == 9
    assert content["methods"][1]["latency_vs_dense"] == {"1": 1.0, "128": 1.0}
    checker = Checker()
    html = page.read_text(encoding="utf-8")
    checker.feed(html)
    assert not checker.open
    assert all(not link.startswith(("http", "/")) for link in checker.fetched)
    assert "<script" not in html
    assert html.count("<svg") == 4  # along the way, and the end against training cost and two latencies
    assert html.count("<td class=num><b>91.50 ± 1.00</b>") == 1  # the best
    words = " ".join(checker.text)
    assert "86.00 ± 1.00" in words
    assert "digits <50%>" in words
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_page_says_whether_test_data_were_read_once(comparison: Comparison) -> None:
    first = comparison.runs[0]
    seen = replace(first, record=replace(first.record, config={"data": {"validation_fraction": 0.0}}))
    often = replace(comparison, runs=[seen, *comparison.runs[1:]])
    assert "Test data are read once" in render_markdown(comparison, rows(comparison))
    assert "test data are evaluated on after each epoch" in render_markdown(often, rows(often))


def test_the_verdict_says_where_the_reference_is_ahead_and_what_cannot_be_told(comparison: Comparison) -> None:
    said = verdict(comparison, rows(comparison))
    assert said.startswith(
        "grown is ahead of short<& (by 5.00 ± 1.41), cannot be told apart from near (near 0.50 ± 1.41 higher)."
    )
    assert "five seeds" in said
    one = replace(comparison, runs=[run for run in comparison.runs if run.seed == 0 and run.method != "near"])
    said = verdict(one, rows(one))
    assert said == "grown differs from short<& (short<& 5.00 lower); of one seed nothing can be said."
    level = [replace(row, against=replace(row.against, mean=1e-9)) if row.method == "near" and row.against else row
             for row in rows(comparison)]  # fmt: skip
    assert "cannot be told apart from near (means equal ± 1.41)" in verdict(comparison, level)
    two = replace(comparison, runs=[run for run in comparison.runs if run.seed < 2 and run.method != "near"])
    assert verdict(two, rows(two)).endswith("Of two seeds that is a hint; a claim takes three or more.")


def test_a_difference_within_the_spread_does_not_fill_a_chart(comparison: Comparison) -> None:
    """Level with a spread of 1.0: an axis of at least 8, so that half a point is a sixteenth of it."""
    near = [run for run in comparison.runs if run.method != "short<&"]
    page = render_page(replace(comparison, runs=near), rows(replace(comparison, runs=near)))
    chart = next(
        part for part in page.split("<figure>") if part.startswith("<figcaption>Test accuracy % against training")
    )
    assert len(re.findall(r'class="axis end"', chart)) >= 3
    for x, y in re.findall(r'<circle[^>]* cx="([0-9.]+)" cy="([0-9.]+)"', chart):
        assert LEFT + DOT < float(x) < WIDTH - RIGHT - DOT, "not on the frame"
        assert TOP + DOT < float(y) < HEIGHT - BOTTOM - DOT
    heights = [float(y) for y in re.findall(r'<circle[^>]* cy="([0-9.]+)"', chart)]
    assert abs(heights[0] - heights[1]) == pytest.approx((HEIGHT - TOP - BOTTOM) / 16 / (1 + 2 * MARGIN), abs=0.2)


def test_one_seed_without_latency_is_shown_as_such(tmp_path: Path, comparison: Comparison) -> None:
    run = comparison.runs[0]
    alone = Comparison("t", EPOCHS, "grown", METRIC, [Run("grown", 0, run.record, {})], {}, {})
    (row,) = rows(alone)
    assert row.latency_ms == {}
    assert "latency, batch" not in render_markdown(alone, [row])  # no empty columns
    assert "± " not in render_markdown(alone, [row]).split("- 4 epochs")[0]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        write_comparison(alone, tmp_path / "file")
