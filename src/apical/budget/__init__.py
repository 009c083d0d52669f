"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import Budget, Target
from apical.budget._device_table import DeviceTable
from apical.budget._latency import LatencyTable
from apical.budget._load import BoundBudget
from apical.budget._rounding import rounding_step

__all__ = ["BoundBudget", "Budget", "DeviceTable", "LatencyTable", "Target", "rounding_step"]
