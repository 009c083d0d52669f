"""Finding the attributes that keep a size of their own, by trial: what breaks a smaller copy names their owner.

Code such as ``x.view(*x.shape[:-1], self.nf)`` works at one width only. Where the dry run meets it, integer
attributes of the modules on the way to the error that equal the size of the group are set to the new size, one after
the other, until the forward pass runs and equals the gated one. Nothing is guessed: the dry run has the last word.
Where no attribute helps, the reason is the line at which the trial stopped that got furthest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from apical.resizing._copying import sharing_copy
from apical.resizing._culprit import Culprit, culprit, explained
from apical.resizing._disagreement import FAILS, disagreement, keep_half, kind_of, roles
from apical.resizing._dry_run import bound, confirm, screen
from apical.resizing._gates import gated_copy
from apical.resizing._local_sizes import FullSizes, Kind, LocalSize, local_sizes, quotients
from apical.resizing._newborns import with_births
from apical.resizing._resize import resize_
from apical.resizing._testbed import Testbed, difference, other_shapes
from apical.structure import AttributeAxis, ChannelGroup, SizeAxis, Structure
from apical.structure._cost import lies_in
from apical.structure._local_sizes import can_have, is_local, method_named_in
from apical.structure._sizes import integers, stated

MAX_TRIALS = 60
MAX_ATTRIBUTES = 6
Step = tuple[AttributeAxis, ...]  # attributes that are tried together: one, two, or one in each of many alike layers


Form = tuple[str, str, bool, bool]  # `_form`
Recipe = tuple[tuple[str, Form], ...]  # `_recipe`


@dataclass(frozen=True)
class Trial:
    """How a copy without half of a group ran: it broke at a place, or it computed something else, or it agreed.

    A group that is not exact agrees when the copy runs and returns the same shapes.

    Attributes:
        agreed: whether it equals the gated one.
        where: where it broke.
        reached: how many calls of torch it came to.
        local: sizes in the code that it ran through until then.
    """

    agreed: bool
    where: Culprit | None = None
    reached: int = 0
    local: Sequence[LocalSize] = ()


class _Calls(TorchFunctionMode):
    """Counts the calls of torch: how far a forward pass came."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Bench:
    """One group, and copies of the model on which attributes are tried out."""

    def __init__(self, structure: Structure, full: FullSizes, bed: Testbed, group: ChannelGroup) -> None:
        self.structure, self.full, self.bed = structure, full, bed
        self.twin = full.model
        self.group, self.index = group, structure.groups.index(group)
        self.left, self.in_code = MAX_TRIALS, False
        self.forms: frozenset[Form] | None = None  # the only ones that are tried
        self.keeps = [{group.name: list(range(0, group.size, 2))}, {group.name: [group.size - 1]}]
        self._expected: dict[int, list[Tensor]] = {}
        self._trials: dict[tuple[Step, int], Trial] = {}
        self.furthest, self.reason = 0, ""

    def run(self, steps: Sequence[Step], which: int = 0) -> Trial:
        """Remove some units, with these attributes following, and compare with their gates at zero; once."""
        key = (tuple(chain(*steps)), which)
        if key not in self._trials:
            self.left -= 1
            self._trials[key] = self._run(*key)
        return self._trials[key]

    def _run(self, axes: Step, which: int) -> Trial:
        structure = replace(self.structure, attributes=(*self.structure.attributes, *axes))
        model, calls = sharing_copy(self.bed.model), _Calls()
        try:
            resize_(model, structure, self.keeps[which])
            with calls:
                found = self.bed.example.run(model)
        except Exception as problem:  # noqa: BLE001 (whatever the user's forward pass raises)
            if calls.count > self.furthest:
                self.furthest, self.reason = calls.count, f"{FAILS}{explained(problem, model)}"
            return Trial(False, culprit(problem, model), calls.count, local_sizes(problem, model))
        expected = self._gated(which)
        exact = self.group.exact
        differs = difference(expected, found, self.bed.tolerance) if exact else other_shapes(expected, found)
        trial = Trial(differs is None)
        return trial if trial.agreed else replace(trial, local=quotients(model, self._around()))

    def _gated(self, which: int) -> list[Tensor]:
        if which not in self._expected:
            with gated_copy(self.bed.model, self.structure, self.keeps[which] if self.group.exact else {}) as gated:
                self._expected[which] = self.bed.example.run(gated)
        return self._expected[which]

    def candidates(self, trial: Trial, taken: Sequence[Step]) -> Iterator[Step]:
        """What may be tried next, if it has one of the `forms`."""
        steps = self._all_candidates(trial, taken)
        return (step for step in steps if self.forms is None or all(_form(axis) in self.forms for axis in step))

    def _all_candidates(self, trial: Trial, taken: Sequence[Step]) -> Iterator[Step]:
        """Integers that equal a multiple of the group's size: attributes that a call reads, of the innermost module
        first, then sizes in the code, if these are asked for (`in_code`). Where nothing broke, but something else was
        computed, attributes around the group's layers.

        A group may pass through many layers: all those whose names differ in numbers only follow together, else alone,
        since it may be what one of them writes and the next one reads.
        """
        known = {(a.module, a.attribute) for a in (*self.structure.attributes, *chain(*taken))}
        alone: list[Step] = []
        paths = self._around() if trial.where is None else trial.where.modules
        stating = [(p, name, v) for p in paths for name, v in integers(self.twin.get_submodule(p)).items()]
        stating = [own for own in stating if own[:2] in self.full.read]
        if trial.where is None and taken:  # it runs with these: what is left to be kept is a scale
            stating = []
        local = trial.local if self.in_code else ()
        self.full.observe(local)
        inside = [(s.module, s.attribute, v, s.now) for s in local if (v := self.full.of(s)) is not None]
        inside.sort(key=lambda size: size[3] in (None, size[2]))  # first what followed, since it must not have
        new = [size for size in (*((*own, None) for own in stating), *inside) if size[:2] not in known]
        yield from self._at_once(new, {(s.module, s.attribute): s.kind for s in local})
        for path, name, value, now in new:
            axes = self._axes(value)[now in (None, value) :]  # the first where it must not have followed
            everywhere = self._alike(path, name, value)
            for axis in axes:
                yield tuple(AttributeAxis(p, name, axis) for p in everywhere)
            alone += [(AttributeAxis(path, name, axis),) for axis in axes if len(everywhere) > 1]
        yield from alone

    def _at_once(self, sizes: Sequence[tuple[str, str, int, int | None]], kinds: Mapping[tuple[str, str], Kind]
                 ) -> Iterator[Step]:  # fmt: skip
        """Sizes in the code that fail nowhere: all quotients that must not follow, all bounds that must.

        What several bounds cut apart may need all of them, and a scale in one line the width of a head in another.
        """
        kept: dict[AttributeAxis, None] = {}
        cut: dict[AttributeAxis, None] = {}
        for path, name, value, now in sizes:
            kind, axis = kinds.get((path, name)), self._in_proportion(value)
            everywhere = self._alike(path, name, value)
            if kind == "quotient" and now != value:
                kept |= dict.fromkeys(AttributeAxis(p, name, SizeAxis(value, ((self.index, 0),))) for p in everywhere)
            if kind == "bound" and axis is not None:
                cut |= dict.fromkeys(AttributeAxis(p, name, axis) for p in everywhere)
        yield from (tuple(step) for step in (kept, cut) if step)

    def _axes(self, value: int) -> list[SizeAxis]:
        """How a size may follow the group: not at all, in proportion, or as one that others lie on too."""
        axes = [SizeAxis(value, ((self.index, 0),)), self._in_proportion(value)]
        axes += [SizeAxis(value - n * self.group.size, ((self.index, n),)) for n in self._shares(value)]
        return [axis for axis in axes if axis is not None]

    def _in_proportion(self, value: int) -> SizeAxis | None:
        """The size as so much for each unit: a share of what a unit owns in a tensor, or several times that.

        The latter in windows, where each position of a head comes several times.
        """
        per_unit, rest = divmod(value, self.group.size)
        counts = {len(m.positions[0]) for m in self.group.members}
        fits = value and not rest and any(n % per_unit == 0 or (n > 1 and per_unit % n == 0) for n in counts)
        return SizeAxis(0, ((self.index, per_unit),)) if fits else None

    def _shares(self, value: int) -> list[int]:
        """How much a unit counts for in the size of an axis, or in each of its equal parts, that others lie on too."""
        found: dict[int, None] = {}
        for part in self.group.members:
            parts, rest = divmod(self.structure.tensors[part.tensor].shape[part.dim], max(value, 1))
            each, uneven = divmod(len(part.positions[0]), max(parts, 1))
            if parts and not rest and not uneven and each * self.group.size < value:
                found[each] = None
        return list(found)

    def analogous(self, recipe: Recipe) -> Step:
        """What follows another group, in the layers that this one passes through; empty if some of it has no place."""
        known = {(a.module, a.attribute) for a in self.structure.attributes}
        modules = [p for p, _ in self.twin.named_modules()]
        result: list[AttributeAxis] = []
        for name, form in recipe:
            places = [(p, self._value(p, name)) for p in modules if kind_of(p) == form[0] and self._passes(p)]
            alike = [AttributeAxis(p, name, axis) for p, value in places if value for axis in self._axes(value)]
            alike = [axis for axis in alike if _form(axis) == form]
            if not alike:
                return ()
            result += [axis for axis in alike if (axis.module, name) not in known]
        return tuple(result)

    def _value(self, path: str, name: str) -> int | None:
        """What an attribute says, or a size in the code, in the full model."""
        module = self.twin.get_submodule(path)
        if not is_local(name):
            return integers(module).get(name)
        return self.full.of(LocalSize(path, method_named_in(name), name)) if can_have(module, name) else None

    def _around(self) -> list[str]:
        """The modules that hold the group's tensors, and those around these, the innermost first."""
        paths: dict[str, None] = {}
        for part in self.group.members:
            path = part.tensor
            while path:
                path = path.rpartition(".")[0]
                paths[path] = None
        return sorted(paths, key=lambda path: -len(path.split(".")) if path else 0)

    def _alike(self, path: str, name: str, value: int) -> list[str]:
        """The module, and those alike that the group passes through as well."""
        modules = [(p, m) for p, m in self.twin.named_modules() if kind_of(p) == kind_of(path)]
        alike = [p for p, m in modules if (can_have(m, name) if is_local(name) else stated(m, name) == value)]
        return [p for p in alike if p == path or self._passes(p)]

    def _passes(self, path: str) -> bool:
        """Whether the module, or the nearest around it that has parameters, holds some of the group's."""
        while path and next(self.twin.get_submodule(path).parameters(), None) is None:
            path = path.rpartition(".")[0]
        return not path or any(lies_in(part.tensor, path) for part in self.group.members)


def settled(proposed: Structure, bed: Testbed, quick: Testbed | None) -> Structure:
    """What the dry run confirms, with the groups that only an attribute of a size of its own keeps from resizing.

    Args:
        proposed: the structure before the dry run.
        bed: what is compared on.
        quick: the same with smaller inputs.
    """
    proposed = bound(proposed, bed, quick)
    screened = screen(proposed, bed, quick)
    # groups that break something may need no more than an attribute that follows them
    extra, told = _following(proposed, screened.left, quick or bed)
    if extra:
        screened = screen(replace(proposed, attributes=(*proposed.attributes, *extra)), bed, quick)
    # what is left is compared on the example itself
    confirmed = confirm(screened, bed)
    frozen = [
        replace(f, reason=told.get(f.name) or f.reason) if f.reason.startswith(FAILS) else f for f in confirmed.frozen
    ]
    return with_births(replace(confirmed, frozen=tuple(frozen)), quick or bed)


def _following(
    proposed: Structure, left: Structure, small: Testbed
) -> tuple[tuple[AttributeAxis, ...], dict[str, str]]:
    """The attributes that follow groups which were refuted, and why other groups break, by their names.

    The first line that fails may be one whose attributes can follow: what is told is the one that cannot.
    """
    held = {g.name for g in left.groups}
    refused = ("without some of it", "refuted", "a gate of zero")
    broken = {f.name for f in left.frozen if f.reason.startswith(refused)}
    groups = [g for g in proposed.groups if g.name not in held and g.name in broken]
    found, told = _attributes(proposed, groups, small.narrow or small)
    sizes = [g.size for g in proposed.groups]
    extra = _merged(dict.fromkeys(chain(*found.values())), sizes)
    if small.narrow and found:  # what agrees in float32 is compared in float64 all together, and else looked for there
        structure = replace(proposed, attributes=(*proposed.attributes, *extra))
        if disagreement(structure, small, [g for g in groups if g.name in found], keep_half) is not None:
            found, told = _attributes(proposed, groups, small)
            extra = _merged(dict.fromkeys(chain(*found.values())), sizes)
    return extra, told


def _attributes(
    proposed: Structure, groups: Sequence[ChannelGroup], bed: Testbed
) -> tuple[dict[str, Step], dict[str, str]]:
    """The attributes that follow each of some groups, and why the others break."""
    role = roles(g.name for g in groups)
    sort = {g.name: (role[g.name], len(g.members[0].positions[0])) for g in groups}  # a head, or one of its width
    full = FullSizes(bed.model, bed.example)
    found: dict[str, Step] = {}
    reasons: dict[tuple[str, int], str] = {}
    for group in groups:
        if group.name in found:
            continue
        bench = _Bench(proposed, full, bed, group)
        alike = [g for g in groups if sort[g.name] == sort[group.name]]
        # first what was found for the same layer of another number
        known = [_transferred(found[g.name], g.name, bench) for g in alike if g.name in found]
        ready = next((k for k in known if k and bench.run([k]).agreed), None)
        in_vain = any(not found[g.name] for g in alike if g.name in found)
        # then what was found for others: heads of another width, keys beside queries
        recipes = dict.fromkeys(_recipe(step) for step in found.values() if step and not (ready or in_vain))
        others = (step for recipe in recipes if (step := bench.analogous(recipe)))
        ready = ready or next((k for k in others if all(bench.run([k], which).agreed for which in (0, 1))), None)
        result = ready or (() if in_vain else _search(bench, frozenset(map(_form, chain(*found.values())))))
        found[group.name] = result
        if not result:
            reasons.setdefault(sort[group.name], bench.reason)
        # then the other way round: what was found here, in all layers alike at once
        if result and not known:
            found |= _all_alike(bench, alike, result)
    told = {g.name: reasons[sort[g.name]] for g in groups if not found.get(g.name) and sort[g.name] in reasons}
    return {name: axes for name, axes in found.items() if axes}, told


def _merged(axes: Iterable[AttributeAxis], sizes: Sequence[int]) -> Step:
    """One axis for each attribute, which may be the sum of the sizes of several groups."""
    merged: dict[tuple[str, str], AttributeAxis] = {}
    for new in axes:
        old = merged.get((new.module, new.attribute), new)
        counts = tuple(dict.fromkeys((*old.axis.counts, *new.axis.counts)))
        added = sum(n * sizes[group] for group, n in counts if (group, n) not in old.axis.counts)
        merged[new.module, new.attribute] = replace(old, axis=SizeAxis(old.axis.base - added, counts))
    return tuple(merged.values())


def _all_alike(bench: _Bench, alike: Sequence[ChannelGroup], axes: Step) -> dict[str, Step]:
    """The same attributes in the layers of all other numbers, if all these agree together; else nothing."""
    source, proposed = bench.group.name, bench.structure
    found: dict[str, Step] = {source: axes}
    for group in alike:
        if group.name != source:
            moved = _transferred(axes, source, _Bench(proposed, bench.full, bench.bed, group))
            found |= {group.name: moved} if moved else {}
    everywhere = tuple(dict.fromkeys(chain(*found.values())))
    structure = replace(proposed, attributes=(*proposed.attributes, *everywhere))
    groups = [g for g in alike if g.name in found]
    if len(groups) == 1:  # it has agreed
        return found
    return found if disagreement(structure, bench.bed, groups, keep_half) is None else {}


def _search(bench: _Bench, familiar: frozenset[Form]) -> Step:
    """The fewest attributes with which the smaller model agrees; empty if there are none.

    Sizes in the code are tried only where those that modules state do not do. Attributes of the forms that other groups
    needed come before all others.
    """
    for forms in (familiar, None):
        for in_code in (False, True):
            bench.in_code, bench.left, bench.forms = in_code, MAX_TRIALS, forms
            result = () if forms == frozenset() else _deepen(bench, (), bench.run(()))
            for step in result:  # those that were only on the way are not needed
                fewer = tuple(s for s in result if s != step)
                if fewer and bench.run(fewer).agreed:
                    result = fewer
            # another choice of units: one size may fit by chance
            if result and bench.run(result, which=1).agreed:
                return tuple(chain(*result))
    return ()


def _deepen(bench: _Bench, extra: tuple[Step, ...], trial: Trial) -> tuple[Step, ...]:
    """Depth first: an attribute that moves the error to another place may be one of several."""
    if trial.agreed:
        return extra
    if len(extra) >= MAX_ATTRIBUTES or (trial.where is None and extra and not bench.in_code):
        return ()
    later: list[tuple[tuple[Step, ...], Trial]] = []
    idle: set[AttributeAxis] = set()  # which change nothing of how it fails
    single = [(step,) for step in bench.candidates(trial, extra)]
    for added in chain(single, combinations([step for (step,) in single], 2)):  # one operation may read two of them
        if bench.left <= 0 or (len(added) == 2 and later):
            break
        if len(added) == 1 and idle.issuperset(added[0]):
            continue  # in all alike layers it did not move the error either
        more = (*extra, *added)
        result = bench.run(more)
        if result.agreed:
            return more
        if result.where is None or trial.where is None:
            continue
        if result.where.point != trial.where.point:
            later.append((more, result))
        elif result.reached == trial.reached and len(added) == 1:
            idle.update(added[0])
    # no single one and no pair agrees: from those that came further, the furthest first
    for more, result in sorted(later, key=lambda tried: -tried[1].reached):
        deeper = _deepen(bench, more, result)
        if deeper:
            return deeper
    return ()


def _form(axis: AttributeAxis) -> Form:
    """What an attribute of a layer has in common with that of another number, also of another width."""
    counted = any(n for _, n in axis.axis.counts)
    return kind_of(axis.module), kind_of(axis.attribute), counted, counted and axis.axis.base == 0


def _recipe(step: Step) -> Recipe:
    """What follows in layers of each kind, and how."""
    return tuple(dict.fromkeys((axis.attribute, _form(axis)) for axis in step))


def _transferred(axes: Step, source: str, bench: _Bench) -> Step:
    """The same attributes in the layer of another number."""
    numbers = re.findall(r"\d+", bench.group.name)
    result = []
    for axis in axes:
        if re.findall(r"\d+", axis.module) != re.findall(r"\d+", source)[: len(re.findall(r"\d+", axis.module))]:
            return ()
        fresh = iter(numbers)
        path = re.sub(r"\d+", lambda _, fresh=fresh: next(fresh), axis.module)  # type: ignore[misc]
        ((_, per_unit),) = axis.axis.counts
        result.append(AttributeAxis(path, axis.attribute, SizeAxis(axis.axis.base, ((bench.index, per_unit),))))
    return tuple(result)
