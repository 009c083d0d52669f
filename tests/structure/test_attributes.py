"""Attributes of a model's own that state a size are found by trial, follow every resize, and are saved."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.resizing._install import Installation
from structure.contract import zeroed
from structure.expectations import reasons_of, traced
from structure.nets import vectors


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight transposed, the width of the result in ``nf``."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Gpt2Attention(nn.Module):
    """Several attributes must follow: the projection's width, the split, the number of heads in the views."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split_size, self.my_heads, self.head_dim = width, heads, width // heads
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.my_heads, self.head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.c_attn(x).split(self.split_size, dim=2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.c_proj(y.reshape(*x.shape[:2], self.split_size))


class FusedAttention(nn.Module):
    """As in Phi-3: where queries end is computed from a config that all layers share, where keys end is not."""

    def __init__(self, config: SimpleNamespace | FixedConfig) -> None:
        super().__init__()
        self.config, self.head_width, self.key_heads = config, 3, config.heads
        self.qkv, self.out = nn.Linear(8, 9 * config.heads, bias=False), nn.Linear(3 * config.heads, 8)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        queries, keys = self.config.heads * self.head_width, self.key_heads * self.head_width
        parts = (qkv[..., :queries], qkv[..., queries : queries + keys], qkv[..., queries + keys :])
        q, k, v = (part.view(*x.shape[:2], -1, self.head_width).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.out(y.reshape(*x.shape[:2], -1))


def fused_attention() -> nn.Sequential:
    config = SimpleNamespace(heads=5, other=5)
    return nn.Sequential(FusedAttention(config), FusedAttention(config), nn.Linear(8, 2))


@dataclass(frozen=True)
class FixedConfig:
    heads: int = 5


class SizesFromInput(nn.Module):
    """Attention as most tutorials write it: the result is reshaped to the width of the input, which is no attribute."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, 5)

    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_the_width_of_a_transposed_linear_layer_follows() -> None:
    structure = traced(nn.Sequential(Conv1D(6, 10), nn.GELU(), Conv1D(10, 3)), vectors(4, 6))
    assert [(g.name, g.size) for g in structure.groups] == [("0", 10)]
    assert {(a.module, a.attribute) for a in structure.attributes} == {("0", "nf")}


def test_attributes_that_break_one_after_the_other_all_follow() -> None:
    structure = traced(Gpt2Attention(12, 6), vectors(2, 5, 12))
    assert [(g.name, g.size) for g in structure.groups] == [("c_attn", 6)]
    found = {f"{a.module}.{a.attribute}" for a in structure.attributes}
    assert found == {"c_attn.nf", ".split_size", ".my_heads"}, "head_dim is 12 / 6 and must not follow"


def test_layers_that_are_alike_follow_alike() -> None:
    net = nn.Sequential(*[nn.Sequential(Gpt2Attention(12, 6), nn.Linear(5, 12)) for _ in range(4)], nn.Linear(12, 2))
    structure = traced(net, vectors(2, 5, 12))
    assert sum(g.size == 6 for g in structure.groups) == 4
    assert {a.module for a in structure.attributes if a.attribute == "my_heads"} == {f"{i}.0" for i in range(4)}


class Gated(nn.Module):
    """TabNet's step: half of the result gates the other half, and both are one width, that two groups make up."""

    def __init__(self, reads: int, width: int) -> None:
        super().__init__()
        self.width, self.fc = width, nn.Linear(reads, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y[:, : self.width] * torch.sigmoid(y[:, self.width :])


class Decision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decided, self.step = 4, Gated(3, 10)
        self.decide, self.attend = nn.Linear(4, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(x)
        return self.decide(torch.relu(y[:, : self.decided])) + self.attend(y[:, self.decided :])


def test_a_size_that_several_groups_make_up_follows_each_of_them() -> None:
    structure = traced(Decision(), vectors(3, 3))
    assert sorted(g.size for g in structure.groups) == [4, 6]
    axes = {f"{a.module}.{a.attribute}": a.axis for a in structure.attributes}
    assert (axes["step.width"].base, len(axes["step.width"].counts)) == (0, 2)


class Pooled(nn.Module):
    """Attention whose first layers have one head, as in Hiera; what breaks them says nothing about the others."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.dim_out, self.head_dim = heads, 12, 12 // heads
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(y.reshape(b, -1, self.dim_out))


def test_one_head_that_stays_leaves_the_heads_of_other_layers_alone() -> None:
    structure = traced(nn.Sequential(Pooled(1), Pooled(3), Pooled(2), nn.Linear(12, 2)), vectors(2, 5, 12))
    assert {"1.qkv": 3, "2.qkv": 2}.items() <= {g.name: g.size for g in structure.groups}.items()
    assert "0.qkv" in reasons_of(structure)


class Modes(nn.Module):
    """A Fourier layer: the modes that it keeps are written into zeros of a width that the code holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.rand(width, width, 3, dtype=torch.cfloat) / width)
        self.beside = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)
        kept = torch.zeros(x.shape[0], self.width, modes.shape[-1], dtype=modes.dtype)
        kept[:, :, :3] = torch.einsum("bix,iox->box", modes[:, :, :3], self.weight)
        return torch.relu(torch.fft.irfft(kept, n=x.shape[-1]) + self.beside(x))


def test_a_size_follows_in_the_layer_that_writes_a_group_not_in_the_alike_one_that_reads_it() -> None:
    """Each layer's width is that of what it writes, and the group that it writes lies in the next layer, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 1), *[Modes(6) for _ in range(3)], nn.Conv1d(6, 2, 1)).eval()
    x = torch.randn(2, 2, 8)
    structure = apical.trace(model, x)
    assert {g.name: g.size for g in structure.groups} == {"0": 6, "1": 6, "2": 6, "3": 6}
    keep = {g.name: [0, 3, 5] for g in structure.groups}
    small, gated = copy.deepcopy(model), zeroed(model, structure, keep, ())
    apical.resize_(small, structure, keep)
    torch.testing.assert_close(small(x), gated(x))


class Counting(nn.Sequential):
    """Counts its calls, in all copies together."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return super().forward(x)


def test_more_alike_layers_take_no_more_runs() -> None:
    """What freezes them has three witnesses, and what lets them follow is tried for all at once."""
    calls = []
    for layers in (3, 6):
        net = Counting(*[nn.Sequential(Gpt2Attention(12, 6), nn.Linear(5, 12)) for _ in range(layers)])
        Counting.calls = 0
        structure = apical.trace(net, vectors(2, 5, 12))
        calls.append(Counting.calls)
        assert sum(g.size == 6 for g in structure.groups) == layers
    assert calls[0] == calls[1]


def test_an_attribute_of_its_own_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Gpt2Attention(12, 6).eval()
    fresh = copy.deepcopy(model)
    structure = apical.trace(model, vectors(2, 5, 12))
    apical.resize_(model, structure, {"c_attn": [1, 4]})
    apical.save(model, tmp_path / "small")
    loaded = apical.load(fresh, tmp_path / "small")
    assert (loaded.split_size, loaded.my_heads, loaded.c_attn.nf) == (4, 2, 12)
    assert torch.equal(loaded(*vectors(2, 5, 12)), model(*vectors(2, 5, 12)))
    apical.save(loaded, tmp_path / "again")
    again = apical.load(Gpt2Attention(12, 6), tmp_path / "again")
    assert torch.equal(again(*vectors(2, 5, 12)), model(*vectors(2, 5, 12)))


def test_a_size_in_a_config_that_layers_share_follows_in_each_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = fused_attention(), vectors(2, 4, 8)
    structure = traced(model, x)
    assert [(g.name, g.size) for g in structure.groups] == [("0.qkv", 5), ("1.qkv", 5)]
    found = {f"{a.module}.{a.attribute}" for a in structure.attributes}
    assert {"0.config.heads", "0.key_heads", "1.config.heads", "1.key_heads"} <= found
    store = apical.DormantStore()
    small = copy.deepcopy(model)
    shared = small[0].config
    apical.resize_(small, structure, {"0.qkv": [1, 4], "1.qkv": [0]}, store=store)
    assert [small[0].config.heads, small[1].config.heads, shared.heads] == [2, 1, 5]
    loaded = apical.load(fused_attention(), apical.save(small, tmp_path / "small"))
    assert torch.equal(loaded(*x), small(*x))
    apical.resize_(small, structure, {}, store=store)
    assert torch.equal(small(*x), model(*x))


def test_a_size_in_a_frozen_config_follows() -> None:
    net = nn.Sequential(FusedAttention(FixedConfig()), nn.Linear(8, 2))
    structure = traced(net, vectors(2, 4, 8))
    assert [(g.name, g.size) for g in structure.groups] == [("0.qkv", 5)]
    apical.resize_(net, structure, {"0.qkv": [1, 4]})
    assert net[0].config == FixedConfig(2)


def test_a_failed_resize_leaves_a_shared_config_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused_attention()
    structure, config = traced(model, vectors(2, 4, 8)), model[0].config
    changed = Installation.attribute

    def fail(self: Installation, module: nn.Module, name: str, value: int) -> None:
        changed(self, module, name, value)
        if module is model[1]:
            raise RuntimeError("the disk is full")

    monkeypatch.setattr(Installation, "attribute", fail)
    with pytest.raises(apical.ApicalError, match="the disk is full"):
        apical.resize_(model, structure, {"0.qkv": [1], "1.qkv": [1]})
    assert model[0].config is model[1].config is config


def test_a_size_that_is_in_no_attribute_is_named_with_its_line() -> None:
    """Sizes in the code follow where it can be read, which a decorated method is not (`test_local_sizes`)."""
    net = nn.Sequential(SizesFromInput(12, 4), nn.ReLU(), nn.Linear(5, 2))
    reason = reasons_of(traced(net, vectors(2, 5, 12)))["0.qkv"]
    assert "test_attributes.py:" in reason
    assert "reshape(b, n, 3, self.num_heads, c // self.num_heads)" in reason
    assert "-1" in reason
    assert "register_module" in reason


@pytest.mark.parametrize("value", [0, 7, -1])
def test_a_folder_cannot_set_a_size_that_the_module_does_not_have(tmp_path: Path, value: int) -> None:
    model = nn.Sequential(Conv1D(6, 10), nn.GELU(), Conv1D(10, 3))
    structure = apical.trace(model, vectors(4, 6))
    apical.resize_(model, structure, {"0": [1, 4]})
    model[2].nf = 3 if value == 7 else value  # 7: the other way round, the model to load into is smaller
    vars(model[2])["_apical_sizes"] = ("nf",)
    apical.save(model, tmp_path / "small")
    other = nn.Sequential(Conv1D(6, 10), nn.GELU(), Conv1D(10, 3))
    other[2].nf = 2 if value == 7 else 3
    with pytest.raises(apical.ApicalError, match="nf"):
        apical.load(other, tmp_path / "small")


class ClassAttention(nn.Module):
    """As CaiT's: the query is the first token's, and each view asks the input for the width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        k = self.k(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        v = self.v(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(B, 1, C))


class Described(nn.Module):
    """A model that says much about itself, as timm's do, none of which its code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [{"num_chs": 16, "reduction": 4, "module": f"blocks.{i}"} for i in range(12)]
        self.enter, self.attention, self.head = nn.Linear(5, 16), ClassAttention(), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(F.layer_norm(self.enter(x), (16,)))[:, 0])


def test_sizes_that_no_code_reads_are_not_tried() -> None:
    """There are too many of them to come to those that matter, four of which must follow together."""
    structure = traced(Described(), vectors(2, 6, 5))
    assert {g.name: g.size for g in structure.groups} == {"attention.q": 4, "attention.o": 16}
    assert sum(a.attribute.startswith("size_in_forward") for a in structure.attributes) == 4
