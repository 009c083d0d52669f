"""Changing a model's sizes: planned, checked, applied whole or not at all, with a store for what is absent."""

from apical.resizing._report import ResizeReport, TensorChange
from apical.resizing._resize import resize_
from apical.resizing._sharding import Shard
from apical.resizing._state import resize_state
from apical.resizing._store import DormantStore
from apical.resizing._structure_file import load_structure, save_structure
from apical.resizing._trace import trace

__all__ = [
    "DormantStore",
    "ResizeReport",
    "Shard",
    "TensorChange",
    "load_structure",
    "resize_",
    "resize_state",
    "save_structure",
    "trace",
]
