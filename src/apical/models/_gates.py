"""Recurrent layers whose gates can go one by one (Lobacheva et al., AAAI 2020, arXiv:1911.05585)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from apical.errors import ConfigError
from apical.models._gated_steps import gru_steps, lstm_steps

State = tuple[Tensor, Tensor] | Tensor | None


class _Gated:
    """What `GatedLSTM` and `GatedGRU` share, before torch's own class."""

    gates: ClassVar[str]
    units: Tensor
    row_units: Tensor
    row_gates: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,  # torch's third is num_layers
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, batch_first=batch_first, device=device, dtype=dtype)  # type: ignore[call-arg]
        _number_rows_(self)

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name that torch gives it)
        """Outputs and state as torch's layer gives them, for padded and for packed sequences."""
        return super().forward(input, hx) if _is_whole(self) else _run(self, input, hx)  # type: ignore[misc]

    def flatten_parameters(self) -> None:
        """For the fused kernels, which need all rows."""
        if _is_whole(self):
            super().flatten_parameters()  # type: ignore[misc]

    def gate_counts(self) -> dict[str, int]:
        """How many hidden units have each gate; of the others it is constant."""
        return {name: int((self.row_gates == k).sum()) for k, name in enumerate(self.gates)}

    def fill_gates_(self) -> Tensor:
        """Rows of zeros for the gates that have left, in place: the layer computes the same, and has all its rows.

        `apical.trace` does so on a copy, since it follows the layer as one operation; for the layer itself it brings
        back torch's own kernels. Where rows are missing, the weights become new parameters: call it before an optimizer
        is made.

        Returns:
            Places of the rows that were there  # (rows,) int64

        Example:
            >>> GatedGRU(1, 2).fill_gates_()
            tensor([0, 1, 2, 3, 4, 5])
        """
        place = _place(self)
        if not _is_whole(self):
            for name in ("weight_ih_l0", "weight_hh_l0"):
                weight = getattr(self, name)
                whole = weight.detach().new_zeros(len(self.gates) * len(self.units), weight.shape[1])
                whole.index_copy_(0, place, weight.detach())
                setattr(self, name, nn.Parameter(whole, weight.requires_grad))
            self.row_units, self.row_gates = _rows(self.units, len(self.gates))
        return place

    def extra_repr(self) -> str:
        """The sizes, and the gates if some are missing."""
        sizes: str = super().extra_repr()  # type: ignore[misc]
        if _is_whole(self):
            return sizes
        return f"{sizes}, gates {', '.join(f'{name}={n}' for name, n in self.gate_counts().items())}"


class GatedLSTM(_Gated, nn.LSTM):
    """An `nn.LSTM` of one layer in which any gate of any hidden unit may have lost its inputs.

        a_k = b_k + Σ_rows r of (k, u)  W_ih,r x_t + W_hh,r h_{t−1}        k one of i, f, g, o; u a hidden unit
        c_t = σ(a_f) c_{t−1} + σ(a_i) tanh(a_g),    h_t = σ(a_o) tanh(c_t)

    A gate without its row is constant: σ of its bias (tanh for g), which is still trained. With all rows present this
    is `nn.LSTM`, its fused kernels and its parameters' names included; else the rows that are there lie in one smaller
    matrix, and the steps are computed one after the other. `split_gates_` makes one of each `nn.LSTM` of a model.

    Args:
        input_size: width of x.
        hidden_size: hidden units.
        bias: whether there are biases; without them a gate that has lost its row is σ(0).
        batch_first: whether inputs and outputs are (B, T, width) instead of (T, B, width).
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        units: number of each hidden unit in the layer of full size  # (hidden_size,) int64
        row_units: the hidden unit that each row of the weights belongs to, by that number  # (rows,) int64
        row_gates: its gate, 0 to 3 for i, f, g, o  # (rows,) int64

    Example:
        >>> layer = GatedLSTM(3, 5)
        >>> outputs, (h, c) = layer(torch.zeros(7, 2, 3))
        >>> outputs.shape, layer.gate_counts()
        (torch.Size([7, 2, 5]), {'i': 5, 'f': 5, 'g': 5, 'o': 5})
    """

    gates = "ifgo"


class GatedGRU(_Gated, nn.GRU):
    """An `nn.GRU` of one layer in which any gate of any hidden unit may have lost its inputs; see `GatedLSTM`.

        r = σ(x_r + h_r),   z = σ(x_z + h_z),   n = tanh(x_n + r h_n),   h_t = (1 − z) n + z h_{t−1}

    with x_k = b_ih,k + W_ih,k x_t and h_k = b_hh,k + W_hh,k h_{t−1} as far as the gate's row is there, else the bias.

    Args:
        input_size: width of x.
        hidden_size: hidden units.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (B, T, width) instead of (T, B, width).
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        units: number of each hidden unit in the layer of full size  # (hidden_size,) int64
        row_units: the hidden unit that each row of the weights belongs to, by that number  # (rows,) int64
        row_gates: its gate, 0 to 2 for r, z, n  # (rows,) int64

    Example:
        >>> GatedGRU(3, 5)(torch.zeros(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])
    """

    gates = "rzn"


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: GatedLSTM, nn.GRU: GatedGRU}


def split_gates_(model: nn.Module) -> tuple[str, ...]:
    """Let each gate of each hidden unit of a model's LSTM and GRU layers be removed for itself, in place.

    Every `nn.LSTM` becomes a `GatedLSTM`, every `nn.GRU` a `GatedGRU`: the same module with the same parameters, which
    computes the same. Call it before the optimizer and `apical.trace`; the structure then has a group of gates beside
    the hidden units of each layer.

    Args:
        model: any module.

    Returns:
        Paths of the layers that were changed.

    Raises:
        ConfigError: a recurrent layer has several layers in one module, two directions or a projection. The model is
            as it was then.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.LSTM(4, 8), "head": nn.Linear(8, 2)})
        >>> split_gates_(model)
        ('encoder',)
        >>> model["encoder"]
        GatedLSTM(4, 8)
    """
    found = {path: module for path, module in model.named_modules() if type(module) in _KINDS}
    problems = [f"{path or 'the model'} has {why}" for path, module in found.items() if (why := _unlike(module))]
    if problems:
        raise ConfigError(
            f"gates cannot be removed one by one: {'; '.join(problems)}. Make each layer and each direction a module "
            "of its own, nn.LSTM(inputs, units), without proj_size"
        )
    for module in found.values():
        module.__class__ = _KINDS[type(module)]
        _number_rows_(module)
    return tuple(found)


def _unlike(module: Any) -> str:
    """What keeps a layer from being split; empty if nothing does."""
    several = f"num_layers={module.num_layers}" if module.num_layers > 1 else ""
    both = "bidirectional=True" if module.bidirectional else ""
    projects = f"proj_size={module.proj_size}" if module.proj_size else ""
    return ", ".join(filter(None, (several, both, projects)))


def _number_rows_(layer: Any) -> None:
    """Say of each hidden unit and of each row which one it is, in buffers that are resized with them."""
    numbers = torch.arange(layer.hidden_size, device=layer.weight_ih_l0.device)
    row_units, row_gates = _rows(numbers, len(layer.gates))
    layer.register_buffer("units", numbers)
    layer.register_buffer("row_units", row_units)
    layer.register_buffer("row_gates", row_gates)


def _rows(units: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """Unit and gate of each row of a whole layer  # (gates · units,) each"""
    return units.repeat(gates), torch.arange(gates, device=units.device).repeat_interleave(len(units))


def _is_whole(layer: Any) -> bool:
    return bool(layer.weight_ih_l0.shape[0] == len(layer.gates) * layer.hidden_size)


def _run(layer: Any, x: Any, given: Any) -> Any:
    """The layer without some of its rows: arguments and results laid out as torch's own layers have them."""
    if isinstance(x, PackedSequence):
        return _run_packed(layer, x, given)
    batched, last = x.dim() == 3, x.dim() == 3 and layer.batch_first
    if batched and given is not None:
        layer.check_forward_args(x, given, None)  # torch's own check
    x = x.transpose(0, 1) if last else x if batched else x.unsqueeze(1)  # (T, B, inputs)
    count = 2 if len(layer.gates) == 4 else 1
    if given is None:
        states = (x.new_zeros(x.shape[1], layer.hidden_size),) * count
    else:
        several = given if count == 2 else (given,)
        states = tuple(s.squeeze(0) if batched else s for s in several)  # (B, hidden), or (1, hidden) without a batch
    outputs, states = (_lstm if count == 2 else _gru)(layer, x, states, _place(layer))
    outputs = outputs.transpose(0, 1) if last else outputs if batched else outputs.squeeze(1)
    states = tuple(s.unsqueeze(0) if batched else s for s in states)
    return outputs, states if count == 2 else states[0]


def _run_packed(layer: Any, x: PackedSequence, given: Any) -> tuple[PackedSequence, Any]:
    """The same for sequences of different lengths, in parts: runs of steps that equally many sequences reach.

    Packed sequences are in the order of their lengths, the longest first, and lie step by step; so those that end
    before a part begins are the last of the batch, and nothing is computed beyond a sequence's end.
    """
    batches, steps = (counts.tolist() for counts in x.batch_sizes.unique_consecutive(return_counts=True))
    parts = x.data.split([n * b for n, b in zip(steps, batches, strict=True)])  # (n · b, inputs) each
    count = 2 if len(layer.gates) == 4 else 1
    if given is None:
        states = (x.data.new_zeros(batches[0], layer.hidden_size),) * count
    else:
        layer.check_forward_args(x.data, given, x.batch_sizes)
        given = layer.permute_hidden(given, x.sorted_indices)
        states = tuple(s.squeeze(0) for s in (given if count == 2 else (given,)))  # (B, hidden)
    place, step = _place(layer), _lstm if count == 2 else _gru
    outputs, ended = [], []
    for batch, part in zip(batches, parts, strict=True):
        ended.append([s[batch:] for s in states])
        found, states = step(layer, part.unflatten(0, (-1, batch)), tuple(s[:batch] for s in states), place)
        outputs.append(found.flatten(0, 1))
    ended.append(list(states))
    last = tuple(torch.cat(s).unsqueeze(0) for s in zip(*reversed(ended), strict=True))  # (1, B, hidden) each
    packed = PackedSequence(torch.cat(outputs), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return packed, layer.permute_hidden(last if count == 2 else last[0], x.unsorted_indices)


def _place(layer: Any) -> Tensor:
    """Where each row lies among all gates: at gate · hidden_size + the place of its unit  # (rows,)"""
    place: Tensor = layer.row_gates * layer.hidden_size + (layer.units < layer.row_units.unsqueeze(1)).sum(1)
    return place


def _lstm(layer: Any, x: Tensor, states: tuple[Tensor, ...], place: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x (T, B, inputs), states (B, hidden) each; the outputs (T, B, hidden) and the states after the last step."""
    h, c = states
    bias = layer.bias_ih_l0 + layer.bias_hh_l0 if layer.bias else x.new_zeros(4 * layer.hidden_size)
    outputs, cell = lstm_steps(F.linear(x, layer.weight_ih_l0), h, c, layer.weight_hh_l0, bias, place)
    return outputs, (outputs[-1], cell)


def _gru(layer: Any, x: Tensor, states: tuple[Tensor, ...], place: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x (T, B, inputs), one state (B, hidden); the outputs (T, B, hidden) and the state after the last step."""
    zeros = x.new_zeros(3 * layer.hidden_size)
    ours, theirs = (layer.bias_ih_l0, layer.bias_hh_l0) if layer.bias else (zeros, zeros)
    constant = ours.expand(*x.shape[:2], -1)
    from_x = constant.index_add(2, place, F.linear(x, layer.weight_ih_l0).to(ours.dtype))  # (T, B, 3 · hidden)
    outputs = gru_steps(from_x, states[0], layer.weight_hh_l0, theirs, place)
    return outputs, (outputs[-1],)
