"""What every traced network must meet, checked against slow and obvious references in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import apical
from apical import Structure

Keep = dict[str, list[int]]


def doubled(inputs: Any) -> Any:
    """Floating-point tensors of a tree in float64."""
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


@torch.no_grad()
def generic_(model: nn.Module, seed: int = 1) -> nn.Module:
    """Float64, eval mode, and nothing trivial: no zero bias, no unit norm, no trivial statistics."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.double().parameters():
        spread = max(0.1, 0.2 * float(parameter.std())) if parameter.numel() > 1 else 0.1
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
        if name.endswith("running_var"):
            buffer.mul_(0.7 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def random_keep(structure: Structure, seed: int) -> Keep:
    """For every group a random, sorted, nonempty set of positions, sometimes all of them."""
    generator = torch.Generator().manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    keep: Keep = {}
    for group in structure.groups:
        count = group.size if below(6) == 0 else 1 + below(group.size)
        keep[group.name] = sorted(torch.randperm(group.size, generator=generator)[:count].tolist())
    return keep


def random_skip(structure: Structure, seed: int) -> tuple[str, ...]:
    """Every block with probability one half."""
    drawn = torch.rand(len(structure.blocks), generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    return tuple(b.name for b, skip in zip(structure.blocks, drawn.tolist(), strict=True) if skip)


@torch.no_grad()
def outputs(
    model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None, without: Sequence[int] = ()
) -> list[Tensor]:
    """The output tensors of one call, but for those at some positions of a tuple."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what a model warns about while running is its author's business
        result = model(*inputs, **(kwargs or {}))
    if without:
        result = [part for i, part in enumerate(result) if i not in without]
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over the largest expected magnitude; infinite if shapes differ or a value is not finite."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    if not all(t.isfinite().all() for t in (*got, *expected)):
        return float("inf")
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().double().clamp(min=1e-300)) for a, b in pairs), default=0.0)


@torch.no_grad()
def zeroed(model: nn.Module, structure: Structure, keep: Mapping[str, Sequence[int]], skip: Sequence[str]) -> nn.Module:
    """A copy of full size in which the gates of everything that is left out are zero."""
    twin = copy.deepcopy(model)
    tensors = twin.state_dict(keep_vars=True)
    for group in structure.groups:
        for unit in set(range(group.size)) - set(keep.get(group.name, range(group.size))):
            for site in group.gate_site:
                for position in site.positions[unit]:
                    tensors[site.tensor].select(site.dim, position).zero_()
    for block in structure.blocks:
        if block.name in skip:
            for name in block.gate_site:
                tensors[name].zero_()
    return twin


def counted_macs(model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> float:
    """Half of what torch's flop counter sees, attention as matrix products, and bilinear forms, which it misses."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter sees nothing of the fused transformer layers
    try:
        missed: Any = {torch.ops.aten._trilinear: _bilinear_flops}
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=missed) as counter:
            outputs(model, inputs, kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 2


def _bilinear_flops(a: Any, weight: Any, *_rest: Any, **_options: Any) -> int:
    return 2 * a[0] * weight[0] * weight[1] * weight[2]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Same type, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def assert_same_state(got: nn.Module, expected: nn.Module) -> None:
    """The same parameters and buffers, bit for bit, under the same names in the same order; the same printout."""
    ours, theirs = got.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    different = [name for name in ours if not same_bits(ours[name], theirs[name])]
    assert not different, f"different bits in {different}"
    assert [n for n, _ in got.named_parameters()] == [n for n, _ in expected.named_parameters()]
    assert str(got) == str(expected)


def check_contract(
    model: nn.Module, structure: Structure, inputs: tuple[Any, ...], seeds: Sequence[int] = (0, 1),
    state_outputs: Sequence[int] = (),
) -> None:  # fmt: skip
    """Removed equals gated to zero; costs are what is counted; everything comes back.

    Groups that are not exact are removed from both networks, so that everything else is compared beside them.

    Args:
        model: a model in float64 and eval mode (`generic_`); it is not changed.
        structure: its structure.
        inputs: one call's arguments.
        seeds: one random choice of what is kept for each.
        state_outputs: positions of outputs that are not compared.
    """
    assert structure.macs() == counted_macs(model, inputs)
    assert structure.num_params() == sum(p.numel() for p in model.parameters())
    working, store = copy.deepcopy(model), apical.DormantStore()
    for seed in seeds:
        keep, skip = random_keep(structure, seed), random_skip(structure, seed)
        small = copy.deepcopy(model)
        apical.resize_(small, structure, keep, skip)
        inexact = {g.name: keep[g.name] for g in structure.groups if not g.exact}
        expected = zeroed(model, structure, {n: k for n, k in keep.items() if n not in inexact}, skip)
        if inexact:
            apical.resize_(expected, structure, inexact)
        pair = [outputs(m, inputs, without=state_outputs) for m in (small, expected)]
        assert relative_error(*pair) <= 1e-10, f"removed and gated to zero differ by {relative_error(*pair):.2g}"
        assert structure.macs(keep, skip) == counted_macs(small, inputs)
        assert structure.num_params(keep, skip) == sum(p.numel() for p in small.parameters())
        apical.resize_(working, structure, keep, skip, store=store)
        assert_same_state(working, small)
    apical.resize_(working, structure, {}, store=store)
    assert_same_state(working, model)
