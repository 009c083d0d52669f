"""Are the targets met? Reads seconds.json, prints a line for each target; exit status 1 if one is missed.

    python -m benchmarks.seconds.check FOLDER

A case or a part of one that failed counts as missed; one that was skipped, with its reason, does not.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.seconds.findings import Target, read, targets_of


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met, in words."""

    case: str
    name: str
    measured: str
    target: str
    met: bool
    words: str


def judge(case: str, target: Target) -> Verdict:
    """Met or missed, by how much, and whether the limit lies within the spread.

    The median decides. Percentages are relative to the limit.

    Example:
        >>> judge("overhead", Target("step", 1.05, 1.02)).words
        'missed by 2.9 %'
        >>> judge("training", Target("share", 0.9, 0.8, "at least", 0.7, 0.95)).words
        'met by 12.5 %, but the limit lies within the quartiles'
    """
    at_most = target.sense == "at most"
    met = math.isfinite(target.value) and (target.value <= target.limit if at_most else target.value >= target.limit)
    away = 100 * abs(target.value - target.limit) / abs(target.limit)
    words = f"{'met' if met else 'missed'} by {away:.1f} %"
    if target.low is not None and target.high is not None and target.low < target.limit < target.high:
        words += ", but the limit lies within the quartiles"
    quartiles = "" if target.low is None else f" ({target.low:.4g}–{target.high:.4g})"
    return Verdict(case, target.name, f"{target.value:.4g}{quartiles}", f"{target.sense} {target.limit:g}", met, words)


def verdicts(content: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for every target, and one for everything that failed."""
    found = []
    for name, case in content["cases"].items():
        found += [judge(name, target) for target in targets_of(case)]
        found += [Verdict(name, what, "–", "–", False, f"failed: {why}") for what, why in case["errors"].items()]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    return print_verdicts(read(parser.parse_args().folder))


def print_verdicts(content: Mapping[str, Any]) -> int:
    """Print all verdicts; 1 if a target is missed or nothing was judged, else 0."""
    found = verdicts(content)
    for verdict in found:
        mark = "met   " if verdict.met else "MISSED"
        print(f"{mark} {verdict.case}: {verdict.name}: {verdict.measured}, {verdict.target}: {verdict.words}")
    for name, case in content["cases"].items():
        for what, why in case["skipped"].items():
            print(f"skipped {name}: {what}: {why}")
    missed = sum(not verdict.met for verdict in found)
    print(f"{len(found) - missed} of {len(found)} met" if found else "no target was measured")
    return int(missed > 0 or not found)


if __name__ == "__main__":
    sys.exit(main())
