"""The page of a traced model: every slice of a group is marked, every frozen part has its reason."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from apical.cli._inspect import _costs
from apical.reporting import write_architecture
from apical.reporting._architecture import render_architecture
from apical.resizing import trace


class Fork(nn.Module):
    """Two layers whose outputs are concatenated, so that one dimension belongs to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(3, 6), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))


def page_of(model: nn.Module, *shape: int) -> str:
    structure = trace(model, (torch.randn(shape),))
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    return render_architecture({**structure.to_dict(), **_costs(structure), "model": "<Fork>", "types": types})


def test_a_dimension_of_two_groups_is_cut_where_the_group_changes() -> None:
    page = page_of(Fork(), 2, 3)
    assert "&lt;Fork&gt;" in page
    titles = re.findall(r'data-group="(\d)" title="([^"]*)"', page)
    assert ("0", "out.weight, dimension 1, 0 to 3: group a") in titles
    assert ("1", "out.weight, dimension 1, 4 to 9: group b") in titles
    assert ("0", "a.weight, dimension 0, 0 to 3: group a") in titles
    assert "flex-grow:6" in page


def test_every_member_of_every_group_is_in_the_tree() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    structure = trace(model, (torch.randn(2, 3, 6, 6),))
    page = page_of(model, 2, 3, 6, 6)
    for index, group in enumerate(structure.groups):
        for member in group.members:
            assert re.search(rf'data-group="{index}" title="{re.escape(member.tensor)}, dimension {member.dim},', page)


def test_frozen_parts_carry_their_reason_where_they_stand(tmp_path: Path) -> None:
    structure = trace(Fork(), (torch.randn(2, 3),))
    content = {**structure.to_dict(), **_costs(structure), "model": "Fork", "types": {"out": "Linear"}}
    page = write_architecture(content, tmp_path / "fork.html").read_text(encoding="utf-8")
    assert 'id="out" class="name">out</span> <small>Linear</small><span class="badge">frozen: reaches the model' in page
    assert "out.bias, dimension 0, 0 to 1: cannot be removed" in page


def test_the_first_screen_says_what_is_frozen_and_what_the_smallest_network_costs() -> None:
    structure = trace(Fork(), (torch.randn(2, 3),))
    page = page_of(Fork(), 2, 3)
    ones = {group.name: 1 for group in structure.groups}
    least = 100 * structure.macs(ones) / structure.macs()
    assert f"<b>{least:.1f} %</b><span>of the MACs, {structure.macs(ones):,}, in the smallest network" in page
    assert page.index("Frozen, and why") < page.index("What can grow and shrink")
    assert "<b>out</b> (2 channels): reaches the model" in page
    assert "sums of what several layers write (a residual stream)" in page


def test_parts_that_are_frozen_for_one_reason_share_a_line() -> None:
    structure = trace(Fork(), (torch.randn(2, 3),))
    frozen = [{"name": name, "size": 4, "reason": "it is <so>"} for name in ("x", "y", "z")]
    page = render_architecture({**structure.to_dict(), **_costs(structure), "frozen": frozen, "model": "", "types": {}})
    assert page.count("it is &lt;so&gt;") == 2  # the line, and the label of its table
    assert "<summary>3 parts</summary>" in page
