"""What a package needs besides code: a licence, how to cite it, metadata that is true; and no need of the extras."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import apical

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


def test_the_metadata_name_licence_authors_and_version() -> None:
    facts = project()
    assert facts["license"] == "Apache-2.0"
    assert facts["license-files"] == ["LICENSE"]
    assert facts["authors"] == [{"name": "the apical developers"}]
    assert facts["version"] == apical.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert not [name for name in facts["classifiers"] if name.startswith("License")], "the expression says it"


def test_the_citation_names_version_licence_and_paper() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (found["version"], found["license"]) == (apical.__version__, project()["license"])
    (paper,) = found["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Yuan", "Savarese", "Maire"]
    assert paper["url"] == project()["urls"]["Paper"]


def test_the_sdist_holds_what_its_pages_link_to() -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    for name in ("CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "README.md"):
        assert name in included
        assert (ROOT / name).exists()
    for page in ("CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page} links to {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_installs_only_what_it_needs(tmp_path: Path) -> None:
    def installed(target: str) -> list[str]:
        command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return re.findall(r"--editable '\.\[(.*?)\]'", said)

    demo, whole = installed("demo"), installed("setup")
    assert demo == ["demo"]
    assert whole[0] == "demo"
    assert {"dev", "docs"} <= set(whole[1].split(","))
    assert installed("lint") == whole, "what checks need is installed by them"


IMPORT_ALL = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import apical
for module in pkgutil.walk_packages(apical.__path__, "apical."):
    if ".integrations." not in module.name and module.name != "apical.__main__":
        importlib.import_module(module.name)
"""


@pytest.mark.run
def test_everything_imports_without_extras() -> None:
    extras = {"PIL", "pyarrow", "sklearn", "yaml", "onnx", "onnxruntime", "onnxscript", "tensorboard", "lightning",
              "transformers", "accelerate", "timm", "torchvision", "wandb", "mlflow", "trackio",
              "huggingface_hub"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(extras=extras)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
