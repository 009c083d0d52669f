"""ThiNet: keep the channels from which the next layer's outputs can be rebuilt (Luo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from apical.baselines._choose import LEAST_FRACTION, sparing_streams, strongest
from apical.baselines._phases import check, epoch_at, is_fraction
from apical.baselines._reconstruct import Reader, forget_hooks, gram_of, greedy_removal, readers_of, rescaling
from apical.baselines._scores import filter_norms
from apical.baselines._subject import Subject
from apical.baselines._uniform import uniform_keep
from apical.budget import Budget
from apical.structure import ChannelGroup, ExampleInputs, Structure


@dataclass(frozen=True)
class ThiNetConfig:
    """Options of `ThiNet`.

    Attributes:
        prune_at: share of the epochs after which channels are removed, in (0, 1); the rest is fine-tuning.
        samples: output locations per reading layer on which its outputs are rebuilt, at least 1.
        rescale: whether the remaining weights are rescaled by least squares, as in the paper.
        seed: of the choice of images and locations.
    """

    prune_at: float = 0.5
    samples: int = 1024
    rescale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            "thinet",
            {
                f"prune_at={self.prune_at}, expected a number in (0, 1)": is_fraction(self.prune_at),
                f"samples={self.samples}, expected at least 1": self.samples >= 1,
            },
        )


class ThiNet:
    """Trains the whole model, removes once the channels that the next layer misses least, and trains on.

        T = argmin_|T| = n − k  Σ_i (Σ_{c ∈ T} z_ic)²,   z_ic = Σ_kernel W_oc · x_ic

    z_ic is channel c's contribution to a sampled output i of the layer that reads it; T is found greedily, and the
    weights of the rest are rescaled by ŵ = argmin ‖Z 1 − Z_S w‖². One ratio gives the widths of all groups,
    residual streams left whole where the budget allows. Source: Luo, Wu, Lin, *ThiNet: A Filter Level Pruning Method
    for Deep Neural Network Compression*, ICCV 2017, section 3.2; docs/methods/thinet.md says what differs.

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        budget: what the final network may cost.
        epochs: how many times `end_epoch` will be called in all, at least 2.
        config: the options.
        divisor: every width is a multiple of it.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Raises:
        BudgetError: the budget cannot be met; the model is unchanged.
        ConfigError: there are too few epochs.
        TraceError: the model cannot be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: ThiNetConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config = config or ThiNetConfig()
        self._epoch, self._prune_after = 0, epoch_at(self.config.prune_at, epochs, "thinet")
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        least = sparing_streams(self.structure, budget, LEAST_FRACTION, divisor)
        self.widths = uniform_keep(self.structure, budget, divisor, least=least)
        self._readers: dict[str, list[Reader]] = {}
        self._watch()

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; remove channels if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._epoch == self._prune_after:
            self._prune()
        self._watch()
        return record

    def _watch(self) -> None:
        """Collect what the reading layers read in the last epoch before channels are removed."""
        forget_hooks(self._readers)
        self._readers = {}
        if self._epoch == self._prune_after - 1:
            generator = torch.Generator().manual_seed(self.config.seed)
            self._readers = {
                group.name: readers_of(self._subject, group, self.config.samples, generator)
                for group in self.structure.groups
            }

    def _prune(self) -> None:
        keep = strongest(filter_norms(self._subject, order=1), self.widths)
        for group in self.structure.groups:
            if self.widths[group.name] < group.size and self._readers[group.name]:
                keep[group.name] = self._rebuild(group)
        self._subject.resize_(keep)
        self._subject.release()

    @torch.no_grad()
    def _rebuild(self, group: ChannelGroup) -> list[int]:
        """The units that stay; the weights that read them are rescaled."""
        readers = self._readers[group.name]
        grams = [gram_of(reader) for reader in readers]
        kept = greedy_removal(
            torch.stack([g / g.sum().clamp(min=1e-12) for g in grams]).sum(0), self.widths[group.name]
        )
        for reader, gram in zip(readers, grams, strict=True):
            if self.config.rescale:
                factors = torch.ones(group.size, dtype=gram.dtype)
                factors[kept] = rescaling(gram, kept)
                reader.rows.scale_(factors)
        return kept

    def finish(self) -> None:
        """Remove the hooks and release what was removed."""
        forget_hooks(self._readers)
        self._subject.release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the present shape."""
        return {"epoch": self._epoch, **self._subject.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        self._subject.load_state_dict(state)
        self._epoch = state["epoch"]
        self._watch()
