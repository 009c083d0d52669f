"""The report page: whole, self-contained, honest about runs that are not finished."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apical.errors import DataError
from apical.reporting import read_run, write_report, write_runs_report
from apical.reporting._growth_picture import growth_pixels
from apical.reporting._svg import Series, heat_strip, line_chart, ticks

VOID = {"meta", "line", "polyline", "circle", "rect", "br", "input"}


class Checker(HTMLParser):
    """Every tag is closed by its own kind, and nothing is fetched from anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag in ("svg", "img"):  # a text stands for every picture, or it is decoration
            names = dict(attrs)
            assert names.get("aria-label") or names.get("alt") or names.get("aria-hidden") == "true", names

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> tuple[str, str]:
    checker, page = Checker(), path.read_text(encoding="utf-8")
    checker.feed(page)
    assert not checker.open
    assert not checker.fetched
    assert "default-src 'none'" in page  # browsers are told so, too
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    return page, " ".join(checker.text)


def make_run(folder: Path, epochs: int = 3, finished: bool = True, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": "digits",
        "method": "grown",
        "budget": "50% macs",
        "training": {"epochs": 3, "seed": 0},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(content))
    records = [
        {
            "epoch": number,
            "train_loss": 2.0 / number,
            "eval_loss": 2.5 / number,
            "train_accuracy": 0.3 * number,
            "eval_accuracy": None if number == 2 else 0.25 * number,
            "macs_fraction": 0.1 * number,
            "params_fraction": 0.15 * number,
            "step_seconds": 1.5,
            "blocks": 2,
            "peak_memory_mib": 300.0 * number,
            "widths": {"conv1": 2 * number} | ({} if number == 3 else {"layer1.0.conv1": 4}),
            "skipped": ["layer1.0"] if number == 3 else [],
        }
        for number in range(1, epochs + 1)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        summary = {
            "test_accuracy": 0.9725,
            "macs_fraction": 0.3,
            "train_macs_fraction": 0.3,
            "train_macs_vs_final": 0.75,
            "num_params": 12345,
            "command": "apical train digits --out 'a & b'",
            "template": {
                "widths": {"conv1": 16, "layer1.0.conv1": 8},
                "roles": {"conv1": "stream", "layer1.0.conv1": "inner"},
                "blocks": ["layer1.0"],
                "layers": [
                    {
                        "name": "conv1",
                        "type": "Conv2d",
                        "full": [[16, 3, 3, 3]],
                        "final": [[6, 3, 3, 3]],
                        "params": [432, 162],
                        "macs": [43200, 16200],
                    },
                    {
                        "name": "layer1.0.conv1",
                        "type": "",
                        "full": [[8, 16, 3, 3]],
                        "final": None,
                        "params": [1152, 0],
                        "macs": [115200, 0],
                    },
                ],
                "frozen": [{"name": "fc", "size": 10, "reason": "reaches the model's output"}],
            },
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_what_is_measured_on_test_images_is_not_called_held_out(tmp_path: Path) -> None:
    _, text = parsed(write_report(make_run(tmp_path, data={"path": "photos", "validation_fraction": 0.0})))
    assert "test accuracy 75.00 %" in text
    assert "held" not in text


def test_the_page_holds_figures_charts_widths_reasons_and_the_command(tmp_path: Path) -> None:
    page, text = parsed(write_report(make_run(tmp_path)))
    assert (
        "epoch 3 of 3, 30.0 % of the MACs, 45.0 % of the parameters, 0 of 1 blocks, held-out accuracy 75.00 %" in text
    )
    assert "this run: 30.0 %" in page
    assert "its final network from the start, as many epochs: 40.0 %" in page
    assert "25.0 % fewer than training the final network" in text
    for part in (
        "16×3×3×3",
        "gone",
        "900 MiB",
        "97.25 %",
        "12,345",
        "reaches the model's output",
        "apical train digits --out 'a & b'",
        "layer1.0.conv1",
    ):
        assert part in text
    assert "Blocks that were left out: layer1.0." in text
    assert "layer1.0.conv1, epochs 1 to 2: 4 of 8" in text
    assert "layer1.0.conv1, epoch 3: absent" in text
    assert "training.seed" in text
    assert page.count("<polyline") >= 6


def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    _, text = parsed(write_report(make_run(tmp_path / "my run", epochs=1, finished=False)))
    assert "Not finished: 1 of 3 epochs" in text
    assert f"apical train --resume '{tmp_path / 'my run'}'" in text
    parsed(write_report(make_run(tmp_path / "empty", epochs=0, finished=False), tmp_path / "elsewhere.html"))


def test_what_files_say_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe="<script>alert(1)</script>")
    record = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    record["widths"] = {"</script><script>alert(2)</script>": 3}
    (run / "history.jsonl").write_text(json.dumps(record) + "\n")
    page, _ = parsed(write_report(run))
    assert "&lt;script&gt;" in page
    assert "<script>alert" not in page


def test_half_a_character_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    """JSON can hold one, UTF-8 cannot."""
    run = make_run(tmp_path / "run", recipe="half \ud800")
    assert "half ?" in parsed(write_report(run))[0]
    assert write_runs_report([run, run], tmp_path / "runs.html").exists()


def test_a_long_run_keeps_the_page_small(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path, epochs=3000))
    assert path.stat().st_size < 1_500_000


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run folder"):
        read_run(tmp_path)
    make_run(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(DataError, match=r"history\.jsonl, line 2: not JSON"):
        write_report(tmp_path)
    (tmp_path / "history.jsonl").write_text("3\n")
    with pytest.raises(DataError, match="expected an object, got int"):
        write_report(tmp_path)
    make_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    layer = {"name": "a", "type": "Linear", "params": [1], "macs": [1, 2], "full": [3], "final": [2]}
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "template": {"layers": [layer]}}))
    with pytest.raises(DataError, match=r"cannot be shown: a value in .* is not what apical writes \(ValueError"):
        write_report(tmp_path)
    make_run(tmp_path, metrics=[{"pattern": "{:q}"}])
    with pytest.raises(DataError, match="cannot be shown"):
        write_runs_report([tmp_path, tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e4), st.integers(4, 6))
def test_an_axis_has_three_ticks_or_more(low: float, span: float, count: int) -> None:
    assert 3 <= len(ticks(low, low + span, count)) <= 2 * count


def test_charts_draw_inside_their_frame() -> None:
    chart = line_chart("t", [Series("a", [(1, 5.0), (2, -3.0), (3, 0.25)])], from_zero=False)
    corners = re.search(r'points="([^"]+)"', chart)
    assert corners is not None
    for corner in corners[1].split():
        x, y = map(float, corner.split(","))
        assert 0 <= x <= 560
        assert 0 <= y <= 220
    shown = re.findall(r'class="axis mid"[^>]*>([^<]+)<', chart)
    assert shown == ["1", "2", "3"], "whole epochs, from the first"
    assert line_chart("t", [Series("a", [])]) == ""
    assert "polyline" in line_chart("t", [Series("constant", [(1, 0.0)])])
    assert heat_strip({}, {}) == ""
    assert heat_strip({"a": [0, 0]}, {}).count('class="cell"') == 1


def test_no_share_above_all_stands_at_an_axis() -> None:
    line = Series("a", [(0, 99.0), (10, 90.0)], errors=(8.0, 8.0))
    charts = {unit: line_chart("t", [line], unit, from_zero=False) for unit in (" %", " s")}
    shown = {unit: re.findall(r'class="axis end"[^>]*>([^<]+)<', chart) for unit, chart in charts.items()}
    assert shown[" %"][-1] == "100"
    assert float(shown[" s"][-1]) > 100


PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


def add_pictures(folder: Path, **changes: Any) -> Path:
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "0.png").write_bytes(PNG)
    content = {
        "title": "Image & truth",
        "note": "of the val list",
        "legend": [{"name": "sky <blue>", "colour": "#0000ff"}],
        "rows": [{"name": "a<b", "note": "mIoU 40 %", "files": {"image": "0.png"}, "alt": {"image": 'a "street"'}}],
        **changes,
    }
    (folder / "pictures" / "pictures.json").write_text(json.dumps(content))
    return folder


def test_stored_pictures_are_part_of_the_page(tmp_path: Path) -> None:
    page = write_report(add_pictures(make_run(tmp_path))).read_text(encoding="utf-8")
    assert "<h2>Image &amp; truth</h2>" in page
    assert 'src="data:image/png;base64,iVBORw0KGgpyZXN0" alt="a &quot;street&quot;"' in page
    assert "sky &lt;blue&gt;" in page
    assert 'fill="#0000ff"' in page
    assert "a&lt;b" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [{"name": "a", "note": "", "files": {"image": "missing.png"}, "alt": {"image": ""}}]},
        {"rows": [{"name": "a", "note": "", "files": {"image": "../config.json"}, "alt": {"image": ""}}]},
        {"rows": [{"name": "a", "note": "", "files": {"image": "pictures.json"}, "alt": {"image": ""}}]},
        {"rows": [{"name": "a"}]},
        {"rows": 3},
        {"legend": [{"name": "x", "colour": 'red" onload="x'}]},
    ],
)
def test_damaged_pictures_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = add_pictures(make_run(tmp_path), **changes)
    with pytest.raises(DataError, match=r"pictures.json cannot be shown"):
        write_report(folder)
    (folder / "pictures" / "pictures.json").write_text("{")
    with pytest.raises(DataError, match=r"pictures.json cannot be shown"):
        write_report(folder)


def test_the_metric_is_written_as_its_heading_is(tmp_path: Path) -> None:
    metric = {"name": "miou", "heading": "mIoU %", "scale": 100.0, "unit": " %"}
    run = make_run(tmp_path, metrics=[metric])
    assert read_run(run).metric_label == "mIoU"
    assert read_run(make_run(tmp_path / "b")).metric_label == "accuracy"


def test_an_unfinished_run_is_drawn_in_the_outline_of_the_full_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=2, finished=False)
    facts = {"widths": {"conv1": 16, "layer1.0.conv1": 8}, "roles": {}, "blocks": ["layer1.0"], "frozen": []}
    (run / "template.json").write_text(json.dumps(facts))
    _, text = parsed(write_report(run))
    assert "conv1: 4 of 16" in text
    assert "epoch 2 of 3" in text


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", epochs=1, finished=False, method="dense")
    write_report(first)
    page = write_runs_report([first, second], tmp_path / "runs.html").read_text(encoding="utf-8")
    for part in ("97.25 %", "1 of 3 epochs", "Settings that differ", "<td>method</td>", 'href="a/report.html"'):
        assert part in page
    assert "training.seed" not in page
    assert "All settings are the same" in write_runs_report([first, first], tmp_path / "c.html").read_text()


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    with pytest.raises(DataError, match="at least two runs, got 1"):
        write_runs_report([first], tmp_path / "runs.html")
    other = make_run(tmp_path / "b", metrics=[{"name": "miou", "heading": "mIoU %"}])
    with pytest.raises(DataError, match="judged by different metrics"):
        write_runs_report([first, other], tmp_path / "runs.html")


def test_a_page_makes_its_folder_and_says_what_stands_in_the_way(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    assert write_runs_report([first, first], tmp_path / "new" / "runs.html").exists()
    with pytest.raises(DataError, match=r"new: it is a folder, expected a file. Name another file"):
        write_runs_report([first, first], tmp_path / "new")
    with pytest.raises(DataError, match=r"runs.html is a file, expected a folder"):
        write_runs_report([first, first], tmp_path / "new" / "runs.html" / "deeper.html")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["runs.html"]


def test_the_live_picture_has_a_row_per_group_and_a_column_per_epoch() -> None:
    rows = growth_pixels({"a": [0, 2, 4], "b": [4, 4, 4]}, {"a": 4})
    assert [len(row) for row in rows] == [3, 3]
    assert rows[0][0] == (255, 255, 255)
    assert sum(rows[0][1]) > sum(rows[0][2])
    assert rows[1][0] == rows[0][2]


def test_it_says_what_each_part_was_worth_and_which_blocks_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "Why it grew so" not in parsed(write_report(folder))[1]
    history = folder / "history.jsonl"
    records = [json.loads(line) for line in history.read_text().splitlines()]
    worths = [{"conv1": 0.0, "layer1.0": -7.0}, {"conv1": 0.693, "layer1.0": -7.0}, {"conv1": 0.693}]
    records[1]["blocks_left"] = {"layer1.0": -0.693}  # after the second epoch
    history.write_text("".join(json.dumps(r | {"worth": w}) + "\n" for r, w in zip(records, worths, strict=True)))
    page, said = parsed(write_report(folder))
    assert (
        '<td class="num">3</td><td>layer1.0</td><td>left</td><td>0.50</td><td>4 → 6</td><td>conv1: 4 → 6</td>'
    ) in page
    assert "taken from them when it comes back" in said
    assert "left out: layer1.0" in said
    assert "2.00" in said
    assert "under 0.01" in said


def test_a_block_that_left_in_the_first_epoch_is_told_of_and_one_that_the_seed_lacks_is_not(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=1, finished=False)
    history = folder / "history.jsonl"
    record = json.loads(history.read_text()) | {"worth": {"conv1": 0.0}, "skipped": ["layer1.0", "layer2.0"]}
    history.write_text(json.dumps(record | {"blocks_left": {"layer1.0": -0.693}}) + "\n")
    page = parsed(write_report(folder))[0]
    assert '<td class="num">1</td><td>layer1.0</td><td>left</td><td>0.50</td><td></td><td></td>' in page
    assert "<td>layer2.0</td><td>left</td>" not in page


def test_blocks_are_counted_in_whole_numbers_and_only_where_there_are_any(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    chart = parsed(write_report(folder))[0].partition("<figcaption>Blocks")[2].partition("</svg>")[0]
    assert '<text class="axis end" x="46"' in chart
    assert not re.search(r">\d+\.\d+</text>", chart)
    history = folder / "history.jsonl"
    history.write_text(
        "".join(json.dumps(json.loads(r) | {"blocks": 0}) + "\n" for r in history.read_text().splitlines())
    )
    summary = json.loads((folder / "summary.json").read_text())
    summary["template"]["blocks"] = []
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "<figcaption>Blocks" not in parsed(write_report(folder))[0]
