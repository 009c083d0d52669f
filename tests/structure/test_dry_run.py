"""The dry run decides: it freezes what the rules got wrong, and only that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.resizing import _copying
from apical.resizing._copying import sharing_copy
from apical.resizing._gates import gated_copy, zero_gates_
from apical.resizing._widened import Widened
from apical.structure import ChannelGroup, Structure
from structure.expectations import OUTPUT, reasons_of, traced
from structure.nets import Net, conv, image, unit, vectors


def plus_ones(m: Any, x: Tensor) -> Tensor:
    return x + torch.ones(1, 6, 1, 1)


def test_a_refuted_group_takes_no_other_with_it() -> None:
    """Numbered names look alike, which says nothing about their construction."""
    net = nn.Sequential(conv(3, 6), Net(plus_ones), conv(6, 5), nn.ReLU(), conv(5, 4), nn.ReLU(), conv(4, 2))
    structure = traced(net, image())
    assert [g.name for g in structure.groups] == ["2", "4"]
    assert "forward pass fails" in reasons_of(structure)["0"]


def test_one_layer_of_every_block_is_refuted_and_its_neighbour_is_not() -> None:
    """Their names differ in numbers only, as those of one layer in all blocks do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7))
            self.out = nn.Linear(7, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(plus_ones(self, self.mlp(x).unsqueeze(-1)).squeeze(-1))

    def plus_ones(_: Any, y: Tensor) -> Tensor:
        return y + torch.ones(7, 1)

    structure = traced(nn.Sequential(*(Block() for _ in range(5)), nn.Linear(6, 2)), vectors(2, 6))
    assert [g.name for g in structure.groups if ".mlp" in g.name] == [f"{i}.mlp.0" for i in range(5)]


def test_what_a_forward_pass_left_in_an_attribute_is_copied() -> None:
    net = nn.Linear(2, 2)
    net.seen = net(torch.ones(1, 2))  # type: ignore[assignment]
    twin = sharing_copy(net)
    assert torch.equal(twin.seen, net.seen)
    assert twin.seen.is_leaf


def test_one_refuted_among_many() -> None:
    parts: list[nn.Module] = [unit(3, 6)]
    for i in range(6):
        parts += [unit(6, 6), Net(plus_ones) if i == 4 else nn.Identity()]
    structure = traced(nn.Sequential(*parts, conv(6, 2)), image())
    assert len(structure.groups) == 6
    assert [f.name for f in structure.frozen if f.reason != OUTPUT] == ["9.0"]


def test_several_refuted_for_different_reasons() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 6.0 * x.shape[1]  # the number of channels is an argument of the computation

    net = nn.Sequential(unit(3, 6), Net(plus_ones), unit(6, 6), Mean(), unit(6, 6), conv(6, 2))
    structure = traced(net, image())
    assert [g.name for g in structure.groups] == ["4.0"]
    assert "forward pass fails" in reasons_of(structure)["0.0"]
    assert "does not equal its absence" in reasons_of(structure)["2.0"]


def test_costs_stay_right_after_a_refutation() -> None:
    """`traced` compares them with the flop counter."""
    net = nn.Sequential(unit(3, 6), Net(plus_ones), unit(6, 8), unit(8, 5), conv(5, 2))
    assert [g.size for g in traced(net, image()).groups] == [8, 5]


def test_a_model_that_insists_on_its_dtype_is_still_checked() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return m.last(m.a(x) + m.c)

    net = Net(forward, a=unit(3, 6), last=conv(6, 2), c=torch.ones(6, 1, 1))
    structure = apical.trace(net, image())
    assert [g.name for g in structure.groups] == ["a.0"]


def test_half_precision_models_are_traced() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        net = nn.Sequential(unit(3, 8), conv(8, 4)).to(dtype)
        structure = apical.trace(net, image()[0].to(dtype))
        assert [g.size for g in structure.groups] == [8]


def test_zero_initialised_gates_do_not_hide_mistakes() -> None:
    """A norm that starts at zero would make any removal look right; the dry run perturbs its copy."""
    net = nn.Sequential(unit(3, 6), Net(plus_ones), conv(6, 2))
    nn.init.zeros_(net[0][1].weight)
    nn.init.zeros_(net[2].weight)
    structure = apical.trace(nn.Sequential(*net, nn.ReLU(), unit(2, 7), conv(7, 2)), image())
    assert "0.0" not in [g.name for g in structure.groups]
    assert bool((net[0][1].weight == 0).all())


def test_same_structure_whatever_the_weights() -> None:
    def build(seed: int) -> Structure:
        torch.manual_seed(seed)
        return apical.trace(nn.Sequential(unit(3, 6), unit(6, 8), conv(8, 2)), image())

    assert build(0) == build(1)
    assert all(isinstance(g, ChannelGroup) for g in build(0).groups)


def test_parts_that_must_change_alike_are_found_out() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, n.a.out_features)  # as wide as the one, added to the other
        return n.out(torch.relu(n.a(x))) + n.other(torch.relu(n.b(x)) + zeros) + n.free(x)

    free = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net = Net(forward, a=nn.Linear(3, 8), out=nn.Linear(8, 2), b=nn.Linear(3, 8), other=nn.Linear(8, 2), free=free)
    structure = apical.trace(net, torch.randn(4, 3))
    assert [g.name for g in structure.groups] == ["free.0"]


def test_a_view_that_fits_half_of_the_units_by_chance_is_found_out() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        folded = n.v(x).view(len(x), -1, n.q.out_features).flatten(1)
        return n.out(torch.relu(n.q(x))) + n.other(torch.relu(folded)) + n.free(x)

    free = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net = Net(forward, q=nn.Linear(3, 16), out=nn.Linear(16, 2), v=nn.Linear(3, 16), other=nn.Linear(16, 2), free=free)
    structure = apical.trace(net, torch.randn(4, 3))
    assert [g.name for g in structure.groups] == ["free.0"]


class CastResidual(nn.Module):
    """As in Mamba: the residual is kept in float32, whatever the model's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32) + self.outer(F.silu(self.inner(x)))


def test_a_residual_that_is_cast_to_float32_is_an_identity() -> None:
    net, (x,) = nn.Sequential(nn.Linear(5, 6), CastResidual(6), CastResidual(6), nn.Linear(6, 2)), vectors(4, 5)
    structure = apical.trace(net, x)
    assert [b.name for b in structure.blocks] == ["1", "2"]
    gated = copy.deepcopy(net)
    zero_gates_(gated, structure, {}, ("1",))
    apical.resize_(net, structure, {}, ["1"])
    assert torch.equal(net(x), gated(x))


class FixedForLargeImages(nn.Module):
    """Computes with all its channels by name, but only where images are large."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if x.shape[-1] > 100:
            x = x.view(x.shape[0], 3, 2, *x.shape[2:]).flatten(1, 2)
        return self.head(self.b(x).relu())


def test_what_breaks_on_large_images_only_is_found_out() -> None:
    structure = traced(FixedForLargeImages(), (torch.randn(1, 3, 128, 128),))
    assert [g.name for g in structure.groups] == ["b"]
    assert "the forward pass fails" in reasons_of(structure)["a"]


class FixedForSmallImages(FixedForLargeImages):
    """The other way about: what it computes where images are small breaks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if x.shape[-1] < 100:
            x = x.view(x.shape[0], 3, 2, *x.shape[2:]).flatten(1, 2)
        return self.head(self.b(x).relu())


def test_what_breaks_on_small_images_only_stays() -> None:
    structure = traced(FixedForSmallImages(), (torch.randn(1, 3, 128, 128),))
    assert [g.name for g in structure.groups] == ["a", "b"]


def deviation(m: Any, x: Tensor) -> Tensor:
    x = m.b(m.a(x).relu()).relu()
    return m.head(torch.cat([x.mean((2, 3)), x.std((2, 3))], 1))


def test_images_are_not_cut_to_where_nothing_is_left_to_compare() -> None:
    """The deviation of the single pixel that 64 pixels would leave is NaN."""
    net = Net(deviation, a=nn.Conv2d(3, 6, 8, 8), b=nn.Conv2d(6, 5, 8, 8), head=nn.Linear(10, 2))
    assert [g.name for g in traced(net, (torch.randn(1, 3, 128, 128),)).groups] == ["a", "b"]


def test_small_images_are_tried_first() -> None:
    seen: set[int] = set()

    def note(m: Any, x: Tensor) -> Tensor:
        seen.add(x.shape[-1])
        return m.b(m.a(x).relu())

    net = Net(note, a=conv(3, 6), b=conv(6, 2))
    apical.trace(net, torch.randn(1, 3, 96, 160))  # one side is too short to be cut
    assert seen == {160}
    apical.trace(net, torch.randn(1, 3, 144, 160))
    assert seen == {64, 160}


class SlightlyWrong(FixedForLargeImages):
    """Where images are large, it computes with the number of its channels, of which little can be seen."""

    def __init__(self, *types: torch.dtype) -> None:
        super().__init__()
        self.types = types

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        wrong = x.shape[-1] > 100 and x.dtype in self.types
        return self.head(self.b(x * (1 + 1e-3 * x.shape[1]) if wrong else x).relu())


@pytest.mark.parametrize(
    ("types", "found"), [((torch.float32,), ["a", "b"]), ((torch.float32, torch.float64), ["b"])], ids=["one", "both"]
)
def test_large_images_are_compared_in_float32_and_in_float64_if_that_does_not_tell(
    types: tuple[torch.dtype, ...], found: list[str]
) -> None:
    structure = apical.trace(SlightlyWrong(*types), torch.randn(1, 3, 128, 128))
    assert [g.name for g in structure.groups] == found


def test_large_images_are_left_out_in_float64_where_float32_tells() -> None:
    seen: set[tuple[int, torch.dtype]] = set()

    def note(m: Any, x: Tensor) -> Tensor:
        seen.add((x.shape[-1], x.dtype))
        return m.b(m.a(x).relu())

    net = Net(note, a=conv(3, 6), b=conv(6, 2))
    apical.trace(net, torch.randn(1, 3, 160, 160))
    assert seen == {(64, torch.float64), (64, torch.float32), (160, torch.float32)}
    apical.trace(net.double(), torch.randn(1, 3, 160, 160, dtype=torch.float64))
    assert (160, torch.float64) in seen


def test_images_of_96_pixels_are_tried_where_64_are_too_few() -> None:
    seen: set[int] = set()

    def pool(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.b(m.a(x).relu()), 80)
        seen.add(x.shape[-1])
        return y

    net = Net(pool, a=conv(3, 6), b=conv(6, 2))
    apical.trace(net, torch.randn(1, 3, 192, 192))
    assert seen == {96, 192}


def test_a_sharing_copy_can_be_resized_and_written_into_where_it_says_so() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    before = copy.deepcopy(net.state_dict())
    structure = traced(net, vectors(4, 3))
    twin = sharing_copy(net, ["0.weight"])
    twin[0].weight.data.zero_()
    twin.train()(torch.randn(4, 3))  # moves the statistics of its own norm
    assert twin[3].weight.data_ptr() == net[3].weight.data_ptr()
    apical.resize_(twin, structure, {"0": [0]})
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items())
    assert type(net[3].weight) is nn.Parameter
    net(torch.randn(4, 3)).sum().backward()


def test_a_sharing_copy_has_its_own_containers_and_what_is_shared_in_it_stays_shared() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    shared = {"sizes": [6, (2, [3])], 5: {1}}
    net[0].options, net[1].options, net[0].inner = shared, {"of": shared}, shared["sizes"]
    twin = sharing_copy(net)
    assert twin[0].options == shared
    assert twin[0].options is not shared
    assert twin[0].options["sizes"][1][1] is not shared["sizes"][1][1]
    assert twin[1].options["of"] is twin[0].options
    assert twin[0].inner is twin[0].options["sizes"]


def test_what_is_zero_in_a_sharing_copy_takes_no_memory_but_once() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, 2))
    net[2].weight = net[1].weight  # tied
    before = copy.deepcopy(net.state_dict())
    twin = sharing_copy(net, zeros=["0.weight", "1.weight"])
    assert not twin[0].weight.any()
    assert twin[2].weight is twin[1].weight
    assert twin[0].weight.data_ptr() == twin[1].weight.data_ptr()
    assert twin[0].bias.data_ptr() == net[0].bias.data_ptr()
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items())


def test_ordinary_modules_are_copied_without_deepcopy(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.MultiheadAttention(6, 2))
    monkeypatch.setattr(_copying.copy, "deepcopy", lambda value, known: pytest.fail(f"a {type(value).__name__}"))
    sharing_copy(net)


def test_buffers_that_share_memory_share_it_in_a_sharing_copy() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    net[1].running_mean = net[0].running_mean.detach()  # another tensor of the same numbers
    twin = sharing_copy(net)
    twin[0].running_mean.fill_(5)
    assert bool((twin[1].running_mean == 5).all())
    assert not net[0].running_mean.any()


def test_a_gated_copy_has_no_weights_of_its_own_and_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    before = copy.deepcopy(net.state_dict())
    structure = traced(net, vectors(4, 3))
    keep = {"0": [0, 4]}
    expected = copy.deepcopy(net)
    zero_gates_(expected, structure, keep)
    with gated_copy(net, structure, keep) as gated:
        assert [p.data_ptr() for p in gated.parameters()] == [p.data_ptr() for p in net.parameters()]
        assert torch.equal(gated(*vectors(4, 3)), expected(*vectors(4, 3)))
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items())


def counted_in_a_buffer(m: Any, x: Tensor) -> Tensor:
    m.calls.buffer += 1
    return m.b(m.a(x).relu()) * m.calls.buffer


def counted(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.calls.count += 1
    return m.b(m.a(x).relu()) * m.calls.count


def counted_in_training(m: Any, x: Tensor) -> Tensor:
    return counted(m, x) if m.training else m.b(m.a(x).relu())


@pytest.mark.parametrize("forward", [counted, counted_in_a_buffer, counted_in_training])
def test_copies_do_not_share_what_the_forward_pass_writes_into(forward: Callable[..., Tensor]) -> None:
    calls = nn.Module()
    calls.count = nn.Parameter(torch.ones(()), requires_grad=False)
    calls.register_buffer("buffer", torch.ones(()))
    net = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2), calls=calls)
    structure = apical.trace(net, torch.randn(4, 3))
    assert [g.name for g in structure.groups] == ["a"]
    assert structure.notes == ()
    assert calls.count == calls.buffer == 1


def test_tracing_on_the_cpu_seeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all runs of a script that traces first would draw the same numbers there, whatever their seeds."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    net, x = nn.Sequential(conv(3, 6), nn.ReLU(), nn.Dropout(), conv(6, 2)), image()
    before = torch.get_rng_state()
    apical.trace(net, x)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def turned(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x.to(m.w.dtype) @ m.w.T, m.w[:1]])
    return torch.einsum("ij,kj->ik", y, m.w) + m.w.softmax(-1).mean() + torch.zeros_like(m.w[0])


def clamped(m: Any, x: Tensor) -> Tensor:
    m.w.data.clamp_(-0.5, 0.5)
    return x @ m.w.to(x)


READERS: dict[str, nn.Module] = {
    "linear": nn.Linear(4, 4),
    "embedding of bounded norm": nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.LayerNorm(4)),
    "batch norm": nn.BatchNorm1d(4),
    "LSTM": nn.LSTM(4, 5, 2),
    "GRU cell": nn.GRUCell(4, 5),
    "attention": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "normed weight": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "by hand": Net(turned, w=nn.Parameter(torch.randn(4, 4))),
    "clamped": Net(clamped, w=nn.Parameter(torch.randn(4, 4))),
}


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_narrow_parameters_compute_as_in_float64(name: str) -> None:
    narrow = copy.deepcopy(READERS[name]).eval()
    for buffer in narrow.buffers():
        buffer.data = buffer.data.double() if buffer.is_floating_point() else buffer.data
    wide = copy.deepcopy(narrow).double()
    x = torch.arange(6).view(2, 3) if "embedding" in name else vectors(3, 4)[0].double()
    with Widened():
        found, expected = (torch.utils._pytree.tree_leaves(net(x)) for net in (narrow, wide))
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("by", ["method", "operator"])
def test_a_narrow_parameter_that_is_written_into_is_not_read_as_if_it_were_not(by: str) -> None:
    def normed(m: Any, x: Tensor) -> Tensor:
        w = m.w
        if by == "operator":
            w /= w.norm()
        else:
            w.div_(w.norm())
        return x @ w

    net = Net(normed, w=nn.Parameter(torch.randn(4, 4)))
    with torch.no_grad(), Widened(), pytest.raises(RuntimeError, match="div_ writes into a parameter that is kept"):
        net(vectors(3, 4)[0].double())


def test_training_mode_is_compared_where_images_are_small() -> None:
    """It computes the same as eval mode, by channels that are named."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return m.head(m.b(x.view(x.shape[0], 3, 2, *x.shape[2:]).flatten(1, 2) if m.training else x).relu())

    net = Net(forward, a=conv(3, 6), b=conv(6, 6), head=conv(6, 2))
    structure = traced(net, (torch.randn(1, 3, 128, 128),))
    assert [g.name for g in structure.groups] == ["b"]
    assert "in training mode" in reasons_of(structure)["a"]


class Complex(nn.Module):
    """Complex weights, read as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Parameter(torch.randn(8, 160, dtype=torch.cfloat) / 3)
        self.fall = nn.Parameter(torch.randn(160, 3, dtype=torch.cfloat) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.cfloat) @ self.rise @ self.fall).abs()


def test_complex_weights_are_compared_in_twice_their_precision() -> None:
    structure = apical.trace(Complex(), torch.randn(4, 8))
    assert [group.size for group in structure.groups] == [160]
    assert [part.size for part in structure.frozen] == [3], "the outputs"
