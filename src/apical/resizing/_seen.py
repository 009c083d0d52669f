"""Which parts a comparison shows: those on whose gates the outputs depend while other parts are left out, too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from apical.resizing._disagreement import Count, chosen
from apical.resizing._gates import gated_copy
from apical.resizing._install import lookup
from apical.resizing._testbed import Testbed
from apical.structure import ChannelGroup, Keep, Structure
from apical.structure._without import Part

Site = tuple[str, int]  # a parameter, and the dimension along which the units lie


def unseen(structure: Structure, bed: Testbed, parts: Sequence[Part], count: Count) -> list[Part]:
    """The parts of which a comparison (`disagreement`) shows nothing; none if the outputs have no gradient.

    Hidden units that are dead for every sample (below the threshold of a ReLU) hide all that lies before them, and
    whatever is removed there agrees. One backward pass from a random projection of the outputs tells: the first-order
    effect of a gate is θ · ∂L/∂θ, looked at entry by entry, since sums of it may cancel.

    Args:
        structure: with the parts.
        bed: what they were compared on; a part is seen if it is in one of the modes.
        parts: of which some units were left out.
        count: how many stayed.
    """
    tolerance, modes, same_modes = bed.tolerance, bed.modes, bed.same_modes
    bed = bed.narrow or bed  # a backward pass in float64 would hold each widened weight
    keep, skip = chosen(parts, count)
    hidden = list(parts)
    with gated_copy(bed.model, structure, keep, skip) as gated:
        for training in (False,) if same_modes else modes:
            if hidden:
                try:
                    effects = _effects(gated, bed, training, {site for part in hidden for site in _sites(part)})
                except Exception:  # noqa: BLE001 (whatever the user's forward and backward pass raise)
                    return []
                if effects is None:
                    return []
                hidden = [part for part in hidden if _largest(part, keep, effects) <= tolerance]
    return hidden


def _sites(part: Part) -> list[Site]:
    """Where the gates of a part lie."""
    if isinstance(part, ChannelGroup):
        return [(s.tensor, s.dim) for s in part.gate_site]
    return [(name, 0) for name in part.gate_site]


def _largest(part: Part, keep: Keep, effects: Mapping[Site, Tensor]) -> float:
    """The largest effect of a unit that stays, or of a block."""
    found = [0.0]
    if isinstance(part, ChannelGroup):
        for slice_ in part.gate_site:
            if (slice_.tensor, slice_.dim) in effects:
                effect = effects[slice_.tensor, slice_.dim]
                kept = slice_.index[list(keep[part.name])].reshape(-1)
                found.append(float(effect.index_select(0, kept.to(effect.device)).max()))
    else:
        found += [float(effects[site].max()) for site in _sites(part) if site in effects]
    return max(found)


def _effects(gated: nn.Module, bed: Testbed, training: bool, sites: Collection[Site]) -> dict[Site, Tensor] | None:
    """The largest absolute θ · ∂L/∂θ at every position of the sites that count for the outputs; None without gradients.

    L is a random projection of the outputs in units of their size. Gates of blocks are zero in the copy: what they were
    before tells their scale.
    """
    found: dict[Site, Tensor] = {}

    def take(gate: Tensor, name: str) -> None:
        gradient, gate.grad = gate.grad, None  # at once: all gradients together may take as much memory as the model
        if gradient is not None:
            effect = gradient.mul_(lookup(bed.model, name).detach()).abs_()
            for dim in {dim for other, dim in sites if other == name}:
                entries = effect.movedim(dim, 0).flatten(1) if effect.dim() > 1 else effect.reshape(-1, 1)
                found[name, dim] = entries.amax(1)

    gated.requires_grad_(False)
    for name in {name for name, _ in sites}:
        gate = lookup(gated, name).requires_grad_()
        gate.register_post_accumulate_grad_hook(partial(take, name=name))
    loss = projection(bed.example.run(gated, training, grad=True))
    if loss is None:
        return None
    loss.backward()
    return found


def projection(outputs: Sequence[Tensor]) -> Tensor | None:
    """A weighted sum of all outputs that have a gradient, with weights from N(0, 1/n); None if none has."""
    generator = torch.Generator().manual_seed(0)
    terms: list[Tensor] = []
    for output in outputs:
        if output.requires_grad and output.numel():
            values = torch.view_as_real(output) if output.is_complex() else output
            drawn = torch.randn(values.shape, generator=generator, device="cpu").to(values)
            scale = values.detach().abs().max().clamp(min=1e-30) * values.numel() ** 0.5
            terms.append(((values * drawn).sum() / scale).double())
    return torch.stack(terms).sum() if terms else None
