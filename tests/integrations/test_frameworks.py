"""Growth in Lightning, Hugging Face's Trainer and Accelerate: the examples run, and wrong use is named."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical.errors import LoadError

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
FRAMEWORKS = {
    "lightning_callback": "lightning",
    "transformers_callback": "transformers",
    "accelerate_pattern": "accelerate",
}


def need(framework: str) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed: pip install 'apical[integrations]'")


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_a_framework_that_is_not_installed_is_named_with_the_extra(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"apical.integrations.{framework}", raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{framework}.*pip install 'apical\[integrations\]'"):
        importlib.import_module(f"apical.integrations.{framework}")


def run(code: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *code], env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", **more},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.parametrize("example", ["transformers_llama", "transformers_bert"])
def test_a_language_model_grows_and_comes_back_from_its_folder(example: str, tmp_path: Path) -> None:
    need("transformers")
    ended = run([str(TESTS / "integrations_runner.py"), str(EXAMPLES / f"{example}.py"), str(tmp_path)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("epoch ")]
    shares = [int(line.split(": ")[1].split("%")[0]) for line in lines]
    assert len(shares) == 6
    assert shares[0] < 20
    assert shares[-1] in (49, 50, 51)
    last = ended.stdout.splitlines()[-1]
    if example == "transformers_llama":
        assert last.endswith("same logits: True")
    else:
        assert int(last.split("%")[0].removeprefix("loaded: ")) > 50  # of four classes
    assert not (tmp_path / "compact" / "model.safetensors").exists()  # that from_pretrained would take for whole


@pytest.mark.slow
def test_folders_of_transformers_are_not_confused(tmp_path: Path) -> None:
    need("transformers")
    code = """
import sys, torch
from integrations_runner import prepare
prepare()
from transformers import BertConfig, BertForSequenceClassification
import apical
from apical.errors import LoadError, SaveError
from apical.integrations.transformers import from_pretrained, save_pretrained
folder = sys.argv[1]
sizes = dict(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=12)
model = BertForSequenceClassification(BertConfig(**sizes)).eval()
inputs = {"input_ids": torch.arange(5)[None]}
structure = apical.trace(model, inputs)
apical.resize_(model, structure, {g.name: [0] for g in structure.groups[:2]})
save_pretrained(model, folder + "/grown")
loaded = from_pretrained(folder + "/grown")
assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(folder + "/whole")
wrong = [
    (BertForSequenceClassification.from_pretrained, "grown", OSError),
    (from_pretrained, "whole", LoadError),
    (lambda f: save_pretrained(model, f), "whole", SaveError),
    (lambda f: save_pretrained(torch.nn.Linear(1, 1), f), "none", SaveError),
]
for use, name, error in wrong:
    try:
        use(f"{folder}/{name}")
    except error as problem:
        print("refused:", str(problem)[:200])
    else:
        raise AssertionError(name)
"""
    ended = run(["-c", code, str(tmp_path)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("refused:") == 4


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.parametrize("example", FRAMEWORKS)
def test_an_example_runs_and_leaves_a_compact_network(example: str, tmp_path: Path) -> None:
    need(FRAMEWORKS[example])
    path = EXAMPLES / f"{example}.py"
    assert len(path.read_text().splitlines()) < 60
    ended = run([str(TESTS / "integrations_runner.py"), str(path), str(tmp_path)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("epoch ")]
    shares = [int(line.split(": ")[1].split("%")[0]) for line in lines]
    assert len(shares) == 6
    assert shares == sorted(shares)
    assert shares[0] < 20
    assert shares[-1] in range(48, 61)
    assert sorted(p.name for p in (tmp_path / "compact").iterdir()) == ["architecture.json", "model.safetensors"]
    with pytest.raises(LoadError):
        apical.load(nn.Linear(2, 2), tmp_path / "compact")


@pytest.mark.slow
@pytest.mark.run
def test_accelerate_in_two_processes(tmp_path: Path) -> None:
    need("accelerate")
    ended = run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                 str(EXAMPLES / "accelerate_pattern.py"), str(tmp_path)])  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len([line for line in ended.stdout.splitlines() if line.startswith("epoch ")]) == 6
    assert (tmp_path / "compact" / "architecture.json").exists()


LIGHTNING = """
import sys, torch, integrations_runner
integrations_runner.prepare()
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from apical.integrations.lightning import GrowthCallback

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 4))
    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == int(sys.argv[2]):
            trainer.should_stop = True
            raise KeyboardInterrupt

def fit(folder, stop, resume):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 8)
    growth = GrowthCallback(torch.zeros(1, 6), "50% macs", damping=1.0, max_change=4.0, seed_style="small")
    keep = ModelCheckpoint(folder, filename="last", save_top_k=1, every_n_epochs=1, save_on_train_epoch_end=True,
                           enable_version_counter=False)
    trainer = pl.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[growth, keep, *([Stop()] if stop else [])])
    module = Module()
    try:
        trainer.fit(module, loader, ckpt_path=folder + "/last.ckpt" if resume else None)
    except (KeyboardInterrupt, SystemExit):
        return
    torch.save({"model": module.model.state_dict(), "history": growth.grower.history}, folder + "/end.pt")

fit(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume")
"""


@pytest.mark.slow
@pytest.mark.run
def test_a_lightning_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    need("lightning")
    for folder, stop, resume in (("whole", "0", "new"), ("cut", "4", "new"), ("cut", "0", "resume")):
        (tmp_path / folder).mkdir(exist_ok=True)
        ended = run(["-c", LIGHTNING, str(tmp_path / folder), stop, resume])
        assert ended.returncode in (0, 1), ended.stderr[-3000:]
        assert (tmp_path / folder / "end.pt").exists() == (stop == "0"), ended.stderr[-3000:]
    whole, cut = (torch.load(tmp_path / name / "end.pt") for name in ("whole", "cut"))
    assert list(whole["model"]) == list(cut["model"])
    assert all(torch.equal(whole["model"][name], cut["model"][name]) for name in whole["model"])
    assert [r["widths"] for r in whole["history"]] == [r["widths"] for r in cut["history"]]


def test_nothing_is_imported_until_asked_for() -> None:
    ended = run(["-c", "import sys, apical, apical.integrations; print([n for n in ('lightning', 'transformers', "
                 "'accelerate') if n in sys.modules])"])  # fmt: skip
    assert ended.stdout.strip() == "[]", ended.stderr


def test_accelerate_in_one_process_gets_its_model_back() -> None:
    from apical.integrations.accelerate import rewrapped

    model: Any = nn.Linear(2, 3)
    assert rewrapped(object(), model) is model
