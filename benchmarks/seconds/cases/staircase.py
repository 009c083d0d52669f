"""(b) The staircase: forward and backward of a layer by its width, round widths and their neighbours."""

from __future__ import annotations

from torch import nn

from apical.recipes import apply_settings, get_recipe
from benchmarks.seconds.findings import Findings
from benchmarks.seconds.spread import of, ratio, spread, take_turns
from benchmarks.seconds.steps import Options, training_step

LAYERS = {
    "cifar10-resnet20": ((16, 32), (32, 16), (64, 8)),
    "cifar10-vgg16": ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2)),
    "cifar10-wrn28-10": ((160, 32), (320, 16), (640, 8)),
}
"""Full width and height of the image of the 3x3 convolutions of each recipe's stages."""


class Layer(nn.Sequential):
    """3x3 convolution, norm and ReLU between equal widths; images of `width` channels in, one logit per channel out."""

    def __init__(self, width: int) -> None:
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def widths(full: int, parts: int) -> list[int]:
    """Multiples of full / parts, and one channel less and more than each.

    Example:
        >>> widths(16, 2)
        [7, 8, 9, 15, 16]
    """
    round_ones = [full * k // parts for k in range(1, parts + 1)]
    return sorted({w + d for w in round_ones for d in (-1, 0, 1) if 1 <= w + d <= full})


def staircase(options: Options, found: Findings) -> None:
    """A table line for each layer, the single widths folded away."""
    settings = [*options.fast, f"batch_size={4 if options.quick else 128}"]
    training = apply_settings(get_recipe("cifar10-vgg16"), settings).training
    summary, columns = [], [("width", "d"), ("ms", ".2f"), ("of full", ".3f"), ("MACs of full", ".3f")]
    for recipe, layers in LAYERS.items():
        large = recipe == "cifar10-wrn28-10"
        parts = 2 if options.quick else 4 if large else 8
        for full, size in layers:
            name = f"{recipe}, {full} channels, {size}x{size}"
            with found.part(name):
                calls = {
                    w: training_step(Layer(w), training, (w, size, size), w, options.device)
                    for w in widths(full, parts)
                }
                rounds = take_turns(calls, options.seconds(10 if large else 4), least=options.rounds(2))
                shares = {w: ratio(rounds, w, full) for w in calls}
                rows = [(w, of(rounds, w), shares[w], (w / full) ** 2) for w in calls]
                found.table(name, columns, rows, detail=True)
                inner = [full * k // parts for k in range(1, parts)]
                more = [s[w + 1] / s[w] for s in rounds for w in inner if w + 1 in s and w in s]
                less = [s[w - 1] / s[w] for s in rounds for w in [*inner, full] if w - 1 in s and w in s]
                summary.append((name, of(rounds, full), shares.get(full // 4), shares[full // 2],
                                shares.get(3 * full // 4), spread(more), spread(less)))  # fmt: skip
    note = (
        f"{options.numbers}, one step of SGD. Time as a share of the full width's; those of its MACs are "
        "1/16, 1/4 and 9/16. The last columns: one channel more or less than a round width over that width; "
        "without a staircase these ratios lie a little above and below 1."
    )
    found.table(
        "Round widths (multiples of a quarter or an eighth) and their neighbours",
        [("layer", ""), ("full ms", ".1f"), ("1/4 wide", ".3f"), ("1/2 wide", ".3f"), ("3/4 wide", ".3f"),
         ("one more", ".3f"), ("one less", ".3f")],
        summary, note,
    )  # fmt: skip
    found.tables.insert(0, found.tables.pop())
