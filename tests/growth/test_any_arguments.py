"""Any arguments of a `Grower`, and any order of calls: it works, or says what is wrong and leaves the model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from apical import Grower, GrowthConfig, resize_
from apical.baselines import L1, Comparator, Taylor
from apical.errors import ApicalError
from apical.growth import BitConfig, ScsConfig
from growth.cases import built, example, sgd, step, structure_of
from growth.test_options import likes_eights as likes_eights  # a fixture
from growth.test_options import unchanged

pytestmark = pytest.mark.filterwarnings("ignore")
ARGUMENTS = [
    "budget", "epochs", "config", "steps_per_epoch", "copies", "structure", "bits", "example_inputs", "optimizer",
    "seed_style", "seed_fraction", "growth_end", "interval", "interval_unit", "utility", "damping", "max_change",
    "shrinkage", "grow_depth", "streams", "divisor", "min_units", "ignore", "birth", "seed", "scores", "sampling",
    "beta_final", "score_lr", "lambda_base", "nonsense",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, 7, 10**30, 0.0, 0.3, 1.0, 2.5, 1e300, 1e-300, float("nan"), float("inf"), "", "auto",
    "small", "pretrained", "random", "steps", "epochs", "resize", "preserving", "squared", "independent",
    "50% macs", "1% params", "30% size", "50% macs, 20% size", "5% bitops", "nonsense", (), [], {}, (1,), ("0",),
    ["2"], {"a": 1}, b"x", object(), GrowthConfig(divisor=8), GrowthConfig(interval_unit="steps"), ScsConfig(),
    BitConfig(), torch.zeros(2), torch.zeros(8, 6), torch.zeros(8, 6, dtype=torch.float64), torch.zeros(0, 6),
    (torch.zeros(8, 6),) * 2, nn.Linear(2, 2),
]  # fmt: skip
SETTINGS = settings(phases=[Phase.explicit, Phase.generate])


@pytest.mark.attack
@settings(SETTINGS)
@given(given_=st.dictionaries(st.sampled_from(ARGUMENTS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_arguments(likes_eights: list[int], given_: dict[str, Any]) -> None:
    model = built("mlp")
    before, optimizer = copy.deepcopy(model.state_dict()), sgd(model)
    usual = {"optimizer": optimizer, "example_inputs": example("mlp"), "budget": "50% macs", "epochs": 2,
             "structure": structure_of("mlp")}  # fmt: skip
    try:
        grower = Grower(model, **{**usual, **given_})
    except ApicalError:
        assert unchanged(model, before, optimizer)
        return
    with suppress(ApicalError):  # such as steps that are never told
        for epoch in range(2):
            step(model, optimizer, "mlp", epoch)
            grower.end_epoch()
    assert str(grower)
    model(example("mlp"))


def _replace_layer(model: Any, optimizer: Any, method: Any) -> None:
    model[2] = nn.Linear(model[2].in_features, model[2].out_features)


def _shrink(model: Any, optimizer: Any, method: Any) -> None:
    resize_(model, structure_of("mlp"), {"0": [0, 1]})


def _poison(model: Any, optimizer: Any, method: Any) -> None:
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))


ACTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "step": lambda m, o, g: step(m, o, "mlp", 1),
    "end of an epoch": lambda m, o, g: g.end_epoch(),
    "end of a step": lambda m, o, g: g.end_step(),
    "end of a step with a state": lambda m, o, g: g.end_step((torch.zeros(2), "x")),
    "metrics": lambda m, o, g: g.end_epoch({"accuracy": 0.5}),
    "odd metrics": lambda m, o, g: g.end_epoch({3: "x"}),
    "no metrics": lambda m, o, g: g.end_epoch([1]),
    "finish": lambda m, o, g: g.finish(),
    "its own state": lambda m, o, g: g.load_state_dict(g.state_dict()),
    "no state": lambda m, o, g: g.load_state_dict({}),
    "no mapping": lambda m, o, g: g.load_state_dict(None),
    "the state of the model": lambda m, o, g: g.load_state_dict(m.state_dict()),
    "the model's state": lambda m, o, g: m.load_state_dict(copy.deepcopy(m.state_dict())),
    "the optimizer's state": lambda m, o, g: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "a copy": lambda m, o, g: g.add_copy(copy.deepcopy(m)),
    "a copy of another": lambda m, o, g: g.add_copy(built("mlp")),
    "no copy": lambda m, o, g: g.add_copy(None),
    "double": lambda m, o, g: m.double(),
    "float": lambda m, o, g: m.float(),
    "half": lambda m, o, g: m.bfloat16(),
    "frozen": lambda m, o, g: m.requires_grad_(False),
    "thawed": lambda m, o, g: m.requires_grad_(True),
    "eval": lambda m, o, g: m.eval(),
    "a layer replaced": _replace_layer,
    "resized by hand": _shrink,
    "not a number": _poison,
    "hook": lambda m, o, g: m[0].weight.requires_grad and m[0].weight.register_hook(lambda gradient: gradient),
    "weight removed": lambda m, o, g: m[2].register_parameter("bias", None),
    "no gradients": lambda m, o, g: o.zero_grad(),
    "groups emptied": lambda m, o, g: o.param_groups[0].update(params=[]),
    "group added": lambda m, o, g: o.add_param_group({"params": [nn.Parameter(torch.zeros(2))]}),
    "state cleared": lambda m, o, g: o.state.clear(),
    "plan": lambda m, o, g: str(g.plan()),
    "words": lambda m, o, g: repr(g),
    "deep copy": lambda m, o, g: copy.deepcopy((m, o, g)),
    "report": lambda m, o, g: g.report("/dev/full"),
}
OF_A_GROWER = ("plan", "report", "end of a step", "a copy", "no copy", "metrics", "odd metrics", "no metrics")
TORCH = ("step", "the model's state", "the optimizer's state", "a copy of another")  # what torch itself may refuse


@pytest.mark.attack
@pytest.mark.parametrize("way", ["grown", "steps", "bits", "l1", "taylor"])
@settings(SETTINGS, max_examples=settings().max_examples // 2)
@given(names=st.lists(st.sampled_from(sorted(ACTIONS)), min_size=2, max_size=8))
def test_any_order_of_calls(way: str, names: list[str]) -> None:
    model = built("mlp")
    optimizer = sgd(model)
    rule = {"l1": L1(prune_at=0.25), "taylor": Taylor()}.get(way)
    make: Any = Grower if rule is None else partial(Comparator, rule)
    options = {"steps": {"interval_unit": "steps", "steps_per_epoch": 2}}.get(way, {})
    budget = "50% macs, 20% size" if way == "bits" else "50% macs"
    method = make(model, optimizer, example("mlp"), budget, 4, structure=structure_of("mlp"), **options)
    for name in ["step", *names]:
        if rule is not None and name.startswith(OF_A_GROWER):
            continue
        try:
            ACTIONS[name](model, optimizer, method)
        except ApicalError:
            continue
        except (RuntimeError, AttributeError, KeyError):
            if name not in TORCH:
                raise
            return
