"""The documentation is true: its snippets run, its commands exist, and every public name says what it is."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import apical
from apical.cli import main
from apical.recipes import get_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = {path.parent.name for path in ROOT.glob("src/apical/*/__init__.py")} - {"cli"}  # its reference is --help
PACKAGES = ["apical", "apical.errors", *sorted(f"apical.{name}" for name in FOLDERS)]
NEEDS = {"onnxruntime", "tensorboard", "lightning", "transformers", "accelerate", "timm", "sklearn", "pyarrow", "PIL"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def elsewhere(page: Path) -> bool:
    """Whether a test of its own runs the page, with the data that it needs."""
    tests = (path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__).resolve())
    return any(page.name in path.read_text(encoding="utf-8") for path in tests)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if elsewhere(page):
        pytest.skip("has a test of its own")
    code = blocks(page, "python")
    for package in sorted(NEEDS & set(re.findall(r"^(?:import|from) (\w+)", "\n".join(code), re.M))):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()):
        for number, block in enumerate(code, 1):
            exec(compile(block, f"{name_of(page)}, python block {number}", "exec"), names)


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.split(" > ")[0], comments=True)
                if words[:1] == ["apical"]:
                    yield f"{name_of(page)}: {line.strip()}", words[1:]


@pytest.mark.parametrize(("where", "words"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_commands_in_the_documentation_are_understood(where: str, words: list[str]) -> None:
    with main.context_class(main, info_name="apical", **main.context_settings) as context:
        name, command, rest = main.resolve_command(context, words)
        assert command is not None, where
        parsed = command.make_context(name, list(rest), parent=context)
    recipe = parsed.params.get("recipe")
    if recipe is not None:
        get_recipe(recipe)


def own(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("apical")


def undocumented(package: str) -> list[str]:
    module = import_module(package)
    found = [] if module.__doc__ else [package]
    for name in module.__all__:
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and own(value):
            if not (value.__doc__ or "").strip():
                found.append(f"{package}.{name}")
            if inspect.isclass(value):
                found += [f"{package}.{name}.{part}" for part in _silent(value)]
    return found


def _silent(kind: type) -> list[str]:
    found = []
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or not own(function):
            continue
        is_default = function.__name__ != name  # of a field that holds a function
        inherited = any(inspect.getdoc(getattr(base, name, None)) for base in kind.__mro__[1:])
        if not (function.__doc__ or inherited or is_default):
            found.append(name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package: str) -> None:
    assert undocumented(package) == []


def test_every_package_has_a_reference_page() -> None:
    shown = [line for page in (ROOT / "docs" / "reference").glob("*.md") for line in page.read_text().splitlines()]
    names = [line.removeprefix("::: ") for line in shown if line.startswith("::: ")]
    single = {"apical.integrations." + path.stem for path in (ROOT / "src/apical/integrations").glob("[a-z]*.py")}
    assert sorted(names) == sorted([*PACKAGES, *single])  # each integration is a module of its own


def test_the_lazy_names_are_the_public_names() -> None:
    assert {*apical._HOME, "ApicalError", "__version__"} == set(apical.__all__)
    public = {name.partition(".")[2] for name in PACKAGES} - {"", "integrations"}
    assert set(dir(apical)) == {*apical.__all__, *public}
    assert apical.budget.Budget is import_module("apical.budget").Budget
    with pytest.raises(AttributeError, match="has no attribute 'Growr'") as caught:
        _ = apical.Growr
    assert (caught.value.name, caught.value.obj) == ("Growr", apical)  # by these Python asks "did you mean 'Grower'"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_prose_is_wrapped_at_120_characters() -> None:
    for page in {*PAGES, *ROOT.glob("*.md")}:
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        long = [line for line in prose.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
        assert long == [], name_of(page)


def test_the_picture_of_growth_is_that_of_the_kept_run() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "growing.py"))["pictures"]()
    for name, text in drawn.items():
        assert text == (ROOT / "docs" / name).read_text(encoding="utf-8"), name


def test_the_readme_does_not_send_its_readers_to_the_diary() -> None:
    assert "LOG.md" not in (ROOT / "README.md").read_text(encoding="utf-8")
