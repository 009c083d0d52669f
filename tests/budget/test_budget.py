"""Budgets as users write them, and how much of one a network uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apical import Budget, Structure, trace
from apical.budget import BoundBudget, Target
from apical.errors import BudgetError

READ: list[tuple[str, list[tuple[str, float, bool]]]] = [
    ("50% macs", [("macs", 0.5, True)]),
    ("50 % MACs", [("macs", 0.5, True)]),
    ("  12.5%   params ", [("params", 0.125, True)]),
    ("100% macs", [("macs", 1.0, True)]),
    ("300M macs", [("macs", 3e8, False)]),
    ("300 m macs", [("macs", 3e8, False)]),
    ("1.5G macs", [("macs", 1.5e9, False)]),
    ("2B params", [("params", 2e9, False)]),
    ("1T macs", [("macs", 1e12, False)]),
    ("0.1M params", [("params", 1e5, False)]),
    ("120k parameters", [("params", 1.2e5, False)]),
    ("1e6 macs", [("macs", 1e6, False)]),
    ("300,000 params", [("params", 3e5, False)]),
    ("300_000 params", [("params", 3e5, False)]),
    ("2.5 ms", [("latency", 2.5, False)]),
    ("2.5ms", [("latency", 2.5, False)]),
    ("0.01 s", [("latency", 10.0, False)]),
    ("500 us", [("latency", 0.5, False)]),
    ("50% latency", [("latency", 0.5, True)]),
    ("10% size", [("size", 0.1, True)]),
    ("0.5 MB", [("size", 5e5, False)]),
    ("200kB", [("size", 2e5, False)]),
    ("500,000 B", [("size", 5e5, False)]),
    ("2 GB", [("size", 2e9, False)]),
    ("5% bitops", [("bitops", 0.05, True)]),
    ("3G bitops", [("bitops", 3e9, False)]),
    ("50% macs, 10% size", [("macs", 0.5, True), ("size", 0.1, True)]),
    ("50% macs, 40% params", [("macs", 0.5, True), ("params", 0.4, True)]),
    ("50% macs,300,000 params", [("macs", 0.5, True), ("params", 3e5, False)]),
    ("50% macs,300 params", [("macs", 0.5, True), ("params", 300, False)]),
    ("50% macs + 2 ms", [("macs", 0.5, True), ("latency", 2.0, False)]),
    ("50% macs; 2 ms", [("macs", 0.5, True), ("latency", 2.0, False)]),
    ("50% macs and 40% params", [("macs", 0.5, True), ("params", 0.4, True)]),
]


@pytest.mark.parametrize(("text", "targets"), READ)
def test_a_budget_is_read(text: str, targets: list[tuple[str, float, bool]]) -> None:
    assert [(t.kind, pytest.approx(t.amount), t.relative) for t in Budget(text).targets] == targets
    assert Budget.of(text) == Budget(text)
    assert [(t.kind, pytest.approx(t.amount), t.relative) for t in Budget(str(Budget(text))).targets] == targets


NONSENSE = [
    "", " ", ",", "50", "50%", "% macs", "macs", "fifty % macs", "50% flops", "-50% macs", "0% macs", "0 params",
    "150% macs", "50% ms", "50% s", "5 latency", "5M ms", "5k latency", "nan% macs", "inf macs", "1e999 macs",
    "50%% macs",
    "50 macs macs", "50% macs, lots", "50% macs 40% params", "1.2.3M macs", "macs 50%", "50%; rm -rf", "½ macs", "50M",
    "0 ms", "2.5 ms per image",
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match=r"write|larger model"):
        Budget(text)


@pytest.mark.parametrize(
    ("budget", "meant"),
    [("0.5 macs", "50% macs"), ("0.25 params", "25% params"), ("1 macs", "100% macs"), (".5", "50% macs"),
     ("0.5 latency", "50% latency"), ("50%", "50% macs"), ("40% params, 0.5 macs", "50% macs"), (0.5, "50% macs")],
)  # fmt: skip
def test_a_share_without_a_per_cent_sign_is_asked_back(budget: Any, meant: str) -> None:
    with pytest.raises(BudgetError, match=f"did you mean '{meant}'"):
        Budget.of(budget)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("50% flops", "50% macs"), ("600M FLOPs", "300M macs"), ("4 GFLOPs", "2G macs"), ("50% mac", "50% macs"),
     ("0.1M param", "0.1M params"), ("50 % MACs params", "50% macs, 50% params"),
     ("50% macs 40% params", "50% macs, 40% params"), ("300M macs 2 ms", "300M macs, 2 ms"),
     ("50 macs macs", "50 macs"), ("50% params, 50% flops", "50% macs"), ("half macs", "50% macs"),
     ("50 percent macs", "50% macs"), ("50\uff05 macs", "50% macs"), ("50% of the macs", "50% macs"),
     ("macs: 50%", "50% macs"), ("a quarter of the params", "25% params"), ("50% time", "50% latency"),
     ("50 per cent", "50% macs")],
)  # fmt: skip
def test_other_words_and_missing_commas_get_a_suggestion(text: str, meant: str) -> None:
    with pytest.raises(BudgetError, match=f"did you mean '{meant}'\\?"):
        Budget(text)
    Budget(meant)


def test_a_count_without_a_word_is_asked_back() -> None:
    with pytest.raises(BudgetError, match=r"did you mean '20M macs' or '20M params'\?"):
        Budget("20M")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1,5% macs", "1.5% macs"), ("2,5 ms", "2.5 ms"), ("50% macs, 0,25 MB", "50% macs, 0.25 MB"), ("0,5", "0.5")],
)
def test_a_decimal_comma_is_told_as_such(text: str, meant: str) -> None:
    with pytest.raises(BudgetError, match=f"numbers take a decimal point: write '{meant}', not '{text}'"):
        Budget(text)


@pytest.mark.parametrize(
    "text", ["10 mb macs", "2 ms macs", "1.2.3M macs", "5000 size macs", "0.5 macs params", "50% macs per image", "99"]
)
def test_nothing_is_suggested_that_cannot_be(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(text)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "limits", [{"text": "50% macs, 40% macs"}, {"text": "50% macs", "macs": 0.4}, {"text": "2 ms, 3 ms"}]
)
def test_the_same_is_not_limited_twice(limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"limits (macs|latency) twice, to .* and to "):
        Budget(**limits)


def test_a_share_and_an_amount_of_the_same_both_hold() -> None:
    assert str(Budget("50% macs, 30M macs")) == "50% macs, 30,000,000 macs"


@pytest.mark.parametrize("count", [10**400, -(10**400)])
def test_a_count_beyond_all_numbers_is_refused_in_few_words(count: int) -> None:
    with pytest.raises(BudgetError, match=r"macs is more than any network has, got .{1,80}; write") as caught:
        Budget(macs=count)
    assert len(str(caught.value)) < 400


def test_a_keyword_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(BudgetError, match=r"no 'flops', expected macs, params, .*two FLOPs"):
        Budget(flops=0.5)  # type: ignore[arg-type]


PIECES = [
    "50", "%", " ", "macs", "params", "ms", "size", "bitops", "B", "M", "k", ",", "+", " and ", ".", "e9", "-", "_",
    "0", "1e999", "nan", "\u00b2", "latency", "\n",
]  # fmt: skip


@pytest.mark.attack
@given(
    text=st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.none(),
    named=st.dictionaries(
        st.sampled_from(["macs", "params", "latency", "latency_ms", "size", "bitops"]),
        st.floats() | st.integers() | st.sampled_from([None, True, "1", [], 10**400]), max_size=2,
    ),
)  # fmt: skip
def test_any_budget_is_read_or_refused(text: str | None, named: dict[str, Any]) -> None:
    try:
        budget = Budget(text, **named)
    except BudgetError:
        return
    assert all(0 < t.amount < float("inf") for t in budget.targets)
    assert str(budget)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"macs": 0.5}, "50% macs"),
        ({"macs": 1}, "100% macs"),
        ({"macs": 300e6}, "300,000,000 macs"),
        ({"params": 0.25, "macs": 0.5}, "50% macs, 25% params"),
        ({"latency_ms": 2.5}, "2.5 ms"),
        ({"latency_ms": 0.5}, "0.5 ms"),
        ({"latency": 0.5}, "50% latency"),
    ],
)
def test_limits_by_keyword(limits: dict[str, float], text: str) -> None:
    assert str(Budget(**limits)) == text


@pytest.mark.parametrize(
    "limits",
    [{}, {"macs": 0}, {"macs": -1}, {"macs": float("nan")}, {"params": float("inf")}, {"latency": 1.5},
     {"latency_ms": 0}, {"macs": "50%"}, {"params": True}, {"text": 50}, {"text": b"50% macs"}],
)  # fmt: skip
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        Budget(**limits)


@pytest.mark.parametrize("value", [None, 0.5, b"50% macs", ["50% macs"], {"macs": 0.5}])
def test_only_texts_and_budgets_are_budgets(value: Any) -> None:
    with pytest.raises(BudgetError, match=r"write for example '50% macs'"):
        Budget.of(value)


def mlp() -> Structure:
    return trace(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)),
                 torch.zeros(2, 4))  # fmt: skip


FULL_MACS, FULL_PARAMS = 2 * (80 + 200 + 30), 80 + 20 + 200 + 10 + 30 + 3


@pytest.mark.parametrize(
    ("text", "said"),
    [("5 params", r"of 343 parameters\)\. Did you mean '5% params'\?"),
     ("9M macs", "costs only 620 MACs,"), ("0.1% macs", r"of 620 MACs\)\. What is frozen")],
)  # fmt: skip
def test_a_budget_out_of_reach_is_refused_in_its_unit(text: str, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        BoundBudget(Budget(text), mlp())


def test_the_load_is_the_largest_ratio_of_cost_to_limit() -> None:
    structure = mlp()
    macs, params = structure.macs({"0": 10, "2": 5}), structure.num_params({"0": 10, "2": 5})
    assert (structure.macs(), structure.num_params()) == (FULL_MACS, FULL_PARAMS)
    for text, expected in {
        "50% macs": macs / (0.5 * FULL_MACS),
        "50% params": params / (0.5 * FULL_PARAMS),
        "100 macs": macs / 100,
        "50% macs, 20% params": max(macs / (0.5 * FULL_MACS), params / (0.2 * FULL_PARAMS)),
        "20% macs, 50% params": max(macs / (0.2 * FULL_MACS), params / (0.5 * FULL_PARAMS)),
    }.items():
        assert BoundBudget(Budget(text), structure).load({"0": 10, "2": range(5)}) == pytest.approx(expected)


def test_reach_and_refusals_say_what_can_be_had() -> None:
    structure = mlp()
    (reach,) = BoundBudget(Budget("50% macs"), structure).reach
    assert (reach.least, reach.most, reach.limit) == (2 * (4 + 1 + 3), FULL_MACS, FULL_MACS / 2)
    assert str(reach) == f"50% macs: reachable 16 MACs to {FULL_MACS} MACs"
    least = r"smallest .* costs 16 MACs \(2.6 % of 620 MACs\).*frozen: 4 \(3 channels\): reaches"
    with pytest.raises(BudgetError, match=least):
        BoundBudget(Budget("10 macs"), structure)
    with pytest.raises(BudgetError, match="costs 262"):
        BoundBudget(Budget("10 macs"), structure, minimum={"0": 10, "2": 7})
    with pytest.raises(BudgetError, match="whole model costs only 620 MACs, less than the budget 621 macs"):
        BoundBudget(Budget("621 macs"), structure)
    wide = trace(nn.Sequential(nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 3)), torch.zeros(1, 4))
    with pytest.raises(BudgetError, match=r"costs 7 MACs \(< 0\.1 % of 28,000 MACs\)"):
        BoundBudget(Budget("2 macs"), wide)


def test_a_loose_limit_beside_a_tight_one_is_no_error() -> None:
    bound = BoundBudget(Budget("50% macs, 1M params"), mlp())
    assert bound.load(None) == pytest.approx(2)
    with pytest.raises(BudgetError, match=r"620 MACs and 343 parameters"):
        BoundBudget(Budget("1M macs, 1M params"), mlp())


def test_a_latency_limit_needs_a_table() -> None:
    with pytest.raises(BudgetError, match=r"in time, which .*Grower measures"):
        BoundBudget(Budget("50% latency"), mlp())


def test_targets_print_as_they_are_written() -> None:
    targets = Target("macs", 0.335, True), Target("params", 1e6, False), Target("latency", 2.5, False)
    assert [str(t) for t in targets] == ["33.5% macs", "1,000,000 params", "2.5 ms"]


def test_bits_are_not_bought_by_widths() -> None:
    structure = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    with pytest.raises(BudgetError, match=r"which only .*Grower chooses"):
        BoundBudget(Budget("10% size"), structure)
    for text, said in (
        ("10% MB", "both relative and in bytes"),
        ("5 size", "lacks a unit"),
        ("200% size", "more than"),
    ):
        with pytest.raises(BudgetError, match=said):
            Budget(text)
