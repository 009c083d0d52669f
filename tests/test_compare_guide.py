"""What the guide to comparisons shows works when it is pasted."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "compare.md"


def test_a_comparator_in_a_loop_of_ones_own_ends_at_its_budget() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, GUIDE.name, "exec"), {"__name__": "guide"})
    assert printed.getvalue() == "50% of the MACs\n"


def test_every_command_of_the_guide_is_one_that_the_command_line_knows() -> None:
    from click.testing import CliRunner

    from apical.cli import main

    commands = re.findall(r"^apical (\w+) (.*)$", GUIDE.read_text(encoding="utf-8"), re.M)
    assert len(commands) >= 3
    options = CliRunner().invoke(main, ["compare", "--help"]).output
    for name, rest in commands:
        assert name == "compare"
        assert all(option in options for option in re.findall(r"--[\w-]+", rest))
