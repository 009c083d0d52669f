"""Configurations in files: whole ones, parts of one, a run's own, and what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from apical.cli import main
from apical.errors import ConfigError
from apical.recipes import apply_settings, get_recipe, read_config_file, recipes, write_config_file
from apical.runs import read_config

TINY = ("--set=data.path=synthetic", "--set=limit=64", "--set=batch_size=16", "--set=model.depth=8", "--device=cpu")


def apical(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_every_recipe_comes_back_from_a_file(ending: str, tmp_path: Path) -> None:
    if ending == "yaml":
        pytest.importorskip("yaml")
    for name in recipes():
        write_config_file(get_recipe(name), tmp_path / f"{name}.{ending}")
        assert read_config_file(tmp_path / f"{name}.{ending}") == get_recipe(name)


def test_what_a_file_leaves_out_is_the_recipes(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "run.yml"
    file.write_text("recipe: cifar10-vgg16\nbudget: 40% macs\ntraining:\n  epochs: 20\n  optimizer: {lr: 1e-3}\n")
    base, found = get_recipe("cifar10-vgg16"), read_config_file(file)
    assert found == apply_settings(base, ["budget=40% macs", "lr=1e-3", "epochs=20", "warmup_epochs=1"])
    file.write_text("recipe: digits\nmodel: {name: resnet20}\n")
    assert read_config_file(file).model.options == {}, "those of the recipe are its own model's"


def test_a_run_is_repeated_from_its_config_with_changes_on_top(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert apical("train", "digits", *TINY, "--epochs=2", "--method=dense", "--quiet", "--out", first).exit_code == 0
    again = apical("train", "--config", first / "config.json", "--set=lr=0.02", "--seed=3", "--quiet", "--out", second)
    assert again.exit_code == 0, again.output
    assert read_config(second) == apply_settings(read_config(first), ["lr=0.02", "seed=3"])


def test_settings_are_saved_and_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = apical("train", "digits", "--set=lr=0.02", "--epochs=7", "--save-config", "new/run.json")
    assert saved.exit_code == 0, saved.output
    assert "apical train --config new/run.json" in saved.output
    assert not (tmp_path / "runs").exists()
    assert read_config_file("new/run.json") == apply_settings(get_recipe("digits"), ["lr=0.02", "epochs=7"])
    assert "training.epochs = 7" in apical("train", "--config", "new/run.json", "--list-settings").output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json is not JSON"),
        ("a.yaml", "a: [", "a.yaml is not YAML"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "a.yaml is not YAML"),
        ("a.json", "[1]", "holds no mapping"),
        ("a.toml", "", "ends in .json, .yaml or .yml"),
        ("a.json", '{"recipe": "mine"}', "model, data, training, budget missing"),
        ("a.json", '{"recipe": ["digits"]}', "recipe: expected the name of one, such as 'digits', got ['digits']"),
        ("a.json", '{"recipe": "digits", "bugdet": "40% macs"}', "did you mean 'budget'"),
        ("a.json", '{"recipe": "digits", "training": {"epochs": "many"}}', "epochs"),
        ("a.json", '{"recipe": "digits", "training": 3}', "expected a mapping"),
        ("a.yaml", "recipe: 2026-02-31", "a.yaml is not YAML"),
        ("a.yaml", f"seed: {'9' * 5000}", "a.yaml is not YAML"),
        ("a.json", f'{{"recipe": "digits", "training": {{"epochs": {10**30}}}}}', "epochs: expected a whole number"),
        ("a.json", '{"recipe": "digits", "model": {"name": "subprocess:run"}}', "--trust-code"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, content: str, message: str, tmp_path: Path) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(content)
    result = apical("train", "--config", tmp_path / name)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert str(tmp_path / name) in result.stderr


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"recipe": "digits"}))
    assert "leave out RECIPE digits" in apical("train", "digits", "--config", tmp_path / "a.json").stderr
    assert "leave out --config" in apical("train", "--resume", tmp_path, "--config", tmp_path / "a.json").stderr
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(tmp_path / "none.json")


def test_the_run_folder_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config_file(get_recipe("digits"), path)
    assert read_config(tmp_path) == get_recipe("digits")
    content = json.loads(path.read_text())
    content["growth"]["freeze_at"] = None  # settings that are gone, as nobody had set them
    content["training"]["schedule"]["by_cost"] = False
    path.write_text(json.dumps(content))
    assert read_config(tmp_path) == get_recipe("digits")
    content["training"]["batch_growth"] = 1  # a setting that there once was
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"config\.json: .*'batch_growth'.*another version of apical"):
        read_config(tmp_path)


def test_only_an_ordinary_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="a folder, a device or a pipe"):
        read_config_file(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match=r"a\0b\.json cannot be read"):
        read_config_file("a\0b.json")
