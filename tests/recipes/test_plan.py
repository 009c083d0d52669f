"""A plan costs what a real run costs."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from apical.budget import DeviceTable
from apical.cli import main
from apical.cli._plan import _told
from apical.data import TokenStream
from apical.errors import ApicalError, ConfigError
from apical.models import GPT
from apical.recipes import apply_settings, get_recipe, recipes
from apical.resizing import trace
from apical.runs import run
from apical.runs._plan import activation_bytes, data_facts, plan_model, plan_recipe, price
from apical.runs._prices import Conditions
from apical.training import make_progress
from export.test_folder_fuzz import mutations
from marks import slow

TINY = ["data.path=synthetic", "limit=64", "batch_size=16", "epochs=6", "model.depth=8", "model.width=8"]
FACTS: dict[str, Any] = {"classes": [str(i) for i in range(10)], "image_shape": [3, 16, 16]}


@pytest.mark.parametrize("proportions", ["learned", slow("kept")])
def test_the_networks_are_those_of_a_real_run(tmp_path: Path, proportions: str) -> None:
    kept = proportions == "kept"
    options = ["growth.damping=0", "growth.grow_depth=false"] if kept else []
    config = apply_settings(get_recipe("digits"), [*TINY, *options, "growth.interval_unit=epochs"])
    result = run(config, tmp_path, progress=make_progress("quiet"))
    facts = json.loads((tmp_path / "config.json").read_text())["input"]
    found = price(plan_recipe(config, facts), result.history[0]["samples"])
    real = [record["macs"] for record in result.history]
    paper = [record["macs"] for record in found.epochs]
    assert paper == real if kept else paper == pytest.approx(real, rel=0.05)
    fraction = result.summary["train_macs_fraction"]
    assert found.totals["train_macs_fraction"] == pytest.approx(fraction, rel=1e-9 if kept else 0.05)
    if kept:  # else training decides where the units are, which a budget of MACs leaves open
        assert found.epochs[-1]["num_params"] == result.summary["num_params"]


def test_activations_are_counted_as_autograd_keeps_them() -> None:
    """A convolution keeps its input, a ReLU its output; a batch norm its input and two statistics a channel."""
    config = get_recipe("digits")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(256, 10))  # fmt: skip
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = activation_bytes(model, (torch.zeros(1, 3, 8, 8),), config)
    images, maps, logits = 3 * 64 * 4, 4 * 64 * 4, 10 * 4
    assert images + 2 * maps + logits <= found <= images + 2 * maps + 2 * logits + 200
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


COST: dict[str, Any] = {"epoch": 1, "macs": 1_500_000, "num_params": 1000, "activations": 50}


def test_bytes_and_seconds_by_hand() -> None:
    table = DeviceTable("d", "m", 8, ((1e6, 0.1), (2e6, 0.2), (4e6, 0.3)), allreduce_gb_per_s=1e-5)
    terms = Conditions(samples=64, batch_size=16, processes=2, numbers=5, table=table)
    record = terms.record(**COST, dormant=7, at_work=0)
    assert record["memory_bytes"] == 4 * 1000 * 5 + 50 * 8 + 4 * 7
    assert Conditions(64, 16).sent_bytes(1000) == 0
    assert record["step_seconds"] == pytest.approx(0.15)
    assert record["sent_bytes_per_step"] == 4000
    assert record["seconds"] == pytest.approx(4 * (0.15 + 0.4))
    assert [table.step_seconds(macs) for macs in (3e6, 6e6)] == pytest.approx([0.25, 0.4])
    with pytest.raises(ConfigError, match="8 examples a step, a process takes 4"):
        Conditions(64, 16, processes=4, table=table)


def test_bytes_of_a_divided_model_by_hand() -> None:
    """A quarter of everything that is held, and whole what is at work; weights are sent twice, gradients once."""
    terms = Conditions(64, 16, processes=4, numbers=4, sharded=True)
    record = terms.record(**COST, dormant=200, at_work=300)
    assert record["memory_bytes"] == (4 * 1000 * 4 + 800) / 4 + 4 * 300 + 50 * 4
    assert record["sent_bytes_per_step"] == 4 * 3 * 0.75 * 1000


SMALL_GPT = {"vocab_size": 50, "context_length": 8, "embedding_size": 32, "num_heads": 4, "num_layers": 2}


def test_a_model_without_weights_has_the_plan_of_one_with_weights() -> None:
    config = apply_settings(get_recipe("folder"), ["epochs=4", "budget=50% macs", "optimizer.name=adamw"])
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    real = plan_model(config, GPT(**SMALL_GPT), (tokens,))
    with torch.device("meta"):
        paper = plan_model(config, GPT(**SMALL_GPT), (tokens.to("meta"),))
    assert (paper.on_paper, real.on_paper) == (True, False)
    assert paper.plan == real.plan
    assert paper.structure.macs() == real.structure.macs()
    one, other = (price(p, 100, processes=4, memory=True, sharded=True, link_gb_per_s=2) for p in (real, paper))
    assert [e["restructure_bytes"] for e in one.epochs] == [e["restructure_bytes"] for e in other.epochs]
    assert one.epochs[-1]["memory_bytes"] > other.epochs[-1]["memory_bytes"], "activations"


def test_restructurings_of_a_divided_model() -> None:
    """Hidden widths 8, 8, 16: the first network is there from the start, the last is the only one that is new."""
    config = apply_settings(get_recipe("folder"), ["epochs=3", "optimizer.name=adamw"])
    found = plan_model(config, torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)),
                       (torch.zeros(1, 4),))  # fmt: skip
    widths = [e.widths["0"] for e in found.plan.epochs]
    prices = price(found, 100, processes=2, memory=True, sharded=True, link_gb_per_s=1e-3)
    full, of_a_unit, last_bias = 32 * 8, 8, 3
    for before, after, record in zip([widths[0], *widths], widths, prices.epochs, strict=False):
        gathered = 0 if before == after else 3 * (full + of_a_unit * before) + of_a_unit * before
        assert record["restructure_bytes"] == 4 * gathered / 2
        assert record["restructure_seconds"] == record["restructure_bytes"] / 1e6
    assert prices.totals["restructurings"] == sum(a != b for a, b in pairwise(widths)) >= 1
    seed = of_a_unit * widths[0] + last_bias
    assert prices.totals["start_memory_bytes"] == 4 * (full + last_bias + full + seed)
    alone = price(found, 100, processes=2, memory=True)
    assert not any(e["restructure_bytes"] for e in alone.epochs)
    held = 4 * 4 * found.plan.epochs[-1].num_params + 4 * 3 * full
    assert 0 <= alone.epochs[-1]["memory_bytes"] - held <= 50 * 1000, "activations"


KEYS = ["points", "device", "batch_size", "model"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=5,
)  # fmt: skip


TABLE = {"device": "d", "model": "m", "batch_size": 8, "points": [[1e6, 0.01], [3e6, 0.02]], "allreduce_gb_per_s": 1.0}


@pytest.mark.attack
@given(JSON, st.none() | mutations(), st.floats(0, 1e30))
def test_any_json_as_a_table(data: Any, mutate: Callable[[Any], None] | None, macs: float) -> None:
    if mutate is not None:
        data = copy.deepcopy(TABLE)
        mutate(data)
    with contextlib.suppress(ApicalError):
        table = DeviceTable.from_dict(data)
        assert table.step_seconds(macs) >= 0
        assert DeviceTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


SHALLOW = ("CifarResNet", "--kwargs", '{"depth": 8}')


def planned(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["plan", *arguments])


SETTINGS = [part for setting in TINY[2:5] for part in ("--set", setting)]


def test_the_command_for_a_recipe(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    result = planned("digits", *SETTINGS, "--measure", "--device", "cpu", "--write-table", str(table))
    assert result.exit_code == 0, result.output
    for part in ("digits: 50% macs", "1 part cannot change", "fc: reaches", "steps on cpu", "the final network alone"):
        assert part in result.output
    again = planned("digits", *SETTINGS, "--device-table", str(table), "--json")
    content = json.loads(again.output)
    assert len(content["epochs"]) == len(content["prices"]["epochs"]) == 6
    assert content["prices"]["totals"]["seconds_fraction"] > 0
    assert content["prices"]["totals"]["peak_memory_bytes"] is None
    wrong = planned("digits", *SETTINGS[:4], "--model", "resnet20", "--device-table", str(table))
    assert (wrong.exit_code, "holds step times of CifarResNet" in wrong.output) == (2, True)


def test_the_table_shows_what_is_known_in_a_few_rows() -> None:
    lines = planned("digits", *SETTINGS[4:], "--epochs", "50").output.splitlines()
    assert lines[5].split() == ["epoch", "MACs", "%", "parameters"]
    shown = [int(line.split()[0]) for line in lines[6 : lines.index("", 6)]]
    assert (shown[0], shown[-1], len(shown) <= 12) == (1, 50, True)
    assert not any("nan" in line or "-" in line.split() for line in lines)
    assert "minutes: not known; --measure times steps on this machine" in lines


@pytest.mark.parametrize(("seconds", "said"), [(90.0, "90.0 s"), (600.0, "10 min 00 s"), (333_546.0, "92 h 39 min")])
def test_long_plans_are_told_in_hours(seconds: float, said: str) -> None:
    assert _told(seconds) == said


def test_memory_and_traffic_have_columns() -> None:
    more = planned("digits", *SETTINGS, "--memory", "--processes", "2").output
    assert "memory GiB" in more
    assert "sent MB/step" in more


class TwoInputs(torch.nn.Module):
    """Of one's own, with a whole-number argument, and outputs in a tuple."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, width)
        self.hidden, self.head = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, 2)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.hidden(self.embedding(tokens) * scale[..., None]))
        return self.head(hidden), self.head(hidden.flip(1))


def test_the_command_for_a_model_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__name__", "own_model_of_a_test", raising=False)
    monkeypatch.setitem(sys.modules, "own_model_of_a_test", sys.modules[TwoInputs.__module__])
    call = ("own_model_of_a_test:TwoInputs", "--kwargs", '{"width": 12}', "--input", "1x6:int64:10", "--input", "1x6")
    result = planned(*call, "--budget", "60% macs", "--epochs", "4", "--images", "40", "--measure", "--memory",
                     "--set", "batch_size=8", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in ("60% macs, 4 epochs", "step ms", "memory GiB", "40 examples an epoch"):
        assert part in result.output
    missing = planned(*call, "--epochs", "4", "--measure", "--device", "cpu")
    assert (missing.exit_code, "add --images" in missing.output) == (2, True)


def test_the_command_for_a_divided_model_without_weights() -> None:
    call = ["GPT", "--kwargs", json.dumps(SMALL_GPT), "--input", "1x8:int64:50", "--no-weights", "--epochs", "6"]
    result = planned(*call, "--processes", "4", "--shard", "--link-gb-per-s", "0.001")
    assert result.exit_code == 0, result.output
    for part in ("restructure MB", "each process receives", "over the link", "without activations", "no dry run has"):
        assert part in result.output


def test_a_plan_does_not_touch_the_model() -> None:
    config = apply_settings(get_recipe("folder"), ["epochs=3"])
    model = TwoInputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = plan_model(config, model, (torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6)))
    price(found, 10, memory=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    network = found.network(0)
    assert {g.name: g.size for g in trace(network, found.example).groups} == found.plan.epochs[0].widths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder"], "not enough is known of the data ''"),
        (["digits", "--input", "8x8"], "expected one image, 1 x channels x height x width"),
        (["digits", "--input", "3x32x32"], "expected one image, 1 x channels x height x width"),
        (["digits", "--write-table", "t.json"], "add --measure"),
        (["digits", "--device-table", "nowhere.json"], "does not exist"),
        (["digits", "--kwargs", '{"a": 1}'], "write --set model.NAME=VALUE"),
        (["UNet"], "UNet needs an example: add --input"),
        (["resnet20", "--input", "3x32x32"], "the first number of each --input must be 1"),
        (["resnet20", "--input", "1x3x32x32", "--classes", "7"], "--classes belong to a RECIPE"),
        (["digit"], "there is no model or recipe 'digit'; did you mean 'digits'?"),
        (["wikitext2-lstm", "--input", "1x3x32x32"], "as large as --set data.bptt=N says"),
        (["wikitext2-lstm", "--set", "data.path=mine"], "--images (windows) and --classes (size of the vocabulary)"),
        (["camvid-deeplabv3-small", "--input", "1x3x32x32"], "as large as --set data.crop=N says"),
        (["camvid-deeplabv3-small", "--set", "data.path=mine"], "--images 367 --classes 11"),
        ([*SHALLOW, "--budget", "0.001% macs"], "budget"),
        (["resnet20", "--shard"], "add --processes"),
        (["resnet20", "--processes", "2", "--link-gb-per-s", "1"], "add --shard"),
        (["digits", "--no-weights"], "--no-weights is of a MODEL"),
        (["resnet20", "--no-weights", "--measure", "--images", "9"], "--no-weights is of a MODEL"),
        ([*SHALLOW, "--no-weights", "--budget", "2 ms"], "knows MACs and parameters only, got the budget 2 ms"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    result = planned(*arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_texts_and_masks_that_are_described() -> None:
    text = get_recipe("ptb-lstm-small")
    stream = TokenStream(torch.zeros(929_589, dtype=torch.int64), 20, 20, drop_last=True)
    assert data_facts(text) == (20 * len(stream), {"vocab_size": 10_000, "bptt": 20})
    assert data_facts(apply_settings(text, ["data.max_words=500"]))[1]["vocab_size"] == 500
    assert data_facts(apply_settings(text, ["data.unit=bytes"]), 70)[1]["vocab_size"] == 256
    images, facts = data_facts(get_recipe("voc-deeplabv3-resnet50"))
    assert (images, len(facts["classes"]), facts["image_shape"]) == (1_464, 21, [3, 513, 513])


@pytest.mark.parametrize("recipe", sorted(recipes().keys() - {"folder", "gpt-bytes"}))  # these two are for any data
def test_a_recipe_knows_the_data_that_it_is_named_for(recipe: str) -> None:
    number, facts = data_facts(get_recipe(recipe))
    assert number > 0
    assert "vocab_size" in facts or len(facts["classes"]) > 1


@pytest.mark.slow
def test_a_gpt_on_the_usual_text_can_meet_its_budget() -> None:
    # of all 33,278 words its head alone would cost two thirds of the MACs
    result = planned("gpt-wikitext2")
    assert result.exit_code == 0, result.output
    start = float(result.output.split("starts with ")[1].split("%")[0])
    assert 27 < start < 40  # the head and a quarter of what half of the MACs leaves


@pytest.mark.parametrize(
    "arguments",
    [
        ["ptb-lstm-small", "--classes", "30", "--images", "40", "--set", "data.bptt=6"],
        ["camvid-deeplabv3-small", "--classes", "4", "--images", "40", "--set=data.crop=32", "--set=model.width=8"],
    ],
)
def test_recipes_of_text_and_masks(arguments: list[str]) -> None:
    result = planned(*arguments, "--epochs", "3", "--set", "batch_size=4", "--memory", "--measure", "--device", "cpu")
    assert result.exit_code == 0, result.output
    for part in ("3 epochs", "40 examples an epoch", "step ms", "memory: "):
        assert part in result.output


def test_data_that_is_described() -> None:
    assert data_facts(get_recipe("imagenet-resnet50"))[0] == 1_281_167
    assert data_facts(get_recipe("digits"))[0] == 1293
    images, facts = data_facts(get_recipe("folder"), 100, 3, (3, 64, 64))
    assert (images, len(facts["classes"]), facts["image_shape"]) == (100, 3, [3, 64, 64])


def test_a_table_is_read_before_anything_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apical.runs._plan.plan_recipe", lambda *_: pytest.fail("it was traced first"))
    assert "--device-table: nowhere.json does not exist" in planned("digits", "--device-table", "nowhere.json").output
