"""The network as a picture that follows a slider: a bar for every group, a bracket for every block."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from apical.reporting._read import RunRecord
from apical.reporting._svg import evenly

WIDTH, HEIGHT, BARS, BLOCK = 1000, 228, 204, 10
MAX_FRAMES = 400


@dataclass(frozen=True)
class Frames:
    """The network epoch by epoch."""

    epochs: Sequence[int]  # of the frames, from 1
    groups: Sequence[str]  # names of the groups, in the order of the forward pass
    full: Sequence[int]  # width of each group in the template; the largest seen where that is not known
    roles: Sequence[str]  # `"stream"` or `"inner"` for each group
    widths: Sequence[Sequence[int]]  # of each group in each frame; 0 where its block is left out
    blocks: Sequence[str]  # names of the blocks
    present: Sequence[Sequence[bool]]  # whether each block is there, in each frame
    texts: Sequence[str]  # each frame in words


def frames(run: RunRecord) -> Frames | None:
    """The frames of a run, at most `MAX_FRAMES` of them; None if it says nothing about widths."""
    widths = run.widths()
    if not widths:
        return None
    template = run.template
    full, roles = template.get("widths") or {}, template.get("roles") or {}
    left_out = [set(record.get("skipped") or ()) for record in run.history]
    blocks = template.get("blocks") or sorted(set().union(*left_out))
    chosen = evenly(range(len(run.history)), MAX_FRAMES)
    return Frames(
        epochs=[index + 1 for index in chosen],
        groups=list(widths),
        full=[int(full.get(name) or max(*values, 1)) for name, values in widths.items()],
        roles=[str(roles.get(name, "inner")) for name in widths],
        widths=[[values[index] for values in widths.values()] for index in chosen],
        blocks=list(blocks),
        present=[[block not in left_out[index] for block in blocks] for index in chosen],
        texts=[_words(run, index, blocks) for index in chosen],
    )


def _words(run: RunRecord, index: int, blocks: Sequence[str]) -> str:
    record = run.history[index]
    parts = [f"epoch {index + 1} of {max(run.epochs, len(run.history))}"]
    for name, label in (("macs_fraction", "MACs"), ("params_fraction", "parameters"), ("latency_fraction", "latency")):
        if isinstance(record.get(name), (int, float)):
            parts.append(f"{100 * record[name]:.1f} % of the {label}")
    if blocks:
        there = len(blocks) - len(set(record.get("skipped") or ()) & set(blocks))
        parts.append(f"{there} of {len(blocks)} blocks")
    judged = record.get(f"eval_{run.metric['name']}")
    if isinstance(judged, (int, float)):
        parts.append(f"{run.evaluated_on} {run.metric_label} {run.judged(judged)}")
    return ", ".join(parts)


def silhouette(shown: Frames, label: str) -> str:
    """The last frame as SVG: outlines are the template, filled is what exists."""
    pitch, most = WIDTH / len(shown.groups), max(shown.full)
    bars = []
    for column, (name, full, role, now) in enumerate(
        zip(shown.groups, shown.full, shown.roles, shown.widths[-1], strict=True)
    ):
        x, wide = (column + 0.5) * pitch, min(0.76 * pitch, 56)
        whole = BARS * math.sqrt(full / most)  # wide layers would leave no room for narrow ones
        part = whole * now / full
        bars.append(
            f'<g class="bar{"" if now else " gone"}"><title>{escape(f"{name}: {now} of {full}")}</title>'
            f'<rect class="full" x="{x - wide / 2:.1f}" y="{(BARS - whole) / 2 + 4:.1f}" width="{wide:.1f}" '
            f'height="{whole:.1f}" rx="2"/><rect class="now {"stream" if role == "stream" else "inner"}" '
            f'x="{x - wide / 2:.1f}" y="{(BARS - part) / 2 + 4:.1f}" width="{wide:.1f}" height="{part:.1f}" rx="2"/>'
            "</g>"
        )
    brackets = _brackets(shown, shown.present[-1], pitch)
    return (
        f'<svg class="net" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(bars)}{brackets}</svg>'
    )


def _brackets(shown: Frames, present: Sequence[bool], pitch: float) -> str:
    """Below the bars of its groups for each block; blocks without groups of their own stand side by side."""
    drawn, loose = [], 0
    for name, there in zip(shown.blocks, present, strict=True):
        inside = [column for column, group in enumerate(shown.groups) if group.startswith(f"{name}.")]
        if inside:
            left, right = inside[0] * pitch + 0.12 * pitch, (inside[-1] + 1) * pitch - 0.12 * pitch
        else:
            left, right = 2.0 + 16 * loose, 14.0 + 16 * loose
            loose += 1
        state, word = ("", "present") if there else (" out", "left out")
        drawn.append(
            f'<rect class="block{state}" x="{left:.1f}" y="{BARS + 13}" '
            f'width="{right - left:.1f}" height="{BLOCK}" rx="3"><title>{escape(f"block {name}: {word}")}</title>'
            "</rect>"
        )
    return "".join(drawn)


def growth_figure(shown: Frames) -> str:
    """The picture with its slider; without scripts it shows the last epoch and no slider."""
    grown = f"The network at the end, {len(shown.groups)} groups of channels: {shown.texts[-1]}. {_extremes(shown)}"
    last = len(shown.epochs) - 1
    keys = [("inner", "inner widths")] if "inner" in shown.roles else []
    keys += [("stream", "residual streams")] if "stream" in shown.roles else []
    keys += [("blocks", "blocks")] if shown.blocks else []
    legend = "".join(f'<span class="key k-{kind}">{text}</span>' for kind, text in keys)
    return (
        f'<figure class="growth" id="growth"><figcaption>The network <output id="now" for="when">'
        f"{escape(shown.texts[-1])}</output></figcaption>{silhouette(shown, grown)}"
        '<p class="ends" aria-hidden="true"><span>input</span><span>output</span></p>'
        f'<p class="note">{legend}<span class="key k-full">the full model</span></p>'
        '<div class="controls" hidden><button type="button" id="play" aria-label="play the growth">Play</button>'
        f'<label for="when">epoch</label><input type="range" id="when" min="0" max="{last}" value="{last}" step="1" '
        f'aria-valuetext="{escape(shown.texts[-1], quote=True)}"></div></figure>'
        f'<script type="application/json" id="frames">{_json(shown)}</script>'
    )


def _extremes(shown: Frames) -> str:
    shares = sorted(
        (now / full, name) for name, full, now in zip(shown.groups, shown.full, shown.widths[-1], strict=True)
    )
    (low, narrow), (high, wide) = shares[0], shares[-1]
    return f"Least of its full width has {narrow} ({low:.0%}), most has {wide} ({high:.0%})."


def _json(shown: Frames) -> str:
    content = {"bars": BARS, **vars(shown)}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def widths_table(shown: Frames) -> tuple[list[str], list[list[Any]]]:
    """Heading and rows of the widths at some of the epochs: the pictures in numbers."""
    chosen = evenly(range(len(shown.epochs)), 12)
    head = ["group", "full model", *(f"epoch {shown.epochs[index]}" for index in chosen)]
    rows = [
        [name, full, *(shown.widths[index][column] or "absent" for index in chosen)]
        for column, (name, full) in enumerate(zip(shown.groups, shown.full, strict=True))
    ]
    return head, rows


def growth_pixels(widths: Mapping[str, Sequence[int]], full: Mapping[str, int]) -> list[list[tuple[int, int, int]]]:
    """The widths of all epochs as an image for live displays: a row of pixels per group, a column per epoch.

    Args:
        widths: of each group in each epoch; 0 for absent.
        full: width of each group in the template; the largest seen where it is not named.

    Returns:
        Rows of (red, green, blue), each 0 to 255: white is absent, the darker the nearer to the full width.

    Example:
        >>> growth_pixels({"conv1": [0, 4]}, {"conv1": 4})
        [[(255, 255, 255), (31, 111, 235)]]
    """
    paper, ink = (255, 255, 255), (31, 111, 235)
    rows = []
    for name, values in widths.items():
        most = full.get(name) or max(*values, 1)
        shares = [0.0 if value <= 0 else 0.1 + 0.9 * min(1.0, value / most) for value in values]
        rows.append([_mix(paper, ink, share) for share in shares])
    return rows


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


SCRIPT = """
(() => {
  const source = document.getElementById("frames");
  if (!source) return;
  const data = JSON.parse(source.textContent), figure = document.getElementById("growth");
  const slider = document.getElementById("when"), now = document.getElementById("now");
  const play = document.getElementById("play"), most = Math.max(...data.full);
  const bars = [...figure.querySelectorAll(".bar")], blocks = [...figure.querySelectorAll(".block")];
  const cursor = document.querySelector(".cursor"), strip = cursor && cursor.ownerSVGElement;
  let timer = null;
  const show = (frame) => {
    bars.forEach((bar, i) => {
      const width = data.widths[frame][i], full = data.full[i];
      const height = data.bars * Math.sqrt(full / most) * width / full;
      const rect = bar.querySelector(".now");
      rect.setAttribute("height", height.toFixed(1));
      rect.setAttribute("y", ((data.bars - height) / 2 + 4).toFixed(1));
      bar.classList.toggle("gone", !width);
      bar.querySelector("title").textContent = `${data.groups[i]}: ${width} of ${data.full[i]}`;
    });
    blocks.forEach((block, i) => {
      const there = data.present[frame][i];
      block.classList.toggle("out", !there);
      block.querySelector("title").textContent = `block ${data.blocks[i]}: ${there ? "present" : "left out"}`;
    });
    now.textContent = data.texts[frame];
    slider.setAttribute("aria-valuetext", data.texts[frame]);
    if (strip) cursor.setAttribute("x", Number(strip.dataset.left) + (data.epochs[frame] - 1) * strip.dataset.span);
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) { slider.value = 0; show(0); }
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (slider.value === slider.max) return stop();
      slider.value = Number(slider.value) + 1;
      show(Number(slider.value));
    }, Math.max(40, Math.min(400, 8000 / data.epochs.length)));
  });
  slider.addEventListener("input", () => { if (timer) stop(); show(Number(slider.value)); });
  figure.querySelector(".controls").hidden = false;
  slider.value = slider.max;  // browsers restore it on reload
  show(Number(slider.value));
})();
"""
