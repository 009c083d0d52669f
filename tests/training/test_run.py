"""Whole runs: what they leave, that they repeat, and what happens when they are stopped or go wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical import _atomic
from apical.errors import CheckpointError, ConfigError, DataError, TrainingError
from apical.training import Interrupted, Loaders, OptimizerConfig, ScheduleConfig, TrainingConfig, TrainingResult, train
from apical.training import _learner as learner_module
from apical.training._checkpoint import load_checkpoint
from apical.training._run_folder import RunFolder, refuse_lost
from tiny_run import Recorder, TinyGrower, TinyLoader, assert_same_run, tiny_config, tiny_model, tiny_train

VARIANTS = {
    "sgd": {},
    "nesterov-step": {
        "optimizer": OptimizerConfig(lr=0.05, nesterov=True, decay_vectors=False),
        "schedule": ScheduleConfig(name="step", milestones=(2, 3), gamma=0.5),
    },
    "adamw-ema-clip": {
        "optimizer": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.05),
        "ema_decay": 0.8,
        "clip_grad_norm": 0.5,
        "label_smoothing": 0.1,
    },
    "bfloat16": {"amp": "bfloat16"},
    "deterministic": {"deterministic": True, "eval_every": 3},
}


class Killed(BaseException):
    """Stands for kill -9: nothing in the library catches it."""


def kill_at(epoch: int, batch: int) -> Any:
    def hook(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise Killed

    return hook


def test_a_run_learns_and_leaves_its_folder(tmp_path: Path) -> None:
    progress = Recorder()
    result = tiny_train(tmp_path / "run", progress=progress, run_config={"recipe": "tiny", "method": "grow"})
    files = {path.name for path in result.folder.iterdir()}
    assert files == {"config.json", "history.jsonl", "checkpoint.pt", "checkpoint.prev.pt", "summary.json"}
    assert result.summary["test_accuracy"] > 0.9
    lines = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    assert lines == result.history == progress.records
    assert [line["widths"] for line in lines] == [{"hidden": width} for width in (3, 5, 7, 9)]
    assert lines[1]["train_macs"] == 3 * 5 * 8 * 40
    assert json.loads((result.folder / "summary.json").read_text()) == result.summary
    config = json.loads((result.folder / "config.json").read_text())
    assert TrainingConfig.from_mapping(config["training"]) == tiny_config()
    assert config["recipe"] == "tiny"
    assert result.method.finished
    assert progress.steps == 16
    assert progress.stopped


def test_a_result_is_one_line_and_a_small_table(tmp_path: Path) -> None:
    result = tiny_train(tmp_path / "run")
    assert "\n" not in repr(result)
    assert len(repr(result)) < 400
    assert f"test_accuracy {result.summary['test_accuracy']:.4g}" in repr(result)
    assert f"<td>test_accuracy</td><td>{result.summary['test_accuracy']:.4g}</td>" in result._repr_html_()


def test_the_summary_counts_cost_against_dense_and_against_final(tmp_path: Path) -> None:
    summary = tiny_train(tmp_path).summary
    assert summary["train_macs_fraction"] == pytest.approx((3 + 5 + 7 + 9) / (4 * 12))
    assert summary["train_macs_vs_final"] == pytest.approx((3 + 5 + 7 + 9) / (4 * 9))
    assert summary["train_macs"] == 3 * (3 + 5 + 7 + 9) * 8 * 40
    assert summary["train_seconds"] == pytest.approx(summary["step_seconds"] + summary["restructure_seconds"])
    expected = {"test_accuracy", "macs", "macs_fraction", "num_params", "params_fraction", "seed", "method", "recipe"}
    assert expected | {"device", "versions"} <= set(summary)


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, second = tiny_train(tmp_path / "a"), tiny_train(tmp_path / "b", tiny_config(seed=6))
    assert first.history[-1]["train_loss"] != second.history[-1]["train_loss"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_in_any_epoch_and_resumed_is_bit_identical(tmp_path: Path, variant: str) -> None:
    config = tiny_config(**VARIANTS[variant])
    whole = tiny_train(tmp_path / "whole", config)
    for epoch in range(1, config.epochs + 1):
        folder = tmp_path / f"killed-{epoch}"
        with pytest.raises(Killed):
            tiny_train(folder, config, hook=kill_at(epoch, 3))
        torch.rand(epoch)  # the generators of the new process are elsewhere
        assert_same_run(whole, tiny_train(folder, config, resume=True))


def test_a_finished_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    first = tiny_train(tmp_path)
    assert_same_run(first, tiny_train(tmp_path, resume=True))


def test_killed_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    whole = tiny_train(tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    progress = Recorder()
    assert_same_run(whole, tiny_train(tmp_path / "run", resume=True, progress=progress))
    assert "starts from the beginning" in progress.messages[0]


def test_a_run_without_its_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    first = tiny_train(tmp_path, tiny_config(epochs=2))
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        (tmp_path / name).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"had finished, and its checkpoints are gone: .*--overwrite"):
        tiny_train(tmp_path, tiny_config(epochs=2), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "summary.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot go on: .*checkpoint\.pt and .* are gone.*--overwrite"):
        tiny_train(tmp_path, tiny_config(epochs=2), resume=True)
    with pytest.raises(CheckpointError, match="already holds a run"):
        tiny_train(tmp_path, tiny_config(epochs=2))
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    assert_same_run(first, tiny_train(tmp_path, tiny_config(epochs=2), overwrite=True))


def test_a_file_that_cannot_be_written_is_not_blamed_on_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_train(tmp_path, tiny_config(epochs=1))

    def read_only(path: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(_atomic, "new_aside", read_only)
    with pytest.raises(CheckpointError, match=r"^cannot write .*history\.jsonl: .*Read-only file system"):
        tiny_train(tmp_path, tiny_config(epochs=1), resume=True)


def test_killed_while_writing_the_final_files(tmp_path: Path) -> None:
    whole = tiny_train(tmp_path / "whole")

    def die(_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        tiny_train(tmp_path / "run", on_finish=die)
    assert not (tmp_path / "run" / "summary.json").exists()
    seen: list[Any] = []
    again = tiny_train(tmp_path / "run", resume=True, on_finish=seen.append)
    assert seen == [again]
    assert_same_run(whole, again)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_run_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    def hook(epoch: int, batch: int) -> None:
        if (epoch, batch) == (2, 3):
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"in epoch 2, after step 3 of 4.*after 1 of 4 epochs.*epoch 2") as caught:
        tiny_train(tmp_path / "run", hook=hook)
    assert caught.value.exit_code == 75
    assert caught.value.signal_name == number.name
    assert signal.getsignal(number) is before
    assert_same_run(tiny_train(tmp_path / "whole"), tiny_train(tmp_path / "run", resume=True))


class Drawing(TinyLoader):
    """Draws from torch's own generator when it begins, as a DataLoader does."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.rand(1)
        return super().__iter__()


@pytest.mark.parametrize("loader", [TinyLoader, Drawing])
def test_a_run_can_be_stopped_again_and_again_while_it_evaluates(tmp_path: Path, loader: type[TinyLoader]) -> None:
    def run(folder: str, stopped: bool, resume: bool = False) -> TrainingResult:
        """A signal comes with the first batch of every evaluation of a run that is to be stopped."""
        stop = (lambda _, batch: signal.raise_signal(signal.SIGTERM) if batch == 1 else None) if stopped else None
        loaders = Loaders(TinyLoader(), loader(shuffle=False, hook=stop))
        config = tiny_config(epochs=2, ema_decay=0.8)
        return train(tiny_model(), TinyGrower, loaders, config, tmp_path / folder, progress=Recorder(), resume=resume)

    for resume in (False, True, True):
        with pytest.raises(Interrupted, match=r"while evaluating epoch 1.* within epoch 1 of 2; .* goes on there"):
            run("run", stopped=True, resume=resume)
    assert load_checkpoint(tmp_path / "run").state["begun"]["steps"] == 4
    assert_same_run(run("whole", stopped=False), run("run", stopped=False, resume=True))


def test_a_second_interrupt_is_obeyed_at_once(tmp_path: Path) -> None:
    def hook(epoch: int, batch: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_train(tmp_path, hook=hook)


class PoisonedLoader(TinyLoader):
    """Gives a batch of infinities in epoch 3, batch 2."""

    def __iter__(self) -> Any:
        for number, (images, labels) in enumerate(super().__iter__(), 1):
            yield (images * float("inf") if (self.epoch, number) == (3, 2) else images), labels


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    loaders = Loaders(PoisonedLoader(), TinyLoader())
    with pytest.raises(TrainingError, match=r"nan in epoch 3, step 2; .* Lower the learning rate"):
        train(tiny_model(), TinyGrower, loaders, tiny_config(), tmp_path, progress=Recorder())
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.epoch == 2
    assert all(torch.isfinite(v).all() for v in checkpoint.state["model"].values())
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("epochs", "samples", "warmup", "said"),
    [
        (1, 10, 0.0, ["makes 1 training step in all"]),
        (1, 10, 0.5, ["makes 1 training step in all", "learning rate is 0 at every step"]),
        (2, 40, 1.5, ["makes 8 training steps in all", "still rises for 1.5 of 2 epochs"]),
        (8, 40, 4.0, ["still rises for 4 of 8 epochs"]),
        (8, 40, 1.0, []),
    ],
)
def test_a_run_that_is_too_short_to_learn_says_so_before_it_starts(
    epochs: int, samples: int, warmup: float, said: list[str], tmp_path: Path
) -> None:
    progress, config = Recorder(), tiny_config(epochs=epochs, schedule=ScheduleConfig(warmup_epochs=warmup))
    loaders = Loaders(TinyLoader(samples), TinyLoader(samples, shuffle=False))
    train(tiny_model(), None, loaders, config, tmp_path, progress=progress)
    assert len(progress.messages) == len(said)
    assert all(part in text for part, text in zip(said, progress.messages, strict=True))


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    first = tiny_train(tmp_path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        tiny_train(tmp_path)
    assert_same_run(first, tiny_train(tmp_path, overwrite=True))


def test_an_earlier_run_goes_when_the_new_one_starts_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_train(tmp_path, tiny_config(epochs=1))
    for name in ("template.json", "architecture.json", "model.safetensors", "pictures/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(*_: Any) -> Any:
        raise ConfigError("no method can do this")

    with pytest.raises(ConfigError, match="no method"):
        tiny_train(tmp_path, method=refuse, overwrite=True)
    monkeypatch.setattr("apical.training._run_folder.LOCK_PATIENCE_S", 0.0)
    with RunFolder(tmp_path), pytest.raises(CheckpointError, match="another process is training"):
        tiny_train(tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert_same_run(first, tiny_train(tmp_path, tiny_config(epochs=1), overwrite=True))
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "history.jsonl", "checkpoint.pt", "checkpoint.prev.pt", "summary.json", "notes.txt"}


def test_what_a_killed_process_was_writing_is_swept_whatever_it_was(tmp_path: Path) -> None:
    tiny_train(tmp_path, tiny_config(epochs=1))
    kept = [tmp_path / name for name in (".hidden", "notes.tmp", ".report.html.tmp")]
    left = [
        tmp_path / f".{name}.0123456789ab.tmp{Path(name).suffix}" for name in ("template.json", "report.html", "RUNS")
    ]
    for file in [*kept, *left]:
        file.write_text("half")
    tiny_train(tmp_path, tiny_config(epochs=1), resume=True)
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in left)


@pytest.mark.parametrize("name", ["config.json", "history.jsonl", ".summary.json.0123456789ab.tmp.json"])
def test_a_folder_where_a_file_of_the_run_should_be_is_named(tmp_path: Path, name: str) -> None:
    tiny_train(tmp_path, tiny_config(epochs=1))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"cannot remove .*{name}: .* is a folder, expected a file\. Remove it"):
        tiny_train(tmp_path, tiny_config(epochs=1), overwrite=True)


def test_resuming_another_run_is_refused_with_the_differences(tmp_path: Path) -> None:
    tiny_train(tmp_path, run_config={"recipe": "tiny", "data": "/here"})
    other = tiny_config(epochs=9, optimizer=OptimizerConfig(lr=0.3))
    with pytest.raises(CheckpointError, match=r"training\.epochs is 4 in the checkpoint, 9 .*optimizer\.lr is 0\.1"):
        tiny_train(tmp_path, other, resume=True, run_config={"recipe": "tiny"})
    with pytest.raises(CheckpointError, match="recipe is 'tiny' in the checkpoint, 'big' in this run"):
        tiny_train(tmp_path, resume=True, run_config={"recipe": "big"})
    tiny_train(tmp_path, resume=True, run_config={"recipe": "tiny", "data": "/elsewhere"})


def test_resuming_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        tiny_train(tmp_path, resume=True)
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(CheckpointError, match="nothing to resume"):
            refuse_lost(tmp_path / name)
        assert not RunFolder(tmp_path / name).holds_run()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot make the run folder .*Choose another"):
        tiny_train(tmp_path / "taken")


def test_plain_training_needs_no_method(tmp_path: Path) -> None:
    result = tiny_train(tmp_path, method=None)
    assert result.summary["train_macs_fraction"] is None
    assert result.summary["params_fraction"] == 1
    assert result.model[0].out_features == 12


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    result = tiny_train(tmp_path, tiny_config(ema_decay=0.9))
    average = load_checkpoint(tmp_path).state["average"]
    assert int(average["n_averaged"]) == 16
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, average[f"module.{name}"])
    assert result.summary["test_loss"] == result.history[-1]["eval_loss"]


def test_a_test_split_is_read_once_at_the_end(tmp_path: Path) -> None:
    test = TinyLoader(samples=30, seed=3)
    loaders = Loaders(TinyLoader(), TinyLoader(shuffle=False), test)
    summary = train(tiny_model(), TinyGrower, loaders, tiny_config(), tmp_path, progress=Recorder()).summary
    assert test.epoch == 1
    assert summary["test_samples"] == 30


class RestlessGrower(TinyGrower):
    """Changes the model after the last step, which the accounting cannot see."""

    def finish(self) -> None:
        self._resize_all(4)


def test_a_method_that_changes_the_model_at_the_end_is_called_out(tmp_path: Path) -> None:
    progress = Recorder()
    result = tiny_train(tmp_path, method=RestlessGrower, progress=progress)
    assert any("changed it after the last step" in message for message in progress.messages)
    assert result.summary["num_params"] == 4 * (6 + 1 + 2 + 2) + 2


class UnplainGrower(TinyGrower):
    def state_dict(self) -> dict[str, Any]:
        return {"where": [Path("a")]}


def test_a_state_that_would_need_pickle_is_refused_when_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\['method'\]\['where'\]\[0\] is a PosixPath"):
        tiny_train(tmp_path, method=UnplainGrower)


def test_an_empty_loader_is_an_error(tmp_path: Path) -> None:
    class Empty(TinyLoader):
        def __iter__(self) -> Any:
            return iter(())

    for loaders, match in ((Loaders(Empty(), TinyLoader()), "training"), (Loaders(TinyLoader(), Empty()), "evaluat")):
        with pytest.raises(DataError, match=match):
            train(tiny_model(), None, loaders, tiny_config(), tmp_path, progress=Recorder(), overwrite=True)


@pytest.mark.parametrize(
    ("capability", "stride", "safe"),
    [("AVX2", 1, True), ("AVX2", 2, False), ("AVX512", 2, False), ("DEFAULT", 2, True)],
)
def test_images_in_channels_last_order_where_that_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, stride: int, safe: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    seen: list[bool] = []

    class Images(TinyLoader):
        def __iter__(self) -> Any:
            for images, labels in super().__iter__():
                yield images[:, :, None, None].expand(-1, -1, 4, 4), labels

    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    torch.manual_seed(0)
    model = nn.Sequential(
        Watch(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1, stride), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(1, 6, 4, 4))
    seen.clear()
    config, progress = tiny_config(channels_last=True, epochs=1, schedule=ScheduleConfig()), Recorder()
    train(model, None, Loaders(Images(), Images()), config, tmp_path, progress=progress)
    assert seen
    assert set(seen) == {safe}
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last) == safe
    assert any("channels_last=true is left out" in text for text in progress.messages) != safe


class SteppingConv:
    """Puts a new weight in the wrong memory format into a convolution after the third step, as a restructuring may."""

    def __init__(self, model: nn.Module, optimizer: Any, copies: Any) -> None:
        self.model, self.optimizer, self.steps = model, optimizer, 0

    def end_step(self, state: Any = None) -> Any:
        self.steps += 1
        if self.steps == 3:
            old = self.model[0].weight
            new = nn.Parameter(old.detach().contiguous(memory_format=torch.contiguous_format))
            self.model[0].weight = new
            for group in self.optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
            self.optimizer.state[new] = self.optimizer.state.pop(old)
        return state

    def end_epoch(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_the_memory_format_is_applied_after_a_change_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[int] = []
    formats: list[bool] = []
    methods: list[SteppingConv] = []

    class Images(TinyLoader):
        def __iter__(self) -> Any:
            for images, labels in super().__iter__():
                yield images[:, :, None, None].expand(-1, -1, 4, 4), labels
                formats.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))

    def counted(changed: nn.Module, config: Any) -> None:
        applied.append(methods[0].steps if methods else 0)
        apply(changed, config)

    def method(*arguments: Any) -> SteppingConv:
        methods.append(SteppingConv(*arguments))
        return methods[0]

    apply = learner_module.apply_memory_format_
    monkeypatch.setattr(learner_module, "apply_memory_format_", counted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    config = tiny_config(channels_last=True, epochs=2, schedule=ScheduleConfig())
    train(model, method, Loaders(Images(), Images()), config, tmp_path, progress=Recorder())
    assert formats
    assert all(formats)
    assert [steps for steps in applied if steps] == [3, 4, 8]  # the change, and the ends of two epochs of four steps
