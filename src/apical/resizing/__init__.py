"""Changing a model's sizes: planned, checked, applied whole or not at all, with a store for what is absent."""

from apical.resizing._gates import zero_gates_
from apical.resizing._guards import check_matches, refuse_wrapped, unaveraged
from apical.resizing._indexing import TemplateMap
from apical.resizing._install import Installation, lookup, whole_or_nothing
from apical.resizing._optimizer import check_kinds, check_state
from apical.resizing._report import ResizeReport, TensorChange
from apical.resizing._resize import resize_
from apical.resizing._selection import Selection, check_selection, first_units
from apical.resizing._sharding import Shard, Sharding
from apical.resizing._shards import are_finite, fill_, is_sharded, own_part, start_of_part, sum_over_parts_, whole
from apical.resizing._stand_in import StandIn
from apical.resizing._state import resize_state
from apical.resizing._store import DormantStore
from apical.resizing._structure_file import load_structure, save_structure
from apical.resizing._trace import trace
from apical.resizing._traffic import Traffic, traffic

__all__ = [
    "DormantStore",
    "Installation",
    "ResizeReport",
    "Selection",
    "Shard",
    "Sharding",
    "StandIn",
    "TemplateMap",
    "TensorChange",
    "Traffic",
    "are_finite",
    "check_kinds",
    "check_matches",
    "check_selection",
    "check_state",
    "fill_",
    "first_units",
    "is_sharded",
    "load_structure",
    "lookup",
    "own_part",
    "refuse_wrapped",
    "resize_",
    "resize_state",
    "save_structure",
    "start_of_part",
    "sum_over_parts_",
    "trace",
    "traffic",
    "unaveraged",
    "whole",
    "whole_or_nothing",
    "zero_gates_",
]
