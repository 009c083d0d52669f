"""The Python in the guides about scale runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).resolve().parents[1] / "docs" / "guides"


@pytest.mark.parametrize("name", ["resuming", "compatibility"])
def test_the_snippets_run(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / f"{name}.md").read_text(), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}.md, python block {number + 1}", "exec"), {})


def test_the_three_lines_are_those_that_are_tested() -> None:
    """The lines of the data-parallel guide stand in the loop that two processes run in tests/training."""
    guide = (GUIDES / "data-parallel.md").read_text()
    loop = (GUIDES.parents[1] / "tests" / "training" / "parallel_cases.py").read_text()
    assert 'check_same_everywhere(model, "after an epoch")' in guide
    assert 'check_same_everywhere(model, "after an epoch")' in loop
    assert "parallel = DistributedDataParallel(model)" in guide
    assert loop.count("DistributedDataParallel(model)") == 2


def test_the_examples_of_the_integrations_guide_exist() -> None:
    links = re.findall(r"`(examples/\w+\.py)`", (GUIDES / "integrations.md").read_text())
    assert len(links) == 3
    assert all((GUIDES.parents[1] / link).exists() for link in links)
