"""The outside peer runs in our loop, meets the budget, and goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "torch_pruning_peer.py"
RESUMED = """
import copy, sys, importlib.util, torch
spec = importlib.util.spec_from_file_location("peer", sys.argv[1])
peer = importlib.util.module_from_spec(spec); sys.modules["peer"] = peer; spec.loader.exec_module(peer)
from apical.models import CifarResNet
x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
def start():
    torch.manual_seed(0)
    model = CifarResNet(8, width=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return model, optimizer, peer.TorchPruning(model, optimizer, (x[:1],), "50% macs", 4, peer.TorchPruningConfig())
def train(model, optimizer, method):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return method.end_epoch()
whole = start()
for _ in range(3): train(*whole)
state = copy.deepcopy([part.state_dict() for part in (whole[2], whole[0], whole[1])])
cut = start()
cut[2].load_state_dict(state[0]); cut[0].load_state_dict(state[1]); cut[1].load_state_dict(state[2])
records = train(*whole), train(*cut)
assert records[0] == records[1], records
assert 0.45 < records[0]["macs_fraction"] <= 0.5, records
for a, b in zip(whole[0].parameters(), cut[0].parameters(), strict=True):
    assert torch.equal(a, b)
"""


@pytest.mark.run
@pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
def test_the_peer_is_compared_in_our_loop_and_resumes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", RESUMED, str(SCRIPT)], check=True, timeout=300)
    settings = ["data.path=synthetic", "limit=32", "batch_size=32", "model.depth=8", "model.width=8", "device=cpu"]
    arguments = [sys.executable, str(SCRIPT), "digits", "--epochs=2", "--methods=uniform,torch-pruning", "--seeds=0",
                 "--out", str(tmp_path), *(f"--set={text}" for text in settings)]  # fmt: skip
    subprocess.run(arguments, check=True, timeout=300, stdout=subprocess.DEVNULL)
    peer = json.loads((tmp_path / "compare.json").read_text())["methods"][1]
    assert peer["method"] == "torch-pruning"
    assert 0.4 < peer["macs_fraction"]["mean"] <= 0.5
    assert peer["latency_ms"]["128"] > 0
