"""What a network may cost: multiply-accumulates, parameters, measured latency, one or several at once."""

from apical.budget._budget import Budget, Target
from apical.budget._latency import LatencyTable, measure_latency_table
from apical.budget._load import BoundBudget, Reach

__all__ = ["BoundBudget", "Budget", "LatencyTable", "Reach", "Target", "measure_latency_table"]
