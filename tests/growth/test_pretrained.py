"""Growing from a trained network: the strongest units form the seed, the others come back as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical import Grower, trace
from apical.growth._components import unit_strengths
from apical.models import CifarResNet, DeepLabV3
from growth.cases import CASES, built, grown, outputs, sgd
from marks import quick


class Mlp(nn.Module):
    """Two hidden layers, the first with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.b, self.c = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.norm(self.a(x)).relu()).relu())


def trained(model: nn.Module) -> nn.Module:
    """As if it had been trained: no two units alike, and the statistics of norms moved."""
    torch.manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.2, 2.0)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model


def grower_of(model: nn.Module, x: Tensor, **options: Any) -> Grower:
    settings = {"budget": "50% macs", "epochs": 8, "seed_style": "pretrained", **options}
    return Grower(model, sgd(model), (x,), **settings)


def test_the_seed_keeps_the_strongest_of_every_group() -> None:
    model, x = trained(Mlp()), torch.randn(4, 6)
    structure = trace(model, x)
    strengths = {group.name: unit_strengths(model, group) for group in structure.groups}
    grower = grower_of(model, x)
    for name, kept in grower.state_dict()["keep"].items():
        assert sorted(strengths[name].argsort(descending=True)[: len(kept)].tolist()) == kept
        assert 1 <= len(kept) < structure.group(name).size


def test_strength_follows_gate_and_readers_and_is_zero_without_either() -> None:
    model, x = trained(Mlp()), torch.randn(4, 6)
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0.0, 0.0
        model.b.weight[:, 5] = 0.0
        model.norm.weight[7] *= 50
    group = trace(model, x).group("a")
    strength = unit_strengths(model, group)
    assert strength.shape == (16,)
    assert strength[2] == strength[5] == 0
    assert strength.argmax() == 7
    expected = torch.zeros(16, dtype=torch.float64)
    for gate in (model.norm.weight, model.norm.bias):
        expected += gate.detach().double().abs() / gate.detach().double().abs().mean()
    reads = model.b.weight.detach().double().norm(dim=0)
    assert torch.allclose(strength, expected * reads / reads.mean())


def test_streams_keep_their_strongest_channels_too() -> None:
    model, x = trained(CifarResNet(14, 5, width=8)), torch.randn(2, 3, 8, 8)
    structure = trace(model, x)
    strengths = {group.name: unit_strengths(model, group) for group in structure.groups}
    keep = grower_of(model, x).state_dict()["keep"]
    streams = [group for group in structure.groups if group.role == "stream"]
    assert streams
    for group in streams:
        kept = keep[group.name]
        assert sorted(strengths[group.name].argsort(descending=True)[: len(kept)].tolist()) == kept


@pytest.mark.parametrize("make", [Mlp, lambda: CifarResNet(8, 5, width=8)])
def test_removing_what_is_switched_off_changes_nothing(make: Any) -> None:
    """Half of the inner units are dead: the seed at the budget is then the trained network itself."""
    model = trained(make()).double()
    x = (torch.randn(4, 6) if isinstance(model, Mlp) else torch.randn(2, 3, 8, 8)).double()
    structure = trace(model, x)
    inner = [group for group in structure.groups if group.role == "inner"]
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group in inner:
            for part in group.gate_site:
                index = part.index[torch.arange(0, group.size, 2)].reshape(-1)
                tensors[part.tensor].index_fill_(part.dim, index, 0.0)
    streams = tuple({m.tensor.rpartition(".")[0] for g in structure.groups if g.role == "stream" for m in g.gate_site})
    half = structure.macs({group.name: group.size // 2 for group in inner}) / structure.macs()
    before = model.eval()(x).detach()
    grower_of(model, x, budget=f"{100 * half:.6f}% macs", seed_fraction=1.0, ignore=streams, grow_depth=False)
    assert trace(model, x).macs() < 0.9 * structure.macs()
    assert torch.allclose(model.eval()(x), before, rtol=0, atol=1e-10 * before.abs().max().item())


@pytest.mark.parametrize("name", quick(CASES, ["residual", "lstm", "gpt"]))
def test_at_full_size_the_network_is_the_pretrained_one(name: str) -> None:
    model = trained(built(name))
    reference, before = copy.deepcopy(model.state_dict()), outputs(model, name)
    grower = grown(name, model, sgd(model), seed_style="pretrained", budget="100% macs", seed_fraction=0.3)
    assert sum(p.numel() for p in model.parameters()) < sum(v.numel() for v in reference.values())
    for _ in range(grower.epochs):
        grower.end_epoch()
    assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())
    assert torch.equal(outputs(model, name), before)


def test_what_comes_back_brings_its_weights_and_the_strongest_come_first() -> None:
    model, x = trained(Mlp()), torch.randn(4, 6)
    reference = copy.deepcopy(model.state_dict())
    strengths = {g.name: unit_strengths(model, g) for g in trace(model, x).groups}
    grower = grower_of(model, x, seed_fraction=0.2)
    sizes = []
    for _ in range(8):
        keep = grower.state_dict()["keep"]
        rows, columns = torch.tensor(keep["a"]), torch.tensor(keep["b"])
        assert torch.equal(model.a.weight, reference["a.weight"][rows])
        assert torch.equal(model.b.weight, reference["b.weight"][columns][:, rows])
        for name, kept in keep.items():
            assert sorted(strengths[name].argsort(descending=True)[: len(kept)].tolist()) == kept
        sizes.append(len(keep["a"]))
        record = grower.end_epoch()
        assert record["born"] == 0  # all have lived before
    assert sizes[0] < sizes[-1]


def test_a_state_goes_on_in_a_grower_made_from_other_weights() -> None:
    x = torch.randn(2, 3, 8, 8)
    first = grower_of(trained(CifarResNet(8, 5, width=8)), x)
    first.end_epoch()
    state = first.state_dict()
    second = grower_of(CifarResNet(8, 5, width=8), x)
    second.load_state_dict(state)
    for _ in range(4):
        first.end_epoch()
        second.end_epoch()
        assert first.state_dict()["keep"] == second.state_dict()["keep"]


@pytest.mark.slow
def test_deeplab_starts_from_its_strongest_channels() -> None:
    model, x = trained(DeepLabV3(18, num_classes=4, aux=True, width=8, head_width=16)), torch.randn(1, 3, 24, 24)
    structure = trace(model, x)
    strengths = {group.name: unit_strengths(model, group) for group in structure.groups}
    grower = grower_of(model, x, structure=structure)
    for name, kept in grower.state_dict()["keep"].items():
        assert sorted(strengths[name].argsort(descending=True)[: len(kept)].tolist()) == kept


def test_a_group_without_weights_to_compare_keeps_its_order() -> None:
    model = Mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    grower = grower_of(model, torch.randn(4, 6))
    keep = grower.state_dict()["keep"]
    assert all(kept == list(range(len(kept))) for kept in keep.values())
