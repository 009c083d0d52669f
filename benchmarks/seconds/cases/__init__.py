"""What is measured: each case is a function of the options that adds to the findings."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.seconds.cases.latency import latency
from benchmarks.seconds.cases.loop import loop
from benchmarks.seconds.cases.memory import memory
from benchmarks.seconds.cases.overhead import overhead
from benchmarks.seconds.cases.settings import settings
from benchmarks.seconds.cases.sizes import sizes
from benchmarks.seconds.cases.staircase import staircase
from benchmarks.seconds.cases.training import training
from benchmarks.seconds.findings import Findings
from benchmarks.seconds.steps import Options

Case = Callable[[Options, Findings], None]

CASES: dict[str, tuple[str, Case]] = {
    "overhead": ("What apical adds to a training step", overhead),
    "staircase": ("Time of a training step of a layer by width", staircase),
    "training": ("Training seconds against dense and against the final network", training),
    "latency": ("Inference latency at equal MACs", latency),
    "settings": ("Grown runs with different settings against each other", settings),
    "memory": ("Memory by epoch", memory),
    "sizes": ("Tracing and resizing by size of the network", sizes),
    "loop": ("What the training loop costs beside the steps", loop),
}
"""Title and function by name."""
