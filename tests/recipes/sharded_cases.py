"""Runs of recipes whose processes divide the model among them, for test_sharded_run.py; in float64."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint  # once for all that are forked
import torch.distributed.fsdp

from apical.errors import ApicalError
from apical.recipes import apply_settings, get_recipe
from apical.resizing._shards import is_sharded, own_part
from apical.runs import _run as whole_run
from apical.runs import read_config, run
from apical.runs._sharding import PARTS
from apical.training import Interrupted, PartsIO, _run, processes
from recipes.within_epoch_cases import StopAt
from tiny_run import Recorder

TEXT = ("model.embedding_size=12", "model.num_heads=2", "model.num_layers=3", "model.dropout=0", "bptt=6",
        "batch_size=4", "eval_streams=2", "amp=none", "epochs=4", "lr=0.01", "divisor=1", "warmup_epochs=0.5",
        "growth.interval_unit=steps", "growth.interval=6")  # fmt: skip
IMAGES = ("data.path=synthetic", "limit=33", "crop_padding=1", "batch_size=8", "model.depth=8",
          "model.width=8", "device=cpu", "lr=0.05")  # fmt: skip
STOPPED_AT = (2, 5)


def images(folder: str, shard: bool, epochs: int) -> int:
    """A run on images, of which the first of two processes evaluates three batches and the second two."""
    config = apply_settings(get_recipe("digits"), [*IMAGES, f"training.shard={shard}", f"epochs={epochs}"])
    result = run(config, Path(folder) / str(shard), progress=Recorder())
    torch.save({"history": result.history, "model": result.model.state_dict(), "summary": result.summary},
               Path(folder) / f"{shard}-{processes().rank}-{processes().count}.pt")  # fmt: skip
    return 0


def once(folder: str, data: str, what: str, settings: list[str]) -> int:
    """A run that each process holds whole (``plain``) or divides (``whole``), that is stopped (``cut``), goes on."""
    torch.set_default_dtype(torch.float64)
    _run.STEPS_PER_QUESTION = 1
    name = "cut" if what == "resumed" else what
    out, held = Path(folder) / name, []

    def counted(parts: Path, method: Any, optimizer: torch.optim.Optimizer) -> None:
        """Notes what this process holds of the model and of what is dormant, and how much there is of them."""
        PARTS.save(parts, method, optimizer)
        model, dormant = list(method.model.parameters()), list(method.store.state_dict()["full"].values())
        assert all(is_sharded(p) for p in model)
        held.append(
            [
                sum(size(v).numel() for v in parts_of)
                for parts_of in (model, dormant)
                for size in (own_part, torch.detach)
            ]
        )

    whole_run.PARTS = PartsIO(counted, PARTS.load, PARTS.damage)
    progress = StopAt(*STOPPED_AT) if what == "cut" else Recorder()
    shard = "training.shard=false" if what == "plain" else "training.shard=true"
    try:
        if what == "resumed":
            result = run(read_config(out), out, resume=True, progress=progress)
        else:
            config = apply_settings(
                get_recipe("gpt-wikitext2"), [f"data.path={data}", "device=cpu", shard, *TEXT, *settings]
            )
            result = run(config, out, progress=progress)
    except Interrupted as stopped:
        print(stopped)
        return stopped.exit_code
    except ApicalError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    content = {"model": result.model.state_dict(), "history": result.history, "summary": result.summary, "held": held,
               "kinds": sorted({type(m).__name__ for m in result.model.modules()})}  # fmt: skip
    torch.save(content, Path(folder) / f"{what}-{processes().rank}-{os.environ.get('WORLD_SIZE', 1)}.pt")
    return 0
