"""Loops that are a little unusual, or wrong: they work, or say what is wrong; nothing is half done."""

from __future__ import annotations

import copy
import pkgutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import apical
from apical import Grower
from apical.baselines import L1, Comparator, Taylor, Uniform
from apical.errors import CheckpointError, ConfigError, DataError, ResizeError, TrainingError
from apical.growth import ScsConfig
from apical.resizing._undisturbed import undisturbed
from growth.cases import begun, built, example, grown, loss_of, run, sgd, step, structure_of


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def known(state: dict[str, Any]) -> str:
    """All of a growth state but the dormant weights: those of units that were to be born have been prepared already."""
    return str({name: value for name, value in state.items() if name != "store"})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


# ---- optimizers that do not train the network ----------------------------------------------------------------------


def test_parameters_that_no_optimizer_holds_are_named() -> None:
    model = built("mlp")
    with pytest.warns(UserWarning, match=r"2 parameters .* no optimizer .*: 4\.weight, 4\.bias\. .*=\[a, b\]"):
        grown("mlp", model, SGD([*model[0].parameters(), *model[2].parameters()], 0.1))


def test_frozen_parameters_need_no_optimizer(recwarn: pytest.WarningsRecorder) -> None:
    model = built("mlp")
    model[4].requires_grad_(False)
    grown("mlp", model, SGD([*model[0].parameters(), *model[2].parameters()], 0.1))
    assert not recwarn.list


def test_an_optimizer_made_after_the_grower_is_noticed_in_the_first_epoch() -> None:
    model, _, grower = begun("mlp")
    late = sgd(model)
    step(model, late, "mlp", 0)
    with pytest.warns(UserWarning, match=r"\(SGD\) has not stepped.* made after the Grower"):
        grower.end_epoch()


def test_all_optimizers_that_were_passed_count(recwarn: pytest.WarningsRecorder) -> None:
    model = built("mlp")
    optimizers = [SGD(model[0].parameters(), 0.1), SGD([*model[2].parameters(), *model[4].parameters()], 0.1)]
    grower = grown("mlp", model, optimizers)
    loss_of(model, "mlp", 0).backward()
    optimizers[1].step()
    grower.end_epoch()
    assert not recwarn.list


def test_steps_that_are_never_told_are_an_error() -> None:
    model, optimizer, grower = begun("mlp", interval_unit="steps", steps_per_epoch=3)
    step(model, optimizer, "mlp", 0)
    with pytest.raises(ConfigError, match=r"without any end_step: .* call grower\.end_step\(\)"):
        grower.end_epoch()
    grower.end_step()
    assert grower.end_epoch()["epoch"] == 0


def test_a_model_that_was_moved_to_where_it_has_no_values() -> None:
    model = built("mlp")
    optimizer = sgd(model)
    grower = grown("mlp", model, optimizer)
    step(model, optimizer, "mlp", 0)
    model.to("meta")
    with pytest.raises(TrainingError, match=r"0\.weight is on the meta device"):
        grower.end_epoch()
    assert grower.epoch == 0


# ---- frozen readers ------------------------------------------------------------------------------------------------


def test_a_newborn_that_a_frozen_layer_reads_is_read() -> None:
    """Its outgoing weights stay what they were: were they zero, nothing would change them, or reach the newborn."""
    model = built("mlp")
    model[4].requires_grad_(False)
    before = weights(model[4])
    optimizer = sgd(model)
    grower = run(grown("mlp", model, optimizer), optimizer, "mlp")
    kept = {name: torch.tensor(units) for name, units in grower.keep.items()}
    columns = next(units for units in kept.values() if len(units) == model[4].in_features)
    assert len(columns) > 0.5 * 48 * 0.5
    assert torch.equal(model[4].weight, before["weight"][:, columns])
    loss_of(model, "mlp", 0).backward()
    assert (model[2].weight.grad.abs().sum(1) > 0).all()


def test_a_layer_that_is_unfrozen_later_gets_births_that_preserve_the_function() -> None:
    model = built("mlp")
    model[4].requires_grad_(False)
    optimizer = sgd(model)
    grower = grown("mlp", model, optimizer, epochs=12)
    run(grower, optimizer, "mlp", 0, 1)
    model[4].requires_grad_(True)
    x = torch.randn(8, 6)
    step(model, optimizer, "mlp", 99)
    before = model(x)
    grower.end_epoch()
    assert grower.history[-1]["born"] > 0
    torch.testing.assert_close(model(x), before)


# ---- all or nothing ------------------------------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "utilities": {}, "chance": {"utility": "random"}, "scs": {"config": ScsConfig(seed=2)},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_a_restructuring_that_failed_can_be_repeated(unit: str, way: dict[str, Any]) -> None:
    """A hook on a parameter is refused; without it the same call goes on as if nothing had been."""
    records: list[Any] = []
    final: list[dict[str, Tensor]] = []
    for hooked in (False, True):
        model = built("mlp")
        optimizer = sgd(model)
        options = {"epochs": 4, "growth_end": 0.5, "interval_unit": unit, "interval": 1, **way}
        grower = grown("mlp", model, optimizer, steps_per_epoch=1, **options)
        for epoch in range(4):
            step(model, optimizer, "mlp", epoch)
            ends = [grower.end_step, grower.end_epoch] if unit == "steps" else [grower.end_epoch]
            for end in ends:
                if hooked and not grower.frozen and end is ends[0]:
                    hook = model[0].weight.register_hook(lambda gradient: gradient)
                    state = grower.state_dict()
                    with pytest.raises(ResizeError, match=r"0\.weight has hooks"):
                        end()
                    assert known(grower.state_dict()) == known(state)
                    hook.remove()
                end()
        records.append([{k: v for k, v in r.items() if "seconds" not in k} for r in grower.history])
        final.append(weights(model))
    assert records[0] == records[1]
    assert len(records[0]) == 4
    assert same(*final)


@pytest.mark.parametrize(
    ("way", "point"),
    [*(("grown", f"apical.growth.{name}") for name in (
        "_grower.epoch_record", "_growing_model.resize_", "_restructuring.Restructuring.watch",
        "_grower.warn_of_more_epochs")), ("l1", "apical.baselines._subject.Subject.resize_")],
)  # fmt: skip
def test_ctrl_c_within_end_epoch_waits_for_its_end(way: str, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the cell of a notebook can be run again: the epoch counts as a whole, whenever the signal came."""
    function = pkgutil.resolve_name(point)

    def interrupted(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return function(*args, **options)

    records: list[Any] = []
    final: list[dict[str, Tensor]] = []
    for disturbed in (False, True):
        model = built("mlp")
        optimizer = sgd(model)
        method = (
            grown("mlp", model, optimizer, epochs=4)
            if way == "grown"
            else Comparator(L1(prune_at=0.25), model, optimizer, example("mlp"), "50% macs", 4)
        )
        records.append([])
        for epoch in range(4):
            step(model, optimizer, "mlp", epoch)
            with monkeypatch.context() as patch:
                if disturbed and epoch == 0:
                    patch.setattr(point, interrupted)
                    with pytest.raises(KeyboardInterrupt):
                        method.end_epoch()
                else:
                    records[-1].append({k: v for k, v in method.end_epoch().items() if "seconds" not in k})
        final.append(weights(model))
    assert records[0][1:] == records[1]
    assert same(*final)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("rule", [L1(prune_at=0.25), Taylor()])
def test_a_model_that_was_resized_behind_its_comparator_is_refused_by_name(rule: Any) -> None:
    model = built("mlp")
    optimizer = sgd(model)
    method = Comparator(rule, model, optimizer, example("mlp"), "50% macs", 4, structure=structure_of("mlp"))
    apical.resize_(model, structure_of("mlp"), {"0": [0, 1]}, optimizer=optimizer)
    with pytest.raises(ResizeError, match=r"0\.weight has shape \(2, 6\), expected \(64, 6\).*Only its comparator"):
        method.end_epoch()


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached: list[str] = []

    @undisturbed()
    def call() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("once")
        signal.raise_signal(signal.SIGINT)
        reached.append("twice")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert reached == ["once"]


@pytest.mark.parametrize(
    ("way", "entry"),
    [*((way, entry) for way in WAYS for entry in ("components", "spent", "generator")),
     *(("utilities", entry) for entry in ("widths", "multipliers", "relative")), ("scs", "beta")],
)  # fmt: skip
def test_an_incomplete_state_changes_nothing(way: str, entry: str) -> None:
    model, other = built("mlp"), built("mlp")
    optimizer = sgd(model)
    state = run(grown("mlp", model, optimizer, **WAYS[way]), optimizer, "mlp", 0, 3).state_dict()
    grower = grown("mlp", other, sgd(other), **WAYS[way])
    before = weights(other)
    with pytest.raises(CheckpointError, match=f"incomplete: {entry} is missing"):
        grower.load_state_dict({k: v for k, v in state.items() if k != entry})
    assert same(weights(other), before)


class Moved(Tensor):
    """Stands for a tensor that torch.load mapped to a GPU: it can be used once it has been brought back."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("cpu", "to"):
            return super().__torch_function__(function, types, args, kwargs or {}).as_subclass(Tensor)
        if name == "__get__" and function.__self__.__name__ in ("shape", "is_meta"):  # known without its numbers
            return super().__torch_function__(function, types, args, kwargs or {})
        raise RuntimeError(f"{name} of a tensor on another device")


@pytest.mark.parametrize(("way", "entries"), [("utilities", ("generator", "widths")), ("scs", ("generator", "beta"))])
def test_a_state_that_was_mapped_to_another_device_is_brought_back(way: str, entries: tuple[str, ...]) -> None:
    model, other = built("mlp"), built("mlp")
    optimizer = sgd(model)
    first = run(grown("mlp", model, optimizer, **WAYS[way]), optimizer, "mlp", 0, 3)
    state = first.state_dict()
    for name in entries:
        state[name] = state[name].as_subclass(Moved)
    second = grown("mlp", other, sgd(other), **WAYS[way])
    second.load_state_dict(state)
    model.zero_grad()
    assert [first.end_epoch()["widths"] for _ in range(3)] == [second.end_epoch()["widths"] for _ in range(3)]


class OwnLBFGS(torch.optim.LBFGS):
    """Known by what it derives from."""


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS, OwnLBFGS])
def test_an_optimizer_that_is_known_not_to_be_resizable_is_refused_at_construction(kind: type[Optimizer]) -> None:
    model = built("mlp")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ResizeError, match=f"{kind.__name__} keeps .*a Grower cannot"):
        grown("mlp", model, kind(model.parameters()))
    with pytest.raises(ResizeError, match=f"{kind.__name__} keeps .*a Grower cannot"):
        Comparator(L1(), model, kind(model.parameters()), torch.zeros(1, 8), "50% macs", 6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)), "nothing has shrunk"


class SharpnessAware(Optimizer):
    """As SAM is usually written: it moves the weights uphill, and steps through another optimizer from there."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old_p"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.01)

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["old_p"])
        self.base_optimizer.step()


def test_of_an_optimizer_that_steps_through_another_the_inner_one_is_asked_for() -> None:
    model = built("mlp")
    sam = SharpnessAware(model.parameters(), lr=0.05, momentum=0.9)
    message = r"its base_optimizer \(SGD\).*optimizer=sharpnessaware\.base_optimizer"
    with pytest.raises(ResizeError, match=message):
        grown("mlp", model, sam)
    with pytest.raises(ResizeError, match=message):
        apical.resize_(model, apical.trace(model, torch.zeros(1, 6)), {}, optimizer=sam)
    grower = grown("mlp", model, sam.base_optimizer)
    for _ in range(3):
        for take in (sam.first_step, sam.second_step):
            sam.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            take()
        assert grower.end_epoch()["worth"], "the gradients that the step used were read"
        assert all("momentum_buffer" in sam.base_optimizer.state[p] for p in model.parameters())


class RowMeans(Optimizer):
    """An optimizer that nobody knows, with state of another shape than its parameter's."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"rows": torch.zeros(parameter.shape[0], 2)}


class Histories(RowMeans):
    """Likewise, with a history over all parameters."""

    def step(self, closure: Any = None) -> None:
        self.state[self.param_groups[0]["params"][0]] = {"past": [torch.zeros(3)]}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (RowMeans, "RowMeans keeps 'rows' for 0.weight as a tensor of shape"),
        (Histories, "Histories keeps 'past' as a history over all parameters"),
    ],
)
def test_an_unknown_optimizer_that_cannot_be_resized_is_refused_after_its_first_step(
    kind: type[RowMeans], message: str
) -> None:
    model = built("mlp")
    optimizer = kind(model.parameters())
    grown("mlp", model, optimizer)
    loss_of(model, "mlp", 0).backward()
    with pytest.raises(ResizeError, match=f"{message}.*a Grower cannot"):
        optimizer.step()


# ---- the end -------------------------------------------------------------------------------------------------------


def test_an_optimizer_is_left_as_it_was(recwarn: pytest.WarningsRecorder) -> None:
    model = built("mlp")
    optimizer = sgd(model)
    grower = run(grown("mlp", model, optimizer), optimizer, "mlp")
    assert optimizer._optimizer_step_pre_hooks
    grower.finish()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not recwarn.list


def test_an_epoch_may_end_in_inference_mode() -> None:
    model = built("mlp")
    optimizer = sgd(model)
    grower: Grower = grown("mlp", model, optimizer)
    for epoch in range(6):
        step(model, optimizer, "mlp", epoch)
        with torch.inference_mode():
            grower.end_epoch()
    grower.finish()
    assert not any(p.is_inference() for p in model.parameters())
    step(model, optimizer, "mlp", 9)


def test_a_layer_that_was_replaced_is_told_once_and_can_be_added() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = Grower(model, optimizer, torch.zeros(1, 4), "50% macs", 6)
    inputs, labels = torch.randn(32, 4), torch.randint(3, (32,))

    def epoch() -> None:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        grower.end_epoch()

    epoch()
    model[2] = nn.Linear(model[2].in_features, 3)
    with pytest.warns(UserWarning, match=r"2\.weight, 2\.bias.*not trained.*extend"):
        epoch()
    epoch()  # told once
    optimizer.param_groups[0]["params"].extend(model[2].parameters())
    before = model[2].bias.detach().clone()
    epoch()
    assert not torch.equal(model[2].bias, before)


def shrunk_by(way: str, model: nn.Sequential, folder: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if way == "grower":
        Grower(model, optimizer, torch.zeros(1, 4), "50% macs", 6)
    elif way == "comparator":
        Comparator(Uniform(), model, optimizer, torch.zeros(1, 4), "50% macs", 6)
    else:
        other = copy.deepcopy(model)
        apical.resize_(other, apical.trace(other, torch.zeros(1, 4)), {"0": range(5)})
        apical.save(other, folder)
        apical.load(model, folder)


@pytest.mark.parametrize("way", ["grower", "comparator", "load"])
@pytest.mark.parametrize("kind", ["grower", "comparator"])
def test_a_model_that_is_already_small_is_not_taken_for_the_largest(way: str, kind: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    whole = apical.trace(model, torch.zeros(1, 4))
    shrunk_by(way, model, tmp_path)
    sizes = [p.shape for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def again(structure: apical.Structure | None = None) -> Any:
        if kind == "grower":
            return Grower(model, optimizer, torch.zeros(1, 4), "50% macs", 6, structure=structure)
        return Comparator(Uniform(), model, optimizer, torch.zeros(1, 4), "50% macs", 6, structure=structure)

    with pytest.raises(ConfigError, match=r"already shrunk.*anew.*structure="):
        again()
    with pytest.raises(ResizeError, match=r"does not fit the structure.*present size"):
        again(whole)
    assert [p.shape for p in model.parameters()] == sizes
    structure = apical.trace(model, torch.zeros(1, 4))
    assert again(structure).structure is structure


def test_a_whole_model_that_was_loaded_may_be_the_largest(tmp_path: Path) -> None:
    apical.save(built("mlp"), tmp_path)
    model = apical.load(built("mlp"), tmp_path)
    Grower(model, sgd(model), example("mlp"), "50% macs", 6)


@pytest.mark.parametrize("how", ["batch norm", "optimizer"])
def test_a_trained_model_is_not_shrunk_without_a_word(how: str) -> None:
    norm: nn.Module = nn.BatchNorm1d(64) if how == "batch norm" else nn.Identity()
    model = nn.Sequential(nn.Linear(4, 64), norm, nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    if how == "batch norm":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=f"have been trained .*{how.split()[0]}.*pretrained.*seed_fraction=1"):
        Grower(model, optimizer, torch.zeros(2, 4), "50% macs", 6)


@pytest.mark.parametrize(
    ("capability", "divisor", "warned"),
    [("AVX2", 1, True), ("AVX2", 8, False), ("AVX512", 8, True), ("AVX512", 16, True), ("DEFAULT", 1, False)],
)
def test_layers_that_damage_memory_in_channels_last_order_are_named(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capability: str, divisor: int, warned: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    )
    model.to(memory_format=torch.channels_last)
    Grower(model, sgd(model), torch.zeros(1, 3, 8, 8), "50% macs", 3, divisor=divisor)
    told = [str(w.message) for w in recwarn if "channels-last" in str(w.message)]
    assert len(told) == warned
    assert all("(2)" in text for text in told), told


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"copies": [1]}, r"a copy of the model must be a torch\.nn\.Module, got 1"),
        ({"copies": "ema"}, r"copies must be a list of modules, got 'ema'"),
        ({"copies": None}, r"copies must be a list of modules, got None"),
        ({"copies": nn.Linear(1, 1)}, r"write copies=\[…\] around it"),
        ({"structure": "structure.json"}, r"structure must be the Structure .*got 'structure\.json'"),
        ({"shard": 1}, "shard must be a function"),
        ({"epochs": 10**30}, r"epochs makes the training too long, expected at most 9223372036854775807 epochs"),
        ({"bits": 8}, r"bits must be an apical\.growth\.BitConfig, got 8"),
    ],
)  # fmt: skip
def test_arguments_of_another_type_are_refused_in_words(arguments: dict[str, Any], match: str) -> None:
    model = built("mlp")
    with pytest.raises(ConfigError, match=match):
        grown("mlp", model, sgd(model), **arguments)
    if "copies" in arguments or "structure" in arguments:
        with pytest.raises(ConfigError, match=match):
            Comparator(Uniform(), model, sgd(model), example("mlp"), "50% macs", 6, **arguments)


@pytest.mark.parametrize("other", [None, "ema", 3])
def test_only_a_module_is_added_as_a_copy(other: Any) -> None:
    with pytest.raises(ConfigError, match=r"a copy of the model must be a torch\.nn\.Module"):
        begun("mlp")[2].add_copy(other)


def test_a_metric_of_any_size() -> None:
    with pytest.raises(ConfigError, match="metrics must be finite numbers"):
        begun("mlp")[2].end_epoch({"loss": 10**400})


def test_a_model_that_can_never_be_trained() -> None:
    with torch.inference_mode():
        model = built("mlp")
    with pytest.raises(ConfigError, match=r"0\.weight was made under torch\.inference_mode"):
        grown("mlp", model, sgd(model))


def test_weights_that_come_to_be_shared_or_apart() -> None:
    """A resize would make two of one weight, or one of two, without a word."""

    def three() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))

    model = three()
    structure = apical.trace(model, torch.zeros(1, 4))
    model[4].weight = model[2].weight
    with pytest.raises(ResizeError, match=r"4\.weight shares its weight with 2\.weight since it was traced"):
        apical.resize_(model, structure, {"0": range(4)})
    tied = apical.trace(model, torch.zeros(1, 4))
    twin = copy.deepcopy(model)
    twin[4].weight = nn.Parameter(model[2].weight.detach().clone())
    with pytest.raises(ResizeError, match=r"4\.weight does not share its weight with 2\.weight any more"):
        apical.resize_(twin, tied, {"0": range(4)})
    apical.resize_(model, tied, {"0": range(4)})
    assert model[4].weight is model[2].weight


@pytest.mark.parametrize("loaded", [True, False])
def test_weights_that_are_not_loaded_after_the_state_are_told(loaded: bool) -> None:
    model, optimizer, grower = begun("mlp")
    run(grower, optimizer, "mlp", 0, 3)
    model.load_state_dict(model.state_dict())
    grower.load_state_dict(grower.state_dict())  # of the network that is there, so that its weights may be, too
    step(model, optimizer, "mlp", 0)
    other, others, resumed = begun("mlp")
    resumed.load_state_dict(grower.state_dict())
    if loaded:
        other.load_state_dict(model.state_dict())
        step(other, others, "mlp", 0)
        return
    with pytest.warns(UserWarning, match="weights were not loaded after it") as told:
        step(other, others, "mlp", 0)
    assert told[0].filename.endswith("cases.py"), "the line that steps is shown"
    step(other, others, "mlp", 1)  # told once


@pytest.mark.parametrize("path", [3, None, b"x"])
def test_a_report_is_written_to_a_path(path: Any) -> None:
    with pytest.raises(DataError, match="path must be a path, such as 'runs/a', got"):
        begun("mlp")[2].report(path)


@pytest.mark.parametrize("changed", [{"epoch": 3}, {"history": {}}, {"history": [{}]}, {"epoch": "0"}])
def test_a_state_without_a_record_of_each_epoch_changes_nothing(changed: dict[str, Any]) -> None:
    model, _, grower = begun("mlp")
    before = weights(model)
    with pytest.raises(CheckpointError, match="no list of one record for each of its epochs"):
        grower.load_state_dict(grower.state_dict() | changed)
    assert same(weights(model), before)
