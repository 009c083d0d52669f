"""Charts as inline SVG. Colours are CSS classes of the page, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 26
LABEL = 40  # characters of a name
MARGIN = 0.06  # of the values' range, around them
MAX_POINTS = 400
MAX_ROWS = 24  # of the table that stands for a chart


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name, its (x, y) points, the number of its colour (1 to 16), and ± of each point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    errors: Sequence[float] = ()


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them and hardly ever fewer than three.

    Example:
        >>> ticks(0, 97)
        [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.6 * raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str,  # shown above, and read out by screen readers
    series: Sequence[Series],  # lines; those without points are left out
    unit: str = "",  # behind the numbers
    from_zero: bool = True,  # whether the vertical axis starts at 0
    across: str = "epoch {:g}",  # how a point's place on the horizontal axis is told
    least_span: float = 0.0,  # what the vertical axis covers at least, so that noise does not look large
    whole: bool = False,  # whether values are counts, so that only whole numbers stand at the vertical axis
) -> str:
    """Lines over epochs (or whatever lies across), with axes, a legend, and tooltips; nothing if there is no point."""
    drawn = [Series(s.name, evenly(s.points, MAX_POINTS), s.colour, s.errors) for s in series if s.points]
    if not drawn:
        return ""
    xs, ys = ([point[axis] for s in drawn for point in s.points] for axis in (0, 1))
    ys += [y + sign * e for s in drawn for (_, y), e in zip(s.points, s.errors, strict=False) for sign in (-1, 1)]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    if high - low < (wanted := least_span or (0.0 if high > low else 1.0)):
        low, high = low - (wanted - (high - low)) / 2, high + (wanted - (high - low)) / 2
    first, last = min(xs), max(xs)
    if last - first < 1:
        first, last = (first + last - 1) / 2, (first + last + 1) / 2
    # dots and error bars lie within the frame, not on it
    low, high = (low if from_zero else low - MARGIN * (high - low)), high + MARGIN * (high - low)
    first, last = first - MARGIN / 2 * (last - first), last + MARGIN / 2 * (last - first)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    shares = "%" in unit and all(y <= 100 for line in drawn for _, y in line.points)  # no accuracy is above 100 %
    for tick in (t for t in ticks(low, high) if (not whole or t == int(t)) and not (shares and t > 100)):
        _, y = place(first, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="axis end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick:g}</text>')
    counted = all(x == int(x) for x in xs)  # epochs, of which there is no half and none before the first
    for tick in ticks(first, last, 6):
        if not counted or (tick == int(tick) and tick >= min(xs)):
            x, _ = place(tick, low)
            parts.append(f'<text class="axis mid" x="{x:.1f}" y="{HEIGHT - 8}">{tick:g}</text>')
    for line in drawn:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        parts.append(f'<polyline class="line c{line.colour}" points="{corners}"/>')
        alone = " lone" if len(line.points) == 1 else ""  # no line shows where it is
        for (x, y), error in zip(line.points, line.errors, strict=False):
            (middle, top), (_, foot) = place(x, y + error), place(x, y - error)
            parts.append(
                f'<path class="line c{line.colour}" d="M{middle - 4:.1f} {top:.1f}h8m-4 0V{foot:.1f}m-4 0h8"/>'
            )
        for point in line.points:
            x, y = place(*point)
            label = escape(f"{across.format(point[0])}, {line.name}: {point[1]:.4g}{unit}")
            parts.append(
                f'<circle class="dot{alone} c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{label}</title>'
                "</circle>"
            )
    legend = "".join(f'<span class="key k{s.colour}">{escape(s.name)}</span>' for s in drawn)
    told = ". ".join((title, *(_in_words(line, unit, across) for line in drawn)))
    return (
        f'<figure><figcaption>{escape(title)} {legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(told, quote=True)}">{"".join(parts)}</svg>{_in_numbers(drawn, unit, across)}</figure>'
    )


def _in_words(line: Series, unit: str, across: str) -> str:
    """What a line shows, for those who do not see it."""
    first, last = line.points[0], line.points[-1]
    values = [y for _, y in line.points]
    if len(values) == 1:
        return f"{line.name}: {first[1]:.4g}{unit} at {across.format(first[0])}"
    return (
        f"{line.name}: {first[1]:.4g}{unit} at {across.format(first[0])}, {last[1]:.4g}{unit} at "
        f"{across.format(last[0])}, lowest {min(values):.4g}{unit}, highest {max(values):.4g}{unit}"
    )


def _in_numbers(lines: Sequence[Series], unit: str, across: str) -> str:
    """Some of the points as a table that can be opened."""
    places = evenly(sorted({x for line in lines for x, _ in line.points}), MAX_ROWS)
    values = [dict(line.points) for line in lines]
    head = "".join(f"<th>{escape(line.name)}</th>" for line in lines)
    rows = "".join(
        f"<tr><td>{escape(across.format(x))}</td>"
        + "".join(f'<td class="num">{f"{column[x]:.4g}{unit}" if x in column else ""}</td>' for column in values)
        + "</tr>"
        for x in places
    )
    return (
        f'<details><summary>as a table</summary><div class="scroll" tabindex="0"><table><thead><tr><th></th>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def bar_chart(title: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """Horizontal bars of percentages, each with its name and value."""
    most, row = max((value for _, value, _ in bars), default=1.0) or 1.0, 46
    parts = []
    for index, (name, value, own) in enumerate(bars):
        top, long = index * row, (WIDTH - 110) * value / most
        parts.append(
            f'<text class="axis" x="0" y="{top + 14}">{escape(name)}</text>'
            f'<rect class="bar{" own" if own else ""}" x="0" y="{top + 20}" width="{long:.1f}" height="16" rx="3"/>'
            f'<text class="value" x="{long + 6:.1f}" y="{top + 33}">{value:.1f} %</text>'
        )
    told = ". ".join((title, *(f"{name}: {value:.1f} %" for name, value, _ in bars)))
    return (
        f'<svg class="bars" viewBox="0 0 {WIDTH} {len(bars) * row}" role="img" '
        f'aria-label="{escape(told, quote=True)}">{"".join(parts)}</svg>'
    )


def heat_strip(widths: Mapping[str, Sequence[int]], full: Mapping[str, int]) -> str:
    """A row per group, a column per epoch, the darker the nearer to the full width; nothing if there is no epoch.

    Args:
        widths: of each group in each epoch; 0 for absent.
        full: width of each group in the template; the largest seen where it is not named.
    """
    epochs = max((len(values) for values in widths.values()), default=0)
    if not epochs:
        return ""
    row, label = 14, 10 + 7.4 * min(LABEL, max(map(len, widths)))  # wide enough for the system fonts, on phones too
    span = (760 - label) / epochs
    parts = []
    for index, (name, values) in enumerate(widths.items()):
        top, most = index * row, full.get(name) or max(*values, 1)
        parts.append(f'<text class="axis end" x="{label - 6:.0f}" y="{top + 11}">{escape(_short(name))}</text>')
        for start, end, width in stretches(values):
            when = f"epoch {start + 1}" if end == start + 1 else f"epochs {start + 1} to {end}"
            what = f"{width} of {most}" if width else "absent"
            parts.append(
                f'<rect class="cell" x="{label + start * span:.2f}" y="{top}" width="{(end - start) * span:.2f}" '
                f'height="{row - 2}" fill-opacity="{_shade(width / most):.2f}">'
                f"<title>{escape(f'{name}, {when}: {what}')}</title></rect>"
            )
    last = label + (epochs - 1) * span
    parts.append(f'<rect class="cursor" x="{last:.2f}" y="0" width="{span:.2f}" height="{len(widths) * row - 2}"/>')
    told = f"widths of {len(widths)} groups over {epochs} epochs; the table below holds the numbers"
    return (
        f'<svg class="strip" data-left="{label:.2f}" data-span="{span:.6f}" viewBox="0 0 768 {len(widths) * row}" '
        f'role="img" aria-label="{told}">{"".join(parts)}</svg>'
    )


def _shade(fraction: float) -> float:
    return 0.03 if fraction <= 0 else 0.1 + 0.9 * min(1.0, fraction)


def stretches(values: Iterable[int]) -> list[tuple[int, int, int]]:
    """Runs of equal values as (first, one past the last, value).

    Example:
        >>> stretches([4, 4, 0])
        [(0, 2, 4), (2, 3, 0)]
    """
    found, start = [], 0
    for value, same in groupby(values):
        end = start + len(list(same))
        found.append((start, end, value))
        start = end
    return found


def _short(name: str) -> str:
    return name if len(name) <= LABEL else "…" + name[-LABEL + 1 :]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread, the last one among them.

    Example:
        >>> evenly(range(10), 4)
        [0, 3, 6, 9]
    """
    step = max(1, math.ceil((len(items) - 1) / max(1, most - 1)))
    return [*items[:-1:step], items[-1]] if items else []
