"""A traced model as a page: the module tree, in which a group shows every slice that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from apical._checks import in_per_cent
from apical.reporting._svg import stretches
from apical.reporting._tables import folded, page, table, write_page

_COLOURS = 12
_AXES = {"weight": ("out", "in")}


def owners_of(size: int, owned: Sequence[tuple[int, Sequence[Sequence[int]]]]) -> list[int]:
    """The group that each position of a dimension belongs to; -1 for none.

    Args:
        size: of the dimension.
        owned: (group, positions of each of its units).

    Example:
        >>> owners_of(6, [(0, [[0], [1]]), (1, [[4], [5]])])
        [0, 0, -1, -1, 1, 1]
    """
    owner = [-1] * size
    for group, units in owned:
        for position in chain(*units):
            owner[position] = group
    return owner


def write_architecture(content: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of a traced model.

    Args:
        content: `Structure.to_dict()` with `model` (its name), `macs`, `num_params`, `least_macs` and
            `least_num_params` (of the smallest network), `group_shares` and `block_shares` (share of the MACs by name)
            and `types` (class by module path).
        out: the file.

    Returns:
        The file.

    Raises:
        DataError: it cannot be written.
    """
    return write_page(Path(out), render_architecture(content))


def render_architecture(content: Mapping[str, Any]) -> str:
    """The page: cost, what is frozen and why; then groups, and the module tree with a bar for every dimension."""
    title = str(content["model"])
    body = (
        f"<h1>{escape(title)}</h1>{_tiles(content)}{_frozen(content['frozen'])}{_notes(content.get('notes') or [])}"
        "<h2>What can grow and shrink</h2><p>Choose a group, or a coloured part of a bar: everything that is removed "
        "together with its channels lights up in the tree. Every bar is one dimension of a tensor; grey positions "
        "cannot be removed. The channels of a <b>stream</b> are sums of what several layers write (a residual stream); "
        "those of an <b>inner</b> group are not. The share of the MACs is what is saved if one channel is left.</p>"
        '<form class="tools" role="search" hidden><input id="search" type="search" placeholder="part of a name" '
        'aria-label="search groups and modules"><output id="found"></output>'
        '<button type="button" id="fold">Collapse all</button></form>'
        '<p id="told" class="told" role="status" hidden></p>'
        f'<div class="columns"><section aria-label="groups"><h3>Groups</h3>{_groups(content)}</section>'
        f'<section aria-label="module tree"><h3>Modules</h3><div class="tree">{_tree(content)}</div></section></div>'
    )
    return page(title, body, _SCRIPT, _STYLE)


def _tiles(content: Mapping[str, Any]) -> str:
    """The whole, and the smallest network that can be reached."""
    tiles = []
    for name, label in (("macs", "MACs"), ("num_params", "parameters")):
        whole, least = content[name], content[f"least_{name}"]
        tiles += [
            (f"{whole:,}", label),
            (escape(in_per_cent(least, whole)), f"of the {label}, {least:,}, in the smallest network"),
        ]
    counted = {"groups": "channel group", "blocks": "skippable block", "frozen": "frozen part"}
    tiles += [(str(n := len(content[kind])), f"{label}{'' if n == 1 else 's'}") for kind, label in counted.items()]
    return f'<div class="tiles">{"".join(f"<div><b>{n}</b><span>{label}</span></div>" for n, label in tiles)}</div>'


def _groups(content: Mapping[str, Any]) -> str:
    items = []
    for index, group in enumerate(content["groups"]):
        share = escape(in_per_cent(content["group_shares"].get(group["name"], 0.0), 1, 0))
        gates = {site["tensor"] for site in group["gate_site"]}
        members = [
            (member["tensor"], _axis(member["tensor"], member["dim"]), "gate" if member["tensor"] in gates else "")
            for member in group["members"]
        ]
        slices = folded(
            f"{len(members)} slices", table(("tensor", "dimension", ""), members, f"slices of {group['name']}")
        )
        state = f'class="group k{1 + index % _COLOURS}" data-group="{index}" aria-pressed="false"'
        items.append(
            f'<li data-name="{escape(group["name"].lower(), quote=True)}"><button type="button" {state}>'
            f"{escape(group['name'])}</button> "
            f"<small>{group['size']} {group['role']}, {share} of the MACs</small>{slices}</li>"
        )
    return f'<ol class="groups">{"".join(items)}</ol>'


def _axis(tensor: str, dim: int) -> str:
    names = _AXES.get(tensor.rpartition(".")[2], ())
    return f"{dim} ({names[dim]})" if dim < len(names) else str(dim)


def _tree(content: Mapping[str, Any]) -> str:
    """Modules with tensors of their own, nested by their paths."""
    owners: dict[tuple[str, int], list[tuple[int, Any]]] = {}
    for index, group in enumerate(content["groups"]):
        for member in group["members"]:
            owners.setdefault((member["tensor"], member["dim"]), []).append((index, member["positions"]))
    rows: dict[str, list[str]] = {}
    for name, spec in content["tensors"].items():
        module, _, leaf = name.rpartition(".")
        rows.setdefault(module, []).append(_tensor(name, leaf, spec, owners, content["groups"]))
    return _level("", _paths(rows), rows, content)


def _paths(rows: Mapping[str, Any]) -> list[str]:
    """The modules and all modules around them, in the order of the model."""
    found: dict[str, None] = {}
    for path in rows:
        parts = path.split(".") if path else []
        for depth in range(len(parts) + 1):
            found[".".join(parts[:depth])] = None
    return list(found)


def _level(path: str, paths: Sequence[str], rows: Mapping[str, Sequence[str]], content: Mapping[str, Any]) -> str:
    inner = [p for p in paths if p and p.rpartition(".")[0] == path]
    children = "".join(_level(child, paths, rows, content) for child in inner)
    tensors = "".join(rows.get(path, ()))
    if not path:
        return f"{tensors}{children}"
    kind = escape(str(content["types"].get(path, "")))
    badges = "".join(
        f'<span class="badge skip">block: can be left out, '
        f"{escape(in_per_cent(content['block_shares'].get(path, 0.0), 1, 0))} of the MACs</span>"
        for block in content["blocks"]
        if block["name"] == path
    )
    badges += "".join(
        f'<span class="badge">frozen: {escape(str(item["reason"]))}</span>'
        for item in content["frozen"]
        if item["name"] == path
    )
    name = escape(path.rpartition(".")[2])
    head = f'<span id="{escape(path, quote=True)}" class="name">{name}</span> <small>{kind}</small>{badges}'
    return (
        f'<details open class="module" data-name="{escape(path.lower(), quote=True)}"><summary class="head">{head}'
        f"</summary>{tensors}{children}</details>"
    )


def _tensor(
    name: str,
    leaf: str,
    spec: Mapping[str, Any],
    owners: Mapping[tuple[str, int], list[tuple[int, Any]]],
    groups: Sequence[Mapping[str, Any]],
) -> str:
    shape = tuple(spec["shape"])
    if not shape:
        return ""
    touched = [dim for dim in range(len(shape)) if (name, dim) in owners] or [0]
    bars = "".join(_bar(name, dim, shape[dim], owners.get((name, dim), []), groups) for dim in touched)
    return f'<div class="tensor"><code>{escape(leaf)} {"×".join(map(str, shape))}</code>{bars}</div>'


def _bar(name: str, dim: int, size: int, owned: list[tuple[int, Any]], groups: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for start, end, group in stretches(owners_of(size, owned)):
        where = f"{name}, dimension {dim}, {start} to {end - 1}"
        grow = f'style="flex-grow:{end - start}"'
        if group < 0:
            parts.append(f'<i {grow} title="{escape(f"{where}: cannot be removed", quote=True)}"></i>')
        else:
            told = escape(f"{where}: group {groups[group]['name']}", quote=True)
            colour = 1 + group % _COLOURS
            parts.append(f'<i {grow} class="part b{colour}" data-group="{group}" title="{told}"></i>')
    return f'<span class="dim"><small>{dim}</small>{"".join(parts)}</span>'


def _frozen(frozen: Sequence[Mapping[str, Any]]) -> str:
    """By reason, the most common first, since many parts often share one."""
    if not frozen:
        return "<h2>Frozen</h2><p>Nothing: all channels can be removed.</p>"
    by_reason: dict[str, list[tuple[Any, Any]]] = {}
    places: dict[str, str] = {}
    for item in frozen:
        by_reason.setdefault(str(item["reason"]), []).append((item["name"], item["size"]))
        places.setdefault(str(item["reason"]), str(item.get("where") or ""))
    rows = []
    for reason, parts in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
        reason = f"{reason} ({places[reason]})" if places[reason] else reason
        if len(parts) == 1:
            rows.append(f"<li><b>{escape(str(parts[0][0]))}</b> ({parts[0][1]} channels): {escape(reason)}</li>")
        else:
            names = table(("part", "channels"), parts, f"parts that are frozen: {reason}")
            rows.append(f"<li>{escape(reason)}{folded(f'{len(parts)} parts', names)}</li>")
    return f'<h2>Frozen, and why</h2><ul class="frozen">{"".join(rows)}</ul>'


def _notes(notes: Sequence[str]) -> str:
    return f"<h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


_STYLE = (
    "\n".join(f".b{n} {{ background: var(--c{n}); }}" for n in range(1, _COLOURS + 1))
    + """
.frozen li { margin-bottom: 4px; overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 4px 0 8px; }
.tools { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 8px 0 16px; }
.tools[hidden], .groups li[hidden], .module[hidden] { display: none; }
.tools input { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 10px; flex: 1 1 200px; min-width: 0; max-width: 420px; }
.tools output { color: var(--soft); font-size: 13px; }
.columns { display: grid; grid-template-columns: minmax(240px, 1fr) 2fr; gap: 32px; align-items: start; }
.columns > section { min-width: 0; }
.columns > section:first-child { position: sticky; top: 44px; max-height: calc(100vh - 60px); overflow: auto; }
.groups { padding-left: 4px; list-style: none; } .groups li { margin-bottom: 4px; }
.groups button.group { text-align: left; padding: 2px 10px; overflow-wrap: anywhere; }
.groups button.group::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 7px;
  border-radius: 2px; }
.groups button[aria-pressed=true] { border-color: var(--ink); font-weight: 600; }
small { color: var(--soft); } .groups details { margin-left: 12px; font-size: 13px; }
.module { margin: 2px 0 2px 14px; border-left: 1px solid var(--line); padding-left: 8px; }
.head { overflow-wrap: anywhere; color: var(--ink); margin: 0; } .name { font-weight: 600; }
.badge { font-size: 12px; border: 1px solid var(--c2); border-radius: 8px; padding: 0 7px; margin-left: 6px; }
.badge.skip { border-color: var(--c3); }
.tensor { display: grid; grid-template-columns: minmax(150px, 220px) 1fr 1fr; gap: 8px; align-items: center;
  font-size: 12px; margin-left: 8px; }
.dim { display: flex; gap: 1px; align-items: center; min-width: 0; } .dim small { width: 12px; }
.dim i { height: 10px; background: var(--line); border-radius: 2px; min-width: 1px; flex-basis: 0; }
.dim i.part { background: var(--soft); cursor: pointer; opacity: 0.75; }
"""
    + "\n".join(f".dim i.part.b{n} {{ background: var(--c{n}); }}" for n in range(1, _COLOURS + 1))
    + """
.chosen .part:not(.on) { opacity: 0.13; } .chosen .part.on { opacity: 1; outline: 1.5px solid var(--ink); }
.told { position: sticky; top: 0; background: var(--panel); color: var(--ink); padding: 8px 12px; border-radius: 8px;
  z-index: 1; } .told[hidden] { display: none; }
@media (pointer: coarse) { .groups button.group, .tools button, .tools input { min-height: 44px; }
  .head { padding: 8px 0; } .dim i { height: 26px; } .tensor { margin-bottom: 6px; } }
@media (max-width: 760px) { .columns { grid-template-columns: minmax(0, 1fr); }
  .columns > section:first-child { position: static; max-height: 40vh; }
  .tensor { grid-template-columns: minmax(0, 1fr); gap: 2px; } }
"""
)

_SCRIPT = """
(() => {
  const tree = document.querySelector(".tree"), told = document.getElementById("told");
  const buttons = [...document.querySelectorAll("button.group")];
  const parts = [...tree.querySelectorAll(".part")];
  let fixed = null;
  const show = (group) => {
    tree.classList.toggle("chosen", group !== null);
    const names = new Set();
    parts.forEach((part) => {
      const on = part.dataset.group === group;
      part.classList.toggle("on", on);
      if (on) names.add(part.title.split(",")[0]);
    });
    told.hidden = group === null;
    if (group !== null) {
      told.textContent = `${buttons[Number(group)].textContent}: removed together in ${names.size} tensors, ` +
        [...names].join(", ");
    }
  };
  const choose = (group) => {
    fixed = fixed === group ? null : group;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.group === fixed)));
    show(fixed);
  };
  [...buttons, ...parts].forEach((element) => {
    const group = element.dataset.group;
    element.addEventListener("mouseenter", () => show(group));
    element.addEventListener("mouseleave", () => show(fixed));
    element.addEventListener("click", () => choose(group));
  });
  buttons.forEach((button) => {
    button.addEventListener("focus", () => show(button.dataset.group));
    button.addEventListener("blur", () => show(fixed));
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(fixed); });

  const tools = document.querySelector(".tools"), search = document.getElementById("search");
  const found = document.getElementById("found"), fold = document.getElementById("fold");
  const modules = [...tree.querySelectorAll(".module")], groups = [...document.querySelectorAll(".groups > li")];
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    const hits = modules.filter((module) => module.dataset.name.includes(wanted));
    const shown = new Set();
    hits.forEach((module) => {
      for (let at = module; at && at !== tree; at = at.parentElement) shown.add(at);
      if (wanted) module.querySelectorAll(".module").forEach((inner) => shown.add(inner));
    });
    modules.forEach((module) => {
      module.hidden = !shown.has(module);
      if (wanted && shown.has(module)) module.open = true;
    });
    let matching = 0;
    groups.forEach((group) => {
      group.hidden = !group.dataset.name.includes(wanted);
      matching += !group.hidden;
    });
    found.textContent = wanted ? `${matching} groups, ${hits.length} modules` : "";
  };
  search.addEventListener("input", filter);
  fold.addEventListener("click", () => {
    const open = !modules.some((module) => module.open);
    modules.forEach((module) => { module.open = open; });
    fold.textContent = open ? "Collapse all" : "Expand all";
  });
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
})();
"""
