"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import Budget, Target
from apical.budget._latency import LatencyTable
from apical.budget._load import BoundBudget
from apical.budget._projection import DeviceTable, NetworkCost, Setting, project
from apical.budget._rounding import rounding_step

__all__ = [
    "BoundBudget",
    "Budget",
    "DeviceTable",
    "LatencyTable",
    "NetworkCost",
    "Setting",
    "Target",
    "project",
    "rounding_step",
]
