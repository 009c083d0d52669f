"""Any change of a run's config.json: a config, or the project's own error; and no size that the machine cannot hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.cli import main
from apical.errors import ApicalError, ConfigError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.runs import load_run, read_config, run
from apical.training import make_progress
from export.test_folder_fuzz import mutations, places

TINY = ["data.path=synthetic", "limit=32", "batch_size=16", "epochs=1", "model.depth=8", "model.width=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(apply_settings(get_recipe("digits"), TINY), folder, progress=make_progress("quiet"))
    return folder


@pytest.mark.attack
@settings(max_examples=3 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(mutate=mutations(), name=st.sampled_from(["digits", "imagenet-resnet50", "cifar10-vgg16"]))
def test_any_edit_of_a_config(tmp_path: Path, mutate: Any, name: str) -> None:
    content = json.loads(json.dumps(get_recipe(name).to_mapping()))
    mutate(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    try:
        config = read_config(tmp_path)
    except ApicalError:
        return
    assert isinstance(config, RunConfig)
    assert RunConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@pytest.mark.attack
@settings(phases=[Phase.explicit, Phase.generate])
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode) | st.just(b"[" * 100_000))
def test_any_bytes_as_a_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ApicalError):
        read_config(tmp_path)


def test_code_that_a_config_names_is_called_only_when_trusted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((finished / "config.json").read_text())
    content["model"] = {"name": "os:mkdir", "options": {"path": str(tmp_path / "made")}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"built by calling 'os:mkdir'.*--trust-code"):
        load_run(tmp_path)
    result = CliRunner().invoke(main, ["train", "--resume", str(tmp_path)])
    assert (result.exit_code, "--trust-code" in result.output) == (2, True)
    with pytest.raises(ConfigError, match=r"built by calling 'os:mkdir'.*trust_code=True"):
        run(read_config(tmp_path), tmp_path, resume=True)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match="expected a torch"):
        load_run(tmp_path, trust_code=True)
    assert (tmp_path / "made").exists(), "it would have been called"


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(finished: Path, tmp_path: Path) -> None:
    content = json.loads((finished / "config.json").read_text())
    content["model"]["options"]["width"] = 2**16
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"full-size model would need .* GiB"):
        load_run(tmp_path)


ABSURD = [-1, 0, 10**5, 2**31, 2**63, 10**30, 1e300, True, "3", None, [], {}, [3, 8], [1] * 4000]


@pytest.mark.attack
@settings(max_examples=2 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(where=st.integers(0, 10**6), value=st.sampled_from(ABSURD))
def test_absurd_sizes_in_a_run_folder(finished: Path, tmp_path: Path, where: int, value: Any) -> None:
    """The model of a run that comes from others is rebuilt from its config: no number in it may exhaust the memory."""
    for file in ("architecture.json", "model.safetensors"):
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    content = json.loads((finished / "config.json").read_text())
    found = places(content["model"]["options"]) + places(content["input"])
    box, key = found[where % len(found)]
    box[key] = copy.deepcopy(value)
    (tmp_path / "config.json").write_text(json.dumps(content))
    try:
        load_run(tmp_path)
    except ApicalError:
        return
