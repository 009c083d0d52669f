"""Single layers of a network: what each of them is given, and the same layer at other widths, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from apical._memory_format import unsafe_in_channels_last
from apical.structure import Call, ExampleInputs, SizeAxis, Structure
from apical.timing._clock import least, synchronise

Kinds = tuple[type[nn.Module], ...]
ROUNDS = 3  # of which the fastest counts


def layer_inputs(model: nn.Module, example_inputs: ExampleInputs, kinds: Kinds) -> dict[str, tuple[int, ...]]:
    """Input shape of every layer of these kinds in one call, in eval mode."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, given: Sequence[Any]) -> None:
        shapes[path] = tuple(given[0].shape)

    with torch.no_grad(), _watched(model, kinds, note):
        Call.of(example_inputs).run(model)
    return shapes


def times_between(model: nn.Module, example_inputs: ExampleInputs, kinds: Kinds, device: torch.device
                  ) -> dict[str, float]:  # fmt: skip
    """Milliseconds from the end of each layer of these kinds to the start of the next, or to the end of the call.

    That is what normalisation, activations, pooling and sums take, whether they are modules or not. Of a layer that is
    called several times the sum; in eval mode; the least of several calls.
    """
    call, found = Call.of(example_inputs), list[dict[str, float]]()
    last: tuple[str, float] | None = None

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    def begin(*_: object) -> None:
        nonlocal last
        if last is not None:
            path, ended = last
            found[-1][path] = found[-1].get(path, 0.0) + 1000 * (now() - ended)
        last = None

    def end(path: str) -> None:
        nonlocal last
        begin()  # a layer within this one may have ended last
        last = path, now()

    with torch.no_grad(), _watched(model, kinds, begin, end):
        for _ in range(ROUNDS + 1):
            found.append({})
            call.run(model)
            begin()
    return least(found[1:])  # the first call warms up


@contextmanager
def _watched(
    model: nn.Module,
    kinds: Kinds,
    before: Callable[[str, Sequence[Any]], object],
    after: Callable[[str], object] = lambda _: None,
) -> Iterator[None]:
    """Puts the model into eval mode, and tells of every call of its layers of these kinds: the path and the inputs."""
    training = {module: module.training for module in model.modules()}
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, kinds):

            def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                before(path, (*args, *kwargs.values()))

            def end(_: nn.Module, __: object, ___: object, path: str = path) -> None:
                after(path)

            handles += [
                module.register_forward_pre_hook(begin, with_kwargs=True),
                module.register_forward_hook(end),
            ]
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()


def axes_of(structure: Structure) -> dict[str, dict[str, SizeAxis]]:
    """For every module path its attributes that state a size, as functions of the group sizes."""
    found: dict[str, dict[str, SizeAxis]] = {}
    for attribute in structure.attributes:
        found.setdefault(attribute.module, {})[attribute.attribute] = attribute.axis
    return found


def width_names(module: nn.Module) -> tuple[str, str]:
    """The attributes that hold the input and the output width of a layer."""
    if isinstance(module, _ConvNd):
        return "in_channels", "out_channels"
    return ("input_size", "hidden_size") if isinstance(module, nn.RNNBase) else ("in_features", "out_features")


def alike(module: nn.Module, shape: tuple[int, ...]) -> tuple[object, ...]:
    """A key that layers share if they take the same time at the same widths."""
    names = ("kernel_size", "stride", "padding", "dilation", "transposed")
    channels = _channels_dim(module, shape)
    rest = shape[:channels] + shape[channels + 1 :]
    depthwise = getattr(module, "groups", 1) > 1
    return (type(module), *(getattr(module, name, None) for name in names), depthwise, rest)


def layer_of(
    module: nn.Module, shape: tuple[int, ...], ins: int, outs: int, channels_last: bool
) -> tuple[nn.Module, Tensor]:
    """A new layer like a module but with other widths, and an input for it that requires a gradient.

    Both are on the module's device. The layer has the module's dtype, the input that of an active autocast.

    Args:
        module: a convolution, linear or recurrent layer; with groups it is depthwise.
        shape: of its input.
        ins: input width.
        outs: output width.
        channels_last: whether images lie in that memory format.
    """
    weight = next(module.parameters())
    layer: nn.Module
    with torch.device("cpu"):  # drawn there, whatever the default device, and then moved
        if isinstance(module, _ConvNd):
            options: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            options |= {"output_padding": module.output_padding} if module.transposed else {}
            groups, bias = ins if module.groups > 1 else 1, module.bias is not None
            layer = type(module)(ins, outs, module.kernel_size, groups=groups, bias=bias, **options)
        elif isinstance(module, nn.RNNBase):
            recurrent: Callable[..., nn.Module] = type(module)
            layer = recurrent(ins, outs, bias=module.bias, batch_first=module.batch_first)
        else:
            assert isinstance(module, nn.Linear)
            layer = nn.Linear(ins, outs, module.bias is not None)
    channels = _channels_dim(module, shape)
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    x = torch.randn((*shape[:channels], ins, *shape[channels + 1 :]), device="cpu").to(weight.device, dtype)
    layer = layer.to(weight.device, weight.dtype)
    if channels_last and weight.ndim == 4 and not unsafe_in_channels_last(layer):
        layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layer, x.requires_grad_()


def _channels_dim(module: nn.Module, shape: tuple[int, ...]) -> int:
    return len(shape) - (1 + len(module.kernel_size) if isinstance(module, _ConvNd) else 1)
