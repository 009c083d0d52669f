"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marks import slow

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
TEXTS = {
    "1-grow-your-first-network": "50% of the MACs",
    "2-compress-a-trained-model": "by strength",
    "3-what-did-it-learn": "layer1.0.conv1",
}


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_notebooks_are_those_that_are_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(TEXTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_lines_are_short(path: Path) -> None:
    cells = content(path)["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    for cell in cells:
        source = "".join(cell["source"])
        assert max(map(len, source.splitlines())) <= 120
        if cell["cell_type"] == "code":
            compile(source, path.name, "exec")


@pytest.mark.parametrize("path", [slow(path) for path in NOTEBOOKS], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'apical[demo]'")
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks: pip install 'apical[notebooks]'")
    pytest.importorskip("ipykernel", reason="runs notebooks: pip install 'apical[notebooks]'")
    import nbformat

    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = json.dumps([output for cell in book.cells for output in cell.get("outputs", [])])
    assert TEXTS[path.stem] in shown
    errors = [o for c in book.cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
    assert errors == []
