"""What the network may cost at each point of training."""

from __future__ import annotations

from apical.growth._config import GrowthConfig


def scheduled_load(config: GrowthConfig, progress: float, seed_load: float) -> float:
    """Scheduled cost, as a fraction of the budget, after a fraction of training.

    Rises from the seed's cost to 1 at ``growth_end``, linearly or geometrically.

    Example:
        >>> [round(scheduled_load(GrowthConfig(growth_end=0.5), p, 0.2), 2) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.2, 0.6, 1.0, 1.0]
    """
    done = min(1.0, progress / config.growth_end)
    if config.schedule == "geometric":
        return float(seed_load ** (1 - done))
    return seed_load + (1 - seed_load) * done


def is_frozen(config: GrowthConfig, progress: float, previous: float) -> bool:
    """Whether the structure no longer changes: the end of growth was passed at an earlier restructuring."""
    return previous >= config.freeze_at and progress > config.freeze_at
