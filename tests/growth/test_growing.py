"""The Grower on small networks of every family: seed, growth, budget, births, and what is left at the end."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apical import Budget, Grower, trace
from apical.errors import ConfigError
from apical.growth import ScsConfig
from apical.resizing._indexing import TemplateMap
from apical.resizing._selection import Selection
from apical.resizing._stand_in import StandIn
from apical.structure import ParamSlice
from growth.cases import CASES, begun, built, epochs, example, grown, loss_of, outputs, run, sgd, step, structure_of
from marks import quick

ALL = list(CASES)
FEW = ("residual", "lstm", "gpt")


def largest_step(grower: Grower) -> float:
    """The dearest of all single units, as a fraction of the budget: how near the budget can be met."""
    widths = {g.name: g.size for g in grower.structure.groups}
    full = grower.bound.load(widths)
    return max(full - grower.bound.load(widths | {name: size - 1}) for name, size in widths.items() if size > 1)


def within(grower: Grower, tolerance: float = 0.01) -> bool:
    """Whether the present network costs the budget, as nearly as whole units allow."""
    state = grower.state_dict()
    load = grower.bound.load(state["keep"], state["skip"])
    return 1 - max(tolerance, largest_step(grower)) <= load <= 1.002


@pytest.mark.parametrize("name", quick(ALL, FEW))
def test_a_network_grows_from_a_small_seed_to_its_budget(name: str) -> None:
    model = built(name)
    optimizer = sgd(model)
    template = {k: v.shape for k, v in model.state_dict().items()}
    types = {path: type(m) for path, m in model.named_modules()}
    grower = grown(name, model, optimizer)
    structure = grower.structure
    smallest = structure.macs({g.name: 1 for g in structure.groups}) / structure.macs()
    run(grower, optimizer, name)

    seed, last = grower.history[0], grower.history[-1]
    # a quarter of what the budget leaves beside what cannot be removed
    fixed = structure.macs({g.name: 0 for g in structure.groups}) / structure.macs()
    assert seed["macs_fraction"] <= max(1.002 * (0.25 * 0.5 + 0.75 * fixed), smallest + 1e-9)
    assert within(grower)
    if CASES[name].fine:
        assert 0.495 <= last["macs_fraction"] <= 0.501
    loads = [r["scheduled_load"] for r in grower.history]
    assert loads == sorted(loads)
    assert loads[-1] == 1.0
    for record, following in zip(grower.history, grower.history[1:], strict=False):
        assert following["scheduled_load"] == record["next_load"]
        changed = record["born"] + record["returned"] + record["died"] > 0
        same = (record["widths"], record["skipped"]) == (following["widths"], following["skipped"])
        assert changed or same
    assert json.loads(json.dumps(grower.history)) == grower.history
    assert [r["epoch"] for r in grower.history] == list(range(6))
    check_priced(grower)

    before = outputs(model, name)
    grower.finish()
    assert torch.equal(outputs(model, name), before)
    skipped = tuple(last["skipped"])
    now = model.state_dict()
    assert list(now) == [k for k in template if not k.startswith(tuple(f"{s}." for s in skipped))]
    assert all(a <= b for k, v in now.items() for a, b in zip(v.shape, template[k], strict=True))
    for path, module in model.named_modules():
        assert type(module) in ((nn.Identity, StandIn) if path in skipped else (types[path],))
    assert all(type(p) is nn.Parameter and p.is_leaf for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    was = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, name, 5)  # it trains on
    assert any(not torch.equal(a, p) for a, p in zip(was, model.parameters(), strict=True))


@pytest.mark.parametrize("name", quick(["residual", "plain", "lstm"], ["residual"]))
def test_a_network_that_starts_above_its_budget_is_only_pruned_down_to_it(name: str) -> None:
    """From the full network."""
    _model, optimizer, grower = begun(name, seed_fraction=100.0, growth_end=0.75)
    start = grower.state_dict()
    assert start["skip"] == []
    assert all(len(start["keep"][g.name]) == g.size for g in grower.structure.groups)
    assert grower.target_load == pytest.approx(grower.bound.load(start["keep"], start["skip"]))
    run(grower, optimizer, name)
    loads = [r["scheduled_load"] for r in grower.history]
    assert loads == sorted(loads, reverse=True)
    assert loads[0] > 1.01
    assert loads[-1] == 1.0
    assert within(grower)
    costs = [r["macs"] for r in grower.history]
    assert costs == sorted(costs, reverse=True)
    assert sum(r["born"] for r in grower.history) == 0  # everything lived from the start


def test_a_network_may_start_between_its_budget_and_the_full_one() -> None:
    model = built("residual")
    optimizer = sgd(model)
    grower = run(grown("residual", model, optimizer, seed_style="small", seed_fraction=1.4), optimizer, "residual")
    assert 0.68 <= grower.history[0]["macs_fraction"] <= 0.702
    assert within(grower)


def check_priced(grower: Grower) -> None:
    """The last record says what the model is."""
    last = grower.history[-1]
    assert last["num_params"] == sum(p.numel() for p in grower.model.parameters())
    assert last["params_fraction"] == last["num_params"] / grower.structure.num_params()
    assert last["macs"] == grower.structure.macs(last["widths"], last["skipped"])
    assert last["blocks"] == len(grower.structure.blocks) - len(last["skipped"])


VARIANTS: list[dict[str, Any]] = [
    {"utility": "random"},
    {"utility": "random", "seed_style": "small", "damping": 1.0, "max_change": 100.0},
    {"damping": 0.0},
    {"damping": 1.0, "max_change": 100.0},
    {"max_change": 1.0},
    {"max_change": 4.0, "damping": 0.5},
    {"seed_style": "small", "seed_fraction": 2},
    {"birth": "random"},
    {"grow_depth": False, "seed_style": "small"},
    {"divisor": 2, "min_units": 2},
    {"divisor": 4, "seed_style": "small"},
    {"growth_end": 1.0},
    {"interval": 4},
    {"interval": 9},
    {"config": ScsConfig()},
    {"config": ScsConfig(score_lr=20.0, growth_end=0.9)},
    {"config": ScsConfig(sampling="budgeted", birth="preserving", seed_fraction=0.3)},
    {"config": ScsConfig(beta_final=1.0, divisor=2)},
    {"config": ScsConfig(grow_depth=False)},
    {"config": ScsConfig(interval=9)},
    {"config": ScsConfig.random()},
    {"config": ScsConfig.random(divisor=4, min_units=2)},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("name", quick(["residual", "lstm"], ["residual"]))
def test_every_option_runs_through_and_meets_the_budget(name: str, options: dict[str, Any]) -> None:
    _model, optimizer, grower = begun(name, **options)
    for _ in epochs(grower, optimizer, name, 0, 6, steps=1):
        for width, group in zip(grower.state_dict()["keep"].values(), grower.structure.groups, strict=True):
            step_size = grower.config.divisor if group.size >= 2 * grower.config.divisor else 1
            assert len(width) == group.size or len(width) % step_size == 0
            assert len(width) >= min(group.size, grower.config.min_units)
        if not grower.config.grow_depth:
            assert not grower.state_dict()["skip"]
    grower.finish()
    assert 0.5 * (0.97 if grower.config.divisor > 1 else 0.99) <= grower.history[-1]["macs_fraction"] <= 0.501
    check_priced(grower)


@pytest.mark.parametrize("budget", ["40% params", "30% macs, 60% params", "20k params", "100% macs"])
def test_other_budgets_are_met(budget: str) -> None:
    model = built("residual")
    optimizer = sgd(model)
    grower = run(grown("residual", model, optimizer, budget=budget, epochs=4), optimizer, "residual")
    last = grower.history[-1]
    macs, params = last["macs_fraction"], last["params_fraction"]
    used = {"40% params": params / 0.4, "30% macs, 60% params": max(macs / 0.3, params / 0.6),
            "20k params": last["num_params"] / 20_000, "100% macs": macs}[budget]  # fmt: skip
    assert 0.99 <= used <= 1.002


@pytest.mark.parametrize("epochs_in_all", [1, 2, 3])
@pytest.mark.parametrize("interval", [1, 2])
def test_even_the_shortest_training_ends_at_the_budget(epochs_in_all: int, interval: int) -> None:
    model = built("plain")
    optimizer = sgd(model)
    grower = run(grown("plain", model, optimizer, epochs=epochs_in_all, interval=interval), optimizer, "plain")
    assert 0.495 <= grower.history[-1]["macs_fraction"] <= 0.501


def test_restructuring_after_steps() -> None:
    """The network changes within an epoch; the records add up what changed."""
    model, optimizer, grower = begun("plain", epochs=3, interval=3, steps_per_epoch=8)
    widths = []
    for epoch in range(3):
        for i in range(8):
            step(model, optimizer, "plain", 10 * epoch + i)
            grower.end_step()
            widths.append(model[1][0].out_channels)
        grower.end_epoch()
    assert widths[:6] == [widths[0]] * 2 + [widths[2]] * 3 + [widths[5]]
    assert widths[0] < widths[2] < widths[5] < widths[11] == widths[-1]
    assert [r["epoch"] for r in grower.history] == [0, 1, 2]
    assert grower.history[0]["born"] > 0
    assert grower.history[1]["born"] > 0
    assert grower.history[2]["born"] + grower.history[2]["died"] == 0
    units = sum(sum(r["widths"].values()) for r in grower.history[-1:])
    assert sum(r["born"] - r["died"] + r["returned"] for r in grower.history) + seed_units(grower) == units
    assert 0.495 <= grower.history[-1]["macs_fraction"] <= 0.501


def seed_units(grower: Grower) -> int:
    """Units of the seed of the same options."""
    model = built("plain")
    same = grown("plain", model, sgd(model), epochs=grower.epochs)
    return sum(len(k) for k in same.state_dict()["keep"].values())


def test_steps_do_nothing_where_epochs_count() -> None:
    _, _, grower = begun("plain")
    before = grower.state_dict()["keep"]
    for _ in range(5):
        grower.end_step()
    assert grower.state_dict()["keep"] == before


# ---- births ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(ALL, FEW))
def test_births_leave_the_function_as_it_was(name: str) -> None:
    """Also that of the moving average; only a death or a return may change it."""
    model = built(name).double()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = sgd(model)
    grower = grown(name, model, optimizer, copies=[average], epochs=8, growth_end=0.9, damping=0.0)
    case, quiet, births = CASES[name], 0, 0
    inputs = case.inputs(77)
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def now() -> list[Tensor]:
        found = []
        with torch.no_grad():
            for one in (model, average):
                output = one.eval()(inputs)
                found.append(output[0] if isinstance(output, tuple) else output)
                one.train()
        return found

    for epoch in range(8):
        for i in range(2):
            loss = loss_of(model, name, 10 * epoch + i, torch.float64)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
        before = now()
        record = grower.end_epoch()
        if record["died"] + record["returned"] == 0:
            quiet += 1
            births += record["born"]
            for a, b in zip(before, now(), strict=True):
                assert (a - b).abs().max() <= 1e-10 * a.abs().max()
        for a, b in zip(model.parameters(), average.module.parameters(), strict=True):
            assert a.shape == b.shape
    assert quiet >= 2
    assert births > 0


@pytest.mark.parametrize("name", quick(ALL, FEW))
def test_newborns_wake_up(name: str) -> None:
    """After two steps the weights that read a newborn and its own have both moved, in every group."""
    model = built(name).double()
    optimizer = sgd(model, weight_decay=0.0)
    grower = grown(name, model, optimizer)
    was = grower.state_dict()["keep"]
    train(model, optimizer, name, 0)
    record = grower.end_epoch()
    assert record["born"] > 0
    now, before = grower.state_dict()["keep"], dict(copy.deepcopy(model).named_parameters())
    train(model, optimizer, name, 10)
    for group in grower.structure.groups:
        born = sorted(set(now[group.name]) - set(was[group.name]))
        for part in group.members:
            if part.tensor in before and not part.tensor.endswith("bias"):
                places = live_positions(grower, part, born)
                moved = before[part.tensor] != model.get_parameter(part.tensor)
                asleep = [u for u, p in zip(born, places, strict=True) if not moved.index_select(part.dim, p).any()]
                assert not asleep, (group.name, part.tensor)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, name: str, seed: int) -> None:
    """Two steps in float64."""
    for i in range(2):
        optimizer.zero_grad()
        loss_of(model, name, seed + i, torch.float64).backward()
        optimizer.step()


def live_positions(grower: Grower, part: ParamSlice, units: list[int]) -> list[Tensor]:
    """Where units of the template lie in the live tensor."""
    state = grower.state_dict()
    selection = Selection({k: tuple(v) for k, v in state["keep"].items()}, frozenset(state["skip"]))
    index = TemplateMap(grower.structure).index(part.tensor, selection)
    where = [torch.tensor(part.positions[u]) for u in units]
    return [torch.searchsorted(index[part.dim], w) for w in where] if part.dim in index else where


@pytest.mark.parametrize("scores", ["learned", "random"])
def test_blocks_are_born_as_the_identity_and_wake_up(scores: Any) -> None:
    """Also where the units within change while a block is not born yet."""
    model = built("residual")
    optimizer = sgd(model, weight_decay=0.0)
    config = ScsConfig(
        sampling="budgeted", scores=scores, lambda_base=0.0, birth="preserving", seed_fraction=0.4, growth_end=0.9
    )
    grower = grown("residual", model, optimizer, budget="80% macs", config=config)
    ever: set[str] = {b.name for b in grower.structure.blocks} - set(grower.state_dict()["skip"])
    known: set[str] = set(grower.state_dict()["skip"])
    woken = 0
    for epoch in range(5):
        run(grower, optimizer, "residual", epoch, epoch + 1)
        skip = set(grower.state_dict()["skip"])
        for name in known - skip - ever:
            block = model.get_submodule(name)
            x = torch.randn(2, block.conv1.in_channels, 4, 4).relu()
            assert torch.equal(block.eval()(x), x)
            model.train()
            was = copy.deepcopy(block.state_dict())
            for i in range(2):
                step(model, optimizer, "residual", 50 + i)
            moved_keys = {k for k, v in block.state_dict().items() if not torch.equal(v, was[k])}
            assert {"conv1.weight", "conv2.weight", "bn1.weight", "bn2.weight", "bn2.bias"} <= moved_keys
            woken += 1
            ever.add(name)
        known = skip
    assert woken > 0


@pytest.mark.parametrize(
    "options",
    [{"utility": "random", "seed_style": "small", "seed_fraction": 1.0, "damping": 1.0, "growth_end": 0.9},
     {"config": ScsConfig.random(birth="preserving", growth_end=0.9)}],
    ids=["grown", "scs"],
)  # fmt: skip
def test_returning_units_bring_their_weights_and_no_momentum(options: dict[str, Any]) -> None:
    """A unit that left and comes back has the weights it left with, and an empty momentum."""
    model, optimizer, grower = begun("mlp", epochs=8, **options)
    left: dict[int, Tensor] = {}
    checked = 0
    previous = grower.state_dict()["keep"]["0"]
    for epoch in range(7):
        for i in range(2):
            step(model, optimizer, "mlp", 10 * epoch + i)
        rows = {u: model[0].weight[i].detach().clone() for i, u in enumerate(previous)}
        grower.end_epoch()
        now = grower.state_dict()["keep"]["0"]
        for i, u in enumerate(now):
            if u in left and u not in previous:
                assert torch.equal(model[0].weight[i], left[u])
                assert (optimizer.state[model[0].weight]["momentum_buffer"][i] == 0).all()
                checked += 1
        left.update({u: rows[u] for u in previous if u not in now})
        previous = now
    assert checked > 0


def test_random_births_change_the_function() -> None:
    model, optimizer, grower = begun("mlp", birth="random")
    step(model, optimizer, "mlp", 1)
    before = outputs(model, "mlp")
    record = grower.end_epoch()
    assert record["born"] > 0
    assert record["died"] == 0
    assert not torch.allclose(outputs(model, "mlp"), before)


# ---- seeds, pins, blocks ---------------------------------------------------------------------------------------------


def test_a_pretrained_seed_has_its_blocks_and_its_streams_whole() -> None:
    """Later the streams give way, too, where they are worth less than inner widths."""
    model = built("residual")
    optimizer = sgd(model)
    grower = run(grown("residual", model, optimizer, seed_style="pretrained"), optimizer, "residual")
    first, last = grower.history[0], grower.history[-1]
    assert first["blocks"] == len(grower.structure.blocks) == 4
    streams = [g for g in grower.structure.groups if g.role == "stream"]
    inner = [g for g in grower.structure.groups if g.role == "inner"]
    assert len(streams) == 3
    assert all(first["widths"][g.name] == g.size for g in streams)
    assert all(first["widths"][g.name] < g.size / 2 for g in inner)
    assert sum(last["widths"].get(g.name, 0) for g in inner) > sum(first["widths"][g.name] for g in inner)


def test_a_small_seed_has_one_ratio_for_all_widths_and_all_blocks_if_there_is_room() -> None:
    _, _, grower = begun("residual", seed_style="small", budget="60% macs")
    state = grower.state_dict()
    assert not state["skip"]
    ratios = {g.name: len(state["keep"][g.name]) / g.size for g in grower.structure.groups if g.size >= 32}
    assert max(ratios.values()) - min(ratios.values()) <= 1 / 32 + 1e-9
    assert max(ratios.values()) < 0.6


def test_a_small_seed_leaves_out_late_blocks_only_where_even_the_narrowest_cost_too_much() -> None:
    model = built("residual")
    optimizer = sgd(model)
    narrowest = structure_of("residual")
    least = narrowest.num_params({g.name: 1 for g in narrowest.groups})
    grower = grown("residual", model, optimizer, seed_style="small", budget=f"{least - 1} params")
    assert grower.state_dict()["skip"] == [narrowest.blocks[-1].name]
    run(grower, optimizer, "residual")
    assert grower.history[-1]["num_params"] <= least - 1


def test_ignored_modules_keep_their_size() -> None:
    _model, optimizer, grower = begun("residual", ignore=("layer1.0", "layer3.1.conv1"), seed_style="small")
    run(grower, optimizer, "residual")
    for record in grower.history:
        widths = record["widths"]
        assert (widths["conv1"], widths["layer1.0.conv1"], widths["layer3.1.conv1"]) == (8, 8, 32)
        assert not {"layer1.0", "layer3.1"} & set(record["skipped"])
    assert 0.495 <= grower.history[-1]["macs_fraction"] <= 0.501


def closed(model: nn.Module, block: str) -> torch.optim.Optimizer:
    """Close the gate of a block for good: its last norm is zero and learns at a rate of zero."""
    last = [*model.get_submodule(f"{block}.bn2").parameters()]
    with torch.no_grad():
        for parameter in last:
            parameter.zero_()
    rest = [p for p in model.parameters() if all(p is not q for q in last)]
    return torch.optim.SGD([{"params": rest}, {"params": last, "lr": 0.0}], lr=0.05, momentum=0.9)


def test_a_block_whose_gate_is_closed_leaves_and_the_budget_is_met() -> None:
    model = built("residual")
    optimizer = closed(model, "layer3.1")
    grower = grown("residual", model, optimizer, budget="30% macs", growth_end=0.8)
    run(grower, optimizer, "residual")
    assert [r["skipped"] for r in grower.history[:2]] == [[], []]  # no block is judged by its first interval
    first, after = grower.history[1:3]
    assert "layer3.1" in after["skipped"]
    assert "layer3.1.conv1" in first["widths"]
    assert "layer3.1.conv1" not in after["widths"]  # it left with its block
    assert first["blocks_left"].keys() == set(after["skipped"])  # at the end of that epoch, for what they were worth
    assert first["blocks_left"]["layer3.1"] == first["worth"]["layer3.1"] < -1
    assert 0.297 <= grower.history[-1]["macs_fraction"] <= 0.3006


def test_blocks_stay_where_they_shall_whatever_they_are_worth() -> None:
    for options in ({"grow_depth": False}, {"ignore": ("layer3.1.conv1",)}):
        model = built("residual")
        optimizer = closed(model, "layer3.1")
        grower = run(grown("residual", model, optimizer, growth_end=0.8, **options), optimizer, "residual")
        assert all("layer3.1" not in r["skipped"] for r in grower.history)


def test_a_block_that_nobody_trains_is_not_judged() -> None:
    """Its gate has no gradient, which does not mean that it is worth nothing."""
    model = built("residual")
    model.get_submodule("layer3.1").requires_grad_(False)
    optimizer = sgd(model)
    grower = run(grown("residual", model, optimizer, growth_end=0.8), optimizer, "residual")
    assert all("layer3.1" not in r["skipped"] for r in grower.history)


def test_streams_grow_where_inner_widths_cannot_use_up_the_budget() -> None:
    """A network of streams only."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 150), nn.Linear(5, 150), nn.Linear(150, 150)
            self.fc = nn.Linear(150, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x) + self.b(x))
            return self.fc(torch.relu(y + self.c(y)))

    model = Stream()
    assert {g.role for g in trace(model, torch.zeros(1, 5)).groups} == {"stream"}
    grower = Grower(model, sgd(model), torch.zeros(1, 5), "50% macs", epochs=4)
    for _ in range(4):
        grower.end_epoch()
    assert grower.history[0]["macs_fraction"] < 0.13
    assert 0.495 <= grower.history[-1]["macs_fraction"] <= 0.501


# ---- the end, and misuse ---------------------------------------------------------------------------------------------


def test_a_finished_grower_refuses_everything() -> None:
    _, _, grower = begun("mlp")
    state = grower.state_dict()
    with pytest.warns(UserWarning, match=r"finish\(\) after 0 of 6 epochs, .* 2\d\.\d% of what the budget 50% macs"):
        grower.finish()
    for call in (grower.end_epoch, grower.end_step, grower.state_dict):
        with pytest.raises(ConfigError, match="has finished"):
            call()
    with pytest.raises(ConfigError, match="has finished"):
        grower.load_state_dict(state)


def test_epochs_beyond_the_plan_change_nothing() -> None:
    model = built("mlp")
    optimizer = sgd(model)
    grower = run(grown("mlp", model, optimizer), optimizer, "mlp")
    widths = grower.history[-1]["widths"]
    with pytest.warns(UserWarning, match="end_epoch was called 7 times, .* made with epochs=6") as warned:
        run(grower, optimizer, "mlp", 6, 9)
    assert len(warned) == 1
    assert len(grower.history) == 9
    assert grower.history[-1]["widths"] == widths


def test_nothing_random_outside_is_touched() -> None:
    model = built("residual")
    before = torch.get_rng_state()
    grower = Grower(model, sgd(model), example("residual"), Budget("50% macs"), 4, utility="random")
    grower.end_epoch()
    grower.state_dict()
    assert torch.equal(torch.get_rng_state(), before)


def test_growing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy problem is learnt from seed to end: the loss falls well below where it started."""
    torch.manual_seed(1)
    x = torch.randn(256, 6)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    grower = Grower(model, optimizer, x[:1], "40% macs", epochs=10)
    losses = []
    for _ in range(10):
        for i in range(8):
            loss = nn.functional.cross_entropy(model(x[i::8]), y[i::8])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        grower.end_epoch()
        losses.append(nn.functional.cross_entropy(model(x), y).item())
    grower.finish()
    assert losses[-1] < 0.3 < 0.6 < losses[0]
