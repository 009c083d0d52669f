"""What is found out with a clock: times of layers at many widths, and which multiples of channels a device likes."""

from apical.timing._divisor import DIVISORS, DivisorChoice, measure_divisor
from apical.timing._latency_table import measure_latency_table

__all__ = ["DIVISORS", "DivisorChoice", "measure_divisor", "measure_latency_table"]
