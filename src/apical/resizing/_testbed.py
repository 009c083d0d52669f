"""What gated and removed networks are compared on: a copy in which nothing is zero by chance, and one call of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apical.resizing._copying import keep_apart_, sharing_copy, versions
from apical.resizing._widened import WIDE, Widened
from apical.structure._quiet import quiet_rng
from apical.structure._running import first_line, own
from apical.structure._steady import steady_training

# Pixels: the least that networks of five halvings take with something left to compare, and what Inception's take.
SMALL_SIDES = (64, 96)
ROUGH = 1e-5  # in float32, relative; equal networks of 50 layers differed by 4e-7
NEAR = 1e-3  # in float32, relative: what differs by more is not equal
DIFFERS = "a gate of zero does not equal its absence"
NOISE = 100_003  # numbers that are drawn for one tensor; larger ones repeat them


@dataclass(frozen=True)
class Example:
    """One call of the model; ``widened``: in float64 also where the model, or a parameter, asks for less."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state_outputs: tuple[int | str, ...] = ()
    widened: bool = False

    def run(self, model: nn.Module, training: bool = False, seed: int = 0, grad: bool = False) -> list[Tensor]:
        """All output tensors but carried states; in training mode without dropout and other chance."""
        mode = steady_training(model) if training else nullcontext()
        types = Widened() if self.widened else nullcontext()
        with quiet_rng(), torch.set_grad_enabled(grad), mode, types, _seeded(model, seed):
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
    first = next(chain(model.parameters(), model.buffers()), None)  # all are on one device
    if first is None or first.device.type == "cpu":
        torch.default_generator.manual_seed(seed)
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


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
        rough: the same in the model's own float32, which is several times as fast on a CPU: what agrees there agrees,
            and what does not is compared again in float64.
        narrow: the same in float32, where that computes nearly the same: what differs there by more than a small share
            differs, and what agrees is compared again in float64.
        outputs: of the model in eval mode, where they are known.
    """

    model: nn.Module
    example: Example
    tolerance: float
    modes: tuple[bool, ...] = (False,)
    same_modes: bool = False
    note: str = ""
    rough: Testbed | None = None
    narrow: Testbed | None = None
    outputs: Sequence[Tensor] | None = None


def testbeds(model: nn.Module, example: Example) -> tuple[Testbed, Testbed | None]:
    """The model in float64 with nothing trivially zero (in its own types where it cannot run in float64).

    Args:
        model: a copy in eval mode, which becomes the testbeds'.
        example: one call.

    Returns:
        The testbed, and one with smaller images if the model takes those: on them is found out what training mode
        does, too, and if it computes the same as eval mode, training mode is compared on them only. What they
        confirm in float64 is then looked at roughly on the large ones first.
    """
    bed, quick = _evaluating(model, example)
    if quick is not None:
        trained = _with_training(quick)
        if trained.same_modes:
            return bed, _with_narrow(trained)
        if trained.modes != bed.modes:
            return replace(bed, modes=trained.modes), _with_narrow(trained)
    bed = _with_training(bed)
    return (bed, _with_narrow(quick)) if quick is not None and bed.note else (_with_narrow(bed), None)


def _evaluating(model: nn.Module, example: Example) -> tuple[Testbed, Testbed | None]:
    """The testbeds, with eval mode only so far."""
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
        before = versions(twin)
        small = next((e for e in _smaller(trial) if _numbers(sharing_copy(twin), e) is not None), None)
        rough = _in_float32(twin, trial, example, types) if small else None
        # large images take long in float64, and may never have to
        if rough is not None or _numbers(twin, trial) is not None:
            keep_apart_(twin, before)
            bed = Testbed(twin, trial, 1e-10, rough=rough)
            return bed, replace(bed, example=small, rough=None) if small else None
    for name, tensor in _tensors(twin).items():
        tensor.data = tensor.data.to(types[name])
    before = versions(twin)
    keep_apart_(twin, before)
    bed = Testbed(twin, example, 1e-3)
    small = next((e for e in _smaller(example) if _numbers(sharing_copy(twin), e) is not None), None)
    return bed, replace(bed, example=small) if small else None


def redrawn(bed: Testbed, seed: int) -> Testbed:
    """A testbed with other weights, as large as those of this one, or this one if the model insists on its own.

    What normalisations remember is what they see then, so that no signal fades from layer to layer.
    """
    twin = sharing_copy(bed.model, dict(bed.model.named_parameters(remove_duplicate=False)))
    _disturbed(twin, share=1.0, seed=seed)
    hooks = [m.register_forward_pre_hook(_remember) for m in twin.modules() if isinstance(m, _BatchNorm)]
    found = _numbers(twin, bed.example)
    for hook in hooks:
        hook.remove()
    if found is None:
        return bed
    return _with_narrow(replace(bed, model=twin, rough=None, narrow=None, outputs=found))


@torch.no_grad()
def _remember(norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
    """Let a batch normalisation remember the mean and variance of what comes in, if there are several values each."""
    values = args[0].transpose(0, 1).flatten(1)
    if norm.running_mean is not None and norm.running_var is not None and values.shape[1] > 1:
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1, correction=0))


def _numbers(model: nn.Module, example: Example) -> list[Tensor] | None:
    """What a call of a copy returns, if it is numbers; else it insists on its dtype, range or size."""
    try:
        found = example.run(model)
        return found if all(bool(t.isfinite().all()) for t in found if t.is_floating_point()) else None
    except Exception:  # noqa: BLE001 (any error of the user's forward pass)
        return None


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
        if difference(evaluated, trained, 0.0) is None:
            return replace(bed, modes=(False, True), same_modes=True, outputs=evaluated)
        first, again = (bed.example.run(sharing_copy(bed.model), True, seed=seed) for seed in (0, 1))
        if difference(first, again, 0.0) is None:
            return replace(bed, modes=(False, True), outputs=evaluated)
        problem = "its results differ from run to run"
    except Exception as error:  # noqa: BLE001 (whatever the user's forward pass raises in training mode)
        if bed.example.widened and any(p.dtype in WIDE for p in bed.model.parameters()):
            bed.model.double()  # it may be a parameter that is written into
            return _with_training(bed)
        problem = first_line(error)
    note = f"gates and removal were compared in eval mode only, not in training mode: {problem}"
    return replace(bed, note=note)


def is_random(bed: Testbed) -> bool:
    """Whether chance decides what the model computes in eval mode: with other random numbers, outputs are others."""

    def run(seed: int) -> list[Tensor]:
        return bed.example.run(sharing_copy(bed.model), seed=seed)

    first = run(0)
    return difference(first, run(0), ROUGH) is None and difference(first, run(1), ROUGH) is not None


def _smaller(example: Example) -> Iterator[Example]:
    """The example with images cut to each of `SMALL_SIDES`, if they are much larger.

    What a part does to the result hardly depends on the size of an image, but the time does.
    """
    leaves = torch.utils._pytree.tree_leaves((example.args, example.kwargs))
    images = [v for v in leaves if isinstance(v, Tensor) and v.dim() == 4]
    shortest = min((min(v.shape[2:]) for v in images), default=0)
    return (_cut(example, side) for side in SMALL_SIDES if shortest >= 2 * side)


def _in_float32(twin: nn.Module, wide: Example, example: Example, types: Mapping[str, torch.dtype]) -> Testbed | None:
    """A testbed in float32, if that is what all of the model and its example is in.

    Args:
        twin: what is compared, with buffers in float64; its parameters may be kept in float32.
        wide: its example in float64.
        example: as the user gave it.
        types: of all tensors of the model, as the user made them.
    """
    inputs = torch.utils._pytree.tree_leaves((example.args, example.kwargs))
    given = [*types.values(), *(v.dtype for v in inputs if isinstance(v, Tensor))]
    if any(t.is_floating_point and t != torch.float32 for t in (*given, *(p.dtype for p in twin.parameters()))):
        return None
    return _single_testbed(twin, wide, ROUGH)


def _with_narrow(bed: Testbed) -> Testbed:
    """The testbed with the same in float32, if that is the model's type and gives nearly the same."""
    types = {p.dtype for p in bed.model.parameters() if p.is_floating_point()}
    if not bed.example.widened or types != {torch.float32}:
        return bed
    narrow = replace(_single_testbed(bed.model, bed.example, NEAR), modes=bed.modes, same_modes=bed.same_modes)
    try:
        found = narrow.example.run(sharing_copy(narrow.model))
    except Exception:  # noqa: BLE001 (whatever the user's forward pass raises in this type)
        return bed
    expected = bed.example.run(sharing_copy(bed.model)) if bed.outputs is None else bed.outputs
    return replace(bed, narrow=narrow) if difference(expected, found, ROUGH) is None else bed


def _single_testbed(model: nn.Module, wide: Example, tolerance: float) -> Testbed:
    """A copy of a model whose parameters are float32, and its example, with all else in float32, too."""
    narrow = sharing_copy(model)
    for buffer in narrow.buffers():
        buffer.data = _single(buffer.data)
    example = replace(wide, args=_single(wide.args), kwargs=_single(wide.kwargs), widened=False)
    return Testbed(narrow, example, tolerance)


def _cut(example: Example, side: int) -> Example:
    def cut(value: Any) -> Any:
        is_image = isinstance(value, Tensor) and value.dim() == 4
        return value[..., :side, :side].contiguous() if is_image else value

    args, kwargs = torch.utils._pytree.tree_map(cut, (example.args, example.kwargs))
    return replace(example, args=args, kwargs=kwargs)


def _double(tree: Any) -> Any:
    return _in_types(tree, torch.float64, torch.complex128)


def _single(tree: Any) -> Any:
    return _in_types(tree, torch.float32, torch.complex64)


def _in_types(tree: Any, real: torch.dtype, complex_: torch.dtype) -> Any:
    """All tensors of real and of complex numbers in these types."""

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.to(complex_ if value.is_complex() else real)

    return torch.utils._pytree.tree_map(cast, tree)


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
def _disturbed(model: nn.Module, share: float = 0.1, seed: int = 0) -> nn.Module:
    """The model with noise added to its parameters, a share of their spread, and to what normalisations remember."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        drawn = torch.randn(min(tensor.numel(), NOISE), generator=generator, dtype=torch.float32, device="cpu")
        if tensor.numel() > NOISE:  # a prime length, so that no two rows get the same
            drawn = drawn.repeat(-(-tensor.numel() // NOISE))[: tensor.numel()]
        return drawn.view(tensor.shape).to(tensor)

    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            spread = parameter.float().std() if parameter.numel() > 1 else parameter.float().abs().sum()
            parameter.add_(noise(parameter).mul_(float(share * spread) if spread > 1e-3 else 0.5 * share))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand(buffer.shape, generator=generator, device="cpu").to(buffer))
    return model


def other_shapes(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    """How the outputs differ in number or shape; None if they do not."""
    if len(expected) != len(found):
        return f"without some of it there are {len(found)} outputs instead of {len(expected)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"without some of it the output has shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    return None


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str | None:
    """How the outputs without some of it differ from those with gates of zero; None if they do not."""
    shapes = other_shapes(expected, found)
    if shapes is not None:
        return shapes
    for a, b in zip(expected, found, strict=True):
        a, b = (t if t.is_floating_point() or t.is_complex() else t.double() for t in (a, b))
        scale = a.abs().max().item() if a.numel() else 0.0
        error = (a - b).abs().max().item() if a.numel() else 0.0
        if not error <= tolerance * max(scale, 1e-30):
            return f"{DIFFERS} (relative difference {error / max(scale, 1e-30):.1g})"
    return None
