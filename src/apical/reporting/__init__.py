"""A run as a page for people: charts, tables and settings in one HTML file that needs nothing else."""

from apical.reporting._page import render_report, write_report
from apical.reporting._read import RunRecord, read_run
from apical.reporting._svg import Series, heat_strip, line_chart

__all__ = ["RunRecord", "Series", "heat_strip", "line_chart", "read_run", "render_report", "write_report"]
