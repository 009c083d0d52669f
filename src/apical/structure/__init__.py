"""What can be removed from a model: groups, blocks, gate sites and their cost, found by analysing its graph."""

from apical.structure._analyse import analysis_copy, check_runs, own, propose, quiet_rng, tensor_specs
from apical.structure._cost import CostModel, CostTerm, SizeAxis, lies_in
from apical.structure._groups import OWN_SIZES, SIZE_ATTRIBUTES, stated_sizes
from apical.structure._manual import HandGroups, describe
from apical.structure._registry import module_refresh, register_module, register_op
from apical.structure._torch_modules import NarrowMultiheadAttention
from apical.structure._types import (
    AttributeAxis,
    ChannelGroup,
    Frozen,
    Keep,
    ParamSlice,
    SkippableBlock,
    StateSlice,
    Structure,
    TensorSpec,
)
from apical.structure._values import ParamValue, Value
from apical.structure._walk import Walk

__all__ = [
    "OWN_SIZES",
    "SIZE_ATTRIBUTES",
    "AttributeAxis",
    "ChannelGroup",
    "CostModel",
    "CostTerm",
    "Frozen",
    "HandGroups",
    "Keep",
    "NarrowMultiheadAttention",
    "ParamSlice",
    "ParamValue",
    "SizeAxis",
    "SkippableBlock",
    "StateSlice",
    "Structure",
    "TensorSpec",
    "Value",
    "Walk",
    "analysis_copy",
    "check_runs",
    "describe",
    "lies_in",
    "module_refresh",
    "own",
    "propose",
    "quiet_rng",
    "register_module",
    "register_op",
    "stated_sizes",
    "tensor_specs",
]
