"""Weights of a few bits: bit planes, which layer gets how many, and packed codes."""

from apical.quantize._packing import (
    SCALES,
    QuantizedTensor,
    codes_of,
    pack,
    pack_codes,
    packed_size,
    unpack,
    unpack_codes,
)
from apical.quantize._planes import Rounded, plane_values, signed_digits
from apical.quantize._precision import BitPrices, choose_bits, soft_gates

__all__ = [
    "SCALES",
    "BitPrices",
    "QuantizedTensor",
    "Rounded",
    "choose_bits",
    "codes_of",
    "pack",
    "pack_codes",
    "packed_size",
    "plane_values",
    "signed_digits",
    "soft_gates",
    "unpack",
    "unpack_codes",
]
