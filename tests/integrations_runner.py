"""Runs an example in a process of its own, with torchvision's operators declared where its own build does not load."""

from __future__ import annotations

import runpy
import sys

from torchvision_shim import has_torchvision, import_torchvision


def prepare() -> None:
    """Lightning and Transformers import torchvision if it is there."""
    if has_torchvision():
        import_torchvision()


if __name__ == "__main__":
    prepare()
    path, *arguments = sys.argv[1:]
    runpy.run_path(path)["main"](*arguments)
