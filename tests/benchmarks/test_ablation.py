"""What the ablation adds to growth does what it says, and its runs are kept, resumed and tabulated."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical import Grower
from apical.growth import ScsConfig
from apical.resizing import lookup
from apical.structure import lies_in
from growth.cases import built, grown, loss_of, sgd

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of benchmarks/, whose imports look beside it, as when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


variants, ablation = script("_variants"), script("ablation")


def prepared(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Grower]:
    """A small residual network in float64 that has just been seeded."""
    model = built("residual").double()
    optimizer = sgd(model, **options.pop("sgd", {}))
    defaults = {"growth_end": 0.75} | ({} if "config" in options else {"seed_style": "thin"})
    return model, optimizer, grown("residual", model, optimizer, **(defaults | options))


def double_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    loss = loss_of(model, "residual", seed, torch.float64)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ---- newborns --------------------------------------------------------------------------------------------------------


def inner(grower: Grower) -> list[Any]:
    """The inner groups of the blocks that are present."""
    skip = grower.state_dict()["skip"]
    return [g for g in grower.structure.groups if g.role == "inner" and not any(lies_in(g.name, b) for b in skip)]


def birthdays(grower: Grower, epochs: dict[tuple[str, int], int], epoch: int) -> None:
    """Note the epoch in which each unit of an inner group is first seen."""
    for group in grower.structure.groups:
        if group.role == "inner":
            for unit in grower.keep[group.name]:
                epochs.setdefault((group.name, unit), epoch)


def test_newborns_step_twice_as_far_for_two_epochs_and_all_else_as_before() -> None:
    lr, decay = 0.05, 1e-4
    model, optimizer, grower = prepared(sgd={"momentum": 0.0})
    addition = variants.NewbornRate(grower, optimizer)
    born: dict[tuple[str, int], int] = {}
    doubled = set()
    for epoch in range(6):
        birthdays(grower, born, epoch)
        for i in range(2):
            old = {name: p.detach().clone() for name, p in model.named_parameters()}
            double_step(model, optimizer, 10 * epoch + i)
            for group in inner(grower):
                path = group.name.removesuffix("conv1")
                young = [born[group.name, u] > 0 and epoch - born[group.name, u] < 2 for u in grower.keep[group.name]]
                factor = 1 + torch.tensor(young, dtype=torch.float64)
                doubled |= {(epoch, any(young))}
                for name, shape in (("conv1", (-1, 1, 1, 1)), ("bn1", (-1,)), ("conv2", (1, -1, 1, 1))):
                    parameter, before = lookup(model, f"{path}{name}.weight"), old[f"{path}{name}.weight"]
                    expected = before - lr * factor.reshape(shape) * (parameter.grad + decay * before)
                    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)
            stem = lookup(model, "conv1.weight")
            torch.testing.assert_close(stem.detach(), old["conv1.weight"] * (1 - lr * decay) - lr * stem.grad)
        grower.end_epoch()
        addition.restructured()
    assert (0, True) not in doubled  # the seed is not newborn
    assert (2, True) in doubled
    addition.finish()
    assert len(optimizer._optimizer_step_pre_hooks) == 1  # the Grower's own
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_newborn_blocks_step_twice_as_far_as_a_whole() -> None:
    model, optimizer, grower = prepared(
        config=ScsConfig.random(seed_fraction=0.3), sgd={"momentum": 0.0, "weight_decay": 0.0}
    )
    addition = variants.NewbornRate(grower, optimizer)
    unborn, seen = set(grower.state_dict()["skip"]), False
    for epoch in range(5):
        double_step(model, optimizer, epoch)
        grower.end_epoch()
        addition.restructured()
        now = set(grower.state_dict()["skip"])
        for block in unborn - now:
            old = lookup(model, f"{block}.bn2.bias").detach().clone()
            double_step(model, optimizer, epoch + 100)
            new = lookup(model, f"{block}.bn2.bias")
            torch.testing.assert_close(new.detach(), old - 2 * 0.05 * new.grad, rtol=1e-10, atol=1e-12)
            seen = True
        unborn &= now
    assert seen


def test_newborns_get_the_mean_momentum_of_the_older_units() -> None:
    model, optimizer, grower = prepared()
    method = variants.Extended(grower, variants.NewbornMomentum(grower, optimizer))
    births = 0
    for epoch in range(4):
        before = grower.keep
        double_step(model, optimizer, epoch)
        double_step(model, optimizer, epoch + 50)
        method.end_epoch()
        for group in inner(grower):
            kept = grower.keep[group.name]
            new = [i for i, unit in enumerate(kept) if unit not in before[group.name]]
            old = [i for i, unit in enumerate(kept) if unit in before[group.name]]
            births += len(new)
            path = group.name.removesuffix("conv1")
            for name, dim in (("conv1", 0), ("bn1", 0), ("conv2", 1)):
                buffer = optimizer.state[lookup(model, f"{path}{name}.weight")]["momentum_buffer"].movedim(dim, 0)
                for i in new:
                    torch.testing.assert_close(buffer[i], buffer[old].mean(0))
                assert not new or buffer[old].abs().max() > 0
    assert births > 0


def test_a_unit_of_several_positions_gets_the_mean_at_each() -> None:
    """As where a flatten spreads a channel over pixels."""
    tensor = torch.arange(12.0).reshape(2, 6)
    variants._copy_mean_(tensor, 1, torch.tensor([[0, 1], [4, 5]]), torch.tensor([[2, 3]]))
    assert tensor.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]  # (0+4)/2 and (1+5)/2 were there already
    tensor[:, 2:4] = 0
    variants._copy_mean_(tensor, 1, torch.tensor([[0, 1], [4, 5]]), torch.tensor([[3, 2]]))
    assert tensor.tolist() == [[0, 1, 3, 2, 4, 5], [6, 7, 9, 8, 10, 11]]


# ---- the script ------------------------------------------------------------------------------------------------------


def options(folder: Path, **changes: Any) -> Namespace:
    return Namespace(**{"seeds": [0, 1], "epochs": 2, "out": folder, "depth": 8, "budget": "50% macs"} | changes)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 8, 8, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), torch.randint(10, (256,), generator=generator)


def test_runs_are_kept_with_their_settings_left_alone_and_refused_for_others(tmp_path: Path) -> None:
    names = ["default", "newborn-rate"]
    assert ablation.ablate(images(), names, options(tmp_path, seeds=[0])) == []
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(first) == ["default-seed0.json", "newborn-rate-seed0.json"]
    kept = json.loads(first["newborn-rate-seed0.json"])
    assert kept["settings"]["addition"] == "newborn rate"
    assert kept["settings"]["growth"]["seed"] == 0
    assert len(kept["outcome"]["history"]) == 2
    assert 0 < kept["outcome"]["macs_fraction"] <= 0.501

    assert ablation.ablate(images(), names, options(tmp_path)) == []
    assert {name: (tmp_path / name).read_text() for name in first} == first
    assert len(list(tmp_path.iterdir())) == 4
    table = ablation.report(tmp_path)
    assert (tmp_path / "ablation.md").read_text() == table
    assert [row["pairs"] for row in json.loads((tmp_path / "ablation.json").read_text())] == [2, 2]
    with pytest.raises(SystemExit, match="epochs was 2 and is 3"):
        ablation.ablate(images(), names, options(tmp_path, epochs=3))


def test_every_variant_changes_something_that_growth_knows() -> None:
    configs = {name: (v.config(0), v.addition) for name, v in ablation.VARIANTS.items()}
    assert all(configs[name] != configs["default"] for name in configs if name != "default")
    assert {v.addition for v in ablation.VARIANTS.values() if v.addition} == set(variants.ADDITIONS)


def test_a_variant_that_cannot_run_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    failed = ablation.ablate(images(), ["no-depth"], options(tmp_path, seeds=[0], budget="0.1% macs"))
    assert len(failed) == 1
    assert failed[0].startswith("no-depth, seed 0: ")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_taken_seed_by_seed_over_the_seeds_that_both_have() -> None:
    measures = dict.fromkeys(ablation.MEASURES, 1.0)
    runs = {
        "default": {0: {"accuracy": 0.70, **measures}, 1: {"accuracy": 0.72, **measures}},
        "no-depth": {0: {"accuracy": 0.71, **measures}, 1: {"accuracy": 0.71, **measures},
                     5: {"accuracy": 0.10, **measures}},
    }  # fmt: skip
    default, row = ablation.rows(runs)
    assert default["accuracy"]["mean"] == pytest.approx(71.0)
    assert default["accuracy"]["std"] == pytest.approx(2**0.5)
    assert row["difference"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert row["difference"]["std"] == pytest.approx(2**0.5)
    assert (row["wins"], row["pairs"], row["seeds"]) == (1, 2, [0, 1, 5])
    table = ablation.markdown([default, row])
    assert "71.00 ± 1.41 | – | – |" in table
    assert "| 1 of 2 |" in table
