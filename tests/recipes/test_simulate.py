"""A run on paper costs what a real run costs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from apical.budget import DeviceTable, NetworkCost, Setting, allreduce_bytes, memory_bytes, project
from apical.cli import main
from apical.errors import ApicalError, ConfigError
from apical.recipes import apply_settings, get_recipe
from apical.runs import run
from apical.runs._simulate import data_facts, measure_table, simulate
from apical.training import make_progress
from marks import slow

TINY = ["data.path=synthetic", "limit=64", "batch_size=16", "epochs=6", "model.depth=8", "model.width=8"]
FACTS: dict[str, Any] = {"classes": [str(i) for i in range(10)], "image_shape": [3, 16, 16]}


@pytest.mark.parametrize("utility", [slow("random"), "squared"])
def test_the_networks_are_those_of_a_real_run(tmp_path: Path, utility: str) -> None:
    config = apply_settings(get_recipe("digits"), [*TINY, f"growth.utility={utility}", "growth.interval_unit=epochs"])
    result = run(config, tmp_path, progress=make_progress("quiet"))
    facts = json.loads((tmp_path / "config.json").read_text())["input"]
    found = simulate(config, result.history[0]["samples"], facts)
    real = [record["macs"] for record in result.history]
    paper = [record["macs"] for record in found.epochs]
    assert paper == real if utility == "random" else paper == pytest.approx(real, rel=0.05)
    fraction = result.summary["train_macs_fraction"]
    assert found.totals["train_macs_fraction"] == pytest.approx(fraction, rel=1e-9 if utility == "random" else 0.05)
    if utility == "random":  # else training decides where the units are, which a budget of MACs leaves open
        assert found.epochs[-1]["num_params"] == result.summary["num_params"]


def test_activations_are_counted_as_autograd_keeps_them() -> None:
    """A convolution keeps its input, a ReLU its output; a batch norm its input and two statistics a channel."""
    from apical.runs._simulate import _activation_bytes

    config = get_recipe("digits")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(256, 10))  # fmt: skip
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = _activation_bytes(model, (torch.zeros(1, 3, 8, 8),), config)
    images, maps, logits = 3 * 64 * 4, 4 * 64 * 4, 10 * 4
    assert images + 2 * maps + logits <= found <= images + 2 * maps + 2 * logits + 200
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_measured_steps_grow_with_the_network_and_the_table_survives_json() -> None:
    config = apply_settings(get_recipe("digits"), TINY)
    table = measure_table(config, FACTS, torch.device("cpu"), 16)
    assert DeviceTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert len(table.points) >= 3
    found = simulate(config, 64, FACTS, table=table, memory=False)
    assert all(record["seconds"] == 4 * record["step_seconds"] for record in found.epochs)
    assert found.totals["dense_seconds"] > 0


def test_bytes_and_seconds_by_hand() -> None:
    cost = NetworkCost(macs=1_500_000, num_params=1000, activation_bytes=50, restructure_seconds=0.0)
    setting = Setting(samples=64, batch_size=16, processes=2, optimizer_slots=2, copies=1, dormant_bytes=7)
    assert memory_bytes(cost, setting) == 4 * 1000 * 5 + 50 * 8 + 7
    assert allreduce_bytes(1000, 1) == 0
    table = DeviceTable("d", "m", 8, ((1e6, 0.1), (2e6, 0.2), (4e6, 0.3)), allreduce_gb_per_s=1e-5)
    (record,) = project([cost], setting, table)
    assert record["step_seconds"] == pytest.approx(0.15)
    assert record["sent_bytes_per_step"] == 4000
    assert record["seconds"] == pytest.approx(4 * (0.15 + 0.4))
    assert [table.step_seconds(macs) for macs in (3e6, 6e6)] == pytest.approx([0.25, 0.4])
    with pytest.raises(ConfigError, match="8 examples a step, a process takes 4"):
        project([cost], Setting(64, 16, processes=4), table)


KEYS = ["points", "device", "batch_size", "model"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=5,
)  # fmt: skip


@given(JSON)
def test_any_json_as_a_table(data: Any) -> None:
    with contextlib.suppress(ApicalError):
        assert isinstance(DeviceTable.from_dict(data), DeviceTable)


def simulated(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_the_command(tmp_path: Path) -> None:
    settings = [part for setting in TINY[2:] for part in ("--set", setting)]
    table = tmp_path / "table.json"
    result = simulated("digits", *settings, "--measure", "--device", "cpu", "--write-table", str(table))
    assert result.exit_code == 0, result.output
    assert "digits, on paper; seconds on cpu" in result.output
    assert "of the whole model's" in result.output
    again = simulated("digits", *settings, "--device-table", str(table), "--no-memory", "--json")
    content = json.loads(again.output)
    assert len(content["epochs"]) == 6
    assert content["totals"]["seconds_fraction"] > 0
    wrong = simulated("digits", *settings, "--model", "resnet20", "--device-table", str(table))
    assert (wrong.exit_code, "holds step times of CifarResNet" in wrong.output) == (2, True)


def test_the_table_shows_what_is_known_in_a_few_rows() -> None:
    settings = [part for setting in TINY[4:] for part in ("--set", setting)]
    lines = simulated("digits", *settings, "--epochs", "50", "--no-memory").output.splitlines()
    assert lines[1].split() == ["epoch", "MACs", "%", "params", "M", "restructure", "s"]
    assert [line.split()[0] for line in lines[2:20]] == [str(n) for n in (*range(1, 50, 3), 50)]
    assert "--every 1 shows all 50" in lines[20]
    assert not any("nan" in line or "-" in line.split() for line in lines)
    assert "In all 50 epochs:" in lines
    every = simulated("digits", *settings, "--epochs", "6", "--every", "1", "--processes", "2").output.splitlines()
    assert "memory GiB" in every[1]
    assert "sent MB/step" in every[1]
    assert [line.split()[0] for line in every[2:8]] == list("123456")
    without = json.loads(simulated("digits", *settings, "--epochs", "6", "--no-memory", "--json").output)
    assert without["totals"]["peak_memory_bytes"] is None
    assert all(record["memory_bytes"] is None for record in without["epochs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder"], "nothing is known of the data ''"),
        (["digits", "--input", "8x8"], "expected channels x height x width"),
        (["digits", "--write-table", "t.json"], "add --measure"),
        (["digits", "--device-table", "nowhere.json"], "cannot be read"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    result = simulated(*arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_data_that_is_described() -> None:
    assert data_facts(get_recipe("imagenet-resnet50"))[0] == 1_281_167
    assert data_facts(get_recipe("digits"))[0] == 1293
    images, facts = data_facts(get_recipe("folder"), 100, 3, (3, 64, 64))
    assert (images, len(facts["classes"]), facts["image_shape"]) == (100, 3, [3, 64, 64])
