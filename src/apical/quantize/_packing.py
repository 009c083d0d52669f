"""Codes of a few bits in bytes, and a whole model's tensors in a few blobs."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apical._checks import shown
from apical.errors import ApicalError, LoadError

CODES, SCALES = "codes", "scales"
_KINDS = {"float": "F", "int": "I", "uint": "U", "bfloat": "BF", "bool": "BOOL", "complex": "C"}  # in safetensors


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that is integers times a scale: ``weight = code * scale``, with |code| < 2^(bits − 1).

    Attributes:
        bits: of each code, sign included; 2 to 8.
        scale: a positive float32.
    """

    bits: int
    scale: float


def check_quantized(quantized: Any, tensors: Container[str], error: type[ApicalError]) -> None:
    """Refuse what does not say bits and scale of tensors of a model.

    Args:
        quantized: as ``Grower.quantized`` has it; None or empty: nothing is quantised.
        tensors: names that the model has.
        error: what is raised.
    """
    if quantized is None:
        return
    if not isinstance(quantized, Mapping) or not all(isinstance(q, QuantizedTensor) for q in quantized.values()):
        raise error(f"quantized must have a QuantizedTensor by name, as Grower.quantized has, got {shown(quantized)}")
    absent = [name for name in quantized if name not in tensors]
    if absent:
        raise error(f"quantized names {shown(absent[0])}, which the model does not have")


def codes_of(weight: Tensor, quantized: QuantizedTensor) -> Tensor:
    """The integers of a quantised weight, as int8.

    Example:
        >>> codes_of(torch.tensor([0.5, -1.5]), QuantizedTensor(bits=3, scale=0.5))
        tensor([ 1, -3], dtype=torch.int8)
    """
    codes = (weight.detach().double() / quantized.scale).round()
    if not torch.equal(weight.detach(), (codes.float() * quantized.scale).to(weight.dtype)):
        raise LoadError(
            f"a weight of shape {tuple(weight.shape)} is no multiple of the scale {quantized.scale:.6g}: it was "
            "changed since it was quantised. Save the model as it is after Grower.finish."
        )
    if codes.numel() and float(codes.abs().max()) >= 2 ** (quantized.bits - 1):
        raise LoadError(f"codes up to {int(codes.abs().max())} do not fit into {quantized.bits} bits")
    return codes.to(torch.int8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Integers as ``bits`` bits each, in as few bytes as hold them.

    Args:
        codes: in [−2^(bits − 1), 2^(bits − 1) − 1], any shape.
        bits: of each.

    Returns:
        Bytes, uint8  # (ceil(codes.numel() * bits / 8),)

    Example:
        >>> unpack_codes(pack_codes(torch.tensor([1, -3, 0], dtype=torch.int8), 3), 3, (3,))
        tensor([ 1, -3,  0], dtype=torch.int8)
    """
    shifted = (codes.reshape(-1).to(torch.int16).cpu().numpy() + 2 ** (bits - 1)).astype(np.uint8)
    single = (shifted[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(single.reshape(-1), bitorder="little"))


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_codes`, as int8  # shape"""
    count = int(np.prod(shape))
    single = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    shifted = (single.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(1) - 2 ** (bits - 1)
    return torch.from_numpy(shifted.astype(np.int8)).reshape(shape)


def _num_bytes(shape: Iterable[int], bits: int) -> int:
    return -(-int(np.prod(tuple(shape))) * bits // 8)


def pack(tensors: Mapping[str, Tensor], quantized: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
    """All tensors in a few blobs: codes, scales, and for each type what is not quantised.

    Args:
        tensors: by name; the order counts.
        quantized: which of them are codes times a scale, by name.

    Raises:
        LoadError: a weight is not what ``quantized`` says.

    Example:
        >>> tensors = {"weight": torch.tensor([0.5, -1.5]), "bias": torch.tensor([2.0])}
        >>> kinds = {"weight": QuantizedTensor(3, 0.5)}
        >>> blobs = pack(tensors, kinds)
        >>> {name: tuple(blob.shape) for name, blob in blobs.items()}
        {'codes': (1,), 'scales': (1,), 'float32': (1,)}
        >>> like = {name: (t.shape, t.dtype) for name, t in tensors.items()}
        >>> unpack(blobs, like, {"weight": 3})["weight"]
        tensor([ 0.5000, -1.5000])
    """
    coded = [name for name in tensors if name in quantized]
    codes = [pack_codes(codes_of(tensors[n], quantized[n]), quantized[n].bits) for n in coded]
    blobs = {CODES: torch.cat(codes), SCALES: torch.tensor([quantized[n].scale for n in coded], dtype=torch.float32)}
    rest: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if name not in quantized:
            rest.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(tensor.detach().reshape(-1).cpu())
    return blobs | {dtype: torch.cat(parts) for dtype, parts in rest.items()}


def unpack(
    blobs: Mapping[str, Tensor], like: Mapping[str, tuple[tuple[int, ...], torch.dtype]], bits: Mapping[str, int]
) -> dict[str, Tensor]:
    """The inverse of `pack`, to the last bit.

    Args:
        blobs: what `pack` returned.
        like: shape and type of every tensor, in the order in which they were packed.
        bits: of the codes of each quantised tensor.

    Raises:
        LoadError: a blob is missing, or longer or shorter than what it holds.
    """
    lengths: dict[str, int] = {CODES: 0, SCALES: len(bits)}
    for name, (shape, dtype) in like.items():
        blob = CODES if name in bits else str(dtype).removeprefix("torch.")
        lengths[blob] = lengths.get(blob, 0) + (_num_bytes(shape, bits[name]) if blob == CODES else int(np.prod(shape)))
    got = {name: blob.numel() for name, blob in blobs.items()}
    if got != lengths:
        raise LoadError(f"the packed tensors have {got} elements, expected {lengths}: damaged, or of another model")
    place, result, scales = dict.fromkeys(lengths, 0), {}, iter(blobs[SCALES].tolist())
    for name, (shape, dtype) in like.items():
        blob = CODES if name in bits else str(dtype).removeprefix("torch.")
        length = _num_bytes(shape, bits[name]) if blob == CODES else int(np.prod(shape))
        part = blobs[blob][place[blob] : place[blob] + length]
        place[blob] += length
        if blob == CODES:
            result[name] = (unpack_codes(part, bits[name], tuple(shape)).float() * next(scales)).to(dtype)
        else:
            result[name] = part.reshape(tuple(shape)).clone()
    return result


def packed_size(like: Mapping[str, tuple[tuple[int, ...], torch.dtype]], bits: Mapping[str, int]) -> int:
    """Bytes of the safetensors file that holds the blobs of such tensors.

    Args:
        like: shape and type of every tensor.
        bits: of the codes of each quantised tensor.

    Example:
        >>> packed_size({"weight": ((2,), torch.float32)}, {"weight": 3})
        133
    """
    totals: dict[str, tuple[str, int, int]] = {CODES: ("U8", 0, 1), SCALES: ("F32", len(bits), 4)}
    for name, (shape, dtype) in like.items():
        if name in bits:
            totals[CODES] = ("U8", totals[CODES][1] + _num_bytes(shape, bits[name]), 1)
            continue
        blob = str(dtype).removeprefix("torch.")
        kind = blob.rstrip("0123456789")
        count = totals[blob][1] if blob in totals else 0
        totals[blob] = (_KINDS.get(kind, kind) + blob[len(kind) :], count + int(np.prod(shape)), dtype.itemsize)
    offset, header = 0, {}
    for blob, (dtype_name, count, item) in sorted(totals.items(), key=lambda t: (-t[1][2], t[0])):
        header[blob] = {"dtype": dtype_name, "shape": [count], "data_offsets": [offset, offset + count * item]}
        offset += count * item
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + offset
