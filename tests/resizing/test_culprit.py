"""The user's line that a failing forward pass is blamed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical.resizing._culprit import explained


def failing(file: str) -> nn.Module:
    """A module whose forward pass, in a file of this name, raises."""
    names: dict[str, Any] = {}
    exec(compile("def forward(self, x):\n    return x.view(7)", file, "exec"), names)
    return type("Failing", (nn.Module,), {"forward": names["forward"]})()


@pytest.mark.parametrize(("beside", "named"), [("torch/nn/some.py", False), ("torchvision/models/some.py", True)])
def test_libraries_whose_names_begin_like_torch_are_not_torch(beside: str, named: bool) -> None:
    model = failing(str(Path(torch.__file__).parent.parent / beside))
    x: Tensor = torch.zeros(6)
    with pytest.raises(RuntimeError) as raised:
        model(x)
    assert ("(at some.py:2" in explained(raised.value, model)) == named
