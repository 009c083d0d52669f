"""Runs as pages for people: charts, tables and settings in one HTML file that needs nothing else."""

from apical.reporting._architecture import write_architecture
from apical.reporting._compare_page import write_comparison
from apical.reporting._comparison import (
    Comparison,
    Difference,
    Latency,
    MeanStd,
    MethodRow,
    Run,
    difference,
    mean_std,
    rows,
)
from apical.reporting._page import write_report
from apical.reporting._read import RunRecord, read_run
from apical.reporting._runs_page import write_runs_report

__all__ = [
    "Comparison",
    "Difference",
    "Latency",
    "MeanStd",
    "MethodRow",
    "Run",
    "RunRecord",
    "difference",
    "mean_std",
    "read_run",
    "rows",
    "write_architecture",
    "write_comparison",
    "write_report",
    "write_runs_report",
]
