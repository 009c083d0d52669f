"""One ratio for all widths: the network that needs no search."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from apical.baselines._record import network_record
from apical.baselines._subject import Subject
from apical.budget import BoundBudget, Budget
from apical.errors import BudgetError
from apical.structure import ExampleInputs, Structure


def uniform_keep(
    structure: Structure,
    budget: Budget | str,
    divisor: int = 1,
    skip: Collection[str] = (),
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Widths of all groups scaled by one ratio r, so that the network costs what the budget allows.

        k_g = max(1, ⌊r n_g⌋),   r the largest for which the cost is within the budget

    Groups then receive one more step each, those with the largest remainder first, while the budget allows. What is
    left of the budget is less than the cheapest further step.

    Args:
        structure: the template.
        budget: the limit or limits.
        divisor: every width is a multiple of it (or the full width), as far as the group is that large.
        skip: blocks that are left out; the others all stay.
        least: the fewest units of each group; the divisor if None.

    Returns:
        The width of every group by name.

    Raises:
        BudgetError: no such network meets the budget, even with all widths at the divisor.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> uniform_keep(apical.trace(net, torch.zeros(1, 3)), "50% macs")
        {'0': 4}
    """
    if divisor < 1:
        raise BudgetError(f"divisor must be at least 1, got {divisor}")
    full = {group.name: group.size for group in structure.groups}
    least = least or {name: min(size, divisor) for name, size in full.items()}
    stay = [block.name for block in structure.blocks if block.name not in skip]
    bound = BoundBudget(Budget.of(budget), structure, minimum=least, fixed_blocks=stay)

    def load(widths: dict[str, int]) -> float:
        return bound.load(widths, skip)

    def at(ratio: float) -> dict[str, int]:
        return {name: max(least[name], _floor(ratio * size, size, divisor)) for name, size in full.items()}

    low, high = 0.0, 1.0
    if load(full) <= 1:
        return full
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if load(at(middle)) <= 1 else (low, middle)
    widths = at(low)
    for name in sorted(full, key=lambda name: widths[name] - low * full[name]):
        more = {**widths, name: min(full[name], widths[name] + divisor)}
        widths = more if load(more) <= 1 else widths
    return widths


def _floor(width: float, size: int, divisor: int) -> int:
    return size if width >= size else int(width / divisor + 1e-9) * divisor


class Uniform:
    """Scales all widths of the freshly built model by one ratio before the first step, then changes nothing.

    Every group keeps its first channels with the weights that they were initialised with.

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        budget: what the network may cost.
        divisor: every width is a multiple of it.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Raises:
        BudgetError: the budget cannot be met; the model is unchanged.
        TraceError: the model cannot be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = subject.structure
        self.widths = uniform_keep(self.structure, budget, divisor)
        subject.resize_({name: range(width) for name, width in self.widths.items()})

    def end_epoch(self) -> dict[str, Any]:
        """The cost of the scaled model."""
        return network_record(self.structure, self.widths)

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """The widths, to recognise another run's."""
        return {"widths": dict(self.widths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the widths follow from the model and the budget.

        Raises:
            BudgetError: they were others when the state was saved.
        """
        if state.get("widths") != self.widths:
            raise BudgetError(
                f"the saved run had uniform widths {state.get('widths')}, this one has {self.widths}: another budget, "
                "model or divisor"
            )
