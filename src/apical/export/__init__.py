"""Writing compact models and reading them back: safetensors (no pickle), ONNX and `torch.export`, each checked."""

from apical.export._load import load, load_quantized
from apical.export._onnx import export_onnx
from apical.export._portable import Equivalence, export_pt2
from apical.export._save import save

__all__ = ["Equivalence", "export_onnx", "export_pt2", "load", "load_quantized", "save"]
