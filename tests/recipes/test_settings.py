"""Recipes are complete and typed; settings change them with the types' errors."""

from __future__ import annotations

import dataclasses
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apical.errors import ApicalError, BudgetError, ConfigError
from apical.recipes import RunConfig, apply_settings, get_recipe, recipes, register_recipe
from apical.recipes._settings import reproducing_command, setting_types, split_options
from apical.runs import register_method
from apical.runs._compare import _command

NAMES = {
    "digits",
    "fashion-mnist",
    "ptb-lstm-large",
    "ptb-lstm-small",
    "wikitext2-lstm",
    "gpt-bytes",
    "gpt-wikitext2",
    "vit-cifar10",
    "cifar10-resnet20",
    "cifar10-vgg16",
    "cifar10-wrn28-10",
    "cifar10-resnet56",
    "imagenet-resnet50",
    "imagenet-mobilenetv1",
    "folder",
    "voc-deeplabv3-resnet101",
    "voc-deeplabv3-resnet50",
    "camvid-deeplabv3-small",
}


def test_the_recipes_that_are_promised_exist() -> None:
    assert set(recipes()) == NAMES
    assert all(get_recipe(name).recipe == name for name in NAMES)
    assert all(len(line) < 120 and line.endswith(".") for line in recipes().values())


def test_settings_are_typed_and_found_by_their_end() -> None:
    changed = apply_settings(
        get_recipe("digits"),
        [
            "lr=0.02",
            "training.batch_size=32",
            "clip_grad_norm=1",
            "ema_decay=none",
            "flip=yes",
            "milestones=10,20",
            "schedule.name=step",
            "growth.divisor=8",
            "growth.ignore=fc,conv1",
            "model.width=8",
            "budget=30% macs",
            "method=uniform",
        ],
    )
    assert changed.training.optimizer.lr == 0.02
    assert changed.training.batch_size == 32
    assert changed.training.clip_grad_norm == 1
    assert changed.training.ema_decay is None
    assert changed.data.flip is True
    assert changed.training.schedule.milestones == (10, 20)
    assert changed.growth.divisor == 8
    assert changed.growth.ignore == ("fc", "conv1")
    assert changed.model.options == {"depth": 14, "width": 8}
    assert (changed.budget, changed.method) == ("30% macs", "uniform")


def test_epochs_move_the_schedule_and_seed_reaches_growth() -> None:
    recipe = get_recipe("imagenet-resnet50")
    changed = apply_settings(recipe, ["warmup_epochs=2", "seed=7", "epochs=9"])
    assert changed.training.schedule.warmup_epochs == 2
    assert apply_settings(recipe, ["epochs=9"]).training.schedule.warmup_epochs == pytest.approx(0.5)
    assert (changed.training.seed, changed.growth.seed) == (7, 7)
    assert apply_settings(recipe, ["growth.seed=3"]).training.seed == recipe.training.seed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=abc", r"training\.optimizer\.lr=abc: expected a number, got 'abc'"),
        ("epochs=1.5", r"expected a whole number, got '1.5'"),
        ("epochs=0", "expected at least 1"),
        ("flip=maybe", "expected true or false"),
        ("limit=many", "expected a whole number or none"),
        ("milestones=1,x", "expected whole numbers with commas between"),
        ("amp=fp8", "expected 'none' or 'bfloat16' or 'float16'"),
        ("growth.utility=taste", "expected 'squared' or 'random'"),
        ("name=sgd", r"several settings are called so: .*training\.optimizer\.name, training\.schedule\.name"),
        ("batchsize=3", r"no such setting; did you mean 'batch_size'\?"),
        ("training.lr=3", "no such setting; did you mean"),
        ("recipe=other", "no such setting"),
        ("lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("lr=-1", "lr=-1.0, expected a positive number"),
        ("crop_scale=2", r"crop_scale=2.0, expected a number in \(0, 1\]"),
        ("validation_fraction=1", r"expected a number in \[0, 1\)"),
        ("resize=8", "expected at least image_size"),
        ("growth.growth_end=0", r"growth_end must be in \(0, 1\]"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_settings(get_recipe("digits"), [setting])


@pytest.mark.parametrize(
    "name",
    [
        "data.memory_gb",
        "training.optimizer.lr",
        "training.optimizer.weight_decay",
        "training.schedule.constant_epochs",
        "training.clip_grad_norm",
        "training.process_timeout_s",
        "model.dropout",
        "method.penalty",
    ],
)
def test_what_no_file_can_hold_is_refused_when_it_is_given(name: str) -> None:
    """The config of such a run could not be read back, so the run could not be resumed."""
    stored = name.replace("model.", "model.options.").replace("method.", "method_options.")
    with pytest.raises(ConfigError, match=rf"^{re.escape(stored)}=inf, expected a finite number$"):
        apply_settings(get_recipe("digits"), [f"{name}=inf"])


def test_an_unreadable_budget_is_refused_before_anything_starts() -> None:
    with pytest.raises(BudgetError, match="cannot read the budget 'half'"):
        apply_settings(get_recipe("digits"), ["budget=half"])


@pytest.mark.parametrize(
    "damage",
    [
        {"training": {"epochs": "many"}},
        {"training": {"epoch": 3}},
        {"model": {"nam": "x"}},
        {"model": "resnet20"},
        {"data": {"path": 3}},
        {"growth": {"divisor": 2.5}},
        {"budget": 0.5},
        {"extra": 1},
    ],
)
def test_a_damaged_config_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ApicalError):
        RunConfig.from_mapping({**get_recipe("digits").to_mapping(), **damage})
    with pytest.raises(ConfigError, match="model, data"):
        RunConfig.from_mapping({"recipe": "digits"})


def test_the_reproducing_command_gives_the_config_back() -> None:
    settings = ["lr=0.02", "seed=3", "budget=0.1M params", "model.width=8", "milestones=1,2", "limit=20", "flip=true"]
    config = apply_settings(get_recipe("digits"), settings)
    words = shlex.split(reproducing_command(config, Path("a folder")))
    assert words[:3] == ["apical", "train", "digits"]
    assert words[-2:] == ["--out", "a folder"]
    again = [word for flag, word in pairwise(words) if flag == "--set"]
    assert apply_settings(get_recipe("digits"), again) == config


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
    | st.sampled_from(["7", "007", "1e3", "none", "True", "1,2", "[1]", '"', " a ", "", "nan", "it's"])
)  # fmt: skip
JSON = st.recursive(PLAIN, lambda item: st.lists(item, max_size=3) | st.dictionaries(st.text(max_size=3), item))


@given(value=JSON)
@example(value=[200])
@example(value=[1, 2])
@example(value=[])
@example(value=["a", "b"])
def test_every_option_is_in_the_command_with_its_type(value: Any) -> None:
    digits = get_recipe("digits")
    options = dataclasses.replace(digits.model, options={**digits.model.options, "free": value})
    config = dataclasses.replace(digits, model=options, method="slimming", method_options={"free": value})
    again = [w for flag, w in pairwise(shlex.split(reproducing_command(config, "x"))) if flag == "--set"]
    found = apply_settings(digits, again)
    for own in (found.model.options["free"], found.method_options["free"]):
        assert repr(own) == repr(value)
    compared = shlex.split(_command("apical compare", digits, ["l1"], [0], Path("x"), {"l1": {"free": value}}))
    _, options_of = split_options([w for flag, w in pairwise(compared) if flag == "--set"], ["l1"])
    assert repr(options_of) == repr({"l1": {"free": value}})


def test_the_reproducing_command_holds_nothing_that_follows_from_the_length() -> None:
    config = get_recipe("digits").with_epochs(4)
    assert reproducing_command(config, "x") == "apical train digits --set training.epochs=4 --out x"
    own = apply_settings(config, ["warmup_epochs=0.5"])
    assert "--set training.schedule.warmup_epochs=0.5" in reproducing_command(own, "x")
    assert apply_settings(get_recipe("digits"), ["training.epochs=4"]) == config


def test_registering_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="already"):
        register_recipe("digits")(lambda: get_recipe("digits"))
    with pytest.raises(ConfigError, match="already"):
        register_method("dense")(lambda config, example: lambda model, optimizer, copies: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="needs a docstring"):
        register_recipe("undocumented")(lambda: get_recipe("digits"))


def test_every_setting_can_be_written_and_read_back() -> None:
    config = get_recipe("folder")
    command = reproducing_command(config, "x")
    assert command == "apical train folder --out x"
    assert {"training.seed", "growth.divisor", "data.path", "method"} <= set(setting_types(get_recipe("digits")))
