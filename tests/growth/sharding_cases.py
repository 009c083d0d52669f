"""What the processes of test_sharding.py do. Each function is one process; it knows the others as under torchrun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

import apical
from apical.errors import ApicalError
from apical.growth import load_sharded, save_sharded
from apical.resizing._shards import is_sharded, own_part, whole
from apical.training._processes import process_group, processes

EPOCHS, STEPS, BATCH, WIDTH = 6, 3, 12, 13


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """A residual network of uneven widths, with one matrix that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Linear(7, WIDTH), nn.Linear(WIDTH, 21)
        self.blocks = nn.Sequential(*(Block(n) for n in (23, 17, 29)))
        self.back, self.head = nn.Linear(21, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x))
        return self.head(torch.relu(self.back(torch.relu(self.hidden(x)))))


def network() -> Net:
    torch.manual_seed(3)
    return Net().double()


EXAMPLE = torch.zeros(1, 7, dtype=torch.float64)
STRUCTURE = apical.trace(network(), EXAMPLE)


def shard(model: nn.Module) -> None:
    for block in model.blocks:
        if isinstance(block, Block):
            fully_shard(block)
    fully_shard(model)


def shard_in_pairs(model: nn.Module) -> None:
    """HSDP: rows divided by two, and each half on as many processes as there are pairs."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copies", "parts"))
    fully_shard(model, mesh=mesh)


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """This process' share of each step's batch."""
    team, generator = processes(), torch.Generator().manual_seed(epoch)
    x = torch.randn(STEPS, BATCH, 7, generator=generator, dtype=torch.float64)
    y = (x[..., :3] * torch.tensor([3.0, 1.0, 1.0]) + x[..., 3:6] ** 2).argmax(-1)
    part = slice(team.rank * BATCH // team.count, (team.rank + 1) * BATCH // team.count)
    return [(x[i, part], y[i, part]) for i in range(STEPS)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, grower: apical.Grower, epochs: range) -> None:
    for epoch in epochs:
        for x, y in batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model(EXAMPLE)  # an evaluation leaves the root's parameters gathered
        grower.end_epoch()


def made(way: str | None, optimizer: str = "AdamW", **options: Any) -> tuple[Net, torch.optim.Optimizer, apical.Grower]:
    model = network()
    kinds = {"AdamW": {"lr": 0.01}, "SGD": {"lr": 0.1, "momentum": 0.9}}
    made = getattr(torch.optim, optimizer)(model.parameters(), **kinds[optimizer])
    how = {None: None, "each": shard, "whole": fully_shard, "pairs": shard_in_pairs}[way]
    grower = apical.Grower(
        model, made, EXAMPLE, "50% macs", EPOCHS, structure=STRUCTURE, shard=how, **options
    )  # fmt: skip
    return model, made, grower


def report(model: nn.Module, optimizer: torch.optim.Optimizer, grower: apical.Grower) -> dict[str, Any]:
    moments = {
        f"{name}/{entry}": whole(value).clone()
        for name, p in model.named_parameters()
        for entry, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }
    return {
        "model": {name: whole(p.detach()).clone() for name, p in model.named_parameters()},
        "moments": moments,
        "parts": sum(own_part(p).numel() for p in model.parameters()),
        "store": {k: whole(v).clone() for k, v in grower.store.state_dict()["full"].items()},
        "store_parts": sum(own_part(v).numel() for v in grower.store.state_dict()["full"].values()),
        "values": grower.components.values.clone(),
        "widths": [r["widths"] for r in grower.history],
        "skipped": [r["skipped"] for r in grower.history],
        "counts": [(r["born"], r["returned"], r["died"]) for r in grower.history],
        "sharded": isinstance(model, FSDPModule),
    }


def run(folder: str, way: str | None, optimizer: str = "AdamW", options: dict[str, Any] | None = None) -> int:
    with process_group(torch.device("cpu")) as team:
        model, opt, grower = made(way, optimizer, **(options or {}))
        train(model, opt, grower, range(EPOCHS))
        torch.save(report(model, opt, grower), Path(folder) / f"state-{team.rank}.pt")
    return 0


def saved(folder: str, way: str) -> int:
    """Trains half of the epochs and saves."""
    with process_group(torch.device("cpu")):
        model, opt, grower = made(way)
        train(model, opt, grower, range(EPOCHS // 2))
        save_sharded(Path(folder) / "checkpoint", grower, opt)
    return 0


def resumed(folder: str, way: str) -> int:
    """Loads and trains the other half; then the model is a plain one again."""
    with process_group(torch.device("cpu")) as team:
        model, opt, grower = made(way)
        load_sharded(Path(folder) / "checkpoint", grower, opt)
        train(model, opt, grower, range(EPOCHS // 2, EPOCHS))
        state = report(model, opt, grower)
        grower.finish()
        plain = {name: p.detach().clone() for name, p in model.named_parameters()}
        held = [p for group in opt.param_groups for p in group["params"]]
        kinds = {type(m).__name__ for m in model.modules()}
        same = all(a is b for a, b in zip(held, model.parameters(), strict=True))
        shapes = all(v.shape == p.shape for p, s in opt.state.items() for v in s.values() if v.dim())
        F.cross_entropy(model(torch.ones(4, 7, dtype=torch.float64)), torch.zeros(4, dtype=torch.long)).backward()
        opt.step()
        torch.save(state | {"plain": plain, "kinds": sorted(kinds), "same": same and shapes},
                   Path(folder) / f"state-{team.rank}.pt")  # fmt: skip
    return 0


def damaged(folder: str) -> int:
    """What each process says of a checkpoint that was spoilt in one of several ways, and then of a whole one."""
    with process_group(torch.device("cpu")) as team:
        _, opt, grower = made("each")
        whole_one, said = Path(folder) / "whole", {}
        save_sharded(whole_one, grower, opt)
        dist.barrier()
        for kind in ("flipped", "cut", "swapped", "without", "old and cut", "untouched"):
            spoilt = Path(folder) / kind
            if team.first:
                shutil.copytree(whole_one, spoilt)
                _spoil(kind, *sorted(spoilt.glob("__*")))
            dist.barrier()
            try:
                load_sharded(spoilt, grower, opt)
                said[kind] = "loaded"
            except ApicalError as error:
                said[kind] = str(error)
        torch.save({"said": said}, Path(folder) / f"state-{team.rank}.pt")
    return 0


def _spoil(kind: str, first: Path, second: Path) -> None:
    """Change the files of two processes, or one of them."""
    data = bytearray(first.read_bytes())
    if kind == "flipped":
        data[len(data) // 2] ^= 4
        first.write_bytes(data)
    elif kind.endswith("cut"):
        first.write_bytes(data[:-100])
        if kind.startswith("old"):
            (first.parent / "checksums.json").unlink()
    elif kind == "swapped":
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    elif kind == "without":
        second.unlink()


def refused(folder: str) -> int:
    """What is no way to shard is said in words, by every process."""
    said = []
    with process_group(torch.device("cpu")) as team:
        for call in (
            lambda: apical.trace(fully_shard(network()), EXAMPLE),
            lambda: apical.resize_(fully_shard(network()), STRUCTURE, {}),
            lambda: made_with(lambda model: None),
            lambda: made_with(half_sharded),
            lambda: made_with(fully_shard, copies=[network()]),
            lambda: load_sharded(Path(folder) / "nothing", *made("whole")[:0:-1]),
        ):
            try:
                call()
            except ApicalError as error:
                said.append(str(error))
        torch.save({"said": said}, Path(folder) / f"state-{team.rank}.pt")
    return 0


def made_with(how: Any, **options: Any) -> None:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [(type(m), set(vars(m))) for m in model.modules()]
    try:
        apical.Grower(model, sgd, EXAMPLE, "50% macs", EPOCHS, structure=STRUCTURE, shard=how, **options)
    finally:  # all that are refused leave a plain model of full size
        assert [(type(m), set(vars(m))) for m in model.modules()] == before
        assert all(p is q for p, q in zip(model.parameters(), sgd.param_groups[0]["params"], strict=True))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters(), strict=True))


def half_sharded(model: nn.Module) -> None:
    fully_shard(model.blocks)
    raise RuntimeError("half of it is sharded")


def counted(folder: str) -> int:
    """Counts the numbers that each restructuring gathers; writes them beside what was said on paper."""
    from apical.resizing import _resize, _store
    from apical.resizing._traffic import traffic

    gathered = 0

    def counting(tensor: Tensor) -> Tensor:
        nonlocal gathered
        gathered += tensor.numel() if is_sharded(tensor) else 0
        return whole(tensor)

    with process_group(torch.device("cpu")) as team:
        model, opt, grower = made("each")
        _resize.whole = _store.whole = counting
        found, networks = [], [grower.store.selection]
        for epoch in range(EPOCHS):
            before, gathered = grower.store.selection, 0
            train(model, opt, grower, range(epoch, epoch + 1))
            after = grower.store.selection
            networks.append(after)
            paper = traffic(STRUCTURE, networks, slots=2)[-1]
            found.append({"counted": gathered, "paper": paper.gathered, "returned": len(before.skip - after.skip)})
        held = sum(v.numel() for v in grower.store.state_dict()["full"].values())
        torch.save({"epochs": found, "held": held, "dormant": paper.dormant}, Path(folder) / f"state-{team.rank}.pt")
    return 0
