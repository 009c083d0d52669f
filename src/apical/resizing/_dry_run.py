"""The dry run that decides: on a copy, gate-to-zero and physical removal must agree, else the part is frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apical.resizing._copying import keep_apart_, sharing_copy, versions
from apical.resizing._culprit import explained
from apical.resizing._gates import gated_copy
from apical.resizing._resize import resize_
from apical.resizing._selection import first_units
from apical.resizing._stand_in import bind_blocks
from apical.resizing._widened import NARROW, Widened
from apical.structure import (
    ChannelGroup,
    CostTerm,
    Frozen,
    SizeAxis,
    SkippableBlock,
    Structure,
    check_runs,
    first_line,
    own,
    quiet_rng,
    steady_training,
)

# Pixels: the least that networks of five halvings take with something left to compare, and what Inception's take.
SMALL_SIDES = (64, 96)
FAILS = "without some of it the forward pass fails: "
APART, TOGETHER = "cannot change apart from another part", "refuted together with others"
NOISE = 100_003  # numbers that are drawn for one tensor; larger ones repeat them
Part = ChannelGroup | SkippableBlock
Refuted = dict[tuple[type, str], str]  # a group and a block may have the same name


@dataclass(frozen=True)
class Example:
    """One call of the model; ``widened``: in float64 also where the model, or a parameter, asks for less."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state_outputs: tuple[int | str, ...] = ()
    widened: bool = False

    def run(self, model: nn.Module, training: bool = False, seed: int = 0) -> list[Tensor]:
        """All output tensors but carried states; in training mode without dropout and other chance."""
        mode = steady_training(model) if training else nullcontext()
        with quiet_rng(), torch.no_grad(), mode, Widened() if self.widened else nullcontext(), _seeded(model, seed):
            args, kwargs = own((self.args, self.kwargs))  # a model may write into its inputs
            outputs: Any = model(*args, **kwargs)
        if isinstance(outputs, dict):
            outputs = {k: v for k, v in outputs.items() if k not in self.state_outputs}
        elif isinstance(outputs, (tuple, list)):
            outputs = [v for i, v in enumerate(outputs) if i not in self.state_outputs]
        return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from a seed where the model is; GPUs' states are put back, and left alone by a model on the CPU.

    ``torch.manual_seed`` seeds every GPU, even one that is not in use yet.
    """
    if all(t.device.type == "cpu" for t in _tensors(model).values()):
        torch.default_generator.manual_seed(seed)
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


Count = Callable[[int, int], int]  # how many of so many units stay, by a shift that differs between groups


@dataclass(frozen=True)
class Testbed:
    """What gated and removed networks are compared on.

    Attributes:
        model: a copy in which nothing is zero by chance.
        example: one call of it.
        tolerance: largest relative difference.
        modes: whether in training mode: eval mode, and then training mode if results can be compared there.
        same_modes: whether the model computes the same in training mode, so that what is expected is the same, too.
        note: why not in training mode.
    """

    model: nn.Module
    example: Example
    tolerance: float
    modes: tuple[bool, ...] = (False,)
    same_modes: bool = False
    note: str = ""


def confirm(structure: Structure, bed: Testbed, quick: Testbed | None = None) -> Structure:
    """The structure without what the dry run refutes.

    Args:
        structure: with proposed groups and blocks.
        bed: what everything that stays is compared on.
        quick: the same with smaller inputs, to find there first what must go, and witnesses of it are tried again.
    """
    structure = replace(structure, notes=(*structure.notes, *([bed.note] if bed.note else [])))
    structure = _bound(structure, bed, quick)
    refuted: Refuted = {}
    if quick:
        _refute_all(structure, quick, refuted)
        _readmit(structure, replace(bed, modes=quick.modes, same_modes=quick.same_modes), refuted)
    _refute_all(structure, bed, refuted)
    return without(structure, refuted)


def _bound(structure: Structure, bed: Testbed, quick: Testbed | None) -> Structure:
    """The structure with what stands in for its blocks, seen on the small inputs where all of it is the block's input.

    That does not depend on a size; all else is seen on the example itself.
    """
    if quick is not None:
        bound = bind_blocks(structure, quick.model, quick.example.run, gated_copy, quick.tolerance)
        plain = all(b.returns is None and not b.feeders for b in bound.blocks)
        if plain and len(bound.blocks) == len(structure.blocks):
            return bound
    return bind_blocks(structure, bed.model, bed.example.run, gated_copy, bed.tolerance)


def _readmit(structure: Structure, bed: Testbed, refuted: Refuted) -> None:
    """Forget what was refuted elsewhere if the first part of its kind, refuted for such a reason, agrees here."""
    parts: list[Part] = [*structure.groups, *structure.blocks]
    alike: dict[tuple[type, str, str], list[Part]] = {}
    for part in parts:
        reason = refuted.get(_key(part), TOGETHER)
        if not reason.startswith((APART, TOGETHER)):  # alone those agree everywhere
            alike.setdefault((type(part), _kind(part.name), _kind(reason)), []).append(part)
    for same in alike.values():
        if disagreement(structure, bed, same[:1], keep_half) is None:
            for part in same:
                del refuted[_key(part)]


def _refute_all(structure: Structure, bed: Testbed, refuted: Refuted) -> None:
    """Note every part that disagrees, alone or with others, beside those that are refuted already."""
    parts: list[Part] = [*structure.groups, *structure.blocks]
    compared: dict[tuple[Count, tuple[tuple[type, str], ...]], str | None] = {}

    def differs(candidates: Sequence[Part], count: Count) -> str | None:
        asked = count, tuple(map(_key, candidates))
        if asked not in compared:
            compared[asked] = disagreement(structure, bed, candidates, count) if candidates else None
        return compared[asked]

    def left(candidates: Sequence[Part]) -> list[Part]:
        return [p for p in candidates if _key(p) not in refuted]

    def refute(candidates: Sequence[Part], count: Count) -> None:
        reason = differs(candidates, count)
        if reason is None:
            return
        known = len(refuted)
        kinds = _kinds(candidates)
        if len(candidates) == 1:
            refuted[_key(candidates[0])] = reason
        elif len(kinds) > 1:
            split = len(kinds) // 2
            for some in (list(kinds.values())[:split], list(kinds.values())[split:]):
                refute([part for kind in some for part in kind], count)
        else:
            _refute_alike(candidates, partial(refute, count=count), refuted)
        if len(refuted) == known:  # each half agrees: some of the one and of the other must change alike
            part = candidates[_first_conflict(candidates, lambda some: differs(some, count) is not None)]
            refuted[_key(part)] = f"{APART}: {reason}"
            refute([c for c in candidates if c is not part], count)

    def settled(candidates: Sequence[Part], count: Count) -> bool:
        for _ in range(3):
            known = len(refuted)
            refute(left(candidates), count)
            if len(refuted) == known:
                return True
        return False

    if structure.blocks:  # groups inside blocks with every block present, then the blocks
        if differs(left(structure.groups), keep_half) is None and differs(left(parts), keep_odd) is None:
            return  # nothing to look for
        settled(structure.groups, keep_half)
        settled(structure.blocks, keep_half)
    if not (settled(parts, keep_half) and settled(parts, keep_odd)):  # all together, in two numbers
        refuted.update({_key(p): TOGETHER for p in parts if _key(p) not in refuted})


def _kinds(parts: Sequence[Part]) -> dict[str, list[Part]]:
    """Parts whose names differ in numbers only; if all do, those that are called the same in their module."""
    kinds: dict[str, list[Part]] = {}
    for alike in (_kind, lambda name: name.rpartition(".")[2]):
        kinds = {}
        for part in parts:
            kinds.setdefault(alike(part.name), []).append(part)
        if len(kinds) > 1 and not any(kind.isdigit() for kind in kinds):
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


def _key(part: Part) -> tuple[type, str]:
    return type(part), part.name


def _refute_alike(candidates: Sequence[Part], refute: Callable[[Sequence[Part]], None], refuted: Refuted) -> None:
    """Parts of one kind (`_kinds`): often the same construction throughout the network."""
    refute(candidates[:1])
    known = len(refuted)
    refute(candidates[-1:])
    middle = candidates[1:-1]
    if _key(candidates[0]) in refuted and len(refuted) > known and middle:
        refute(middle[len(middle) // 2 :][:1])  # a third witness
        if len(refuted) > known + 1:
            refuted.update({_key(part): refuted[_key(candidates[0])] for part in middle})
            return
    split = len(middle) // 2
    refute(middle[:split])
    refute(middle[split:])


def testbeds(model: nn.Module, example: Example) -> tuple[Testbed, Testbed | None]:
    """The model in float64 with nothing trivially zero (in its own types where it cannot run in float64).

    Args:
        model: a copy in eval mode, which becomes the testbeds'.
        example: one call.

    Returns:
        The testbed, and one with smaller images if the model takes those: on them is found out what training mode
        does, too, and if it computes the same as eval mode, training mode is compared on them only.
    """
    bed = _evaluating(model, example)
    quick = _smaller(bed)
    if quick is not None:
        trained = _with_training(quick)
        if trained.same_modes:
            return bed, trained
        if trained.modes != bed.modes:
            return replace(bed, modes=trained.modes), trained
    bed = _with_training(bed)
    return bed, quick if bed.note else None


def _evaluating(model: nn.Module, example: Example) -> Testbed:
    """The testbed, with eval mode only so far."""
    check_runs(model, example.args, example.kwargs)
    types = {name: t.dtype for name, t in _tensors(model).items()}
    for buffer in model.buffers():
        buffer.data = _double(buffer.data)
    twin = _disturbed(model)
    wide = replace(example, args=_double(example.args), kwargs=_double(example.kwargs), widened=True)
    noisy = replace(wide, args=_noisy(wide.args), kwargs=_noisy(wide.kwargs))
    # Parameters need not be float64, which takes twice the memory, where each is widened as it is read. Examples are
    # often zeros, at which much is equal that is not the same; some kernels know no float64.
    double = [(trial, True) for trial in (noisy, replace(noisy, widened=False), wide, replace(wide, widened=False))]
    for trial, all_double in ((noisy, False), *double):
        if all_double:
            twin.double()
        try:
            before = versions(twin)
            if all(bool(t.isfinite().all()) for t in trial.run(twin) if t.is_floating_point()):
                keep_apart_(twin, before)
                return Testbed(twin, trial, 1e-10)
        except Exception:  # noqa: BLE001 (any error of the user's forward pass: it insists on its dtype or range)
            continue
    for name, tensor in _tensors(twin).items():
        tensor.data = tensor.data.to(types[name])
    before = versions(twin)
    example.run(twin)
    keep_apart_(twin, before)
    return Testbed(twin, example, 1e-3)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _with_training(bed: Testbed) -> Testbed:
    """The testbed with training mode, or with a note if that cannot be compared: it fails, or chance decides."""
    try:
        before = versions(bed.model)
        twin = sharing_copy(bed.model)  # in the order of a comparison, for models that carry a state on
        evaluated, trained = bed.example.run(twin), bed.example.run(twin, True)
        if keep_apart_(bed.model, before):
            twin = sharing_copy(bed.model)
            evaluated, trained = bed.example.run(twin), bed.example.run(twin, True)
        if _difference(evaluated, trained, 0.0) is None:
            return replace(bed, modes=(False, True), same_modes=True)
        first, again = (bed.example.run(sharing_copy(bed.model), True, seed=seed) for seed in (0, 1))
        if _difference(first, again, 0.0) is None:
            return replace(bed, modes=(False, True))
        problem = "its results differ from run to run"
    except Exception as error:  # noqa: BLE001 (whatever the user's forward pass raises in training mode)
        if bed.example.widened and any(p.dtype in NARROW for p in bed.model.parameters()):
            bed.model.double()  # it may be a parameter that is written into
            return _with_training(bed)
        problem = first_line(error)
    note = f"gates and removal were compared in eval mode only, not in training mode: {problem}"
    return replace(bed, note=note)


def _smaller(bed: Testbed) -> Testbed | None:
    """The testbed with images cut to one of `SMALL_SIDES`, if they are much larger and the model takes those.

    What a part does to the result hardly depends on the size of an image, but the time does.
    """
    leaves = torch.utils._pytree.tree_leaves((bed.example.args, bed.example.kwargs))
    images = [v for v in leaves if isinstance(v, Tensor) and v.dim() == 4]
    shortest = min((min(v.shape[2:]) for v in images), default=0)
    for side in (side for side in SMALL_SIDES if shortest >= 2 * side):
        quick = replace(bed, example=_cut(bed.example, side))
        try:
            outputs = quick.example.run(sharing_copy(bed.model))
        except Exception:  # noqa: BLE001 (the model takes no image of this size, whatever it raises)
            continue
        if all(bool(t.isfinite().all()) for t in outputs):  # unlike the deviation of a single pixel
            return quick
    return None


def _cut(example: Example, side: int) -> Example:
    def cut(value: Any) -> Any:
        is_image = isinstance(value, Tensor) and value.dim() == 4
        return value[..., :side, :side].contiguous() if is_image else value

    args, kwargs = torch.utils._pytree.tree_map(cut, (example.args, example.kwargs))
    return replace(example, args=args, kwargs=kwargs)


def _double(tree: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, tree
    )


def _noisy(tree: Any) -> Any:
    generator = torch.Generator().manual_seed(0)

    def disturb(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
            return value
        spread = float(value.std()) if value.numel() > 1 else 0.0
        noise = torch.randn(value.shape, generator=generator, device="cpu").to(value)
        return value + (0.3 * spread if spread > 0 else 1.0) * noise

    return torch.utils._pytree.tree_map(disturb, tree)


@torch.no_grad()
def _disturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        drawn = torch.randn(min(tensor.numel(), NOISE), generator=generator, dtype=torch.float32, device="cpu")
        if tensor.numel() > NOISE:  # a prime length, so that no two rows get the same
            drawn = drawn.repeat(-(-tensor.numel() // NOISE))[: tensor.numel()]
        return drawn.view(tensor.shape).to(tensor)

    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            spread = parameter.float().std() if parameter.numel() > 1 else parameter.float().abs().sum()
            parameter.add_(noise(parameter).mul_(float(0.1 * spread) if spread > 1e-3 else 0.05))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand(buffer.shape, generator=generator, device="cpu").to(buffer))
    return model


def disagreement(structure: Structure, bed: Testbed, parts: Sequence[Part], count: Count) -> str | None:
    """Why removing some of each part's units differs from zeroing their gates; None if it does not.

    Groups of one size lose different numbers of units, so that those which must change alike are found out.

    Groups that are not exact are removed from both networks: what is compared then is everything else beside them.
    """
    generator = torch.Generator().manual_seed(0)
    orders: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    kinds: dict[str, int] = {}
    met: dict[str, int] = {}
    for part in parts:
        if isinstance(part, ChannelGroup):
            kind = _kind(part.name)
            met[kind] = met.get(kind, -1) + 1
            shift = kinds.setdefault(kind, len(kinds)) + met[kind]
            orders[part.name] = torch.randperm(part.size, generator=generator, device="cpu").tolist()
            counts[part.name] = count(part.size, shift)
    keep = first_units(structure, orders, counts)
    skip = tuple(p.name for p in parts if isinstance(p, SkippableBlock))
    inexact = {p.name: keep[p.name] for p in parts if isinstance(p, ChannelGroup) and not p.exact}
    found = _without(structure, bed, keep, skip)  # before the gated copy is made: one changed copy at a time
    if isinstance(failed := found[False], str):
        return failed
    gated = gated_copy(bed.model, structure, {name: kept for name, kept in keep.items() if name not in inexact}, skip)
    if inexact:
        resize_(gated, structure, inexact)
    expected: list[Tensor] = []
    for training, outputs in found.items():
        where = "in training mode " if training else ""
        if isinstance(outputs, str):
            return where + outputs
        if not (training and bed.same_modes):
            expected = bed.example.run(gated, training)
        reason = _difference(expected, outputs, bed.tolerance)
        if reason is None and inexact:
            reason = _other_shapes(bed.example.run(bed.model, training), outputs)
        if reason is not None:
            return where + reason
    return None


def _without(
    structure: Structure, bed: Testbed, keep: Mapping[str, Sequence[int]], skip: tuple[str, ...]
) -> dict[bool, list[Tensor] | str]:
    """The smaller model's outputs in each mode, or why it fails there."""
    removed = sharing_copy(bed.model)
    found: dict[bool, list[Tensor] | str] = {}
    for training in bed.modes:
        try:
            if not found:
                resize_(removed, structure, keep, skip)
            found[training] = bed.example.run(removed, training)
        except Exception as problem:  # noqa: BLE001 (whatever the user's forward pass raises is the reason)
            found[training] = f"{FAILS}{explained(problem, removed)}"
            break
    return found


def keep_half(size: int, shift: int) -> int:
    """How many units stay: one more than half, so that a view's -1 cannot hide it; for other shifts other numbers."""
    return 1 if size < 3 else 1 + (size // 2 + shift) % (size - 1)


def keep_odd(size: int, shift: int) -> int:
    """How many units stay: an odd number above half, which no two equal parts have; for other shifts other numbers."""
    return 1 if size < 3 else 1 + (min((size // 2 + 1) | 1, size - 1) - 1 + shift) % (size - 1)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _other_shapes(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"without some of it the output has shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    return None


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str | None:
    """How the outputs without some of it differ from those with gates of zero."""
    if len(expected) != len(found):
        return f"without some of it there are {len(found)} outputs instead of {len(expected)}"
    shapes = _other_shapes(expected, found)
    if shapes is not None:
        return shapes
    for a, b in zip(expected, found, strict=True):
        a, b = (t if t.is_floating_point() or t.is_complex() else t.double() for t in (a, b))
        scale = a.abs().max().item() if a.numel() else 0.0
        error = (a - b).abs().max().item() if a.numel() else 0.0
        if not error <= tolerance * max(scale, 1e-30):
            return f"a gate of zero does not equal its absence (relative difference {error / max(scale, 1e-30):.1g})"
    return None


def without(structure: Structure, refuted: Mapping[tuple[type, str], str]) -> Structure:
    """The structure with some groups and blocks frozen."""
    for group in structure.groups:  # what cannot leave holds what it needs
        if group.needs is not None and _key(group) in refuted:
            refuted = {(ChannelGroup, group.needs.group): refuted[_key(group)]} | dict(refuted)
    if not refuted:
        return structure
    groups = tuple(
        replace(g, needs=None) if g.needs is not None and (ChannelGroup, g.needs.group) in refuted else g
        for g in structure.groups
        if _key(g) not in refuted
    )
    index = {g.name: i for i, g in enumerate(groups)}
    where = [index.get(g.name) for g in structure.groups]

    def axis(a: SizeAxis) -> SizeAxis:
        fixed = sum(n * structure.groups[g].size for g, n in a.counts if where[g] is None)
        return SizeAxis(a.base + fixed, tuple((w, n) for g, n in a.counts if (w := where[g]) is not None))

    def term(t: CostTerm) -> CostTerm:
        return CostTerm(t.coefficient, tuple(axis(a) for a in t.axes), t.modules)

    frozen = [Frozen(g.name, g.size, refuted[_key(g)]) for g in structure.groups if _key(g) in refuted]
    notes = [f"block {b.name} stays: {refuted[_key(b)]}" for b in structure.blocks if _key(b) in refuted]
    return replace(
        structure,
        groups=groups,
        blocks=tuple(b for b in structure.blocks if _key(b) not in refuted),
        frozen=(*structure.frozen, *frozen),
        attributes=tuple(replace(a, axis=axis(a.axis)) for a in structure.attributes if axis(a.axis).counts),
        terms=tuple(term(t) for t in structure.terms),
        param_axes=tuple(term(t) for t in structure.param_axes),
        notes=(*structure.notes, *notes),
        states=tuple(s for s in structure.states if s.group in index),
    )
