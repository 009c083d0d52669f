"""Any `--set`, and any file of settings: a config that can be written down and read again, or the project's error."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.errors import ApicalError
from apical.recipes import RunConfig, apply_settings, get_recipe, read_config_file, write_config_file
from apical.recipes._settings import as_texts, reproducing_command
from apical.runs._methods import method_named, methods
from export.test_folder_fuzz import mutations

RECIPES = ["digits", "imagenet-resnet50", "gpt-bytes", "camvid-deeplabv3-small"]
KEYS = [
    *as_texts(get_recipe("digits")), "lr", "seed", "epochs", "name", "model.x", "method.x", "model.", ".",
    "model.a.b",
]  # fmt: skip
VALUES = [
    "", "none", "true", "0", "-1", "1", "3", "0.5", "1e-3", "1e400", "nan", "-inf",
    "1_000", "²", "9" * 5000, "1,2,", "3,1", "(1", "auto", "50% macs", "2 ms", "10% size", "steps", "sgd", "adamw",
    "cosine", "bf16", "cpu", "resnet20", "torchvision:resnet18", "os:mkdir", "synthetic", "\0", "\udcff", "a=b",
    "x,y", "[200]", '["a"]', '"7"', '{"a": [1]}', "[" * 5000, "[NaN]", *methods(),
]  # fmt: skip
SETTING = st.tuples(
    st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=8) | st.floats().map(str)
).map("=".join)


def again(config: RunConfig) -> RunConfig:
    """By the command that is said to repeat it."""
    words = shlex.split(reproducing_command(config, "out"))
    return apply_settings(get_recipe(words[2]), [words[i + 1] for i, word in enumerate(words) if word == "--set"])


@pytest.mark.attack
@settings(max_examples=3 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(name=st.sampled_from(RECIPES), texts=st.lists(SETTING, min_size=1, max_size=3))
def test_any_setting(name: str, texts: list[str]) -> None:
    try:
        config = apply_settings(get_recipe(name), texts)
        method = method_named(config.method)
        method.check(config)
        method.resolve(config)
    except ApicalError:
        return
    assert RunConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
    assert again(config) == config


@pytest.mark.attack
@settings(max_examples=2 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(
    name=st.sampled_from(RECIPES), mutate=mutations(), suffix=st.sampled_from(["json", "yaml"]), where=st.floats(0, 1),
    piece=st.sampled_from(["", "", "", "\n- a", "&a [*a]", "{", "\t", "!!python/name:os.system", "2001-99-99", "\x01"])
    | st.text(max_size=5),
)  # fmt: skip
def test_any_file_of_settings(
    tmp_path: Path, name: str, mutate: Callable[[Any], None], suffix: str, where: float, piece: str
) -> None:
    path, content = tmp_path / f"run.{suffix}", json.loads(json.dumps(get_recipe(name).to_mapping()))
    mutate(content)
    text = json.dumps(content) if suffix == "json" else pytest.importorskip("yaml").safe_dump(content)
    at = int(where * len(text))
    path.write_text(text[:at] + piece + text[at:], encoding="utf-8", errors="surrogatepass")
    try:
        config = read_config_file(path)
        write_config_file(config, path)
    except ApicalError:
        return
    assert read_config_file(path) == config
