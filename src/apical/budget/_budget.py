"""Budgets as users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from math import inf
from typing import Literal, NoReturn

from apical._checks import LARGEST, shown
from apical.errors import BudgetError

Kind = Literal["macs", "params", "latency", "size", "bitops"]
BIT_KINDS: tuple[Kind, ...] = ("size", "bitops")  # what the bits of weights are chosen by, and widths are not

_NAMES = ("macs", "params", "latency_ms", "latency")
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
FORMS = "write for example '50% macs', '300M macs', '0.1M params', '2.5 ms', '0.5 MB', or '50% macs, 10% size'"
_PATTERN = re.compile(
    r"^\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(%|[kmgbt](?=\s*[a-z]{2}))?\s*(macs|param(?:eter)?s|latency|size|bitops|[kmg]?b|[mu]?s)\s*$",
    re.I,
)
_SECONDS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?!\d{3})(?=\d)")  # not that of 300,000
_BARE = re.compile(r"^\s*(\d*\.?\d+)\s*(%?)\s*$")
_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?[kmgbt])\s*$", re.I)
_NUMBERED = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmgbt](?![a-z]))?\s*((?:[a-z-]+\s*)+)", re.I)  # then words
_FLOPS = re.compile(r"([kmgt]?)flops?", re.I)
_OTHER_WORDS = {"mac": "macs", "madds": "macs", "mult-adds": "macs", "multadds": "macs", "param": "params",
                "parameter": "params", "weights": "params", "time": "latency"}  # fmt: skip
_PHRASES = (  # what people write, and how we would
    (r"\s*(?:\bper\s?cent\b|\uFF05)", "%"),
    (r"\bhalf\b", "50%"),
    (r"\b(?:a )?quarter\b", "25%"),
    (r"%\s+of\b(?:\s+the\b)?", "% "),
    (r"^\s*([a-z]+)\s*[:=]?\s*(\d[\d.]*\s*%)\s*$", r"\2 \1"),
)


@dataclass(frozen=True)
class Target:
    """One limit: ``amount`` MACs, parameters, milliseconds, bytes or bit operations, or (``relative``) that fraction
    of the template's."""

    kind: Kind
    amount: float
    relative: bool

    def __str__(self) -> str:
        if self.relative:
            return f"{100 * self.amount:g}% {self.kind}"
        unit = {"latency": "ms", "size": "B"}.get(self.kind, self.kind)
        return f"{self.amount:g} ms" if self.kind == "latency" else f"{self.amount:,.0f} {unit}"


@dataclass(frozen=True, init=False)
class Budget:
    """What the final network may cost. With several limits all hold, and the tightest one is met.

    Args:
        text: ``"50% macs"``, ``"300M macs"``, ``"0.1M params"``, ``"2.5 ms"``, ``"0.5 MB"``, ``"10% size"``,
            ``"5% bitops"``, or several with commas between. Sizes (1 MB = 10^6 bytes) are those of the file of weights,
            and are met by the bits of the weights; bit operations are MACs times weight bits times activation bits.
        macs: multiply-accumulates of one call on the example inputs; up to 1 a fraction of the template's.
        params: parameters; up to 1 a fraction of the template's.
        latency_ms: measured milliseconds of one call on the example inputs, on this machine.
        latency: fraction of the template's measured latency.

    Raises:
        BudgetError: if the text cannot be read, nothing is limited, a limit is not positive, or the same is limited
            twice.

    Example:
        >>> from apical.budget import Budget
        >>> print(Budget("50% macs"))
        50% macs
        >>> print(Budget(macs=0.5, params=100_000))
        50% macs, 100,000 params
    """

    targets: tuple[Target, ...]

    def __init__(
        self,
        text: str | None = None,
        *,
        macs: float | None = None,
        params: float | None = None,
        latency_ms: float | None = None,
        latency: float | None = None,
        **unknown: NoReturn,
    ) -> None:
        for name in unknown:
            flops = "; a multiply-accumulate (MAC) is two FLOPs, a share of both is the same" if "flop" in name else ""
            raise BudgetError(f"a budget has no {name!r}, expected {', '.join(_NAMES)}{flops}; {FORMS}")
        numbers = {"macs": macs, "params": params, "latency_ms": latency_ms, "latency": latency}
        for name, number in numbers.items():
            if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
                raise BudgetError(f"{name} must be a number, got {shown(number)}; {FORMS}")
            if number is not None and LARGEST < abs(number) < inf:
                raise BudgetError(f"{name} is more than any network has, got {shown(number)}; {FORMS}")
        targets = [] if text is None else [_parse(part) for part in _parts(text)]
        targets += [Target("macs", macs, macs <= 1)] if macs is not None else []
        targets += [Target("params", params, params <= 1)] if params is not None else []
        targets += [Target("latency", latency_ms, False)] if latency_ms is not None else []
        targets += [Target("latency", latency, True)] if latency is not None else []
        if not targets:
            raise BudgetError(f"the budget limits nothing; {FORMS}")
        for target in targets:
            if text is not None and not target.relative and target.kind != "latency" and 0 < target.amount <= 1:
                raise BudgetError(
                    f"no network costs only {target.amount:g} {target.kind}; did you mean "
                    f"'{100 * target.amount:g}% {target.kind}'? {FORMS[0].upper()}{FORMS[1:]}"
                )
            if not 0 < target.amount < inf:
                raise BudgetError(f"a budget must be positive and finite, got {target}; {FORMS}")
            if target.relative and target.amount > 1:
                raise BudgetError(
                    f"{target} is more than the whole model; pass a larger model, which is the most that may be grown"
                )
        for one, other in combinations(targets, 2):
            if (one.kind, one.relative) == (other.kind, other.relative):
                raise BudgetError(
                    f"the budget limits {one.kind} twice, to {one} and to {other}; write the one that is to hold, or "
                    f"limit something else by the second. {FORMS[0].upper()}{FORMS[1:]}"
                )
        object.__setattr__(self, "targets", tuple(targets))

    @staticmethod
    def of(budget: Budget | str) -> Budget:
        """The budget itself, or the one that the text describes."""
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            return Budget(budget)
        raise BudgetError(f"a budget is a text or apical.Budget, got {_kind(budget)}; {_nearest(shown(budget))}{FORMS}")

    def of_kinds(self, *kinds: Kind) -> Budget | None:
        """The limits of these kinds alone; None if there are none.

        Example:
            >>> print(Budget("50% macs, 10% size").of_kinds("size", "bitops"))
            10% size
        """
        targets = tuple(t for t in self.targets if t.kind in kinds)
        if not targets:
            return None
        part: Budget = object.__new__(Budget)
        object.__setattr__(part, "targets", targets)
        return part

    def __str__(self) -> str:
        return ", ".join(str(t) for t in self.targets)


def _kind(value: object) -> str:
    """A value that is no budget, with its type."""
    text, kind = shown(value), type(value).__name__
    return text if text.endswith(f" {kind}") else f"{kind} {text}"


def _parts(text: str) -> list[str]:
    """Split at commas that separate limits (not those in ``300,000 params``)."""
    if not isinstance(text, str):
        raise BudgetError(f"a budget is a text, got {_kind(text)}; {FORMS}")
    if _DECIMAL_COMMA.search(text):
        meant = _DECIMAL_COMMA.sub(".", text).strip()
        raise BudgetError(f"numbers take a decimal point: write {meant!r}, not {text.strip()!r}; {FORMS}")
    return [p for p in re.split(r"[;+]|(?<!\d),|,(?!\d{3})|\band\b", text.replace("_", "")) if p.strip()]


def _parse(text: str) -> Target:
    match = _PATTERN.match(text.replace(",", ""))
    if match is None:
        raise BudgetError(f"cannot read the budget {text.strip()!r}; {_nearest(text)}{FORMS}")
    number, unit, what = float(match[1]), (match[2] or "").lower(), match[3].lower()
    if what in _BYTES and unit:
        raise BudgetError(f"{text.strip()!r} is both relative and in bytes; write '10% size' or '0.5 MB'")
    if what in _BYTES:
        return Target("size", number * _BYTES[what], False)
    kinds: dict[str, Kind] = {"macs": "macs", "size": "size", "bitops": "bitops"}
    kind = "params" if what.startswith("param") else kinds.get(what, "latency")
    if kind == "size" and unit != "%":
        raise BudgetError(f"{text.strip()!r} lacks a unit; write '10% size' or '0.5 MB'")
    if unit == "%":
        if what in _SECONDS:
            raise BudgetError(f"{text.strip()!r} is both relative and in time units; write '50% latency' or '2.5 ms'")
        return Target(kind, number / 100, True)
    if kind == "latency":
        if what not in _SECONDS or unit:
            hint = f"did you mean '{100 * number:g}% latency'? W" if 0 < number <= 1 and not unit else "w"
            raise BudgetError(f"{text.strip()!r} lacks a time unit; {hint}rite '2.5 ms' or '50% latency'")
        return Target(kind, number * _SECONDS[what], False)
    return Target(kind, number * UNITS[unit], False)


def _nearest(text: str) -> str:
    """A suggestion for a number that does not say of what, for other words, and for limits without a comma between."""
    for phrase, ours in _PHRASES:
        text = re.sub(phrase, ours, text, flags=re.I)
    if match := _BARE.match(text):
        share = float(match[1]) * (1 if match[2] else 100)
        return f"did you mean '{share:g}% macs'? " if 0 < share <= 100 else ""
    if match := _COUNT.match(text):
        return f"did you mean '{match[1]} macs' or '{match[1]} params'? "
    meant = [
        _other_word(float(number), unit.lower(), word.lower())
        for number, unit, words in _NUMBERED.findall(text)
        for word in words.split()
    ]
    for *_, words in _NUMBERED.findall(text):  # '10 mb macs': a unit and a kind cannot both have the number
        kinds = {*words.lower().split()}
        if len(kinds) > 1 and kinds & {*_BYTES, *_SECONDS}:
            return ""
    suggestion = ", ".join(dict.fromkeys(meant))
    if not meant or _NUMBERED.sub("", text).strip() or not all(map(_PATTERN.match, meant)):
        return ""  # something was not understood
    try:
        Budget(suggestion)
    except BudgetError:
        return ""
    flops = " (a multiply-accumulate, MAC, is two FLOPs)" if _FLOPS.search(text) else ""
    return f"did you mean '{suggestion}'?{flops} "


def _other_word(number: float, unit: str, word: str) -> str:
    """A limit in our words: half as many MACs as FLOPs, the same share of both."""
    if match := _FLOPS.fullmatch(word):
        return f"{number if unit == '%' else number / 2:g}{(unit or match[1]).upper()} macs"
    return f"{number:g}{unit.upper()} {_OTHER_WORDS.get(word, word)}"
