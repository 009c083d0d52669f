"""What can be removed from a model: groups, blocks, gate sites and their cost, found by analysing its graph."""

from apical.structure import _analyse  # noqa: F401  (importing it registers the rules, before those of users)
from apical.structure._call import Call, ExampleInputs
from apical.structure._cost import CostModel, CostTerm, SizeAxis
from apical.structure._manual import HandGroups
from apical.structure._registry import register_module, register_op
from apical.structure._returned import Argument, Returned
from apical.structure._structure import Structure
from apical.structure._torch_modules import NarrowMultiheadAttention
from apical.structure._types import (
    AttributeAxis,
    ChannelGroup,
    Feeder,
    Frozen,
    Keep,
    ParamSlice,
    SkippableBlock,
    StateSlice,
    TensorSpec,
)
from apical.structure._values import ParamValue, Value
from apical.structure._walk import Walk

__all__ = [
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
    "register_module",
    "register_op",
]
