"""`--shard`: processes that divide the model end as one that holds it whole, stop, go on, and leave an ordinary run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from apical.errors import ConfigError
from apical.recipes import apply_settings, get_recipe
from apical.runs import load_run, run
from fork_server import Ended, ForkServer
from recipes.sharded_cases import STOPPED_AT
from tiny_run import timeless

SERVED = "recipes.sharded_cases"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for split, lines in (("train", 60), ("valid", 20), ("test", 20)):
        words = [f"a w{number % 7} b w{number * number % 5} ." for number in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join(words) + "\n")
    return folder


def ends(server: ForkServer, folder: Path, text: Path, what: str, count: int, *settings: str) -> list[Ended]:
    return server.run(
        f"{SERVED}:once", str(folder), str(text), what, list(settings), count=count, folder=folder, timeout=300
    )


def states(ended: list[Ended], folder: Path, what: str) -> list[dict[str, Any]]:
    assert all(e.code == 0 for e in ended), "\n".join(e.output for e in ended)
    return [torch.load(folder / f"{what}-{rank}-{len(ended)}.pt") for rank in range(len(ended))]


def assert_close(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-9) -> None:
    """The same widths and blocks in every epoch, and weights and losses but for rounding."""
    for name in ("widths", "skipped", "macs", "samples"):
        assert [r[name] for r in a["history"]] == [r[name] for r in b["history"]], name
    assert list(a["model"]) == list(b["model"])
    for name, tensor in a["model"].items():
        assert torch.allclose(tensor, b["model"][name], rtol=tolerance, atol=tolerance), name
    for name in ("train_loss", "eval_loss"):
        assert [r[name] for r in a["history"]] == pytest.approx([r[name] for r in b["history"]], rel=1e-6), name


def cut_and_resumed(server: ForkServer, folder: Path, text: Path) -> list[dict[str, Any]]:
    """What two processes end with that are stopped in the middle of an epoch and go on."""
    stopped = ends(server, folder, text, "cut", 2)
    assert [e.code for e in stopped] == [75, 75], stopped[0].output
    assert "within epoch 2 of 4; resumed, it goes on there" in stopped[0].output
    begun = torch.load(folder / "cut" / "checkpoint.pt")["state"]["begun"]
    assert begun["steps"] == STOPPED_AT[1]
    return states(ends(server, folder, text, "resumed", 2), folder, "resumed")


@pytest.mark.slow
def test_processes_that_divide_the_model_are_one_that_holds_it(server: ForkServer, text: Path, tmp_path: Path) -> None:
    """Though they are stopped in the middle of an epoch and go on; they leave an ordinary run."""
    (alone,) = states(ends(server, tmp_path, text, "plain", 1), tmp_path, "plain")
    two = cut_and_resumed(server, tmp_path, text)
    assert_close(alone, two[0])
    assert alone["summary"]["test_perplexity"] == pytest.approx(two[0]["summary"]["test_perplexity"], rel=1e-6)
    assert len({str(r["widths"]) for r in two[0]["history"]}) > 1, "the network did change"
    assert two[0]["kinds"] == alone["kinds"], "it is the user's own again"
    for name, tensor in two[0]["model"].items():
        assert torch.equal(tensor, two[1]["model"][name]), name

    own = [state["held"] for state in two]
    for (model, all_of_model, store, all_of_store), (other, _, rest, _) in zip(*own, strict=True):
        assert model + other == all_of_model
        assert store + rest == all_of_store
        assert max(model, other) < 0.6 * all_of_model
        assert max(store, rest) < 0.6 * all_of_store

    folder = tmp_path / "cut"
    kept = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "architecture.json", "summary.json", "report.html"} <= kept
    assert len([name for name in kept if name.startswith("parts-")]) == 2
    small, *_ = load_run(folder)
    assert {name: p.shape for name, p in small.state_dict().items()} == {
        name: p.shape for name, p in two[0]["model"].items()
    }


@pytest.mark.slow
def test_one_that_goes_on_ends_as_one_that_was_not_stopped(server: ForkServer, text: Path, tmp_path: Path) -> None:
    """Bit for bit, with the same number of processes."""
    unbroken = states(ends(server, tmp_path, text, "whole", 2), tmp_path, "whole")
    resumed = cut_and_resumed(server, tmp_path, text)
    for mine, theirs in zip(unbroken, resumed, strict=True):
        for name, tensor in mine["model"].items():
            assert torch.equal(tensor, theirs["model"][name]), name
    assert timeless(unbroken[0]["history"])[-1]["eval_loss"] == timeless(resumed[0]["history"])[-1]["eval_loss"]


def images(server: ForkServer, folder: Path, shard: bool, epochs: int) -> dict[str, Any]:
    ended = server.run(f"{SERVED}:images", str(folder), shard, epochs, count=2, folder=folder)
    return states(ended, folder, str(shard))[0]


def test_processes_that_evaluate_unequally_often_do_not_wait_in_vain(server: ForkServer, tmp_path: Path) -> None:
    """And they leave an ordinary run."""
    ended = images(server, tmp_path, True, epochs=2)
    assert ended["summary"]["test_samples"] == 33
    small, *_ = load_run(tmp_path / "True")
    assert {name: t.shape for name, t in small.state_dict().items()} == {n: t.shape for n, t in ended["model"].items()}


@pytest.mark.slow
def test_synchronised_norms_of_a_divided_model_are_those_of_a_whole_one(server: ForkServer, tmp_path: Path) -> None:
    """With augmentation, in float32."""
    whole, divided = (images(server, tmp_path, shard, epochs=3) for shard in (False, True))
    assert [r["widths"] for r in whole["history"]] == [r["widths"] for r in divided["history"]]
    for name in ("train_loss", "eval_loss"):
        assert [r[name] for r in whole["history"]] == pytest.approx([r[name] for r in divided["history"]], rel=1e-3)
    assert whole["summary"]["test_samples"] == divided["summary"]["test_samples"] == 33


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_another_number_of_processes_goes_on(
    server: ForkServer, text: Path, tmp_path: Path, before: int, after: int
) -> None:
    settings = ("batch_size=6", "eval_streams=3")
    (alone,) = states(ends(server, tmp_path, text, "plain", 1, *settings), tmp_path, "plain")
    assert [e.code for e in ends(server, tmp_path, text, "cut", before, *settings)] == [75] * before
    assert_close(alone, states(ends(server, tmp_path, text, "resumed", after), tmp_path, "resumed")[0])


def test_what_cannot_be_divided_is_refused_in_words(server: ForkServer, text: Path, tmp_path: Path) -> None:
    for end in ends(server, tmp_path, text, "whole", 2, "method=dense"):
        assert end.code == 2
        assert "method dense cannot divide its model among processes; expected one of grown, scs, random" in end.output
    config = apply_settings(get_recipe("gpt-wikitext2"), ["training.shard=true", "device=cpu"])
    with pytest.raises(ConfigError, match=r"one alone\..* torchrun --nproc-per-node N"):
        run(config, tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"ema_decay=none; shard=true with compile=true"):
        apply_settings(config, ["ema_decay=0.9", "compile=true"])
    assert not (tmp_path / "alone").exists()


@pytest.mark.slow
def test_parts_that_are_not_whole_are_refused(server: ForkServer, text: Path, tmp_path: Path) -> None:
    """A part cut short: the checkpoint before goes on. Metadata that name other code: refused in words by all."""
    assert [e.code for e in ends(server, tmp_path, text, "cut", 2)] == [75, 75]
    run = tmp_path / "cut"
    part = run / torch.load(run / "checkpoint.pt")["state"]["parts"] / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-100])
    torn = (run / "checkpoint.pt").read_bytes()
    for end in ends(server, tmp_path, text, "resumed", 2):
        assert end.code == 0, end.output
    assert (run / "checkpoint.torn.pt").read_bytes() == torn

    mark = tmp_path / "ran"
    whole = next(run.glob("parts-*/.metadata")).read_bytes()
    code = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for content, message in ((code, "it names os.system"), (whole[:50], "holds no checkpoint of save_sharded")):
        for parts in run.glob("parts-*"):
            (parts / "checksums.json").unlink(missing_ok=True)  # as it was before there were any
            (parts / ".metadata").write_bytes(content)
        for end in ends(server, tmp_path, text, "resumed", 2):
            assert end.code == 2, end.output
            assert "CheckpointError" in end.output
            assert message in end.output, end.output
    assert not mark.exists()
