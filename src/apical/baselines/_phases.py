"""When a comparator acts, and checks of its options."""

from __future__ import annotations

from collections.abc import Mapping

from apical.errors import ConfigError


def check(method: str, rules: Mapping[str, bool]) -> None:
    """Collect every broken rule before complaining.

    Raises:
        ConfigError: with all of them.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ConfigError(f"method {method}: " + "; ".join(broken))


def is_fraction(value: float) -> bool:
    """Whether a number lies in (0, 1)."""
    return 0 < value < 1


def epoch_at(fraction: float, epochs: int, method: str) -> int:
    """The epoch after which a share of training is done, with at least one epoch before and one after it.

    Raises:
        ConfigError: there are fewer than two epochs.

    Example:
        >>> epoch_at(0.5, 30, "l1"), epoch_at(0.01, 30, "l1"), epoch_at(0.99, 30, "l1")
        (15, 1, 29)
    """
    if epochs < 2:
        raise ConfigError(
            f"method {method}: got epochs={epochs}; expected at least 2, one before the network is pruned and one after"
        )
    return min(epochs - 1, max(1, round(fraction * epochs)))
