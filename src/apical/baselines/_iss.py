"""Intrinsic sparse structures: group lasso on whole units while training, then removal (Wen et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines._record import network_record
from apical.budget import BoundBudget, Budget
from apical.errors import CheckpointError, ConfigError
from apical.resizing import DormantStore, TemplateMap, lookup, resize_, trace
from apical.structure import ChannelGroup, ExampleInputs, Structure


@dataclass(frozen=True)
class ISSConfig:
    """Options of `ISS`.

    Attributes:
        strength: λ, weight of the sum of group norms in the objective, at least 0.
        threshold: a unit leaves at the end of an epoch when its norm is below this share of its group's largest.
        enforce_at: share of the epochs after which the weakest units leave until the budget is met and the penalty
            ends, in (0, 1); the rest is fine-tuning.
        groups: ``"all"`` groups of the network, or those of recurrent layers only, as in the paper.
    """

    strength: float = 1e-4
    threshold: float = 1e-3
    enforce_at: float = 0.75
    groups: Literal["all", "recurrent"] = "all"

    def __post_init__(self) -> None:
        rules = {
            f"strength={self.strength}, expected at least 0": self.strength >= 0,
            f"threshold={self.threshold}, expected a number in [0, 1)": 0 <= self.threshold < 1,
            f"enforce_at={self.enforce_at}, expected a number in (0, 1)": 0 < self.enforce_at < 1,
            f"groups={self.groups!r}, expected 'all' or 'recurrent'": self.groups in ("all", "recurrent"),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("iss: " + "; ".join(broken))


class ISS:
    """Trains the whole model under a group lasso on its units, and removes those that it drives to nothing.

        min  L(w) + λ Σ_u ‖w_u‖₂,   w_u every weight of unit u: for an LSTM its four gate rows, its recurrent column
                                    and the columns that read it
        after each step of learning rate η:   w_u ← w_u · max(0, 1 − η λ / ‖w_u‖₂)

    The second line is the proximal step of the penalty, taken by a hook of the optimizer, so that the training loop
    is unchanged; a unit that reaches zero is removed exactly. Source: Wen et al., *Learning Intrinsic Sparse
    Structures within Long Short-Term Memory*, ICLR 2018, equation 4; docs/methods/iss.md says what differs.

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        budget: what the final network may cost.
        epochs: how many times `end_epoch` will be called in all, at least 2.
        config: the options.
        divisor: widths are multiples of it, as far as a group is that large, once the budget is met.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Raises:
        BudgetError: the budget cannot be met by the groups that may shrink; the model is unchanged.
        ConfigError: there are too few epochs, or no group that may shrink.
        TraceError: the model cannot be analysed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> iss = ISS(net, torch.optim.SGD(net.parameters(), lr=0.1), torch.zeros(1, 3), "50% params", epochs=4)
        >>> [iss.end_epoch()["widths"]["0"] for _ in range(4)]
        [8, 8, 8, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: ISSConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config = config or ISSConfig()
        if epochs < 2:
            raise ConfigError(f"iss: {epochs} epochs; expected at least 2, to prune between training and fine-tuning")
        self.structure = trace(model, example_inputs) if structure is None else structure
        self._groups = [g for g in self.structure.groups if self.config.groups == "all" or is_recurrent(g)]
        if not self._groups:
            raise ConfigError("iss: the model has no recurrent group; pass groups='all'")
        self._step = {g.name: divisor if g.size >= 2 * divisor else 1 for g in self._groups}
        least = {g.name: self._step.get(g.name, g.size) for g in self.structure.groups}
        self._bound = BoundBudget(Budget.of(budget), self.structure, minimum=least, fixed_blocks=True)
        self._model, self._optimizer, self._copies = model, optimizer, tuple(copies)
        self._enforce_after = min(epochs - 1, max(1, round(self.config.enforce_at * epochs)))
        self._epoch, self._template, self._store = 0, TemplateMap(self.structure), DormantStore()
        self.keep = {g.name: list(range(g.size)) for g in self.structure.groups}
        self._watch()
        self._hook = optimizer.register_step_post_hook(lambda *_: self._shrink_())

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; remove what the penalty has driven to nothing, or what the budget forbids."""
        record = network_record(self.structure, self.keep)
        self._epoch += 1
        if self._epoch < self._enforce_after:
            self._resize_({name: self._alive(name, norms) for name, norms in self.norms().items()})
        elif self._epoch == self._enforce_after:
            self._resize_(self._within_budget())
        return record

    @torch.no_grad()
    def norms(self) -> dict[str, Tensor]:
        """‖w_u‖₂ of the present units of every group that may shrink, by its name  # (units,)"""
        found: dict[str, Tensor] = {}
        for group, members in self._members.items():
            squares = [_squares(parameter.detach(), dim)[index].sum(1) for parameter, dim, index in members]
            found[group] = torch.stack(squares).sum(0).sqrt()
        return found

    @torch.no_grad()
    def _shrink_(self) -> None:
        """The proximal step of the penalty. Weights of two units (of a recurrent matrix) shrink with both."""
        if self._epoch >= self._enforce_after or not self.config.strength:
            return
        threshold = self.config.strength * self._learning_rate()
        for group, norms in self.norms().items():
            factors = (1 - threshold / norms.clamp(min=1e-30)).clamp(min=0)
            for parameter, dim, index in self._members[group]:
                scale = parameter.new_ones(parameter.shape[dim])
                scale[index] = factors.to(parameter.dtype).unsqueeze(1).expand(index.shape)
                shape = [1] * parameter.dim()
                shape[dim] = -1
                parameter.mul_(scale.view(shape))

    def _learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _alive(self, group: str, norms: Tensor) -> list[int]:
        """Units above the threshold; the group's least number at any rate."""
        strong = norms > self.config.threshold * norms.max()
        if int(strong.sum()) < self._step[group]:
            strong = torch.zeros_like(strong).index_fill(0, norms.topk(self._step[group]).indices, True)
        return [unit for unit, stays in zip(self.keep[group], strong.tolist(), strict=True) if stays]

    def _within_budget(self) -> dict[str, list[int]]:
        """The weakest units of all groups leave, by their share of the group's mean norm, until the budget is met."""
        relative = {name: (norms / norms.mean().clamp(min=1e-30)).tolist() for name, norms in self.norms().items()}
        ranked = {name: sorted(zip(values, self.keep[name], strict=True)) for name, values in relative.items()}
        counts = {name: len(kept) for name, kept in self.keep.items()}
        for name, step in self._step.items():
            if counts[name] < self.structure.group(name).size:
                counts[name] = max(step, counts[name] - counts[name] % step)
        while self._bound.load(counts) > 1:
            movable = [name for name, step in self._step.items() if counts[name] > step]
            name = min(movable, key=lambda n: ranked[n][len(ranked[n]) - counts[n]][0])
            step = self._step[name]
            counts[name] = max(step, counts[name] - (counts[name] % step or step))
        for name, step in self._step.items():  # what the last removal left over may do for a group of smaller units
            most = len(ranked[name]) - step
            while counts[name] <= most and self._bound.load({**counts, name: counts[name] + step}) <= 1:
                counts[name] += step
        return {name: sorted(unit for _, unit in units[len(units) - counts[name] :]) for name, units in ranked.items()}

    def _resize_(self, keep: Mapping[str, list[int]]) -> None:
        wanted = {**self.keep, **keep}
        if wanted != self.keep:
            resize_(self._model, self.structure, wanted, (), self._optimizer, self._store, copies=self._copies)
            self.keep = wanted
        self._watch()

    def _watch(self) -> None:
        """Find the present units' places in the present parameters."""
        selection = self._store.current(self.structure)
        self._members: dict[str, list[tuple[Tensor, int, Tensor]]] = {}
        for group in self._groups:
            members = []
            for part in group.members:
                if not self.structure.tensors[part.tensor].is_parameter:
                    continue
                parameter = lookup(self._model, self._template.live_names(part.tensor, selection)[0])
                index = part.index[self.keep[group.name]]
                kept = self._template.index(part.tensor, selection).get(part.dim)
                index = index if kept is None else torch.searchsorted(kept, index)
                members.append((parameter, part.dim, index.to(parameter.device)))
            self._members[group.name] = members

    def finish(self) -> None:
        """Remove the hook and release what left."""
        self._hook.remove()
        self._store = DormantStore()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the present shape and the options."""
        options = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        return {"epoch": self._epoch, "keep": {name: list(kept) for name, kept in self.keep.items()}, **options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model or other options.
        """
        mine = self.state_dict()
        if {k: v for k, v in state.items() if k not in ("epoch", "keep")} != {
            k: v for k, v in mine.items() if k not in ("epoch", "keep")
        } or set(state["keep"]) != set(self.keep):
            raise CheckpointError(f"the saved run was one of iss with other options or another model; this is {self}")
        self._epoch = state["epoch"]
        self._resize_({name: list(kept) for name, kept in state["keep"].items()})


def _squares(parameter: Tensor, dim: int) -> Tensor:
    """Sums of squares over all dimensions but one  # (size of dim,)"""
    others = [d for d in range(parameter.dim()) if d != dim]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    if not others:
        return parameter.to(wide).square()
    norms: Tensor = torch.linalg.vector_norm(parameter, dim=others, dtype=wide)
    return norms.square()


def is_recurrent(group: ChannelGroup) -> bool:
    """Whether the group's units both write and read one matrix: the recurrent weights of an LSTM, GRU or RNN."""
    dims: dict[str, set[int]] = {}
    for part in group.members:
        dims.setdefault(part.tensor, set()).add(part.dim)
    return any(len(found) > 1 for found in dims.values())
