"""A recurrent state that goes on through a change of the network: survivors keep theirs, newborns start at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import apical
from apical import DormantStore, Grower, Structure, resize_, resize_state, trace
from apical.errors import ResizeError
from apical.models import LSTMLanguageModel
from apical.resizing._gates import zero_gates_
from marks import quick
from structure.nets import LanguageModel

Make = Callable[[], nn.Module]


def _ours(cell: Literal["lstm", "gru"], tied: bool = False) -> Make:
    return lambda: LSTMLanguageModel(11, 6 if tied else 5, (7, 6), cell=cell, tied=tied)


class Batched(nn.Module):
    """A two-layer, batch-first LSTM in one module, which takes its state back as a dict."""

    state_outputs = ("state",)

    def __init__(self) -> None:
        super().__init__()
        self.inner = LanguageModel(tied=False, width=12, hidden=16, layers=2)

    def forward(self, tokens: Tensor, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
        inner = self.inner
        given = None if state is None else (state["h"], state["c"])
        output, (h, c) = inner.lstm(inner.embedding(tokens.T), given)
        return {"logits": inner.decoder(output).transpose(0, 1), "state": {"h": h, "c": c}}


NETS: dict[str, Make] = {
    "lstm": _ours("lstm"),
    "gru": _ours("gru"),
    "tied lstm": _ours("lstm", tied=True),
    "tied gru": _ours("gru", tied=True),
    "one module": Batched,
}


def call(model: nn.Module, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    outputs = model(tokens) if state is None else model(tokens, state)
    return (outputs["logits"], outputs["state"]) if isinstance(outputs, dict) else outputs


def leaves(state: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(state)


def setup(name: str, seed: int) -> tuple[nn.Module, Structure, Tensor, dict[str, list[int]]]:
    """A float64 model, its structure, three windows of tokens (3, T, B), and a random choice of units."""
    torch.manual_seed(seed)
    model = NETS[name]().double().eval()
    structure = trace(model, torch.randint(11, (4, 2)))
    keep = {g.name: sorted(torch.randperm(g.size)[: max(1, g.size // 2)].tolist()) for g in structure.groups}
    return model, structure, torch.randint(11, (3, 4, 2)), keep


@pytest.mark.parametrize("seed", quick(range(3), [0]))
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_stream_goes_on_through_shrinking_and_regrowing(name: str, seed: int) -> None:
    """Reference: the full model with the removed units' gates at zero, never resized."""
    model, structure, windows, keep = setup(name, seed)
    zero_gates_(model, structure, keep)
    reference = copy.deepcopy(model)
    store, state, expected_state = DormantStore(), None, None
    for window, (before, after) in zip(windows, [({}, keep), (keep, {}), ({}, keep)], strict=True):
        logits, state = call(model, window, state)
        expected, expected_state = call(reference, window, expected_state)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        previous = state
        resize_(model, structure, after, store=store)
        state = resize_state(state, structure, before, after)
        assert type(state) is type(previous)
        for part in structure.states:
            mine, theirs = leaves(state)[part.leaf], leaves(expected_state)[part.leaf]
            for unit in keep[part.group]:
                now = after.get(part.group, list(range(structure.group(part.group).size))).index(unit)
                torch.testing.assert_close(
                    mine.select(part.dim, now), theirs.select(part.dim, part.positions[unit][0]), rtol=1e-10, atol=1e-12
                )


@pytest.mark.parametrize("name", NETS)
def test_survivors_keep_their_state_and_newborns_start_at_zero(name: str) -> None:
    model, structure, windows, keep = setup(name, 5)
    _, state = call(model, windows[0])
    small = resize_state(state, structure, {}, keep)
    back = resize_state(small, structure, keep, {})
    assert len(leaves(small)) == len(leaves(state)) > 0
    assert {part.leaf for part in structure.states} == set(range(len(leaves(state))))
    for part in structure.states:
        full, less, again = (leaves(s)[part.leaf] for s in (state, small, back))
        kept = torch.tensor(keep[part.group])
        gone = torch.tensor(sorted(set(range(structure.group(part.group).size)) - set(keep[part.group])))
        assert torch.equal(less, full.index_select(part.dim, kept))
        assert torch.equal(again.index_select(part.dim, kept), full.index_select(part.dim, kept))
        assert not again.index_select(part.dim, gone).any()
        assert not less.requires_grad
        assert again.shape == full.shape
    exchanged = {name: [u for u in range(structure.group(name).size) if u not in kept] for name, kept in keep.items()}
    swapped = resize_state(small, structure, keep, exchanged)  # other units of nearly the same number
    assert all(not leaf.any() for leaf in leaves(swapped))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_grower_resizes_the_state_in_the_middle_of_a_stream(cell: Literal["lstm", "gru"]) -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(11, 12, (16, 16), cell=cell)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    grower = Grower(
        model, optimizer, torch.zeros(4, 1, dtype=torch.long), "50% params", 2, steps_per_epoch=12, interval=2,
        interval_unit="steps", growth_end=0.8,
    )  # fmt: skip
    state: Any = None
    changes, macs = 0, []
    for step in range(24):
        tokens = torch.randint(11, (5, 3))
        logits, state = model(tokens[:-1], state)
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        before, old = grower.keep, tuple(tuple(leaf.detach() for leaf in layer) for layer in state)
        macs.append(grower.structure.macs(before))
        state = tuple(tuple(leaf.detach() for leaf in layer) for layer in grower.end_step(state))
        changes += before != grower.keep
        for number, layer in enumerate(state):
            group = f"layers.{number}"
            for leaf, was in zip(layer, old[number], strict=True):
                assert leaf.shape[-1] == model.layers[number].hidden_size
                for position, unit in enumerate(grower.keep[group]):
                    origin = before[group].index(unit) if unit in before[group] else None
                    expected = torch.zeros(1, 3) if origin is None else was[..., origin]
                    assert torch.equal(leaf[..., position], expected)
        if step % 12 == 11:
            record = grower.end_epoch()
            assert record["mean_macs"] == pytest.approx(sum(macs) / len(macs))
            macs.clear()
    assert changes >= 5
    assert record["params_fraction"] == pytest.approx(0.5, rel=0.03)


def test_none_stays_none_and_a_part_of_a_state_is_refused() -> None:
    _, structure, *_ = setup("lstm", 0)
    assert resize_state(None, structure, {}, {}) is None
    with pytest.raises(ResizeError, match=r"state has 1 tensors, expected at least 4"):
        resize_state(torch.zeros(1, 2, 7), structure, {}, {"layers.0": [0]})


def test_what_does_not_fit_is_named() -> None:
    model, structure, windows, keep = setup("gru", 0)
    _, state = model(windows[0])
    small = resize_state(state, structure, {}, keep)
    with pytest.raises(ResizeError, match=r"tensor 0 of the state has shape \(1, 2, 3\), expected 7 along dimension 2"):
        resize_state(small, structure, {}, keep)
    with pytest.raises(ResizeError, match="no group is called 'layer'"):
        resize_state(state, structure, {}, {"layer": [0]})
    plain = trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    with pytest.raises(ResizeError, match="knows of no recurrent state"):
        resize_state(state, plain, {}, {})


def test_the_model_says_which_output_is_its_state_and_the_argument_overrides_it() -> None:
    model, tokens = LSTMLanguageModel(11, 5, (7, 6)), torch.randint(11, (4, 2))
    assert [g.name for g in trace(model, tokens).groups] == ["embedding", "layers.0", "layers.1"]
    assert [g.name for g in trace(model, tokens, state_outputs=()).groups] == ["embedding"]
    assert trace(model, tokens, state_outputs=()).states == ()
    structure = trace(model, tokens)
    assert Structure.from_dict(structure.to_dict()) == structure
    assert apical.resize_state is resize_state
