"""The ablation of growth: one part of the method at a time is changed or left out, on held-out images of CIFAR-10.

    APICAL_DATA=... python benchmarks/ablation.py --seeds 10 11 12 --out RESULTS.jsonl
    python benchmarks/ablation.py --table --out RESULTS.jsonl

Runs are those of `learning.py` (its method ``learned``, the setting ``resnet20-32``: ResNet-20 at 32x32, 50 % MACs,
8 epochs), with one option of growth changed. One JSON line for each run; runs that the file has are not repeated. The
table has the differences to the default seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from learning import SETTINGS, add, images, read, trained
from torch import Tensor

from apical.growth._observer import GateObserver
from apical.growth._utility import UtilityMeter
from apical.reporting import mean_std


@contextmanager
def signed_products() -> Iterator[None]:
    """A unit is worth the square of its mean gate product: what the first-order term says of the loss without it."""
    end = UtilityMeter.write_back

    def add_signed(self: UtilityMeter, products: Tensor) -> None:
        self._squares += products.to(self._squares.dtype)
        self._steps += 1

    def squared_at_the_end(self: UtilityMeter) -> None:
        end(self)
        self._components.buffer.square_().div_(self._components.steps.clamp(min=1))

    with (
        patch.object(UtilityMeter, "_take", add_signed),
        patch.object(UtilityMeter, "write_back", squared_at_the_end),
    ):
        yield


@contextmanager
def magnitudes() -> Iterator[None]:
    """A unit is worth the squared norm of the weights at its gate site; gradients have no part in it."""
    products = GateObserver.products

    def norms(self: GateObserver) -> Tensor | None:
        kept = [tensor.grad for tensor in self._tensors]
        for tensor in self._tensors:
            tensor.grad = tensor.detach().clone()
        try:
            found = products(self)
        finally:
            for tensor, grad in zip(self._tensors, kept, strict=True):
                tensor.grad = grad
        return None if found is None else found.abs().sqrt()  # the meter squares it

    with patch.object(GateObserver, "products", norms):
        yield


@dataclass(frozen=True)
class Variant:
    """What differs from the default.

    Attributes:
        what: in words.
        options: of growth.
        within: what changes the method beyond its options.
    """

    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    within: Callable[[], AbstractContextManager[None]] = nullcontext


BASE = {"growth_end": 0.4}  # of all variants: the table was begun when that was the default

VARIANTS = {
    "default": Variant("the library's default, and growth until 0.4"),
    "utility-signed": Variant("utility: the mean gate product, squared", within=signed_products),
    "utility-magnitude": Variant("utility: squared norm of the weights", within=magnitudes),
    "utility-random": Variant("utility: drawn, not measured", {"utility": "random"}),
    "damping-0": Variant("allocation: widths keep their proportions", {"damping": 0.0}),
    "damping-0.5": Variant("allocation: the whole way at once", {"damping": 0.5}),
    "shrinkage-0": Variant("allocation: what was measured alone", {"shrinkage": 0.0}),
    "shrinkage-1": Variant("allocation: the template's proportions alone", {"shrinkage": 1.0}),
    "max-change-2": Variant("allocation: up to a factor of 2 at once", {"max_change": 2.0}),
    "no-depth": Variant("depth: all blocks stay", {"grow_depth": False}),
    "growth-0.25": Variant("schedule: growth ends at 0.25", {"growth_end": 0.25}),
    "growth-0.75": Variant("schedule: growth ends at 0.75", {"growth_end": 0.75}),
    "from-full": Variant("start: the full network, only pruned", {"seed_fraction": 2.0}),
    "birth-random": Variant("birth: random outgoing weights", {"birth": "random"}),
}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: accuracies, and differences to the default over the seeds that both have."""
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        by_variant.setdefault(line["variant"], {})[line["seed"]] = line
    default = by_variant.get("default", {})
    rows = [
        "| variant | what differs | seeds | held-out accuracy % | to the default, points | training MACs | params % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        runs = by_variant.get(name)
        if not runs:
            continue
        both = [seed for seed in sorted(runs) if seed in default]
        differences = [100 * (runs[seed]["accuracy"] - default[seed]["accuracy"]) for seed in both]
        cells = [
            f"`{name}`",
            variant.what,
            str(len(runs)),
            _text([100 * run["accuracy"] for run in runs.values()], "{:.2f}"),
            "–" if name == "default" else _text(differences, "{:+.2f}").replace("± +", "± "),
            _text([run["train_macs"] for run in runs.values()], "{:.2f}"),
            _text([100 * run["params_fraction"] for run in runs.values()], "{:.0f}"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _text(values: Sequence[float], pattern: str) -> str:
    found = mean_std(values)
    return "–" if found is None else found.text(pattern)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--setting", choices=SETTINGS, default="resnet20-32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT",
                        help=f"default: all of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    setting, data = SETTINGS[arguments.setting], None
    for seed in () if arguments.table else arguments.seeds:
        for name in arguments.variants:
            variant = VARIANTS[name]
            options = BASE | dict(variant.options)
            key = {"setting": arguments.setting, "variant": name, "method": "learned", "seed": seed, "options": options}
            if any(all(line.get(k) == v for k, v in key.items()) for line in read(arguments.out)):
                continue
            data = images(setting) if data is None else data
            with variant.within():
                add(arguments.out, key | trained("learned", setting, seed, data, [], key, options))
    print(table([line for line in read(arguments.out) if line["setting"] == arguments.setting]))


if __name__ == "__main__":
    main()
