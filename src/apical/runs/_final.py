"""The methods that repeat another run's final architecture from scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from torch import Tensor

from apical._reading import read_object
from apical.baselines import Final
from apical.errors import ConfigError
from apical.recipes import RunConfig
from apical.runs._methods import comparator, method_options, register_method
from apical.training import MethodFactory


@dataclasses.dataclass(frozen=True)
class FinalOptions:
    """Which architecture.

    Attributes:
        run: folder of the finished run that ended with it.
        widths: of every group that is there; read at the start.
        skipped: blocks that are left out, likewise.
    """

    run: str = ""
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def epochs_for_macs(epochs: int, train_macs_vs_final: float) -> int:
    """Whole epochs whose training MACs are at least those of a run that ended with the same architecture.

        E' = ⌈E · train_macs_vs_final⌉

    Rounded up, which favours the comparator.

    Example:
        >>> epochs_for_macs(40, 0.7373), epochs_for_macs(40, 0.5)
        (30, 20)
    """
    return max(1, ceil(epochs * train_macs_vs_final - 1e-9))


def _resolved(config: RunConfig) -> RunConfig:
    """With the architecture itself in the options, and for ``final-same-macs`` with the epochs that cost the same."""
    options = method_options(config, FinalOptions)
    if options.widths:
        return config
    summary = _summary(config.method, options.run)
    chosen = {"run": options.run, "widths": dict(summary["widths"]), "skipped": list(summary.get("skipped") or [])}
    config = dataclasses.replace(config, method_options=chosen)
    if config.method == "final-same-epochs":
        return config
    return config.with_epochs(epochs_for_macs(int(summary["epochs"]), float(summary["train_macs_vs_final"])))


def _summary(method: str, run: str) -> Mapping[str, Any]:
    if not run:
        raise ConfigError(
            f"method {method} needs the run whose final architecture it trains from scratch: --set method.run=FOLDER"
        )
    path = Path(run) / "summary.json"
    try:
        summary = read_object(path, ConfigError, "a finished run of `apical train`")
    except ConfigError as error:
        raise ConfigError(f"method {method}: {error}") from error
    missing = [name for name in ("widths", "epochs", "train_macs_vs_final") if not summary.get(name)]
    if missing:
        raise ConfigError(
            f"method {method}: {path} does not say {', '.join(missing)}; expected a run of `apical train`"
        )
    return summary


def _assemble(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    options = method_options(config, FinalOptions)
    return comparator(Final(dict(options.widths), tuple(options.skipped)), config, example)


register_method("final-same-epochs", _resolved, reads=())(_assemble)
register_method("final-same-macs", _resolved, reads=())(_assemble)
