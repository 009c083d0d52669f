"""Pictures of a segmentation: image, truth and prediction, as files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical._optional import import_optional
from apical.data import VocSplit
from apical.recipes.tasks.segmentation._loss import class_iou, confusion
from apical.training._run_folder import write_text

FOLDER = "pictures"
_LARGEST = 320  # pixels of the longer side: four rows of three stay far below a megabyte
_IGNORED = "#ffffff"


def write_pictures(
    run: Path,
    model: nn.Module,
    split: VocSplit,
    classes: Sequence[str],
    ignore_label: int,
    normalize: Callable[[Tensor], Tensor],
    count: int,
) -> None:
    """Write ``pictures/NUMBER-image.png``, ``-truth.png``, ``-prediction.png`` and ``pictures.json`` into a run."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    palette = split.palette()
    colours = [palette[number] if number < len(palette) else "#000000" for number in range(len(classes))]
    rows, shown = [], set()
    chosen = [round((i + 0.5) * len(split) / count - 0.5) for i in range(min(count, len(split)))]
    for number, index in enumerate(dict.fromkeys(chosen)):
        image, truth = split[index]
        predicted = _predict(model, normalize(image[None]))
        present = class_iou(confusion(predicted, truth.long(), len(classes), ignore_label))
        ious = [value for value in present if value is not None]
        visible = predicted.where(truth != ignore_label, ignore_label)
        files = {
            "image": _save(image.permute(1, 2, 0), folder / f"{number}-image.png"),
            "truth": _save(_coloured(truth, colours, ignore_label), folder / f"{number}-truth.png"),
            "prediction": _save(_coloured(predicted, colours, ignore_label), folder / f"{number}-prediction.png"),
        }
        shares = {"truth": _shares(truth, classes), "prediction": _shares(visible, classes)}
        alt = {"image": f"image {split.names[index]}", **{k: f"{k}: {text}" for k, text in shares.items()}}
        miou = sum(ious) / max(1, len(ious))
        rows.append({"name": split.names[index], "note": f"mIoU {100 * miou:.0f} %", "files": files, "alt": alt})
        shown |= set(truth.unique().tolist()) | set(predicted.unique().tolist())
    legend = [{"name": n, "colour": colours[i]} for i, n in enumerate(classes) if i in shown]
    legend += [{"name": "not labelled", "colour": _IGNORED}] if ignore_label in shown else []
    title = "Image, truth and prediction"
    note = f"From the {split.split} list; mIoU is that of the single image, over the classes in it."
    content = {"title": title, "note": note, "rows": rows, "legend": legend}
    write_text(folder / "pictures.json", json.dumps(content, indent=2) + "\n")


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor) -> Tensor:
    """The class of every pixel of one image  # (H, W)"""
    training, device = model.training, next(model.parameters()).device
    try:
        outputs: Any = model.eval()(images.to(device))
    finally:
        model.train(training)
    logits: Tensor = outputs["out"] if isinstance(outputs, Mapping) else outputs
    return logits[0].argmax(0).cpu()


def _coloured(labels: Tensor, colours: Sequence[str], ignore_label: int) -> Tensor:
    """uint8 (H, W, 3)"""
    table = torch.zeros(256, 3, dtype=torch.uint8)
    for number, colour in enumerate(colours):
        table[number] = torch.tensor(list(bytes.fromhex(colour[1:])))
    table[ignore_label] = torch.tensor(list(bytes.fromhex(_IGNORED[1:])))
    return table[labels.long()]


def _shares(labels: Tensor, classes: Sequence[str], most: int = 4) -> str:
    """The largest classes of a mask in words."""
    counts = torch.bincount(labels.reshape(-1).long(), minlength=256)[: len(classes)]
    total, order = max(1, int(counts.sum())), counts.argsort(descending=True).tolist()
    return ", ".join(f"{classes[i]} {100 * int(counts[i]) / total:.0f} %" for i in order[:most] if counts[i])


def _save(pixels: Tensor, path: Path) -> str:
    """Write a PNG of at most `_LARGEST` pixels a side; returns the file's name."""
    longer = max(pixels.shape[:2])
    if longer > _LARGEST:
        size = [max(1, round(side * _LARGEST / longer)) for side in pixels.shape[:2]]
        planes = pixels.permute(2, 0, 1)[None]
        if path.stem.endswith("image"):
            planes = F.interpolate(planes, size=size, mode="bilinear", antialias=True)
        else:
            planes = F.interpolate(planes, size=size, mode="nearest-exact")
        pixels = planes[0].permute(1, 2, 0)
    pillow = import_optional("PIL.Image", "Pillow", "data", "writing pictures")
    pillow.fromarray(pixels.contiguous().numpy()).save(path, format="PNG", optimize=True)
    return path.name
