"""Runs as pages for people: charts, tables and settings in one HTML file that needs nothing else."""

from apical.reporting._architecture import render_architecture, write_architecture
from apical.reporting._compare_page import render_markdown, write_comparison
from apical.reporting._comparison import (
    Comparison,
    Difference,
    Latency,
    MeanStd,
    MethodRow,
    Run,
    cost_curve,
    difference,
    mean_std,
    rows,
)
from apical.reporting._growth_picture import growth_pixels
from apical.reporting._page import render_report, write_report
from apical.reporting._read import RunRecord, read_run
from apical.reporting._runs_page import render_runs_report, write_runs_report
from apical.reporting._svg import Series, heat_strip, line_chart

__all__ = [
    "Comparison",
    "Difference",
    "Latency",
    "MeanStd",
    "MethodRow",
    "Run",
    "RunRecord",
    "Series",
    "cost_curve",
    "difference",
    "growth_pixels",
    "heat_strip",
    "line_chart",
    "mean_std",
    "read_run",
    "render_architecture",
    "render_markdown",
    "render_report",
    "render_runs_report",
    "rows",
    "write_architecture",
    "write_comparison",
    "write_report",
    "write_runs_report",
]
