"""The dry run that decides: on a copy, gate-to-zero and physical removal must agree, else the part is frozen."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from apical.resizing._culprit import explained
from apical.resizing._gates import zero_gates_
from apical.resizing._resize import resize_
from apical.structure import (
    ChannelGroup,
    CostTerm,
    Frozen,
    SizeAxis,
    SkippableBlock,
    Structure,
    check_runs,
    own,
    quiet_rng,
)

Part = ChannelGroup | SkippableBlock


@dataclass(frozen=True)
class Example:
    """One call of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state_outputs: tuple[int | str, ...] = ()

    def run(self, model: nn.Module) -> list[Tensor]:
        """All output tensors but carried states."""
        with quiet_rng(), torch.no_grad():
            torch.manual_seed(0)
            args, kwargs = own((self.args, self.kwargs))  # a model may write into its inputs
            outputs: Any = model(*args, **kwargs)
        if isinstance(outputs, dict):
            outputs = {k: v for k, v in outputs.items() if k not in self.state_outputs}
        elif isinstance(outputs, (tuple, list)):
            outputs = [v for i, v in enumerate(outputs) if i not in self.state_outputs]
        return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def confirm(structure: Structure, model: nn.Module, example: Example) -> Structure:
    """The structure without what the dry run refutes; ``model`` is a copy that may be used freely."""
    twin, example, tolerance = _testbed(model, example)
    parts: list[Part] = [*structure.groups, *structure.blocks]
    refuted: dict[str, str] = {}

    def refute(candidates: Sequence[Part]) -> None:
        reason = _disagreement(structure, twin, example, candidates, tolerance)
        if reason is None or not candidates:
            return
        kinds: dict[str, list[Part]] = {}
        for part in candidates:
            kinds.setdefault(re.sub(r"\d+", "#", part.name), []).append(part)
        if len(candidates) == 1:
            refuted[candidates[0].name] = reason
        elif len(kinds) > 1:
            split = len(kinds) // 2
            for half in (list(kinds.values())[:split], list(kinds.values())[split:]):
                refute([part for kind in half for part in kind])
        else:
            _refute_alike(candidates, refute, refuted)

    agreed = True
    # Groups inside blocks are tested with every block present, then the blocks, then all together.
    rounds: list[Sequence[Part]] = [structure.groups, structure.blocks, parts] if structure.blocks else [parts]
    for candidates in rounds:
        for _ in range(3):
            known = len(refuted)
            refute([p for p in candidates if p.name not in refuted])
            agreed = len(refuted) == known
            if agreed:
                break
    if not agreed:
        refuted.update({p.name: "refuted together with others" for p in parts if p.name not in refuted})
    return without(structure, refuted)


def _refute_alike(
    candidates: Sequence[Part], refute: Callable[[Sequence[Part]], None], refuted: dict[str, str]
) -> None:
    """Parts whose names differ in numbers only: often the same construction throughout the network."""
    refute(candidates[:1])
    known = len(refuted)
    refute(candidates[-1:])
    middle = candidates[1:-1]
    if candidates[0].name in refuted and len(refuted) > known and middle:
        refute(middle[len(middle) // 2 :][:1])  # a third witness
        if len(refuted) > known + 1:
            refuted.update({part.name: refuted[candidates[0].name] for part in middle})
            return
    half = len(middle) // 2
    refute(middle[:half])
    refute(middle[half:])


def _testbed(model: nn.Module, example: Example) -> tuple[nn.Module, Example, float]:
    """A float64 copy with nothing trivially zero (a float32 copy where the model cannot run in float64)."""
    check_runs(model, example.args, example.kwargs)
    twin = _disturbed(copy.deepcopy(model).double())
    wide = Example(_double(example.args), _double(example.kwargs), example.state_outputs)
    noisy = Example(_noisy(wide.args), _noisy(wide.kwargs), example.state_outputs)
    for trial in (noisy, wide):  # examples are often zeros, at which much is equal that is not the same
        try:
            if all(bool(t.isfinite().all()) for t in trial.run(twin) if t.is_floating_point()):
                return twin, trial, 1e-10
        except Exception:  # noqa: BLE001 (any error of the user's forward pass: it insists on its dtype or range)
            continue
    return _disturbed(copy.deepcopy(model)), example, 1e-3


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
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor)

    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
            parameter.add_(noise(parameter) * torch.where(spread > 1e-3, 0.1 * spread, torch.full_like(spread, 0.05)))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand(buffer.shape, generator=generator, device="cpu").to(buffer))
    return model


def _disagreement(
    structure: Structure, twin: nn.Module, example: Example, parts: Sequence[Part], tolerance: float
) -> str | None:
    """Why removing about half of each part's units differs from zeroing their gates; None if it does not."""
    generator = torch.Generator().manual_seed(0)
    keep: dict[str, list[int]] = {}
    for part in parts:
        if isinstance(part, ChannelGroup):
            order = torch.randperm(part.size, generator=generator, device="cpu").tolist()
            keep[part.name] = sorted(order[: max(1, (part.size + 1) // 2)])
    skip = tuple(p.name for p in parts if isinstance(p, SkippableBlock))
    gated, removed = copy.deepcopy(twin), copy.deepcopy(twin)
    zero_gates_(gated, structure, keep, skip)
    try:
        resize_(removed, structure, keep, skip)
        found = example.run(removed)
    except Exception as problem:  # noqa: BLE001 (whatever the user's forward pass raises is the reason)
        return f"without some of it the forward pass fails: {explained(problem, removed)}"
    for expected, got in zip(example.run(gated), found, strict=True):
        if expected.shape != got.shape:
            return f"without some of it the output has shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
        scale = expected.abs().max().item() if expected.numel() else 0.0
        error = (expected - got).abs().max().item() if expected.numel() else 0.0
        if not error <= tolerance * max(scale, 1e-30):
            return f"a gate of zero does not equal its absence (relative difference {error / max(scale, 1e-30):.1g})"
    return None


def without(structure: Structure, refuted: Mapping[str, str]) -> Structure:
    """The structure with some groups and blocks frozen."""
    if not refuted:
        return structure
    groups = tuple(g for g in structure.groups if g.name not in refuted)
    index = {g.name: i for i, g in enumerate(groups)}
    where = [index.get(g.name) for g in structure.groups]

    def axis(a: SizeAxis) -> SizeAxis:
        fixed = sum(n * structure.groups[g].size for g, n in a.counts if where[g] is None)
        return SizeAxis(a.base + fixed, tuple((w, n) for g, n in a.counts if (w := where[g]) is not None))

    def term(t: CostTerm) -> CostTerm:
        return CostTerm(t.coefficient, tuple(axis(a) for a in t.axes), t.modules)

    frozen = [Frozen(g.name, g.size, refuted[g.name]) for g in structure.groups if g.name in refuted]
    notes = [f"block {b.name} stays: {refuted[b.name]}" for b in structure.blocks if b.name in refuted]
    return replace(
        structure,
        groups=groups,
        blocks=tuple(b for b in structure.blocks if b.name not in refuted),
        frozen=(*structure.frozen, *frozen),
        attributes=tuple(replace(a, axis=axis(a.axis)) for a in structure.attributes if axis(a.axis).counts),
        terms=tuple(term(t) for t in structure.terms),
        param_axes=tuple(term(t) for t in structure.param_axes),
        notes=(*structure.notes, *notes),
        states=tuple(s for s in structure.states if s.group in index),
    )
