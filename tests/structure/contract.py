"""What every traced network must meet, checked against slow and obvious references in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
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


def random_keep(structure: Structure, seed: int, *, all_shrink: bool = False) -> Keep:
    """For every group a random, sorted, nonempty set of positions, sometimes all of them unless all are to shrink."""
    generator = torch.Generator().manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    keep: Keep = {}
    for group in structure.groups:
        if all_shrink:
            count = 1 + below(max(1, group.size - 1))
        else:
            count = group.size if below(6) == 0 else 1 + below(group.size)
        keep[group.name] = sorted(torch.randperm(group.size, generator=generator)[:count].tolist())
    return keep


def random_skip(structure: Structure, seed: int) -> tuple[str, ...]:
    """Every block with probability one half."""
    drawn = torch.rand(len(structure.blocks), generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    return tuple(b.name for b, skip in zip(structure.blocks, drawn.tolist(), strict=True) if skip)


def run(model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """One call; what the model warns about while running is its author's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model(*inputs, **(kwargs or {}))


@torch.no_grad()
def outputs(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    without: Sequence[int | str] = (),
) -> list[Tensor]:
    """The output tensors of one call, but for those at some positions of a tuple or under some keys of a dict."""
    result = run(model, inputs, kwargs)
    if isinstance(result, dict):
        result = [part for key, part in result.items() if key not in without]
    elif without:
        result = [part for i, part in enumerate(result) if i not in without]
    return tensors_of(result)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


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
    flags = [{name: p.requires_grad for name, p in model.named_parameters()} for model in (got, expected)]
    assert list(flags[0].items()) == list(flags[1].items())
    assert str(got) == str(expected)


def assert_sizes_are_true(model: nn.Module) -> None:
    """What standard modules say about their size is what their weights say, so that ``print(model)`` is true."""
    wrong = [
        f"{name}.{attribute} is {getattr(module, attribute)}, the weights say {value}"
        for name, module in model.named_modules()
        for attribute, value in _true_sizes(module).items()
        if getattr(module, attribute) != value
    ]
    assert not wrong, wrong


def _true_sizes(module: nn.Module) -> dict[str, object]:
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, nn.modules.conv._ConvNd):
        read, written = ("out", "in") if module.transposed else ("in", "out")
        return {
            f"{written}_channels": module.weight.shape[0],
            f"{read}_channels": module.weight.shape[1] * module.groups,
        }
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
        return {"num_features": module.weight.shape[0]}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": module.weight.shape[0]}
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        hidden = module.weight_ih_l0.shape[0] // gates
        return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": hidden}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    return {}


def assert_costs_are_counted(
    structure: Structure, keep: Keep, skip: Sequence[str], small: nn.Module, inputs: Sequence[Any]
) -> None:
    """Priced MACs and parameters are those of the model that was resized so."""
    priced = structure.macs(keep, skip), structure.num_params(keep, skip)
    counted = counted_macs(small, inputs), sum(p.numel() for p in small.parameters())
    assert priced == counted, f"priced {priced} MACs and parameters, counted {counted}"


def assert_consistent(structure: Structure, model: nn.Module) -> None:
    """Names exist, positions are in range and disjoint, reasons are given."""
    tensors = model.state_dict()
    taken: dict[tuple[str, int], set[int]] = {}
    for group in structure.groups:
        assert group.members, f"{group.name} has no members"
        assert group.gate_site, f"{group.name} has no gate site"
        for part in (*group.members, *group.gate_site):
            assert len(part.positions) == group.size, f"{group.name}: {part.tensor} does not list every unit"
            owned = [position for unit in part.positions for position in unit]
            assert all(0 <= p < tensors[part.tensor].shape[part.dim] for p in owned), f"{part.tensor} out of range"
        for part in group.members:
            owned = [position for unit in part.positions for position in unit]
            used = taken.setdefault((part.tensor, part.dim), set())
            assert len(owned) == len(set(owned)), f"{group.name}: {part.tensor} lists a position twice"
            assert not used & set(owned), f"{part.tensor} dim {part.dim} belongs to two groups"
            used.update(owned)
    paths = {name for name, _ in model.named_modules()}
    for block in structure.blocks:
        assert block.name in paths, f"block {block.name} is no module"
        assert block.gate_site, f"block {block.name} has no gate site"
        assert all(name in tensors for name in block.gate_site), f"gate site of {block.name} names no tensor"
    assert all(frozen.reason.strip() for frozen in structure.frozen), "something is frozen without a reason"


def gradients(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor | None]:
    """Those of a training step of a copy, by name."""
    twin = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = [x for x in tensors_of(run(twin, inputs)) if x.requires_grad]
    torch.stack([leaf.square().mean() for leaf in leaves]).sum().backward()
    return {name: parameter.grad for name, parameter in twin.named_parameters()}


def gradients_or_none(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor | None] | None:
    """As `gradients`; None where the model itself cannot be trained, as with an operation that has no derivative."""
    try:
        return gradients(model, inputs)
    except RuntimeError:
        return None


def check_contract(
    model: nn.Module,
    structure: Structure,
    inputs: tuple[Any, ...],
    choices: Iterable[int | tuple[Keep, Sequence[str]]] = (0, 1),
    state_outputs: Sequence[int | str] = (),
) -> None:
    """Removed equals gated to zero and matters; costs are what is counted; it trains; everything comes back.

    Groups that are not exact are removed from both networks, so that everything else is compared beside them.

    Args:
        model: a model in float64 and eval mode (`generic_`); it is not changed.
        structure: its structure.
        inputs: one call's arguments.
        choices: what is kept and which blocks are left out, or a seed of it.
        state_outputs: positions of outputs that are not compared.
    """
    assert_consistent(structure, model)
    assert_costs_are_counted(structure, {}, (), model, inputs)
    full = outputs(model, inputs, without=state_outputs)
    whole = gradients_or_none(model, inputs)
    trained = {name for name, gradient in (whole or {}).items() if gradient is not None}
    influences: list[float] = []  # of what was removed on the outputs, by choice
    working, store = copy.deepcopy(model), apical.DormantStore()
    for choice in choices:
        keep, skip = (
            (random_keep(structure, choice), random_skip(structure, choice)) if isinstance(choice, int) else choice
        )
        small = copy.deepcopy(model)
        apical.resize_(small, structure, keep, skip)
        inexact = {g.name: keep[g.name] for g in structure.groups if not g.exact}
        expected = zeroed(model, structure, {n: k for n, k in keep.items() if n not in inexact}, skip)
        if inexact:
            apical.resize_(expected, structure, inexact)
        got, wanted = (outputs(m, inputs, without=state_outputs) for m in (small, expected))
        error = relative_error(got, wanted)
        assert error <= 1e-10, f"removed and gated to zero differ by {error:.2g}"
        if skip or any(len(keep[g.name]) < g.size for g in structure.groups):  # else a gate may do nothing
            influences.append(relative_error(full, wanted))
        assert_costs_are_counted(structure, keep, skip, small, inputs)
        assert_sizes_are_true(small)
        found = {} if whole is None else gradients(small, inputs)
        broken = [name for name, gradient in found.items() if gradient is not None and not gradient.isfinite().all()]
        assert not broken, f"gradients of {broken} are not finite"
        missing = [name for name, gradient in found.items() if gradient is None and name in trained]
        gated = gradients(expected, inputs) if missing else {}  # an encoder that no block reads any more gets none
        missing = [name for name in missing if (own := gated[name]) is not None and own.any()]
        assert not missing, f"no gradient reaches {missing}"
        apical.resize_(working, structure, keep, skip, store=store)
        assert_same_state(working, small)
    # one choice may hit units that a ReLU holds at zero
    assert not influences or max(influences) > 1e-6, "what was removed had no influence on the outputs"
    apical.resize_(working, structure, {}, store=store)
    assert_same_state(working, model)
