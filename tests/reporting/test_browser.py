"""The pages in a real browser: no errors, nothing fetched, usable by keyboard, and they fit a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apical.cli._inspect import _costs
from apical.models import CifarResNet
from apical.recipes import apply_settings, get_recipe
from apical.reporting import write_architecture, write_runs_report
from apical.resizing import trace
from apical.runs import run
from apical.training import make_progress
from browser import CHROMIUM, Page, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH"),
]

END, HOME, LEFT, TAB, ENTER = 35, 36, 37, 9, 13
HEIGHTS = "[...document.querySelectorAll('.net .now')].map((bar) => Number(bar.getAttribute('height')))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = [
        "data.path=synthetic",
        "limit=64",
        "batch_size=32",
        "epochs=4",
        "model.depth=8",
        "model.width=8",
        "device=cpu",
    ]
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(apply_settings(get_recipe("digits"), tiny), folder, progress=make_progress("quiet"))
    return folder


def opened(page: Page, path: Path) -> Page:
    page.console.clear()
    page.requests.clear()
    page.look(1200, 900)
    page.open(path)
    return page


def assert_clean(page: Page, path: Path) -> None:
    assert page.console == []
    assert page.requests == [path.resolve().as_uri()]


def assert_fits_a_phone(page: Page) -> None:
    page.look(390, 800, dark=True)
    assert page.value("document.documentElement.scrollWidth") <= 390
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"


def test_the_slider_changes_the_picture(page: Page, finished: Path, tmp_path: Path) -> None:
    report = finished / "report.html"
    opened(page, report)
    last, told = page.value(HEIGHTS), page.value("document.getElementById('now').textContent")
    assert told.startswith("epoch 4 of 4")
    before = page.screenshot(tmp_path / "last.png", whole=False).read_bytes()
    page.value("document.getElementById('when').focus()")
    page.key("Home", HOME)
    first = page.value(HEIGHTS)
    assert page.value("document.getElementById('now').textContent").startswith("epoch 1 of 4")
    assert page.value("document.getElementById('when').getAttribute('aria-valuetext')").startswith("epoch 1 of 4")
    assert sum(first) < sum(last)
    assert page.screenshot(tmp_path / "first.png", whole=False).read_bytes() != before
    page.key("End", END)
    assert page.value(HEIGHTS) == last
    page.key("ArrowLeft", LEFT)
    assert page.value("document.getElementById('now').textContent").startswith("epoch 3 of 4")
    assert_clean(page, report)
    assert_fits_a_phone(page)


def test_everything_that_acts_or_scrolls_can_be_reached_by_keyboard(page: Page, finished: Path) -> None:
    opened(page, finished / "report.html")
    reached = set()
    for _ in range(60):
        page.key("Tab", TAB)
        reached.add(page.value("document.activeElement.id || document.activeElement.tagName"))
    assert {"when", "play", "SUMMARY", "DIV", "PRE"} <= reached


def test_without_scripts_the_last_epoch_is_shown_and_no_slider(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert '<div class="controls" hidden>' in text
    assert '<output id="now" for="when">epoch 4 of 4' in text


def test_runs_share_a_page(page: Page, finished: Path, tmp_path: Path) -> None:
    path = write_runs_report([finished, finished], tmp_path / "runs.html")
    opened(page, path)
    assert page.value("document.querySelectorAll('.net').length") == 2
    assert_clean(page, path)
    assert_fits_a_phone(page)


def test_a_group_lights_up_all_its_slices(page: Page, tmp_path: Path) -> None:
    model = CifarResNet(depth=8, width=4)
    structure = trace(model, (torch.randn(2, 3, 16, 16),))
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    path = write_architecture(
        {**structure.to_dict(), **_costs(structure), "model": "net", "types": types}, tmp_path / "n.html"
    )
    opened(page, path)
    for index in (0, len(structure.groups) - 1):
        page.value(f"document.querySelectorAll('button.group')[{index}].focus()")
        lit = page.value("[...document.querySelectorAll('.part.on')].map((part) => part.title.split(',')[0])")
        assert set(lit) == {member.tensor for member in structure.groups[index].members}
    page.key("Enter", ENTER)
    assert page.value("document.querySelectorAll('.part.on').length") > 0
    page.value("document.activeElement.blur()")
    page.value(
        "document.querySelector('.part').dispatchEvent(new MouseEvent('mouseenter', {bubbles: false}))"
    )  # hovering
    assert page.value("document.querySelector('.part').classList.contains('on')")
    assert page.value("document.getElementById('told').textContent").startswith(structure.groups[0].name)
    assert_clean(page, path)
    assert_fits_a_phone(page)


def test_the_architecture_is_searched_and_collapsed(page: Page, tmp_path: Path) -> None:
    model = CifarResNet(depth=8, width=8)
    structure = trace(model, (torch.randn(1, 3, 8, 8),))
    content = {**structure.to_dict(), **_costs(structure), "model": "net", "types": {}}
    opened(page, write_architecture(content, tmp_path / "n.html"))
    visible = "[...document.querySelectorAll('{}')].filter((e) => e.checkVisibility()).map((e) => e.dataset.name)"
    search = (
        "(() => {{ const field = document.getElementById('search'); field.value = '{}'; "
        "field.dispatchEvent(new Event('input')); }})()"
    )
    page.value(search.format("LAYER2.0.conv1"))
    assert page.value(visible.format(".groups > li")) == ["layer2.0.conv1"]
    assert page.value(visible.format(".module")) == ["layer2", "layer2.0", "layer2.0.conv1"]
    assert page.value("document.getElementById('found').textContent") == "1 groups, 1 modules"
    page.value(search.format(""))
    assert len(page.value(visible.format(".groups > li"))) == len(structure.groups)
    page.value("document.getElementById('fold').click()")
    assert "layer2.0" not in page.value(visible.format(".module"))
    assert page.value("document.getElementById('fold').textContent") == "Expand all"
    page.value("document.getElementById('fold').click()")
    assert "layer2.0.conv1" in page.value(visible.format(".module"))
    page.look(400, 800)
    assert page.value("document.documentElement.scrollWidth") <= 400
