"""The runner: every case one after the other, seconds.json written after each, then seconds.md."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from apical.training._config import resolve_device
from apical.training._results import describe_device, versions
from benchmarks.seconds import __doc__ as about
from benchmarks.seconds.cases import CASES
from benchmarks.seconds.check import print_verdicts
from benchmarks.seconds.findings import Findings
from benchmarks.seconds.report import write
from benchmarks.seconds.steps import Options


def run(names: list[str], options: Options, out: Path, command: str) -> dict[str, Any]:
    """Measure the named cases; a case that fails is noted and does not stop the others."""
    content: dict[str, Any] = {
        "quick": options.quick,
        "command": command,
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "device": describe_device(options.device),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "versions": versions(),
        },
        "cases": {},
    }
    for name in names:
        title, measure = CASES[name]
        print(f"{name}: {title} ...", flush=True)
        found, started = Findings(title, load=_load()), time.perf_counter()
        with found.part("the whole case"):
            measure(options, found)
        found.seconds = time.perf_counter() - started
        content["cases"][name] = found.to_dict()
        _store(content, out)
        failed = f", {len(found.errors)} part(s) failed" if found.errors else ""
        print(f"{name}: {found.seconds:.0f} s{failed}", flush=True)
    return content


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _store(content: dict[str, Any], out: Path) -> None:
    aside = out / "seconds.json.tmp"
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(out / "seconds.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     prog="python -m benchmarks.seconds")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for seconds.json and seconds.md")
    parser.add_argument("--only", help=f"some of the cases, with commas between: {','.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="smallest settings, to see that everything runs")
    parser.add_argument("--run", type=Path, action="append", default=[], metavar="FOLDER",
                        help="time this finished run too (cases training and latency); repeatable")  # fmt: skip
    parser.add_argument(
        "--only-runs",
        action="store_true",
        help="leave out the recipes of the cases training and latency: only what --run gives",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--float32", action="store_true", help="no autocast to bfloat16, for processors without it")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    given = parser.parse_args()
    names = list(CASES) if given.only is None else given.only.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"--only: there is no case {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    if given.only_runs and not given.run:
        parser.error("--only-runs: no run is given; name the folder of a finished one with --run")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    options = Options(resolve_device(given.device), given.quick, tuple(given.run), given.float32, given.only_runs)
    content = run(names, options, given.out, f"python -m benchmarks.seconds {shlex.join(sys.argv[1:])}")
    print(f"wrote {write(given.out)}")
    failed = print_verdicts(content)
    return failed if given.check else 0


if __name__ == "__main__":
    sys.exit(main())
