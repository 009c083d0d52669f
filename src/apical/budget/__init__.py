"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import BIT_KINDS, Budget, Kind, Target
from apical.budget._divisor import DIVISORS, DivisorChoice, budget_share, measure_divisor
from apical.budget._latency import LatencyTable, measure_latency_table
from apical.budget._load import BoundBudget, Reach
from apical.budget._projection import DeviceTable, NetworkCost, Setting, allreduce_bytes, memory_bytes, project, totals
from apical.budget._rounding import least_width, possible_widths, rounding_step
from apical.budget._shared import from_first

__all__ = [
    "BIT_KINDS",
    "DIVISORS",
    "BoundBudget",
    "Budget",
    "DeviceTable",
    "DivisorChoice",
    "Kind",
    "LatencyTable",
    "NetworkCost",
    "Reach",
    "Setting",
    "Target",
    "allreduce_bytes",
    "budget_share",
    "from_first",
    "least_width",
    "measure_divisor",
    "measure_latency_table",
    "memory_bytes",
    "possible_widths",
    "project",
    "rounding_step",
    "totals",
]
