"""`compile=True`: the same run, one compilation for each network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_run import assert_same_run, tiny_config, tiny_train


def test_a_compiled_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    plain = tiny_train(tmp_path / "plain", tiny_config(epochs=14))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    run = tiny_train(tmp_path / "run", tiny_config(epochs=14, compile=True))
    assert_same_run(plain, run)
    assert len(compiled) == len({record["widths"]["hidden"] for record in run.history})
    torch.compiler.reset()
