"""Pages whose code needs data or says what it prints: it works when it is pasted. (test_docs.py runs all others.)"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from apical.recipes import apply_settings, get_recipe
from voc_folder import write_voc

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "docs" / "guides"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def printed(page: Path) -> str:
    """What the page's Python prints."""
    names: dict[str, object] = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for number, block in enumerate(blocks(page, "python"), 1):
            exec(compile(block, f"{page.name}, python block {number}", "exec"), names)
    return output.getvalue()


@pytest.mark.parametrize(
    ("page", "seed"), [(ROOT / "README.md", 30), (GUIDES / "segmentation.md", 13)], ids=["README", "segmentation"]
)
def test_the_loop_runs_from_a_small_seed_to_its_budget(
    page: Path, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "voc")
    monkeypatch.chdir(tmp_path)
    fractions = [float(f) for f in re.findall(r"(\d+)% of the MACs", printed(page))]
    assert fractions[0] <= seed
    assert fractions[-1] == pytest.approx(50, abs=1)
    if page.stem == "README":
        assert sorted(p.name for p in (tmp_path / "compact").iterdir()) == ["architecture.json", "model.safetensors"]


def test_a_comparator_in_a_loop_of_ones_own_ends_at_its_budget() -> None:
    assert printed(GUIDES / "compare.md") == "50% of the MACs\n"


def test_the_commands_name_settings_that_exist() -> None:
    commands = [
        line
        for block in blocks(GUIDES / "segmentation.md", "console")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    trained = [shlex.split(line) for line in commands if line.startswith("apical train")]
    assert len(trained) == 3
    for words in trained:
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert apply_settings(get_recipe(words[2]), settings).task == "segmentation"


def test_the_recipe_whose_multiples_a_comparison_leaves_has_some() -> None:
    text = (GUIDES / "compare.md").read_text()
    recipe = re.search(r"apical compare (\S+) .*--set uniform\.divisor=1", text)
    multiple = re.search(r"the recipe grows in multiples of (\d+)", text)
    assert recipe is not None
    assert multiple is not None
    assert get_recipe(recipe[1]).growth.divisor == int(multiple[1])


def test_the_three_lines_are_those_that_are_tested() -> None:
    """The lines of the data-parallel guide stand in the loop that two processes run in tests/training."""
    guide = (GUIDES / "data-parallel.md").read_text()
    loop = (ROOT / "tests" / "training" / "parallel_cases.py").read_text()
    assert 'check_same_everywhere(model, "after an epoch")' in guide
    assert 'check_same_everywhere(model, "after an epoch")' in loop
    assert "parallel = DistributedDataParallel(model)" in guide
    assert loop.count("DistributedDataParallel(model)") == 2


def test_the_examples_of_the_integrations_guide_exist() -> None:
    links = re.findall(r"`(examples/\w+\.py)`", (GUIDES / "integrations.md").read_text())
    assert len(links) == 5
    assert all((ROOT / link).exists() for link in links)
