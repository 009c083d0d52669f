"""An outside peer: Torch-Pruning's group-sparsity pruner in the same loop, at the same budget, in the same table.

    pip install '.[bench]'
    python benchmarks/torch_pruning_peer.py digits --methods grown,torch-pruning,l1 --seeds 0,1,2
    python benchmarks/torch_pruning_peer.py fashion-mnist --epochs 8 --set amp=bfloat16

Everything but ``torch-pruning`` is as in `apical compare`, whose files it writes. The peer is the pruner that its
authors report their best CIFAR results with (``group_sl`` in their benchmarks): GroupNormPruner, which learns group
sparsity while it trains, ranks channels by group L2 norm, of all layers together (``global_pruning``) or layer by
layer, and prunes in small steps to the MACs.

Source: Fang, Ma, Song, Mi, Wang, *DepGraph: Towards Any Structural Pruning*, CVPR 2023; package torch-pruning 1.6.1.
Deviations: nothing is pretrained; sparsity is learned in the epochs before pruning, the rest fine-tunes, under one
schedule. Its MACs are counted by torch's flop counter, as ours are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from apical.budget import Budget
from apical.errors import ConfigError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.recipes._settings import split_options
from apical.reporting import rows
from apical.reporting._compare_page import render_markdown
from apical.runs import compare, method_options, methods, register_method
from apical.training import GrowthMethod, MethodFactory, make_progress


@dataclass(frozen=True)
class TorchPruningConfig:
    """Options of the peer.

    Attributes:
        prune_at: share of the epochs that learn sparsity; the rest fine-tunes.
        reg: weight of the group regularisation, the authors' for CIFAR.
        steps: into how many steps pruning everything would be divided.
        global_pruning: rank the channels of all layers together; if not, all layers lose the same share.
        round_to: keep widths at multiples of this number.
    """

    prune_at: float = 0.5
    reg: float = 5e-4
    steps: int = 400
    global_pruning: bool = True
    round_to: int = 1


class TorchPruning:
    """The pruner behind apical's method protocol."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, example: tuple[Tensor, ...], budget: str, epochs: int,
                 config: TorchPruningConfig) -> None:  # fmt: skip
        (target,) = Budget.of(budget).targets
        if target.kind != "macs" or not target.relative:
            raise ConfigError(f"torch-pruning is pruned to a share of the MACs, got the budget {budget}")
        self._model, self._optimizer, self._example = model, optimizer, example
        self._dense_macs, self._dense_params = self._macs(), self._params()
        self._share, self._prune_after = target.amount, max(1, round(config.prune_at * epochs))
        self._epoch = 0
        last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]  # the classifier
        self._pruner = tp.pruner.GroupNormPruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
            global_pruning=config.global_pruning,
            pruning_ratio=1.0,
            iterative_steps=config.steps,
            round_to=config.round_to if config.round_to > 1 else None,
            ignored_layers=[last],
            reg=config.reg,
        )
        self._hook = optimizer.register_step_pre_hook(self._regularise)

    def _regularise(self, *_: Any) -> None:
        if self._epoch < self._prune_after:
            self._pruner.regularize(self._model)

    def _macs(self) -> int:
        training = self._model.training
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._model.eval()(*self._example)
        self._model.train(training)
        return counter.get_total_flops() // 2

    def _params(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    def end_epoch(self) -> dict[str, Any]:
        """Record the network; prune if it is time."""
        macs, params = self._macs(), self._params()
        self._epoch += 1
        if self._epoch == self._prune_after:
            with _Rekeyed(self._model, self._optimizer):
                while self._macs() > self._share * self._dense_macs:
                    self._pruner.step()
        return {
            "macs": macs,
            "macs_fraction": macs / self._dense_macs,
            "num_params": params,
            "params_fraction": params / self._dense_params,
        }

    def finish(self) -> None:
        """Remove the hook."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """The epoch and what was pruned."""
        history = [[name, bool(out), [int(i) for i in idxs]] for name, out, idxs in self._pruner.pruning_history()]
        return {"epoch": self._epoch, "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Prune likewise."""
        self._epoch = state["epoch"]
        with _Rekeyed(self._model, self._optimizer):
            self._pruner.load_pruning_history(state["history"])


class _Rekeyed:
    """Gives the optimizer the parameters that pruning made, without their state, as the package's authors advise."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer

    def __enter__(self) -> None:
        names = {id(p): name for name, p in self._model.named_parameters()}
        self._groups = [[names[id(p)] for p in group["params"]] for group in self._optimizer.param_groups]

    def __exit__(self, *_: object) -> None:
        found = dict(self._model.named_parameters())
        self._optimizer.state.clear()
        for group, names in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["params"] = [found[name] for name in names]


@register_method("torch-pruning")
def assemble(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    """The peer as a method of the recipes."""
    options = method_options(config, TorchPruningConfig)

    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        if copies:
            raise ConfigError("torch-pruning does not prune moving averages: set training.ema_decay=none")
        return TorchPruning(model, optimizer, example, config.budget, config.training.epochs, options)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("--methods", default="grown,torch-pruning,l1,uniform")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs")
    parser.add_argument("--budget")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    named = [f"{name}={value}" for name in ("epochs", "budget") if (value := getattr(given, name)) is not None]
    shared, own = split_options(given.set, methods())
    comparison = compare(
        apply_settings(get_recipe(given.recipe), [*named, *shared]),
        given.methods.split(","),
        [int(seed) for seed in given.seeds.split(",")],
        given.out or Path("runs") / f"peer-{given.recipe}",
        options=own,
        progress=lambda: make_progress("quiet"),
        message=print,
        program="python benchmarks/torch_pruning_peer.py",
    )
    print(render_markdown(comparison, rows(comparison)))


if __name__ == "__main__":
    main()
