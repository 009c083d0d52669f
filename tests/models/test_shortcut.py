"""The zero-pad shortcut, and blocks as the identity."""

from __future__ import annotations

import torch

from apical import models
from apical.models._resnet_cifar import ZeroPadShortcut


def test_zero_pad_places_the_channels_in_the_middle() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = ZeroPadShortcut(4, 8, stride=2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_zero_pad_runs_at_other_widths() -> None:
    shortcut = ZeroPadShortcut(4, 8, stride=2)
    shortcut.pad_before, shortcut.pad_after = 0, 3
    assert shortcut(torch.randn(2, 5, 6, 6)).shape == (2, 8, 3, 3)


def test_block_without_its_branch_is_the_identity() -> None:
    model = models.CifarResNet(14, width=4)
    block = model.layer2[1]
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_building_draws_from_the_callers_generator_only() -> None:
    torch.manual_seed(5)
    first = models.resnet20().state_dict()
    torch.manual_seed(5)
    second = models.resnet20().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
