"""What can be removed from a model: groups, blocks, gate sites and their cost, found by analysing its graph."""

from apical.structure._absent_gates import fill_gates_, without_absent
from apical.structure._analyse import OUTPUT, propose, tensor_specs
from apical.structure._call import Call, ExampleInputs
from apical.structure._cost import CostModel, CostTerm, SizeAxis, lies_in
from apical.structure._groups import OWN_SIZES, SIZE_ATTRIBUTES, stated, stated_sizes
from apical.structure._manual import HandGroups, describe
from apical.structure._quiet import quiet, quiet_rng
from apical.structure._registry import module_refresh, register_module, register_op
from apical.structure._returned import Argument, Returned, returned, returned_zeros
from apical.structure._running import analysis_copy, check_runs, first_line, own, without_cache_
from apical.structure._steady import steady_training
from apical.structure._structure import Structure
from apical.structure._torch_modules import NarrowMultiheadAttention
from apical.structure._types import (
    AttributeAxis,
    ChannelGroup,
    Feeder,
    Frozen,
    Keep,
    Needs,
    ParamSlice,
    SkippableBlock,
    StateSlice,
    TensorSpec,
    by_reason,
    parts_in_words,
)
from apical.structure._values import ParamValue, Value
from apical.structure._walk import Walk

__all__ = [
    "OUTPUT",
    "OWN_SIZES",
    "SIZE_ATTRIBUTES",
    "Argument",
    "AttributeAxis",
    "Call",
    "ChannelGroup",
    "CostModel",
    "CostTerm",
    "ExampleInputs",
    "Feeder",
    "Frozen",
    "HandGroups",
    "Keep",
    "NarrowMultiheadAttention",
    "Needs",
    "ParamSlice",
    "ParamValue",
    "Returned",
    "SizeAxis",
    "SkippableBlock",
    "StateSlice",
    "Structure",
    "TensorSpec",
    "Value",
    "Walk",
    "analysis_copy",
    "by_reason",
    "check_runs",
    "describe",
    "fill_gates_",
    "first_line",
    "lies_in",
    "module_refresh",
    "own",
    "parts_in_words",
    "propose",
    "quiet",
    "quiet_rng",
    "register_module",
    "register_op",
    "returned",
    "returned_zeros",
    "stated",
    "stated_sizes",
    "steady_training",
    "tensor_specs",
    "without_absent",
    "without_cache_",
]
