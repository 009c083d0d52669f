"""Any change of what a run folder says: pages that are whole, or the project's own error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.errors import ApicalError
from apical.reporting import Comparison, Run, read_run, rows, write_comparison, write_report, write_runs_report
from apical.reporting._compare_page import render_markdown
from export.test_folder_fuzz import mutations
from reporting.test_report import Checker, make_run

FILES = ("config.json", "history.jsonl", "summary.json", "template.json")
SHOWN = settings(phases=[Phase.explicit, Phase.generate])


def show(changed: Path, whole: Path) -> None:
    """All pages that a run has a part in."""
    pages: list[Callable[[], Path]] = [
        lambda: write_report(changed, changed / "page.html"),
        lambda: write_runs_report([whole, changed], changed / "page.html"),
        lambda: _compared(changed, whole),
    ]
    for write in pages:
        for file in changed.glob("*.html"):
            file.unlink()
        try:
            page = write()
        except ApicalError:
            assert not list(changed.glob("*.html")), "nothing half done"
            continue
        checker = Checker()
        checker.feed(page.read_text(encoding="utf-8"))
        assert not checker.open
        assert set(checker.fetched) <= {"whole/report.html", "changed/report.html"}, "links of a comparison"


def _compared(changed: Path, whole: Path) -> Path:
    records = [read_run(folder) for folder in (whole, changed)]
    runs = [
        Run(method, seed, record, {}) for method, record in zip(("a", "b"), records, strict=True) for seed in (0, 1)
    ]
    comparison = Comparison("runs", 3, "a", records[0].metric, runs, {}, {"command": "apical compare"})
    page = write_comparison(comparison, changed)[-1]
    assert render_markdown(comparison, rows(comparison)), "what the command prints"
    return page


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run to be changed, and one that stays."""
    changed, whole = (make_run(tmp_path / name) for name in ("changed", "whole"))
    for folder in (changed, whole):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "epochs": 3}))
        (folder / "template.json").write_text(json.dumps(summary["template"]))
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        (folder / "history.jsonl").write_text("".join(f"{json.dumps({**r, 'samples': 10})}\n" for r in history))
    return changed, whole


def test_pages_of_what_nobody_changed(runs: tuple[Path, Path]) -> None:
    show(*runs)
    assert (runs[0] / "compare.html").exists()


@pytest.mark.attack
@settings(SHOWN)
@given(mutate=mutations(), name=st.sampled_from(FILES), line=st.integers(0, 2))
def test_any_edit_of_a_record(runs: tuple[Path, Path], mutate: Callable[[Any], None], name: str, line: int) -> None:
    changed, whole = runs
    before = (changed / name).read_text()
    lines = before.splitlines()
    place = line % len(lines)
    content = json.loads(lines[place])
    mutate(content)
    lines[place] = json.dumps(content)
    (changed / name).write_text("\n".join(lines))
    show(changed, whole)
    (changed / name).write_text(before)


@pytest.mark.attack
@settings(SHOWN)
@given(
    name=st.sampled_from(FILES), where=st.floats(0, 1), how=st.sampled_from(["cut", "insert", "all"]),
    content=st.binary(max_size=20) | st.sampled_from([b"[" * 100_000, b"{}\n" * 3, b"1e999", b"\xff\xfe", b'{"a":1}'] ),
)  # fmt: skip
def test_any_bytes_as_a_record(runs: tuple[Path, Path], name: str, where: float, how: str, content: bytes) -> None:
    changed, whole = runs
    before = (changed / name).read_bytes()
    at = int(where * len(before))
    rest = {"cut": b"", "insert": before[at:], "all": b""}[how]
    (changed / name).write_bytes((b"" if how == "all" else before[:at]) + content + rest)
    show(changed, whole)
    (changed / name).write_bytes(before)
