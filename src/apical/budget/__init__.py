"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import Budget, Target
from apical.budget._latency import LatencyTable, measure_latency_table
from apical.budget._load import BoundBudget, Reach
from apical.budget._projection import DeviceTable, NetworkCost, Setting, allreduce_bytes, memory_bytes, project, totals

__all__ = [
    "BoundBudget",
    "Budget",
    "DeviceTable",
    "LatencyTable",
    "NetworkCost",
    "Reach",
    "Setting",
    "Target",
    "allreduce_bytes",
    "measure_latency_table",
    "memory_bytes",
    "project",
    "totals",
]
