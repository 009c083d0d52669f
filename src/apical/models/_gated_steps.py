"""The steps of LSTM and GRU layers that have some of their gates, with gradients written out.

Derivatives of a step are simple; left to autograd, each of its dozen operations would be recorded in every step, and
the gradient of the weights added up step by step instead of in one product. A step costs one product with the rows that
are there, their addition into the constant gates, and functions of each unit.

Shapes: T steps, B sequences, H hidden units, R rows; ``place`` (R,) says where each row lies among the G · H gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

States = tuple[Tensor, ...]


def written_out() -> bool:
    """Whether gradients are wanted, and by nothing that must see each operation (exporters, compilers, torch.func)."""
    seen = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() and not seen


def lstm_steps(from_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> States:
    """All steps of an LSTM.

        a_t = bias + Σ_place (from_x,t + W h_{t−1}),   c_t = σ(a_f) c_{t−1} + σ(a_i) tanh(a_g),   h_t = σ(a_o) tanh(c_t)

    Args:
        from_x: W_ih x of every step  # (T, B, R)
        h: output before the first step  # (B, H)
        c: cell before the first step  # (B, H)
        weight: W_hh  # (R, H)
        bias: of all gates, i, f, g, o one after the other  # (4 H,)
        place: places of the rows  # (R,)

    Returns:
        Outputs (T, B, H), and the cell after the last step (B, H).
    """
    if written_out():
        found: States = _LSTM.apply(from_x, h, c, weight, bias, place)  # type: ignore[no-untyped-call]
        return found
    outputs = []
    constant, columns = bias.expand(h.shape[0], -1), weight.t()
    for now in from_x:
        i, f, g, o = constant.index_add(1, place, torch.addmm(now, h, columns).to(bias.dtype)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), c


def gru_steps(from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> Tensor:
    """All steps of a GRU.

        b_t = bias + Σ_place W h_{t−1},   r = σ(a_r + b_r),  z = σ(a_z + b_z),  n = tanh(a_n + r b_n),
        h_t = n + z (h_{t−1} − n)

    Args:
        from_x: a of every step, W_ih x and its bias, r, z, n one after the other  # (T, B, 3 H)
        h: output before the first step  # (B, H)
        weight: W_hh  # (R, H)
        bias: what is added to W_hh h  # (3 H,)
        place: places of the rows  # (R,)

    Returns:
        Outputs (T, B, H).
    """
    if written_out():
        found: Tensor = _GRU.apply(from_x, h, weight, bias, place)  # type: ignore[no-untyped-call]
        return found
    outputs = []
    constant, columns = bias.expand(h.shape[0], -1), weight.t()
    for now in from_x:
        from_h = constant.index_add(1, place, (h @ columns).to(bias.dtype))
        (r, z, n), (hr, hz, hn) = now.chunk(3, 1), from_h.chunk(3, 1)
        n = (n + (r + hr).sigmoid() * hn).tanh()
        h = n + (z + hz).sigmoid() * (h - n)
        outputs.append(h)
    return torch.stack(outputs)


class _LSTM(Function):
    """`lstm_steps`."""

    @staticmethod
    def forward(ctx: Any, from_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> States:
        steps, batch, _ = from_x.shape
        hidden, columns = h.shape[1], weight.t()
        gates = bias.expand(steps, batch, -1).clone()  # (T, B, 4 H), first a and then σ(a)
        h_all, c_all = (gates.new_empty(steps + 1, batch, hidden) for _ in range(2))
        bent = gates.new_empty(steps, batch, hidden)  # tanh c
        h_all[0], c_all[0] = h, c
        for t in range(steps):
            a, before, after = gates[t], h_all[t], h_all[t + 1]
            a.index_add_(1, place, torch.addmm(from_x[t], before.to(from_x.dtype), columns).to(a.dtype))
            i, f, g, o = a.chunk(4, 1)
            a[:, : 2 * hidden].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c_all[t], out=c_all[t + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_all[t + 1], out=bent[t]), out=after)
        ctx.save_for_backward(gates, h_all, c_all, bent, weight, place)
        return h_all[1:].clone(), c_all[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, grad_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, h_all, c_all, bent, weight, place = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, 2)
        to_i, to_f, to_g = i * (1 - i) * g, f * (1 - f) * c_all[:-1], i * (1 - g * g)  # of the cell  # (T, B, H)
        to_o, to_c = o * (1 - o) * bent, o * (1 - bent * bent)  # of the output
        grad, rows = torch.empty_like(gates), gates.new_empty(*gates.shape[:2], len(place))
        dh, dc = torch.zeros_like(grad_cell), grad_cell
        for t in reversed(range(len(gates))):
            dh = dh + grad_outputs[t]
            dc = dc.addcmul(dh, to_c[t])
            for part, of, slope in zip(grad[t].chunk(4, 1), (dc, dc, dc, dh), (to_i, to_f, to_g, to_o), strict=True):
                torch.mul(of, slope[t], out=part)
            rows[t] = grad[t].index_select(1, place)
            dh, dc = rows[t] @ weight, dc * f[t]
        return rows, dh, dc, _weight_gradient(rows, h_all), grad.sum((0, 1)), None


class _GRU(Function):
    """`gru_steps`."""

    @staticmethod
    def forward(ctx: Any, from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> Tensor:
        steps, batch, _ = from_x.shape
        columns = weight.t()
        from_h = bias.expand(steps, batch, -1).clone()  # (T, B, 3 H)
        gates = from_x.to(from_h.dtype, copy=True)  # r, z, n  # (T, B, 3 H)
        h_all = from_h.new_empty(steps + 1, batch, h.shape[1])
        h_all[0] = h
        for t in range(steps):
            b, before = from_h[t], h_all[t]
            b.index_add_(1, place, (before @ columns).to(b.dtype))
            (r, z, n), (hr, hz, hn) = gates[t].chunk(3, 1), b.chunk(3, 1)
            r.add_(hr).sigmoid_()
            z.add_(hz).sigmoid_()
            n.addcmul_(r, hn).tanh_()
            torch.lerp(n, before, z, out=h_all[t + 1])
        ctx.save_for_backward(gates, from_h, h_all, weight, place)
        return h_all[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gates, from_h, h_all, weight, place = ctx.saved_tensors
        (r, z, n), hn = gates.chunk(3, 2), from_h.chunk(3, 2)[2]
        to_n, to_z = (1 - z) * (1 - n * n), (h_all[:-1] - n) * z * (1 - z)  # of the output  # (T, B, H)
        to_r = hn * r * (1 - r)  # of the argument of n
        of_x, of_h = torch.empty_like(gates), torch.empty_like(gates)
        rows = gates.new_empty(*gates.shape[:2], len(place))
        dh = torch.zeros_like(h_all[0])
        for t in reversed(range(len(gates))):
            dh = dh + grad_outputs[t]
            dr, dz, dn = of_x[t].chunk(3, 1)
            torch.mul(dh, to_n[t], out=dn)
            torch.mul(dh, to_z[t], out=dz)
            torch.mul(dn, to_r[t], out=dr)
            of_h[t].copy_(of_x[t])
            of_h[t].chunk(3, 1)[2].mul_(r[t])
            rows[t] = of_h[t].index_select(1, place)
            dh = dh * z[t] + rows[t] @ weight
        return of_x, dh, _weight_gradient(rows, h_all), of_h.sum((0, 1)), None


def _weight_gradient(rows: Tensor, h_all: Tensor) -> Tensor:
    """Σ over steps and sequences of the gradient of each row times what it was multiplied with  # (R, H)"""
    return rows.flatten(0, 1).t() @ h_all[:-1].flatten(0, 1)
