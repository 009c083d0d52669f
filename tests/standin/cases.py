"""What the processes of test_standin.py do: the same as on the CPU, on a device that stands in for a GPU."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import apical
from apical import Grower
from apical.errors import TraceError
from apical.export import export_onnx
from apical.growth import ScsConfig, _bits
from apical.recipes import apply_settings, get_recipe
from apical.recipes.tasks.language import LanguageModelling
from apical.recipes.tasks.segmentation import Segmentation
from apical.runs import run
from apical.training import Classification
from growth.cases import CASES, adamw, built, logits_of, sgd, structure_of
from standin import backend

EPOCHS, STEPS = 4, 2
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "by lot from trained weights": {"seed_style": "pretrained", "utility": "random"},
    "the paper's version": {"config": ScsConfig(sampling="budgeted", score_lr=2.0, ignore=("fc",))},
    "few bits": {"budget": "15% size", "steps_per_epoch": STEPS},
    "steps": {"interval_unit": "steps", "interval": 2, "divisor": 4, "steps_per_epoch": 2},
}
Waits = AbstractContextManager[list[int]]
# epochs in which something is decided between two steps, for which the host reads what was measured
DECIDED = {"steps": (0, 1), "few bits": (1, 3)}
MAKERS = {"sgd": sgd, "adamw": adamw}


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often the host waited for the device within it."""
    before, found = backend.waited(), list[int]()
    yield found
    found.append(backend.waited() - before)


@contextmanager
def refused() -> Iterator[list[int]]:
    """Within it, waiting for a CUDA device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield [0]
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Training:
    """A case's network on a device, its optimizer and its Grower."""

    def __init__(self, name: str, maker: str, options: str, device: str, watch: Callable[[], Waits] = counted) -> None:
        self._watch = watch
        case, generator = CASES[name], torch.Generator().manual_seed(0)
        with torch.device(device):  # values are drawn on the CPU, whatever the device
            self.model: nn.Module = built(name)
        inputs = [case.inputs(seed) for seed in range(STEPS)]
        shape = logits_of(built(name)(inputs[0])).flatten(0, -2).shape[:1]
        labels = [torch.randint(case.classes, shape, generator=generator) for _ in inputs]
        self.batches = [(x.to(device), y.to(device)) for x, y in zip(inputs, labels, strict=True)]
        self.optimizer = MAKERS[maker](self.model)
        known = {"structure": structure_of(name)} if case.state_outputs else {}
        known = {"budget": "50% macs", "epochs": EPOCHS, **known, **OPTIONS[options]}
        self.grower = Grower(self.model, self.optimizer, self.batches[0][0], **known)

    def epochs(self, count: int) -> list[Any]:
        """Train and grow; the network after each epoch, and how often the host waited in the epoch's steps."""
        found = []
        for _ in range(count):
            with self._watch() as waits:
                for x, y in self.batches:
                    self.optimizer.zero_grad()
                    F.cross_entropy(logits_of(self.model(x)).flatten(0, -2), y).backward()
                    self.optimizer.step()
                    self.grower.end_step()
            self.grower.end_epoch()
            bits = self.grower.history[-1]["bits"]
            found.append([self.grower.keep, list(self.grower.skipped), bits, waits[0]])
        return found

    @property
    def parts(self) -> dict[str, Any]:
        return {"grower": self.grower, "model": self.model, "optimizer": self.optimizer}

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        states = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")  # as a user would to be safe
        for name, part in self.parts.items():
            part.load_state_dict(states[name])


def _grown(name: str, maker: str, options: str, device: str) -> tuple[list[Any], dict[str, Tensor]]:
    """The networks and waits of all epochs and the final weights, of a training that is resumed half-way."""
    first, second = (Training(name, maker, options, device) for _ in range(2))
    networks = first.epochs(EPOCHS // 2)
    second.load(first.saved())
    networks += second.epochs(EPOCHS // 2)
    second.grower.finish()
    devices = {v.device.type for v in [*second.model.parameters(), *second.model.buffers()]}
    assert devices == {device}, devices
    return networks, {key: value.cpu() for key, value in second.model.state_dict().items()}


def grows_alike(library: str, name: str, maker: str, options: str, tolerance: float) -> None:
    device = str(backend.use(library))
    _bits.CHOICES = 1  # of precisions, so that it falls into one epoch
    with sdpa_kernel(SDPBackend.MATH):
        networks, weights = _grown(name, maker, options, device)
        expected_networks, expected_weights = _grown(name, maker, options, "cpu")
    assert [n[:-1] for n in networks] == [n[:-1] for n in expected_networks]
    assert len({str(n[:-1]) for n in networks}) > 1
    waits = [n[-1] for n in networks]
    ordinary = [count for epoch, count in enumerate(waits) if epoch not in DECIDED.get(options, ())]
    assert not any(ordinary), f"the host waited within training steps: {waits}"
    assert list(weights) == list(expected_weights)
    for key, value in expected_weights.items():
        torch.testing.assert_close(weights[key], value, rtol=tolerance, atol=tolerance, msg=key)


def goes_by_the_same(library: str, folder: str, recipe: str, settings: list[str]) -> None:
    """Two runs of a recipe, whose devices differ, end with the same network."""
    device, found = str(backend.use(library)), []
    for on in (device, "cpu"):
        config = apply_settings(get_recipe(recipe), [*settings, "amp=none", f"device={on}"])
        with sdpa_kernel(SDPBackend.MATH):
            found.append(run(config, Path(folder, on)).summary)
    here, expected = found
    assert device in here["device"]
    for key in ("widths", "skipped", "macs", "num_params", "train_macs"):
        assert here[key] == expected[key], key
    loss = "test_loss" if "test_loss" in here else "test_perplexity"
    assert math.isclose(here[loss], expected[loss], rel_tol=1e-4), (here[loss], expected[loss])


def waits_for_no_step(library: str, folder: str, recipe: str, settings: list[str]) -> None:
    """A run of twice as many steps waits as often: at the ends of its epochs, and when the network changes."""
    device, found = str(backend.use(library)), []
    for name, more in (("short", "limit=640"), ("long", "limit=1280")):
        config = apply_settings(get_recipe(recipe), [*settings, more, "amp=none", f"device={device}"])
        with counted() as waits:
            steps = run(config, Path(folder, name)).history[-1]["steps"]
        found.append((waits[0], steps))
    assert found[0][0] == found[1][0] > 0
    assert found[0][1] < found[1][1]


def waits_for_no_batch(library: str) -> None:
    """Losses and metrics of every task."""
    device = backend.use(library)
    words = torch.randint(13, (6, 3)).to(device)
    images, labels = torch.randn(4, 3, 8, 8).to(device), torch.randint(5, (4,)).to(device)
    masks = torch.randint(2, (4, 8, 8), dtype=torch.uint8).to(device)
    with torch.device(device):
        convolution, residual, lstm = nn.Conv2d(3, 2, 1), built("residual"), built("lstm")
    for task, model, inputs, targets in (
        (Classification(), residual, images, labels),
        (Segmentation(2), convolution, images, masks),
        (LanguageModelling(), lstm, words, words),
    ):
        for training in (True, False):
            with counted() as waits:
                result = task.batch(model, inputs, targets, training=training)
                result.loss.backward()
            assert waits == [0], (task.name, training)


def is_saved_and_exported(library: str, folder: str) -> None:
    device = str(backend.use(library))
    training = Training("residual", "sgd", "", device)
    training.epochs(EPOCHS)
    training.grower.finish()
    model, x = training.model.eval(), training.batches[0][0]
    apical.save(model, Path(folder, "compact"))
    with torch.device(device):
        here = apical.load(built("residual"), Path(folder, "compact")).eval()
    there = apical.load(built("residual"), Path(folder, "compact")).eval()
    with torch.no_grad():
        assert torch.equal(here(x), model(x))
        assert torch.equal(there(x.cpu()), model(x).cpu())
    export_onnx(model, x, Path(folder, "model.onnx"))  # compares outputs by itself
    json.dumps(training.grower.history)  # nothing in it lies on the device


def is_measured_there(library: str) -> None:
    device = str(backend.use(library))
    with torch.device(device):
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    grower = Grower(model, sgd(model), torch.zeros(64, 64, device=device), "95% latency", 4, divisor="auto")
    assert grower.latency is not None
    assert grower.divisor_choice is not None
    assert grower.latency.device == grower.divisor_choice.device == f"{device}:0"


def refuses_inputs_of_another_device(library: str) -> None:
    with torch.device(backend.use(library)):
        model = built("residual")
    with pytest.raises(TraceError, match="an example input is on cpu, the model on standin:0: move the input there"):
        Grower(model, sgd(model), CASES["residual"].inputs(0), "50% macs", EPOCHS)


def can_tell(library: str) -> None:
    """The device itself: it refuses what a GPU refuses, and counts what a GPU waits for."""
    device = backend.use(library)
    x = torch.arange(6.0, device=device)
    with counted() as nothing:
        torch.nn.functional.conv1d(x.view(1, 1, 6), x[:3].view(1, 1, 3)).sum() * 2.0
        x.add_(torch.tensor(1.0))  # numbers may lie on the host
    assert nothing == [0]
    for mixed in (
        lambda: x + torch.ones(6),
        lambda: torch.cat([x, torch.ones(6)]),
        lambda: F.linear(x, torch.ones(2, 6)),
        lambda: x.index_select(0, torch.tensor([0, 1])),
        lambda: x.index_put_((torch.tensor([0, 1], device=device),), torch.ones(2)),
        lambda: F.conv1d(x.view(1, 1, 6), torch.ones(1, 1, 3)),
        lambda: F.batch_norm(x.view(3, 2), torch.zeros(2), torch.ones(2), training=True),
    ):
        with pytest.raises(RuntimeError, match=r"all tensors (on one|to be on the same) device"):
            mixed()
    for waiting in (lambda: x.sum().item(), x.cpu, lambda: x[x > 2], lambda: torch.ones(6).to(device), x.nonzero):
        with counted() as waits:
            waiting()
        assert waits[0] > 0
