"""Imports point one way.

Every module under `src/apical` is parsed, never imported, and every import in it counts: at the top, inside a
function, or under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "apical"

# Modules beside the packages that everybody may import; they import nothing but errors.
COMMON = {"errors", "_version", "_atomic", "_checks", "_memory_format", "_optional", "_reading", "_shares"}

LEAVES: set[str] = set()
ENGINE = {"structure", "resizing", "budget", "quantize", "timing"}
ASSEMBLY = ENGINE | {"growth", "baselines", "export", "training", "models", "data", "reporting"}

# package -> the packages of the project it may import, besides itself and COMMON.
ALLOWED: dict[str, set[str]] = {
    "quantize": LEAVES,
    "models": LEAVES,
    "data": LEAVES,
    "reporting": LEAVES,
    "training": LEAVES,
    "structure": LEAVES,
    "resizing": {"structure"},
    "budget": {"structure"},
    "timing": {"structure", "resizing", "budget"},
    "growth": ENGINE | {"reporting"},  # `Grower.report`
    "baselines": ENGINE,
    "export": ENGINE,
    "recipes": ASSEMBLY,
    "runs": ASSEMBLY | {"recipes"},
    "integrations": ASSEMBLY,
    "cli": ASSEMBLY | {"recipes", "runs", "integrations", "apical"},
    # `apical/__init__.py` re-exports the public names; nothing below the command line imports it.
    "apical": ENGINE | {"growth", "baselines", "export", "models", "quantize"},
    "__main__": {"cli"},
}


def package_of(path: Path, root: Path = SOURCE) -> str:
    """`src/apical/data/_x.py` -> `data`, `src/apical/errors.py` -> `errors`, `src/apical/__init__.py` -> `apical`."""
    parts = path.relative_to(root).with_suffix("").parts
    return "apical" if parts == ("__init__",) else parts[0]


def absolute(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """The absolute module that an import statement names, relative imports resolved."""
    if node.level == 0:
        return node.module or ""
    parents = ["apical", *path.relative_to(root).with_suffix("").parts]
    base = parents[: len(parents) - node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported_packages(path: Path, root: Path = SOURCE) -> Iterator[tuple[str, int]]:
    """Every (package of the project, line) that a module imports."""
    known = {p.name if p.is_dir() else p.stem for p in root.iterdir()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path, root)
            names = [module]
            if module == "apical":  # `from apical import budget` names a package, `from apical import Grower` the root
                names = [f"apical.{a.name}" if a.name in known else "apical" for a in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "apical":
                yield (parts[1] if len(parts) > 1 else "apical"), node.lineno


def modules(root: Path = SOURCE) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)


def violations(root: Path) -> list[str]:
    found = []
    for path in modules(root):
        package = package_of(path, root)
        if package in COMMON:
            allowed = {"errors"} - {package}
        else:
            allowed = ALLOWED.get(package, set()) | COMMON | {package}
        for target, line in imported_packages(path, root):
            if target not in allowed:
                found.append(f"{path.relative_to(root)}:{line}: {package} must not import {target}")
    return found


def file_edges(root: Path) -> dict[str, set[str]]:
    """For every file of a package those of the project that it imports; ``structure`` is its `__init__.py`."""
    names = {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in modules(root)}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = absolute(node, path, root)
                targets = [f"{module}.{a.name}" if f"{module}.{a.name}"[7:] in names else module for a in node.names]
            else:
                continue
            graph[name] |= {t.removeprefix("apical.") for t in targets if t.removeprefix("apical.") in names}
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph as a list of names, or an empty list."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := visit(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_imports_point_one_way() -> None:
    assert not violations(SOURCE), "\n".join(violations(SOURCE))


def test_files_have_no_cycles() -> None:
    assert not cycle(file_edges(SOURCE)), " -> ".join(cycle(file_edges(SOURCE)))


@pytest.mark.parametrize(
    "statement",
    [
        "from apical.quantize._a import thing",
        "from apical.quantize import _a",
        "from ._a import thing",
        "from . import _a",
        "import apical.quantize._a",
        "def f():\n    from apical.quantize._a import thing",
        "from apical.quantize import thing",  # the package's own `__init__.py`, which imports this file
    ],
)
def test_the_check_sees_every_circle_between_files(tmp_path: Path, statement: str) -> None:
    (tmp_path / "quantize").mkdir()
    (tmp_path / "quantize" / "__init__.py").write_text("from apical.quantize._b import other")
    (tmp_path / "quantize" / "_a.py").write_text("from apical.quantize._b import other")
    (tmp_path / "quantize" / "_b.py").write_text("import torch")
    assert not cycle(file_edges(tmp_path))
    (tmp_path / "quantize" / "_b.py").write_text(statement)
    assert cycle(file_edges(tmp_path))


def test_packages_have_no_cycles() -> None:
    """Since none has an import that is not allowed."""
    assert not cycle(ALLOWED)


def test_every_package_is_known_and_none_is_called_utils() -> None:
    names = {package_of(path) for path in modules()}
    assert names - COMMON <= set(ALLOWED), f"add to ALLOWED: {sorted(names - COMMON - set(ALLOWED))}"
    assert not [p for p in SOURCE.rglob("*") if p.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize(
    "statement",
    [
        "import apical.cli",
        "from apical.growth import Grower",
        "from apical import growth",
        "from apical import Grower",
        "from ..growth import Grower",
        "from .. import growth",
        "def f():\n    import apical.growth.schedule",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from apical.training import train",
    ],
)
def test_the_check_sees_every_form_of_import(tmp_path: Path, statement: str) -> None:
    for package in ("quantize", "growth", "training", "cli"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "quantize" / "_bad.py").write_text(statement)
    assert len(violations(tmp_path)) == 1


def test_the_check_allows_what_the_design_allows(tmp_path: Path) -> None:
    for package in ("quantize", "growth"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "growth" / "_good.py").write_text(
        "from apical.quantize import pack\nfrom ..errors import BudgetError\nfrom . import other\nimport torch\n"
    )
    assert violations(tmp_path) == []
