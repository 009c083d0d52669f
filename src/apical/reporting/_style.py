"""The page's style sheet: system fonts, light and dark by the reader's setting."""

_LIGHT = ("#1f6feb", "#d97706", "#0f8a5f", "#8b5cf6", "#d1345b", "#0891b2", "#a16207", "#64748b", "#be185d", "#4d7c0f",
          "#7c3aed", "#334155", "#0d9488", "#9f1239", "#1e3a8a", "#ca8a04")  # fmt: skip
_DARK = ("#6aa5ff", "#f5a94a", "#46c796", "#b79bff", "#ff7a9c", "#4fd1ea", "#e0b84c", "#a3b1c6", "#f472b6", "#a3d154",
         "#c4a7ff", "#cbd5e1", "#2dd4bf", "#fda4af", "#93c5fd", "#fde047")  # fmt: skip

COLOURS = len(_LIGHT)


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours, 1))


def _rules() -> str:
    """The classes of each colour: lines, dots and keys of charts."""
    return "\n".join(
        f".line.c{n} {{ stroke: var(--c{n}); }} .dot.c{n} {{ fill: var(--c{n}); }} "
        f".k{n}::before {{ background: var(--c{n}); }}"
        for n in range(1, COLOURS + 1)
    )


STYLE = (
    f"""
:root {{ {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
{_rules()}
"""
    + """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5c6470; --paper: #ffffff; --line: #e1e4e9;
  --panel: #f5f6f8; --shade: rgb(0 0 0 / .22); }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa3af; --paper: #14171c; --line: #2c323b;
  --panel: #1c2027; --shade: rgb(255 255 255 / .3); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 8px 0; } h2 { font-size: 18px; margin: 36px 0 8px; }
p { color: var(--soft); margin: 4px 0 12px; } .lead { font-size: 17px; color: var(--ink); }
.lead b { font-size: 34px; line-height: 1.2; margin-right: 4px; font-variant-numeric: tabular-nums; }
.warn { color: var(--c2); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px; margin: 16px 0; }
.tiles div { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
.tiles b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 18px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); } .axis { fill: var(--soft); font-size: 11px; } .end { text-anchor: end; }
.mid { text-anchor: middle; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dot { fill-opacity: 0; } .dot:hover, .lone { fill-opacity: 1; }
.key { display: inline-block; font-weight: 400; font-size: 13px; color: var(--soft); margin-left: 12px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px;
  margin-right: 5px; vertical-align: middle; }
.cell { fill: var(--c1); }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 6px; max-width: 980px;
  margin: 0 0 18px; }
.trio img { width: 100%; height: auto; display: block; border-radius: 4px; border: 1px solid var(--line); }
.trio figcaption { grid-column: 1 / -1; margin: 0; overflow-wrap: anywhere; }
.trio figcaption span, .trio i { font-weight: 400; color: var(--soft); font-size: 13px; }
.trio i { font-style: normal; text-align: center; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 0 0 14px; }
.legend svg { display: inline-block; width: 14px; height: 14px; margin-right: 6px; vertical-align: -2px; }
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--paper) 30%, transparent) left / 40px 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 30%, transparent) right / 40px 100% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) left / 14px 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) right / 14px 100% no-repeat scroll; }
 table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .num { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
pre { background: var(--panel); padding: 12px 14px; border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
li { padding: 3px 0; }
summary { cursor: pointer; color: var(--soft); padding: 4px 0; margin-bottom: 4px; }
figure details { margin-top: 4px; font-size: 13px; }
:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; border-radius: 3px; }
a { color: var(--c1); }
.growth { background: var(--panel); border-radius: 10px; padding: 14px 16px; margin: 16px 0; }
.growth output { display: block; font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums; }
.net { height: clamp(150px, 22vw, 240px); }
.net rect { vector-effect: non-scaling-stroke; }
.net .full { fill: var(--paper); stroke: var(--soft); stroke-opacity: 0.55; } .net .now.inner { fill: var(--c1); }
.net .now.stream { fill: var(--c3); } .net .gone .full { stroke-dasharray: 4 3; }
.net .block { fill: var(--c2); stroke: var(--c2); } .net .block.out { fill: none; stroke-dasharray: 3 3; }
.ends { display: flex; justify-content: space-between; font-size: 12px; margin: 2px 0 0; }
.strip { min-width: 560px; }
.nets { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 18px; }
.nets .net { height: 130px; }
.note { font-size: 13px; margin: 6px 0; } .growth .key:first-child { margin-left: 0; }
.k-inner::before { background: var(--c1); } .k-stream::before { background: var(--c3); }
.k-blocks::before { background: var(--c2); }
.k-full::before { background: none; border: 1px solid var(--soft); height: 8px; }
.controls { display: flex; align-items: center; gap: 12px; } .controls[hidden] { display: none; }
.controls input { flex: 1; min-width: 0; accent-color: var(--c1); height: 32px; }
button { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 14px; cursor: pointer; min-width: 76px; }
.strip .cursor { fill: none; stroke: var(--c2); stroke-width: 1.5; pointer-events: none; }
.bars rect.bar { fill: var(--c1); } .bars rect.bar.own { fill: var(--c3); } .bars .axis { font-size: 13px; }
.bars text.value { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { max-width: 700px; }
@media (max-width: 760px) { .scroll th { white-space: nowrap; } }
@media (max-width: 520px) { main { padding: 14px 12px 40px; } .growth { padding: 10px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .tiles b { font-size: 18px; }
  .axis { font-size: 15px; } .strip .axis { font-size: 12px; } .bars .axis, .bars text.value { font-size: 19px; } }
@media print { .controls { display: none; } details { display: none; } }
"""
)
