"""Weights of a few bits: bit planes, which layer gets how many, and packed codes."""

from apical.quantize._packing import QuantizedTensor, pack, unpack

__all__ = ["QuantizedTensor", "pack", "unpack"]
