"""LSTM and GRU layers whose gates go one by one: equal to torch's, and to torch's with rows of zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models import GatedGRU, GatedLSTM, LSTMLanguageModel, split_gates_
from apical.models._gates import _run

KINDS = {"lstm": (nn.LSTM, GatedLSTM, 4), "gru": (nn.GRU, GatedGRU, 3)}
INPUTS, HIDDEN, STEPS, BATCH = 3, 5, 7, 2
both = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """torch's layer, and ours with the same parameters."""
    torch.manual_seed(0)
    theirs_type, ours_type, _ = KINDS[kind]
    theirs = theirs_type(INPUTS, HIDDEN, dtype=dtype, **options)
    ours = ours_type(INPUTS, HIDDEN, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return theirs, ours


def state_of(kind: str, *shape: int) -> Any:
    h, c = torch.randn(2, *shape, dtype=torch.float64)
    return (h, c) if kind == "lstm" else h


def flat(results: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(results)


def without_rows(kind: str, rows: list[int], **options: Any) -> tuple[Any, Any]:
    """torch's layer with all rows but these at zero, and ours that has only these."""
    theirs, ours = pair(kind, **options)
    gone = [r for r in range(KINDS[kind][2] * HIDDEN) if r not in rows]
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            getattr(theirs, name)[gone] = 0
            setattr(ours, name, nn.Parameter(getattr(ours, name)[rows]))
    ours.row_units, ours.row_gates = ours.row_units[rows], ours.row_gates[rows]
    return theirs, ours


@both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_steps_with_all_rows_are_those_of_torch(kind: str, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    theirs, ours = pair(kind, dtype, bias=bias)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=dtype)
    found: list[list[Tensor]] = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        results = flat(layer(given) if layer is theirs else _run(ours, given, None))
        sum(r.square().sum() for r in results).backward()
        found.append([*results, given.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


@both
def test_a_layer_with_all_gates_is_torchs_own_to_the_bit(kind: str) -> None:
    theirs, ours = pair(kind)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    assert all(map(torch.equal, flat(ours(x)), flat(theirs(x))))
    assert set(ours.gate_counts().values()) == {HIDDEN}


@both
@pytest.mark.parametrize("form", ["batch", "batch_first", "single", "state", "no_bias"])
def test_a_gate_without_its_row_is_one_whose_weights_are_zero(kind: str, form: str) -> None:
    options = {"batch_first": {"batch_first": True}, "no_bias": {"bias": False}}.get(form, {})
    theirs, ours = without_rows(kind, [0, 3, 6, 7, 8, 12, 14], **options)
    shape = {"batch_first": (BATCH, STEPS), "single": (STEPS,)}.get(form, (STEPS, BATCH))
    x = torch.randn(*shape, INPUTS, dtype=torch.float64)
    state = {"state": (state_of(kind, 1, BATCH, HIDDEN),), "single": (state_of(kind, 1, HIDDEN),)}.get(form, ())
    for a, b in zip(flat(theirs(x, *state)), flat(ours(x, *state)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@both
def test_gradients_of_what_is_left_are_those_with_zero_weights(kind: str) -> None:
    rows = [1, 2, 5, 9, 13]
    theirs, ours = without_rows(kind, rows)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    for layer in (theirs, ours):
        layer(x)[0].square().sum().backward()
    for name, parameter in ours.named_parameters():
        whole = getattr(theirs, name).grad
        expected = whole[rows] if name.startswith("weight") else whole
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-12, msg=name)


@both
def test_gradients_written_out_are_those_of_autograd(kind: str) -> None:
    """Also those of the states, and against finite differences."""
    _, ours = without_rows(kind, [1, 2, 5, 9, 13])
    x, state = torch.randn(3, BATCH, INPUTS, dtype=torch.float64), state_of(kind, 1, BATCH, HIDDEN)
    leaves = [t.requires_grad_() for t in (x, *flat(state), *ours.parameters())]

    def gradients() -> tuple[Tensor, ...]:
        results = flat(ours(x, state))
        return torch.autograd.grad(sum(r.sin().sum() for r in results), leaves)

    by_hand = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apical.models._gated_steps.written_out", lambda: False)
        by_autograd = gradients()
    for a, b in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: flat(ours(given[0], state))[0], (x,))


def test_functional_transforms_see_every_operation() -> None:
    _, ours = without_rows("lstm", [0, 6, 12])
    x = torch.randn(3, BATCH, INPUTS, dtype=torch.float64)
    found = torch.func.grad(lambda given: ours(given)[0].sum())(x)
    expected = torch.autograd.grad(ours(x.requires_grad_())[0].sum(), x)[0]
    torch.testing.assert_close(found, expected)


def test_a_constant_gate_is_what_its_bias_says_and_its_bias_is_trained() -> None:
    _, layer = without_rows("lstm", [*range(5), *range(10, 20)])  # no forget gate
    x = torch.randn(2, BATCH, INPUTS, dtype=torch.float64)
    before = torch.randn(1, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    _, (_, cell) = layer(x[:1], (torch.zeros_like(before), before))
    (slope,) = torch.autograd.grad(cell.sum(), before, retain_graph=True)
    forget = (layer.bias_ih_l0 + layer.bias_hh_l0)[5:10].sigmoid()
    torch.testing.assert_close(slope, forget.expand_as(slope).detach())
    cell.sum().backward()
    assert bool((layer.bias_ih_l0.grad[5:10] != 0).all())


@both
def test_filled_gates_are_rows_of_zeros_and_change_nothing(kind: str) -> None:
    rows = [0, 3, 6, 7, 8, 12, 14]
    theirs, ours = without_rows(kind, rows)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    before = [result.detach() for result in flat(ours(x))]
    assert ours.fill_gates_().tolist() == rows
    assert set(ours.gate_counts().values()) == {HIDDEN}
    for name, parameter in theirs.named_parameters():
        assert torch.equal(getattr(ours, name), parameter), name
    for a, b in zip(before, flat(ours(x)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    weight = ours.weight_ih_l0
    ours.fill_gates_()
    assert ours.weight_ih_l0 is weight, "a whole layer is left as it is"


@both
def test_mixed_precision_runs_with_some_gates(kind: str) -> None:
    _, ours = without_rows(kind, [0, 6, 12])
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = ours.float()(torch.randn(STEPS, BATCH, INPUTS))
    assert bool(outputs.isfinite().all())


def test_layers_say_which_gates_they_have() -> None:
    _, layer = without_rows("lstm", [0, 1, 2, 5, 16])
    assert layer.gate_counts() == {"i": 3, "f": 1, "g": 0, "o": 1}
    assert repr(layer) == "GatedLSTM(3, 5, gates i=3, f=1, g=0, o=1)"


@both
@pytest.mark.parametrize("lengths", [(4, 7, 2, 4), (7, 4, 4, 1), (5, 5), (3,)])
@pytest.mark.parametrize("stated", [False, True])
def test_packed_sequences_are_those_of_torch_with_and_without_gates(
    kind: str, lengths: tuple[int, ...], stated: bool
) -> None:
    """Outputs, states and all gradients; lengths in any order, several sequences of one length."""
    for theirs, ours in (pair(kind), without_rows(kind, [0, 3, 6, 7, 8, 12, 14])):
        x = nn.utils.rnn.pad_sequence([torch.randn(n, INPUTS, dtype=torch.float64) for n in lengths])
        state = state_of(kind, 1, len(lengths), HIDDEN) if stated else None
        found: list[list[Tensor]] = []
        for layer in (theirs, ours):
            given = x.clone().requires_grad_()
            first = torch.utils._pytree.tree_map(lambda s: s.clone().requires_grad_(), state) if stated else None
            packed = nn.utils.rnn.pack_padded_sequence(given, torch.tensor(lengths), enforce_sorted=False)
            outputs, last = layer(packed, first)
            padded, got = nn.utils.rnn.pad_packed_sequence(outputs)
            assert tuple(got.tolist()) == lengths
            results = [padded, *flat(last)]
            leaves = [given, *flat(first if stated else ()), *(p for n, p in layer.named_parameters() if "bias" in n)]
            found.append([*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), leaves)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(1, BATCH + 1, HIDDEN), (1, 1, HIDDEN)])
def test_states_of_another_batch_are_refused_in_torchs_words(kind: str, packed: bool, shape: tuple[int, ...]) -> None:
    _, layer = without_rows(kind, [0, 3, 6])
    x: Any = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    given = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 4])) if packed else x
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size \(1, 2, 5\), got \[1, "):
        layer(given, state_of(kind, *shape))


@both
def test_packed_sequences_that_are_sorted_need_no_order(kind: str) -> None:
    theirs, ours = without_rows(kind, [0, 3, 6, 7, 8, 12, 14])
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, INPUTS, dtype=torch.float64) for n in (4, 2, 2)])
    assert packed.sorted_indices is None
    for a, b in zip(flat(theirs(packed)), flat(ours(packed)), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_split_gates_changes_layers_in_place_and_names_them() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(2, 3), "b": nn.Linear(3, 3), "c": nn.GRU(3, 4)})
    parameters = dict(model.named_parameters())
    assert split_gates_(model) == ("a", "c")
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert (type(model["a"]), type(model["c"])) == (GatedLSTM, GatedGRU)
    assert split_gates_(model) == (), "they are split already"


def test_layers_that_cannot_be_split_are_named_and_nothing_changes() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(2, 3), "b": nn.GRU(3, 4, num_layers=2, bidirectional=True)})
    with pytest.raises(ConfigError, match=r"b has num_layers=2, bidirectional=True.*a module of its own"):
        split_gates_(model)
    assert type(model["a"]) is nn.LSTM


@both
def test_torchs_third_argument_is_not_taken_for_another(kind: str) -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        KINDS[kind][1](INPUTS, HIDDEN, 2)


@both
def test_the_language_model_takes_gates_as_an_option(kind: str) -> None:
    torch.manual_seed(0)
    plain = LSTMLanguageModel(9, 4, (6, 5), cell=kind)  # type: ignore[arg-type]
    torch.manual_seed(0)
    gated = LSTMLanguageModel(9, 4, (6, 5), cell=kind, gates=True)  # type: ignore[arg-type]
    tokens = torch.randint(9, (STEPS, BATCH))
    assert all(map(torch.equal, flat(plain(tokens)), flat(gated(tokens))))
    assert [type(layer) for layer in gated.layers] == [KINDS[kind][1]] * 2
