"""The dry run that decides: on a copy, gate-to-zero and physical removal must agree, else the part is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from apical.resizing._disagreement import Count, disagreement, keep_half, keep_odd, kind_of, roles
from apical.resizing._gates import gated_copy
from apical.resizing._seen import unseen
from apical.resizing._stand_in import bind_blocks
from apical.resizing._testbed import NEAR, ROUGH, Testbed, redrawn
from apical.structure import ChannelGroup, Structure
from apical.structure._without import Key, Part, key_of, without

REDRAWS = 3  # times that weights are drawn anew for parts that nothing shows
APART, TOGETHER = "cannot change apart from another part", "refuted together with others"
Refuted = dict[Key, str]  # why, by part


@dataclass(frozen=True)
class Screened:
    """A structure, and what of it is refuted so far; ``decided``: nothing is left to be compared."""

    structure: Structure
    refuted: Mapping[Key, str]
    decided: bool

    @property
    def left(self) -> Structure:
        """The structure without what is refuted."""
        return without(self.structure, self.refuted)


def screen(structure: Structure, bed: Testbed, quick: Testbed | None) -> Screened:
    """Look for what the dry run refutes, on the small inputs if there are any.

    Args:
        structure: with proposed groups, and blocks that say what stands in for them (`bound`).
        bed: what everything that stays is compared on.
        quick: the same with smaller inputs, to find there first what must go, and witnesses of it are tried again.
    """
    refuted: Refuted = {}
    small = quick or bed
    # all parts at once, each without some of its units; where that differs, halving finds out which
    _refute_all(structure, small, refuted, [*structure.groups, *structure.blocks])
    # a part that changed nothing has proved nothing: it is tried apart from those that hide it
    other = lru_cache(maxsize=1)(partial(redrawn, small))
    for parts in (structure.groups, structure.blocks):
        _look_closer(structure, small, refuted, parts, other)
    if quick:
        _readmit(
            structure, replace(bed, modes=quick.modes, same_modes=quick.same_modes), refuted, quick.narrow is not None
        )
    return Screened(structure, refuted, decided=quick is None)


def confirm(screened: Screened, bed: Testbed) -> Structure:
    """The structure without what the dry run refutes, each part that stays compared on the example itself."""
    refuted = dict(screened.refuted)
    if not screened.decided:
        _refute_all(screened.structure, bed, refuted, [*screened.structure.groups, *screened.structure.blocks])
    return without(screened.structure, refuted)


def bound(structure: Structure, bed: Testbed, quick: Testbed | None) -> Structure:
    """The structure with what stands in for its blocks, seen in a run: a block's input, zeros, a tuple with both.

    On the small inputs where it is the block's input, which does not depend on a size; all else is seen on the example
    itself.
    """
    structure = replace(structure, notes=(*structure.notes, *([bed.note] if bed.note else [])))
    small = (quick or bed).narrow or quick or bed
    found = bind_blocks(structure, small.model, small.example.run, gated_copy, min(small.tolerance, ROUGH))
    if quick is None:
        return found
    plain = {b.name: b for b in found.blocks if b.returns is None and not b.feeders}
    rest = replace(structure, blocks=tuple(b for b in structure.blocks if b.name not in plain))
    if not rest.blocks:
        return found
    bed = bed.rough or bed
    rest = bind_blocks(rest, bed.model, bed.example.run, gated_copy, bed.tolerance)
    blocks = plain | {b.name: b for b in rest.blocks}
    return replace(rest, blocks=tuple(blocks[b.name] for b in structure.blocks if b.name in blocks))


def _readmit(structure: Structure, bed: Testbed, refuted: Refuted, clearly: bool) -> None:
    """Forget what was refuted elsewhere if the first part of its kind, refuted for such a reason, agrees here.

    Args:
        structure: with all parts.
        bed: what to compare on.
        refuted: why, by part; what agrees is taken out.
        clearly: whether float32 is exact enough that what clearly differs there differs.
    """
    parts: list[Part] = [*structure.groups, *structure.blocks]
    # one witness for all parts of a kind that were refuted for one reason
    alike: dict[tuple[type, str, str], list[Part]] = {}
    role = roles(part.name for part in parts)
    for part in parts:
        reason = refuted.get(key_of(part), TOGETHER)
        if not reason.startswith((APART, TOGETHER)):  # alone those agree everywhere
            alike.setdefault((type(part), role[part.name], kind_of(reason)), []).append(part)
    clear = bed.rough and clearly and replace(bed.rough, modes=bed.modes, tolerance=NEAR)
    for same in alike.values():
        if clear and disagreement(structure, clear, same[:1], keep_half) is not None:
            continue
        if disagreement(structure, bed, same[:1], keep_half) is None:
            for part in same:
                del refuted[key_of(part)]


def _look_closer(
    structure: Structure, bed: Testbed, refuted: Refuted, parts: Sequence[Part], other: Callable[[int], Testbed]
) -> None:
    """Compare apart those of some parts of which nothing was seen while all of these were reduced.

    On other weights where these show all of them at once, or where the same ones show nothing even then.

    Args:
        structure: with all parts.
        bed: what the parts were compared on.
        refuted: why, by part; added to.
        parts: those that were compared.
        other: the testbed with weights that are drawn anew, by how often.
    """
    compared = [p for p in parts if key_of(p) not in refuted]
    hidden = unseen(structure, bed, compared, keep_half) if compared else []
    draws = 0
    while hidden:
        left = unseen(structure, bed, hidden, keep_half)
        if left and draws < REDRAWS:
            new = other(draws + 1)
            left_by_new = unseen(structure, new, hidden, keep_half)
            if not left_by_new or len(left) == len(hidden):
                draws, bed, left = draws + 1, new, left_by_new
        elif len(left) == len(hidden):
            return  # nothing shows them
        _refute_all(structure, bed, refuted, hidden)
        hidden = [p for p in left if key_of(p) not in refuted]


def _refute_all(structure: Structure, bed: Testbed, refuted: Refuted, parts: Sequence[Part]) -> None:
    """Note every one of some parts that disagrees, alone or with others of them, beside those that are refuted already.

    All other parts stay whole. Where they do not all agree, those that do not are looked for in float32 first, where
    there is such a testbed: what is left then is compared like everything else.
    """
    compared: dict[tuple[bool, Count, tuple[Key, ...]], str | None] = {}

    def differs(candidates: Sequence[Part], count: Count, narrow: bool = False) -> str | None:
        asked = narrow, count, tuple(map(key_of, candidates))
        if narrow and compared.get((False, *asked[1:]), "") is None:
            return None  # it agrees in float64
        if asked not in compared:
            used = bed.narrow if narrow and bed.narrow else bed
            compared[asked] = disagreement(structure, used, candidates, count) if candidates else None
        return compared[asked]

    def agree() -> bool:
        left = [p for p in parts if key_of(p) not in refuted]
        groups = [p for p in left if isinstance(p, ChannelGroup)]
        first = groups if len(groups) < len(left) else left  # groups inside blocks with every block present
        return differs(first, keep_half) is None and differs(left, keep_odd) is None

    if agree():
        return  # nothing to look for
    if bed.narrow:
        _search(partial(differs, narrow=True), refuted, parts)
        if agree():
            return
    if not _search(differs, refuted, parts):
        refuted.update({key_of(p): TOGETHER for p in parts if key_of(p) not in refuted})


def _search(differs: Callable[[Sequence[Part], Count], str | None], refuted: Refuted, parts: Sequence[Part]) -> bool:
    """Refute one part after the other until all that are left agree together, in two numbers; whether they do."""
    groups = [p for p in parts if isinstance(p, ChannelGroup)]
    blocks = [p for p in parts if not isinstance(p, ChannelGroup)]

    def left(candidates: Sequence[Part]) -> list[Part]:
        return [p for p in candidates if key_of(p) not in refuted]

    def refute(candidates: Sequence[Part], count: Count) -> None:
        reason = differs(candidates, count)
        if reason is None:
            return
        known = len(refuted)
        kinds = _kinds(candidates)
        if len(candidates) == 1:
            refuted[key_of(candidates[0])] = reason
        elif len(kinds) > 1:
            split = len(kinds) // 2
            for some in (list(kinds.values())[:split], list(kinds.values())[split:]):
                refute([part for kind in some for part in kind], count)
        else:
            _refute_alike(candidates, partial(refute, count=count), refuted)
        if len(refuted) == known:  # each half agrees: some of the one and of the other must change alike
            part = candidates[_first_conflict(candidates, lambda some: differs(some, count) is not None)]
            refuted[key_of(part)] = f"{APART}: {reason}"
            refute([c for c in candidates if c is not part], count)

    def settled(candidates: Sequence[Part], count: Count) -> bool:
        for _ in range(3):
            known = len(refuted)
            refute(left(candidates), count)
            if len(refuted) == known:
                return True
        return False

    # groups inside blocks with every block present, then the blocks, then all
    apart = [settled(groups, keep_half), settled(blocks, keep_half)]
    return settled(parts, keep_half) and settled(parts, keep_odd) and all(apart)


def _kinds(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Parts whose names differ in numbers only; if all do, those of the same layer in blocks that repeat."""
    names = [part.name for part in parts]
    kinds: dict[str, list[Part]] = {}
    for alike in ({name: kind_of(name) for name in names}, roles(names)):
        kinds = {}
        for part in parts:
            kinds.setdefault(alike[part.name], []).append(part)
        if len(kinds) > 1:
            return kinds
    return {"": list(parts)}


def _first_conflict(candidates: Sequence[Part], disagree: Callable[[Sequence[Part]], bool]) -> int:
    """The first part that disagrees beside those before it, by bisection; all of them together disagree."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if disagree(candidates[: middle + 1]):
            high = middle
        else:
            low = middle + 1
    return low


def _refute_alike(candidates: Sequence[Part], refute: Callable[[Sequence[Part]], None], refuted: Refuted) -> None:
    """Parts of one kind (`_kinds`): often the same construction throughout the network."""
    refute(candidates[:1])
    known = len(refuted)
    refute(candidates[-1:])
    middle = candidates[1:-1]
    # the first and the last of a kind fail alone: if one from the middle does, so do all
    if key_of(candidates[0]) in refuted and len(refuted) > known and middle:
        refute(middle[len(middle) // 2 :][:1])  # a third witness
        if len(refuted) > known + 1:
            refuted.update({key_of(part): refuted[key_of(candidates[0])] for part in middle})
            return
    split = len(middle) // 2
    refute(middle[:split])
    refute(middle[split:])
