"""ThiNet: keep the channels from which the next layer's outputs can be rebuilt (Luo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from apical._checks import check
from apical.baselines._choose import strongest
from apical.baselines._comparator import Change, Course, Task, epoch_at
from apical.baselines._reconstruct import Reader, gram_of, greedy_removal, readers_of, rescaling
from apical.baselines._scores import filter_norms
from apical.baselines._uniform import one_ratio
from apical.structure import ChannelGroup


@dataclass(frozen=True)
class ThiNet:
    """Trains the whole model, removes once the channels that the next layer misses least, and trains on.

        T = argmin_|T| = n − k  Σ_i (Σ_{c ∈ T} z_ic)²,   z_ic = Σ_kernel W_oc · x_ic

    z_ic is channel c's contribution to a sampled output i of the layer that reads it; T is found greedily, and the
    weights of the rest are rescaled by ŵ = argmin ‖Z 1 − Z_S w‖². One ratio gives the widths of all groups,
    residual streams left whole where the budget allows. Source: Luo, Wu, Lin, *ThiNet: A Filter Level Pruning Method
    for Deep Neural Network Compression*, ICCV 2017, section 3.2; docs/methods/thinet.md says what differs.

    Attributes:
        prune_at: share of the epochs after which channels are removed, in (0, 1); the rest is fine-tuning.
        samples: output locations per reading layer on which its outputs are rebuilt, at least 1.
        rescale: whether the remaining weights are rescaled by least squares, as in the paper.
        seed: of the choice of images and locations.
    """

    name: ClassVar[str] = "thinet"
    prune_at: float = 0.5
    samples: int = 1024
    rescale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            f"method {self.name}",
            {
                f"prune_at={self.prune_at}, expected a number in (0, 1)": 0 < self.prune_at < 1,
                f"samples={self.samples}, expected at least 1": self.samples >= 1,
            },
        )

    def last(self, epochs: int) -> int:
        """When channels are removed."""
        return epoch_at(self.prune_at, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Fix the widths."""
        widths, readers = one_ratio(task), dict[str, list[Reader]]()
        task.generator.manual_seed(self.seed)

        def stop() -> None:
            for reader in (reader for several in readers.values() for reader in several):
                reader.hook.remove()
            readers.clear()

        def watch(epoch: int) -> None:
            """Collect what the reading layers read in the last epoch before channels are removed."""
            stop()
            for group in task.structure.groups if epoch == task.last - 1 else ():
                readers[group.name] = readers_of(task.subject, group, self.samples, task.generator)

        def decide(epoch: int) -> Change | None:
            if epoch < task.last:
                return None
            # of groups whose readers cannot be watched
            keep = strongest(filter_norms(task.subject, order=1), widths)
            for group in task.structure.groups:
                if widths[group.name] < group.size and readers[group.name]:
                    keep[group.name] = rebuild_(group, widths[group.name], readers[group.name], self.rescale)
            return Change(keep)

        return Course(decide, begin_epoch=watch, stop=stop)


@torch.no_grad()
def rebuild_(group: ChannelGroup, width: int, readers: Sequence[Reader], rescale: bool) -> list[int]:
    """The units that stay; the weights that read them are rescaled."""
    grams = [gram_of(reader) for reader in readers]
    kept = greedy_removal(torch.stack([g / g.sum().clamp(min=1e-12) for g in grams]).sum(0), width)
    for reader, gram in zip(readers, grams, strict=True):
        if rescale:
            factors = torch.ones(group.size, dtype=gram.dtype)
            factors[kept] = rescaling(gram, kept)
            reader.rows.scale_(factors)
    return kept
