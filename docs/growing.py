"""Draws networks of runs that are kept, `benchmarks/results/learning`: `python docs/growing.py`.

growing.svg: ResNet-20 at 16x16, 50 % of the MACs, seed 12, after epochs 1, 2, 3 and 8.
found.svg: what growth ended with, in three settings with three seeds each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "benchmarks" / "results" / "learning" / "cifar10-resnet20.jsonl"
GROWING = "resnet20-16", 12, (1, 2, 3, 8)  # setting, seed, epochs
FOUND = {"resnet20-16": "16x16, 50 %", "resnet20-32": "32x32, 50 %", "resnet20-16-quarter": "16x16, 25 %"}
FULL = {"conv1": 16, "layer1": 16, "layer2": 32, "layer3": 64}  # channels of the largest network, by stage
ROW, TOP, NAMES = 14, 40, 100
STYLE = (
    "text{font:13px sans-serif;fill:#808080;text-anchor:middle}.name{text-anchor:end;font-size:11px}"
    ".full{fill:none;stroke:#a0a0a0;stroke-opacity:.5}.now{fill:#3b82c4}.out{fill:#a0a0a0;fill-opacity:.15}"
)
Column = tuple[str, dict[str, Any]]  # its heading, and a network


def learned() -> Iterator[dict[str, Any]]:
    """The learned runs with default options."""
    for run in map(json.loads, RUNS.read_text(encoding="utf-8").splitlines()):
        if run["method"] == "learned" and not run["options"]:
            yield run


def growing() -> list[Column]:
    """One run at several epochs."""
    setting, seed, epochs = GROWING
    networks = next(run["trajectory"] for run in learned() if (run["setting"], run["seed"]) == (setting, seed))
    return [(f"epoch {e}: {networks[e - 1]['macs_fraction']:.0%} of the MACs", networks[e - 1]) for e in epochs]


def found() -> list[Column]:
    """The last networks of all settings."""
    runs = sorted(learned(), key=lambda run: run["seed"])
    return [
        (f"{words}, {run['seed']}", run["last"]) for s, words in FOUND.items() for run in runs if run["setting"] == s
    ]


def picture(title: str, columns: Sequence[Column], pixels: float, column: int, names: bool = False) -> str:
    """Bars of all layers, one under the other: outlined at full width, filled as wide as the layer is.

    Args:
        title: for those who do not see it.
        columns: networks, side by side.
        pixels: of a channel.
        column: pixels from one network to the next.
        names: whether to write the layers' names to the left.
    """
    layers, left = list(columns[0][1]["widths"]), NAMES if names else 0
    size = left + column * len(columns), TOP + ROW * len(layers) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img"><title>{title}</title>',
        f"<style>{STYLE}</style>",
    ]
    if names:
        parts += [
            f'<text class="name" x="{NAMES - 8}" y="{TOP + ROW * i + 9}">{n}</text>' for i, n in enumerate(layers)
        ]
    for number, (heading, network) in enumerate(columns):
        middle = left + column * (number + 0.5)
        parts.append(f'<text x="{middle}" y="24">{heading}</text>')
        for row, name in enumerate(layers):
            there = name.rpartition(".")[0] not in network["skipped"]
            full, now = pixels * FULL[name.split(".")[0]], pixels * network["widths"].get(name, 0)
            place = f'y="{TOP + ROW * row}" height="{ROW - 4}"'
            parts.append(f'<rect class="{"full" if there else "out"}" x="{middle - full / 2}" {place} width="{full}"/>')
            if there:
                parts.append(f'<rect class="now" x="{middle - now / 2}" {place} width="{now}"/>')
    return "\n".join([*parts, "</svg>\n"])


def pictures() -> dict[str, str]:
    """The files and what is in them."""
    title = "ResNet-20 grows under a budget of 50 % of its MACs"
    return {
        "growing.svg": picture(title, growing(), 2.5, 200),
        "found.svg": picture("What growth ended with, in three settings with three seeds", found(), 1.4, 112, True),
    }


if __name__ == "__main__":
    for name, text in pictures().items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")
