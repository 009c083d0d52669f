"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import BIT_KINDS, Budget, Kind, Target
from apical.budget._latency import LatencyTable
from apical.budget._load import BoundBudget, Reach, budget_share
from apical.budget._projection import (
    DeviceTable,
    NetworkCost,
    Setting,
    allreduce_bytes,
    memory_bytes,
    project,
    sharded_bytes,
    totals,
)
from apical.budget._rounding import least_width, possible_widths, rounding_step, warn_of_idle_divisor

__all__ = [
    "BIT_KINDS",
    "BoundBudget",
    "Budget",
    "DeviceTable",
    "Kind",
    "LatencyTable",
    "NetworkCost",
    "Reach",
    "Setting",
    "Target",
    "allreduce_bytes",
    "budget_share",
    "least_width",
    "memory_bytes",
    "possible_widths",
    "project",
    "rounding_step",
    "sharded_bytes",
    "totals",
    "warn_of_idle_divisor",
]
