"""Draws `docs/growing.svg`, a network that grows, from a run that is kept: `python docs/growing.py`.

ResNet-20 at 16x16, 50 % of the MACs, seed 12 (`benchmarks/results/learning`): the widths after epochs 1, 2, 3 and 8.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "benchmarks" / "results" / "learning" / "cifar10-resnet20.jsonl"
RUN = {"setting": "resnet20-16", "method": "learned", "seed": 12, "options": {}}
EPOCHS = (1, 2, 3, 8)
FULL = {"conv1": 16, "layer1": 16, "layer2": 32, "layer3": 64}  # channels of the largest network, by stage
PIXELS, ROW, COLUMN, TOP = 2.5, 14, 200, 40
STYLE = (
    "text{font:13px sans-serif;fill:#808080;text-anchor:middle}"
    ".full{fill:none;stroke:#a0a0a0;stroke-opacity:.5}.now{fill:#3b82c4}.out{fill:#a0a0a0;fill-opacity:.15}"
)


def trajectory() -> list[dict[str, Any]]:
    """The run's networks, one an epoch."""
    runs = map(json.loads, RUNS.read_text(encoding="utf-8").splitlines())
    return next(run["trajectory"] for run in runs if RUN.items() <= run.items())


def picture(networks: list[dict[str, Any]]) -> str:
    """Bars of all layers, one under the other, in columns of epochs: filled as wide as the layer is."""
    names = list(networks[0]["widths"])
    size = COLUMN * len(EPOCHS), TOP + ROW * len(names) + 10
    title = "ResNet-20 grows under a budget of 50 % of its MACs"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img"><title>{title}</title>',
        f"<style>{STYLE}</style>",
    ]
    for number, epoch in enumerate(EPOCHS):
        network, middle = networks[epoch - 1], COLUMN * (number + 0.5)
        parts.append(f'<text x="{middle}" y="24">epoch {epoch}: {network["macs_fraction"]:.0%} of the MACs</text>')
        for row, name in enumerate(names):
            block = name.rpartition(".")[0]
            there = block not in network["skipped"]
            full, now = PIXELS * FULL[name.split(".")[0]], PIXELS * network["widths"][name]
            place = f'y="{TOP + ROW * row}" height="{ROW - 4}"'
            parts.append(f'<rect class="{"full" if there else "out"}" x="{middle - full / 2}" {place} width="{full}"/>')
            if there:
                parts.append(f'<rect class="now" x="{middle - now / 2}" {place} width="{now}"/>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    (ROOT / "docs" / "growing.svg").write_text(picture(trajectory()), encoding="utf-8")
