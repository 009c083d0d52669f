"""Sharing finished runs on the Hugging Face Hub: what is uploaded, the card, and models from there or from a folder."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical._atomic import make_folder
from apical._optional import import_optional
from apical.errors import ApicalError, ConfigError, ExportError, LoadError, SaveError, why_not_written
from apical.export import export_pt2, load
from apical.recipes._model import find_builder
from apical.recipes._settings import reproducing_command
from apical.reporting import RunRecord, read_run, write_report
from apical.reporting._growth_picture import growth_pixels
from apical.runs._stored import load_run, load_serving, names_foreign_code, read_config, resume_command

MODEL = ("architecture.json", "model.safetensors", "config.json")
RECORDS = ("summary.json", "history.jsonl", "template.json")
PROGRAM, PICTURE, CARD = "model.pt2", "growth.png", "README.md"
_PIXELS = 12  # a side of what stands for one group in one epoch
_LOADED = (*MODEL, PROGRAM)


def push_to_hub(run: str | Path, repo: str, *, private: bool = False, trust_code: bool = False) -> str:
    """Upload a finished run's network, its records and a card to the Hugging Face Hub.

    The card has the table of cost and accuracy, the picture of growth, how to load the network, and how to repeat the
    run. Checkpoints and data stay here, and folders of this machine are named by their last part only.

    Args:
        run: the run folder.
        repo: ``"user/name"``; it is made if need be. You are who ``hf auth login`` or ``HF_TOKEN`` says.
        private: whether a new one is private.
        trust_code: that of `load_run`.

    Returns:
        The address.

    Raises:
        ConfigError: the folder holds no finished run, the name is wrong, or huggingface_hub is not installed.
        SaveError: the Hub does not take it.
    """
    client = _require("huggingface_hub")
    with tempfile.TemporaryDirectory(prefix="apical-push-") as aside:
        folder = write_share(run, aside, repo, trust_code=trust_code)
        try:
            client.HfApi().create_repo(repo, private=private, exist_ok=True)
            found = client.HfApi().upload_folder(
                repo_id=repo, folder_path=str(folder), commit_message="Upload a network that apical grew"
            )
        except Exception as error:  # clients of servers fail in many ways
            raise SaveError(
                f"{repo} could not be pushed: {type(error).__name__}: {error}. Log in with `hf auth login`, check the "
                "name and the network; nothing here has changed, so the same command can be repeated."
            ) from error
    return str(getattr(found, "repo_url", None) or f"https://huggingface.co/{repo}")


def from_pretrained(
    source: str | Path, *, model: nn.Module | None = None, revision: str | None = None, trust_code: bool = False
) -> nn.Module:
    """A grown network in eval mode on the CPU, from the Hub or from a folder.

    The networks of apical, torchvision and timm are built by their names. One of your own is built by the code that
    the folder names, if you say that you trust it; if that code is not installed, the exported program in the folder
    (``model.pt2``) stands in, which computes the same but cannot be trained or changed.

    Args:
        source: ``"user/name"``, or a folder: a run, or what `apical.save` wrote if ``model`` is given.
        model: the full-size model, freshly built, if its code is at hand; it is made as small as the saved one.
        revision: branch, tag or commit on the Hub.
        trust_code: whether code that the folder names may be called, or its exported program read.

    Returns:
        The network.

    Raises:
        ConfigError: the folder names code that is not trusted, or huggingface_hub is not installed.
        LoadError: there is no such folder or repository, or it is damaged.

    Example:
        >>> import tempfile, apical
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = apical.save(nn.Linear(2, 3), folder)
        ...     from_pretrained(folder, model=nn.Linear(2, 3))
        Linear(in_features=2, out_features=3, bias=True)
    """
    folder = _fetched(source, revision)
    if model is not None:
        return load(model, folder).eval()
    config = read_config(folder)
    if trust_code and names_foreign_code(config) and (folder / PROGRAM).is_file() and not _installed(config.model.name):
        try:
            return torch.export.load(folder / PROGRAM).module()
        except Exception as error:  # whatever reading a damaged archive raises
            raise LoadError(f"{folder / PROGRAM} cannot be read: {error}") from error
    return load_run(folder, trust_code=trust_code)[0]


def write_share(run: str | Path, out: str | Path, repo: str, *, trust_code: bool = False) -> Path:
    """Write what `push_to_hub` uploads into a folder.

    Raises:
        ConfigError: the folder holds no finished run, or the name is wrong.
        DataError: a record of it is damaged.
        SaveError: it cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"repo must be user/name, got {repo!r}")
    source, target = Path(run), Path(out)
    config = read_config(source)
    missing = [name for name in (*MODEL, "summary.json") if not (source / name).is_file()]
    if missing:
        raise ConfigError(f"{source} holds no finished run: {', '.join(missing)} is missing. Finish it first: "
                          f"{resume_command(config, source)}")  # fmt: skip
    found, (model, _, call) = read_run(source), load_serving(source, trust_code=trust_code)
    paths = (config.data.path, config.model.initial_weights, config.method_options.get("run"))
    folders = {str(path) for path in paths if path and Path(str(path)).name not in ("", str(path))}
    try:
        make_folder(target)
        for name in (*MODEL, *RECORDS):
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        _write_json(target / "config.json", _without_folders(found.config, folders))
        command = reproducing_command(read_config(target), source.resolve().name)
        _write_json(target / "summary.json", {**_without_folders(found.summary, folders), "command": command})
        record = read_run(target)  # the other files name no folders
        program = _write_program(model, call, target / PROGRAM)
        picture = _write_picture(record, target / PICTURE)
        text = card(record, repo, program=program, picture=picture)
        (target / CARD).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        if isinstance(error, ApicalError):
            raise
        raise SaveError(f"cannot write {target}: {why_not_written(target, error)}. Name another folder.") from error
    write_report(target)
    return target


def card(run: RunRecord, repo: str, *, program: bool, picture: bool) -> str:
    """The Hub's page of a run, in Markdown."""
    summary, config = run.summary, run.config
    foreign = ":" in str((config.get("model") or {}).get("name")).removeprefix("torchvision:").removeprefix("timm:")
    title = " · ".join(_literal(config[name]) for name in ("recipe", "method", "budget") if config.get(name))
    call = f"from_pretrained({json.dumps(repo)}{', trust_code=True' if foreign else ''})"
    lines = [
        "---", "library_name: apical", "tags: [apical, efficient, pruning, growing, pytorch]", "---", "",
        f"# {title}", "",
        "A network that [apical](https://arxiv.org/abs/2007.15353) grew while it was trained, from a small seed to "
        f"the budget of {_literal(config.get('budget'))}.", "",
        *_table(run), "",
        f"One run, seed {_literal(summary.get('seed'))}; {len(run.history)} epochs on "
        f"{_literal(summary.get('device'))}. A single run says nothing about the spread between seeds.", "",
    ]  # fmt: skip
    if picture:
        lines += [f"![Widths by epoch]({PICTURE})", "", "A row for each group of channels, a column for each epoch; "
                  "the darker, the nearer to the full width; white is absent.", ""]  # fmt: skip
    code = ["from apical.runs import from_pretrained", "", f"model = {call}"]
    lines += ["## Load it", "", "```python", *code, "```", ""]
    if program:
        lines += [f'Without apical, if you trust the file: `torch.export.load("{PROGRAM}").module()`.', ""]
    if summary.get("command"):
        lines += ["## Repeat it", "", *(f"    {line}" for line in str(summary["command"]).splitlines()), ""]
    lines += ["`report.html` shows the whole run.", ""]
    return "\n".join(lines)


def _table(run: RunRecord) -> list[str]:
    """Cost and accuracy."""
    summary, full = run.summary, run.template
    rows = []
    judged = summary.get(f"test_{run.metric['name']}")
    if isinstance(judged, (int, float)):
        split = summary.get("test_split") or "test"
        rows.append((_literal(f"{split} {run.metric_label}"), _literal(run.judged(judged)), ""))
    for name, label in (("macs", "MACs of an example"), ("num_params", "parameters")):
        if isinstance(summary.get(name), int) and isinstance(full.get(name), int):
            share = f"{summary[name]:,} ({100 * summary[name] / max(1, full[name]):.1f} %)"
            rows.append((label, share, f"{full[name]:,}"))
    size = summary.get("weights_bytes")  # of weights with bits
    if isinstance(size, int) and isinstance(full.get("num_params"), int):
        rows.append(("file of the weights", f"{size:,} bytes", f"{4 * full['num_params']:,} bytes"))
    trained = summary.get("train_macs_fraction")
    if isinstance(trained, (int, float)):
        rows.append(("multiply-adds of the training", f"{100 * trained:.1f} %", "100 %"))
    return ["| | this network | full model |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def _literal(value: Any) -> str:
    """Text that Markdown shows as it is, in a line or in a cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(str(value).split()))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # as JSON writes half a character


def _write_program(model: nn.Module, call: Any, path: Path) -> bool:
    """Whether the network could be written as a program that needs no code of its own."""
    try:
        export_pt2(model, call.args, path, batch_dim=call.batch_dim)
    except ExportError:
        return False
    return True


def _write_picture(run: RunRecord, path: Path) -> bool:
    rows = growth_pixels(run.widths(), run.template.get("widths") or {})
    if not rows:
        return False
    image = _require("PIL.Image").new("RGB", (len(rows[0]), len(rows)))
    image.putdata([pixel for row in rows for pixel in row])
    image.resize((len(rows[0]) * _PIXELS, len(rows) * _PIXELS), 0).save(path)
    return True


def _without_folders(value: Any, paths: Container[str]) -> Any:
    """JSON in which these paths are named by their last part."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item, paths) for item in value]
    return Path(value).name if isinstance(value, str) and value in paths else value


def _fetched(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise LoadError(f"there is no folder {source}; expected a run folder, or user/name on the Hugging Face Hub")
    try:
        fetched: Mapping[str, Any] | str = _require("huggingface_hub").snapshot_download(
            source, revision=revision, allow_patterns=list(_LOADED)
        )
    except ApicalError:
        raise
    except Exception as error:  # clients of servers fail in many ways
        raise LoadError(
            f"there is no folder {source}, and it cannot be fetched from the Hub: {type(error).__name__}: {error}. "
            "Check the name, the network, and for private ones `hf auth login`."
        ) from error
    return Path(str(fetched))


def _installed(name: str) -> bool:
    try:
        find_builder(name)
    except ConfigError:
        return False
    return True


def _require(module: str) -> Any:
    return import_optional(module, module, "hub", "the Hub", ConfigError)
