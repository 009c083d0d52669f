"""Small networks of every family, their batches and losses, and a loop that trains and grows them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apical import Grower, Structure, models, trace
from structure.nets import Attention, ExplicitAttention, Net, head, unit

Maker = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and what the tracer must be told."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]  # seed -> inputs
    classes: int
    state_outputs: tuple[int, ...] = ()
    fine: bool = True  # whether single units are small against the budget


def _images(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def _vectors(*shape: int) -> Callable[[int], Tensor]:
    return lambda seed: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(*shape: int) -> Callable[[int], Tensor]:
    return lambda seed: torch.randint(13, shape, generator=torch.Generator().manual_seed(seed))


def _attention() -> nn.Module:
    parts = {"a": Attention(12, 12, 4), "b": ExplicitAttention(12, 12, 4), "fc": nn.Linear(12, 3)}
    return Net(lambda m, x: m.fc(m.b(m.a(x) + x) + x), **parts)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))


CASES = {
    "residual": Case(lambda: models.CifarResNet(14, 5, width=8), _images, 5),
    "plain": Case(lambda: nn.Sequential(unit(3, 24), unit(24, 32, stride=2), unit(32, 40), head(40, 5)), _images, 5),
    "mlp": Case(_mlp, _vectors(8, 6), 4),
    "lstm": Case(lambda: models.LSTMLanguageModel(13, 20, (40, 36)), _tokens(5, 3), 13, (1,)),
    "tied": Case(lambda: models.LSTMLanguageModel(13, 24, (40, 24), tied=True), _tokens(5, 3), 13, (1,), False),
    "gpt": Case(lambda: models.GPT(13, 8, 24, 3, 4), _tokens(3, 8), 13, (), False),
    "attention": Case(_attention, _vectors(3, 5, 12), 3, (), False),
}


@cache
def structure_of(name: str) -> Structure:
    """The structure of a case, traced once."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(case.make(), example(name), state_outputs=case.state_outputs)


def example(name: str, model: nn.Module | None = None) -> Tensor:
    """One batch of inputs, in the type of a model."""
    inputs = CASES[name].inputs(0)
    return inputs if model is None or not inputs.is_floating_point() else inputs.to(next(model.parameters()).dtype)


def built(name: str, seed: int = 0) -> nn.Module:
    """The case's network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CASES[name].make()


def logits_of(output: Any) -> Tensor:
    """The outputs without carried states."""
    return output[0] if isinstance(output, tuple) else output


def loss_of(model: Any, name: str, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cross entropy on the batch of this number."""
    inputs = CASES[name].inputs(seed)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    logits = logits_of(model(inputs)).flatten(0, -2)
    labels = torch.randint(CASES[name].classes, logits.shape[:1], generator=torch.Generator().manual_seed(seed + 1))
    return F.cross_entropy(logits, labels)


def sgd(model: nn.Module, **options: Any) -> Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, **options})


def adamw(model: nn.Module, **options: Any) -> Optimizer:
    """AdamW."""
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.003, **options})


def grown(name: str, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], epochs: int = 6,
          budget: str = "50% macs", **options: Any) -> Grower:  # fmt: skip
    """A Grower of a case with its cached structure."""
    options = {"structure": structure_of(name), **options}
    return Grower(model, optimizer, example(name, model), budget, epochs, **options)


def begun(name: str, maker: Callable[..., Optimizer] = sgd, **options: Any) -> tuple[Any, Optimizer, Grower]:
    """A case's network, its optimizer and its Grower."""
    model = built(name)
    optimizer = maker(model)
    return model, optimizer, grown(name, model, optimizer, **options)


def step(model: nn.Module, optimizer: Optimizer, name: str, seed: int) -> float:
    """One ordinary training step."""
    loss = loss_of(model, name, seed)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def epochs(grower: Grower, optimizer: Optimizer, name: str, first: int, last: int, steps: int = 2) -> Iterator[int]:
    """Train and grow from one epoch to another; yields before each `end_epoch`."""
    grower.model.train()
    for epoch in range(first, last):
        for i in range(steps):
            step(grower.model, optimizer, name, 100 * epoch + i)
        yield epoch
        grower.end_epoch()


def run(grower: Grower, optimizer: Optimizer, name: str, first: int = 0, last: int | None = None) -> Grower:
    """Train and grow through these epochs."""
    for _ in epochs(grower, optimizer, name, first, grower.epochs if last is None else last):
        pass
    return grower


def outputs(model: nn.Module, name: str) -> Tensor:
    """The outputs in eval mode, leaving the model's mode as it was."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        return logits_of(twin(CASES[name].inputs(77)))


def squares_of(grower: Grower) -> Tensor:
    """What the present network's gate products have added up to: a copy."""
    return grower.state_dict()["components"]["buffer"]


def scores_of(grower: Grower) -> Tensor:
    """A copy of all scores of the paper's version."""
    return grower.state_dict()["components"]["values"]


class Run:
    """A model, its moving average, optimizer, scheduler and growth method, trained epoch by epoch."""

    def __init__(
        self, name: str, maker: Maker, method: Callable[[Any, Optimizer, list[nn.Module]], Any], steps: int = 3
    ) -> None:
        self.name, self.steps = name, steps
        self.model = built(name)
        self.optimizer = maker(self.model)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.method = method(self.model, self.optimizer, [self.average])
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 7)
        self.records: list[dict[str, Any]] = []

    @property
    def parts(self) -> dict[str, Any]:
        """In the order in which they are loaded: the method first, since it resizes the others."""
        return {"method": self.method, "model": self.model, "optimizer": self.optimizer, "average": self.average,
                "scheduler": self.scheduler}  # fmt: skip

    def train(self, first: int, last: int) -> Run:
        for epoch in range(first, last):
            for i in range(self.steps):
                step(self.model, self.optimizer, self.name, 100 * epoch + i)
                self.average.update_parameters(self.model)
                if isinstance(self.method, Grower):
                    self.method.end_step()
            self.scheduler.step()
            self.records.append(dict(self.method.end_epoch()))
        return self

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        return file.getvalue()

    def load(self, data: bytes) -> Run:
        states = torch.load(io.BytesIO(data), weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
        return self


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "restructure_seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, (list, tuple)) else value


def same(a: Any, b: Any, where: str = "") -> None:
    """Bitwise equality of nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b) or set(a) == set(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where
