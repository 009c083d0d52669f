"""Every example runs as it stands, on tiny data."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from apical.recipes import apply_settings, get_recipe
from apical.runs import run
from apical.training import make_progress
from torchvision_shim import has_torchvision, import_torchvision

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ARGUMENTS = {
    "own_loop.py": ["--epochs", "3"],
    "torchvision_model.py": ["--epochs", "3", "--steps", "1", "--size", "32"],
    "timm_model.py": ["--epochs", "2", "--size", "32", "--depth", "2"],
    "lstm.py": ["--epochs", "3", "--units", "24"],
    "segmentation.py": ["--epochs", "3", "--images", "32"],
    "export_onnx.py": ["RUN"],
}
PACKAGES = {"torchvision_model.py": "torchvision", "timm_model.py": "timm", "own_loop.py": "sklearn",
            "export_onnx.py": "onnxruntime"}  # fmt: skip


def elsewhere(name: str) -> bool:
    """Whether a test of its own runs the example."""
    tests = (path for path in EXAMPLES.parent.glob("tests/**/*.py") if path != Path(__file__).resolve())
    return any(name.removesuffix(".py") in path.read_text(encoding="utf-8") for path in tests)


def test_every_example_is_run() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(ARGUMENTS) <= names
    assert [name for name in sorted(names - set(ARGUMENTS)) if not elsewhere(name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if PACKAGES.get(name) in ("torchvision", "timm"):
        if not has_torchvision():
            pytest.skip("torchvision is not installed")
        import_torchvision()
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    arguments = ARGUMENTS[name]
    if arguments == ["RUN"]:
        tiny = ["data.path=synthetic", "limit=32", "batch_size=16", "epochs=2", "model.depth=8", "model.width=4"]
        run(apply_settings(get_recipe("digits"), tiny), tmp_path / "run", progress=make_progress("quiet"))
        arguments = [str(tmp_path / "run")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    expected = {"own_loop.py": r"epoch 3: .* 50% of the MACs", "torchvision_model.py": r"epoch 3: 40% of the MACs",
                "timm_model.py": r"epoch 2: (49|50)% of the MACs", "lstm.py": r"epoch 3: loss",
                "segmentation.py": r"epoch 3: .* 30% of the MACs", "export_onnx.py": r"classes of five"}  # fmt: skip
    assert re.search(expected[name], printed), printed
