"""Models of transformers, built from small configs: entry by keyword, and blocks that are skipped, saved and loaded."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from torchvision_shim import has_torchvision, import_torchvision

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 32}  # fmt: skip
IDS = torch.arange(14).view(2, 7)


def llama(library: Any) -> tuple[nn.Module, dict[str, Any]]:
    return library.LlamaForCausalLM(library.LlamaConfig(**SIZES, num_key_value_heads=4)), {"input_ids": IDS}


def gpt2(library: Any) -> tuple[nn.Module, dict[str, Any]]:
    config = library.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    return library.GPT2LMHeadModel(config), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def t5(library: Any) -> tuple[nn.Module, dict[str, Any]]:
    config = library.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    return library.T5ForConditionalGeneration(config), {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}


def swin(library: Any) -> tuple[nn.Module, dict[str, Any]]:
    config = library.SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=2)
    return library.SwinForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


BLOCKS: dict[Callable[[Any], Any], set[str]] = {
    llama: {"model.layers.0", "model.layers.1"},
    gpt2: {"transformer.h.0", "transformer.h.1"},
    t5: {"encoder.block.0.layer.1", "encoder.block.1.layer.0", "decoder.block.1.layer.1"},
    swin: {"swin.encoder.layers.0.blocks.0", "swin.encoder.layers.0.blocks.1"},
}


@pytest.mark.parametrize("build", BLOCKS, ids=lambda build: build.__name__)
def test_blocks_go_and_come_back(build: Callable[[Any], Any], tmp_path: Path) -> None:
    if has_torchvision():
        import_torchvision()  # transformers imports it
    import transformers

    model, inputs = build(transformers)
    had_cache = getattr(model.config, "use_cache", None)
    structure = apical.trace(model, inputs)
    assert BLOCKS[build] <= {b.name for b in structure.blocks}, structure.notes
    assert getattr(model.config, "use_cache", None) == had_cache
    assert ("traced with config.use_cache=False" in structure.notes) == (had_cache is True)
    small, store = copy.deepcopy(model), apical.DormantStore()
    apical.resize_(small, structure, {}, sorted(BLOCKS[build])[:1], store=store)
    loaded = apical.load(copy.deepcopy(model), apical.save(small, tmp_path))
    assert torch.equal(loaded.eval()(**inputs)[0], small.eval()(**inputs)[0])
    small.train()(**inputs)[0].sum().backward()
    apical.resize_(small, structure, {}, store=store)
    assert torch.equal(small.eval()(**inputs)[0], model.eval()(**inputs)[0])


def test_experts_of_the_loop_are_traced_as_a_batch() -> None:
    """The loop over the experts that some token chose cannot be exported; the model itself keeps it."""
    if has_torchvision():
        import_torchvision()
    import transformers

    config = transformers.MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=4, experts_implementation="eager"
    )
    model = transformers.MixtralForCausalLM(config).eval()
    structure = apical.trace(model, {"input_ids": IDS})
    assert "traced with config.experts_implementation='batched_mm'" in structure.notes
    assert model.config._experts_implementation == "eager"
    name = "model.layers.1.mlp.experts"
    assert structure.group(name).size == SIZES["intermediate_size"]
    with torch.no_grad():  # hidden units whose columns are zero leave
        model.get_parameter(f"{name}.down_proj")[..., ::3] = 0
        expected = model(input_ids=IDS)[0]
        apical.resize_(model, structure, {name: [i for i in range(24) if i % 3]})
        torch.testing.assert_close(model(input_ids=IDS)[0], expected)
