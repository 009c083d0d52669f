"""What tracing finds in families of models that others publish: the tables of ``docs/coverage-families.md``.

    python -m benchmarks.families transformers       # every family of the list, from small random configs
    python -m benchmarks.families timm               # a fixed random sample of 80 small variants
    python -m benchmarks.families --write docs/coverage-families.md

Each model is traced as its authors build it (random weights), then, for two random choices over all groups and blocks,
the smaller model is compared in float64 with the one whose removed parts are zeroed at their gate sites, and trained
for one step. A line per model is added to ``benchmarks/results/families.jsonl``; models that have one are not measured
again. A model that takes longer than ``--seconds`` is recorded as such.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import apical  # noqa: E402
from apical.errors import TraceError  # noqa: E402
from apical.resizing._widened import Widened  # noqa: E402
from structure.contract import generic_, random_keep, random_skip, relative_error, zeroed  # noqa: E402
from torchvision_shim import import_torchvision  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "families.jsonl"
SAMPLE_SIZE, SAMPLE_SEED = 80, 0
SMALL = re.compile(
    r"(^|_|-|[a-z])(atto|femto|pico|nano|zepto|micro|mini|tiny|xxs|xs|xxsmall|xsmall|xx_small|x_small|t0|s0|b0|18|10t|14t"
    r"|mobile|lcnet_0|lite)"
)
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 60, "max_position_embeddings": 32}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Case = Callable[[Any], tuple[nn.Module, dict[str, Any]]]


@dataclass(frozen=True)
class Finding:
    """One model: what can go, and whether it did.

    Attributes:
        removable: share of MACs that is gone when every group keeps one unit and every block is left out; None if the
            model was refused.
        with_streams: the same with ``streams="resize"``; None if not measured.
        problem: why it was refused or not measured, or what went wrong after a successful trace.
        wrong: whether that was after a successful trace.
        frozen: the reasons for what is frozen, each with the number of channels.
    """

    library: str
    model: str
    version: str
    groups: int = 0
    blocks: int = 0
    removable: float | None = None
    with_streams: float | None = None
    problem: str = ""
    wrong: bool = False
    frozen: Mapping[str, int] | None = None
    seconds: float = 0.0


def ids(library: Any, model: str, config: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model that reads tokens, from its config."""
    made = getattr(library, config)(**{**SPECIAL, **options})
    return getattr(library, model)(made), {"input_ids": torch.arange(14).view(2, 7) + 3}


def pixels(library: Any, model: str, config: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model that reads images of 32 pixels."""
    return getattr(library, model)(getattr(library, config)(**options)), {"pixel_values": torch.randn(2, 3, 32, 32)}


def text_to_text(library: Any, model: str, config: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model with encoder and decoder."""
    built, inputs = ids(library, model, config, **options)
    return built, inputs | {"decoder_input_ids": torch.arange(8).view(2, 4) + 3}


VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
          "image_size": 32, "patch_size": 4}  # fmt: skip
SEQ2SEQ = {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
           "decoder_start_token_id": 1, "forced_eos_token_id": 2}  # fmt: skip
FAMILIES: dict[str, Case] = {
    "Llama": lambda t: ids(t, "LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=4),
    "Llama, grouped queries": lambda t: ids(t, "LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2),
    "Llama, one key head": lambda t: ids(t, "LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=1),
    "Qwen2": lambda t: ids(t, "Qwen2ForCausalLM", "Qwen2Config", **TEXT, num_key_value_heads=2),
    "Qwen3": lambda t: ids(t, "Qwen3ForCausalLM", "Qwen3Config", **TEXT, num_key_value_heads=2, head_dim=8),
    "Mistral": lambda t: ids(t, "MistralForCausalLM", "MistralConfig", **TEXT, num_key_value_heads=2),
    "Gemma2": lambda t: ids(t, "Gemma2ForCausalLM", "Gemma2Config", **TEXT, num_key_value_heads=2, head_dim=8),
    "Phi-3": lambda t: ids(t, "Phi3ForCausalLM", "Phi3Config", **TEXT, num_key_value_heads=4),
    "GPT-2": lambda t: ids(
        t, "GPT2LMHeadModel", "GPT2Config", vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32
    ),
    "GPT-NeoX": lambda t: ids(t, "GPTNeoXForCausalLM", "GPTNeoXConfig", **TEXT),
    "OPT": lambda t: ids(
        t, "OPTForCausalLM", "OPTConfig", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=64, max_position_embeddings=32, word_embed_proj_dim=32,
    ),
    "BERT": lambda t: ids(t, "BertForSequenceClassification", "BertConfig", **TEXT),
    "RoBERTa": lambda t: ids(t, "RobertaForSequenceClassification", "RobertaConfig", **TEXT),
    "DistilBERT": lambda t: ids(
        t, "DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=60, dim=32, n_layers=2, n_heads=4,
        hidden_dim=64, max_position_embeddings=32,
    ),
    "ModernBERT": lambda t: ids(
        t, "ModernBertForSequenceClassification", "ModernBertConfig", **TEXT, cls_token_id=1, sep_token_id=2
    ),
    "T5": lambda t: text_to_text(
        t, "T5ForConditionalGeneration", "T5Config", vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2,
        num_heads=4, decoder_start_token_id=0,
    ),
    "BART": lambda t: text_to_text(t, "BartForConditionalGeneration", "BartConfig", **SEQ2SEQ),
    "Mixtral": lambda t: ids(
        t, "MixtralForCausalLM", "MixtralConfig", **TEXT, num_key_value_heads=2, num_local_experts=4,
        experts_implementation="batched_mm",
    ),
    "FNet": lambda t: ids(
        t, "FNetForSequenceClassification", "FNetConfig", vocab_size=60, hidden_size=32, num_hidden_layers=2,
        intermediate_size=64, max_position_embeddings=32,
    ),
    "Mamba": lambda t: ids(
        t, "MambaForCausalLM", "MambaConfig", vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "ViT": lambda t: pixels(t, "ViTForImageClassification", "ViTConfig", **VISION),
    "DeiT": lambda t: pixels(t, "DeiTForImageClassification", "DeiTConfig", **VISION),
    "DINOv2": lambda t: pixels(t, "Dinov2ForImageClassification", "Dinov2Config", **VISION),
    "SigLIP, vision": lambda t: pixels(t, "SiglipVisionModel", "SiglipVisionConfig", **VISION),
    "Swin": lambda t: pixels(
        t, "SwinForImageClassification", "SwinConfig", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    ),
    "ConvNeXt": lambda t: pixels(
        t, "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[16, 32], depths=[2, 2], num_stages=2
    ),
    "SegFormer": lambda t: pixels(
        t, "SegformerForSemanticSegmentation", "SegformerConfig", hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32,
    ),
    "DETR": lambda t: (
        t.DetrForObjectDetection(
            t.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                         backbone_config=t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 16, 32, 32],
                                                        depths=[2, 2, 2, 2], out_features=["stage4"]),
                         d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                         decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=6,
                         num_labels=3)
        ),
        {"pixel_values": torch.randn(2, 3, 64, 64)},
    ),
    "Whisper": lambda t: (
        t.WhisperForConditionalGeneration(
            t.WhisperConfig(**{**SPECIAL, **SEQ2SEQ}, num_mel_bins=8, max_source_positions=16, max_target_positions=16,
                            suppress_tokens=None, begin_suppress_tokens=None)
        ),
        {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": torch.arange(8).view(2, 4) + 3},
    ),
    "wav2vec 2.0": lambda t: (
        t.Wav2Vec2ForCTC(
            t.Wav2Vec2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                             conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
                             num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=20,
                             mask_time_prob=0.0)
        ),
        {"input_values": torch.randn(2, 400)},
    ),
}  # fmt: skip


def timm_sample(timm: Any) -> dict[str, Case]:
    """80 names drawn from all whose name says that they are small, in the order of the draw."""
    names = [n for n in timm.list_models() if SMALL.search(n)]
    random.Random(SAMPLE_SEED).shuffle(names)
    return {name: _of_timm(name) for name in names[:SAMPLE_SIZE]}


def _of_timm(name: str) -> Case:
    def build(timm: Any) -> tuple[nn.Module, dict[str, Any]]:
        own = timm.models.get_pretrained_cfg(name).input_size[1:]
        # Convolutional networks take images of any size, others when they are told at once.
        for side, options in (
            (64, {}),
            (64, {"img_size": 64}),
            (96, {"img_size": 96}),
            (128, {"img_size": 128}),
            (0, {}),
        ):
            try:
                model = timm.create_model(name, **options)
                x = torch.randn(2, 3, *((side, side) if side else own))
                with torch.no_grad():
                    model.eval()(x)
            except Exception:  # noqa: BLE001 (whatever the model raises for a size that it cannot take)
                continue
            return model, {"x": x}
        raise RuntimeError("runs at neither 64, 96 or 128 pixels nor its own size")

    return build


class TooLong(BaseException):
    """Not an `Exception`: those that a forward pass raises are an answer to the dry run."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise `TooLong` after so many seconds of the processor, which other work on the machine does not lengthen."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLong(f"took longer than {seconds} s")

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def measure(library: str, module: Any, name: str, build: Case, seconds: int) -> Finding:
    """Trace one model and try out what was found."""
    start = time.process_time()
    known: dict[str, Any] = {"library": library, "model": name, "version": module.__version__}
    try:
        with limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model, inputs = build(module)
            try:
                structure = apical.trace(model, _call(library, inputs))
                known |= _found(structure)
                if library == "transformers":
                    wide = apical.trace(model, _call(library, inputs), streams="resize")
                    known["with_streams"] = _removable(wide)
            except TraceError as error:
                return Finding(**known, problem=f"refused: {error}", seconds=round(time.process_time() - start, 1))
            known["problem"] = _tried(model, structure, inputs, library)
            known["wrong"] = bool(known["problem"])
    except TooLong as error:
        known["problem"] = str(error)
    except Exception as error:  # noqa: BLE001 (one model must not end the others)
        known |= {"problem": f"{type(error).__name__}: {error}"[:300], "wrong": known.get("removable") is not None}
    return Finding(**known, seconds=round(time.process_time() - start, 1))


def _call(library: str, inputs: Mapping[str, Any]) -> Any:
    return inputs if library == "transformers" else (inputs["x"],)


def _found(structure: apical.Structure) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    for part in structure.frozen:
        reasons[re.sub(r"\d+", "#", part.reason)[:120]] += part.size
    return {
        "groups": len(structure.groups), "blocks": len(structure.blocks), "removable": _removable(structure),
        "frozen": dict(reasons.most_common(4)),
    }  # fmt: skip


def _removable(structure: apical.Structure) -> float:
    least = structure.macs({g.name: [0] for g in structure.groups}, [b.name for b in structure.blocks])
    return round(1 - least / structure.macs(), 4)


def _tried(model: nn.Module, structure: apical.Structure, inputs: Mapping[str, Any], library: str) -> str:
    """What goes wrong with two random choices; empty if nothing does."""
    if getattr(getattr(model, "config", None), "use_cache", None):
        model.config.use_cache = False
    twin, tolerance = generic_(copy.deepcopy(model)), 1e-8
    wide = tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, dict(inputs))
    try:
        with Widened():
            _outputs(twin, wide, library)
    except RuntimeError:  # kernels that know no float64
        twin, wide, tolerance = twin.float(), dict(inputs), 1e-3
    for seed in (0, 1):
        keep, skip = random_keep(structure, seed), random_skip(structure, seed)
        small = copy.deepcopy(twin)
        apical.resize_(small, structure, keep, skip)
        with Widened() if tolerance == 1e-8 else nullcontext():
            error = relative_error(*(_outputs(m, wide, library) for m in (small, zeroed(twin, structure, keep, skip))))
        if not error < tolerance:
            return f"removed and gated differ by {error:.2g}"
        small = copy.deepcopy(model).train()
        apical.resize_(small, structure, keep, skip)
        made = small(**inputs) if library == "transformers" else small(inputs["x"])
        sum(t.float().mean() for t in tree_leaves(made) if isinstance(t, Tensor) and t.requires_grad).backward()
    return ""


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, Any], library: str) -> list[Tensor]:
    made = model(**inputs) if library == "transformers" else model(inputs["x"])
    return [t for t in tree_leaves(made) if isinstance(t, Tensor)]


def recorded() -> list[Finding]:
    """What was measured so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return [Finding(**json.loads(line)) for line in lines]


def render(findings: Sequence[Finding]) -> str:
    """The page."""
    return "\n".join([_INTRODUCTION, *(_section(library, findings) for library in ("transformers", "timm")), _LIMITS])


_INTRODUCTION = """\
# Coverage of published families

What `apical.trace` finds in models that others publish, built with random weights: families of Hugging Face's
transformers from small configs, and small variants of timm, drawn at random once and for all. The tables are generated
by

    python -m benchmarks.families transformers        # or timm
    python -m benchmarks.families --write docs/coverage-families.md

**removable** is the share of the MACs that is gone when every group keeps one unit and every block is left out, and
**with streams** the same with `streams="resize"`, which lets the embedding width under LayerNorm and RMSNorm go, too.
What is left is mostly the head and the smallest embedding. After every successful trace, for two random choices over
all groups and blocks, the smaller model was compared with the gated one (float64, 1e-8 relative; float32, 1e-3, where
kernels know no float64) and trained for one step; the last column says where that, or the trace, did not work.
"""


_LIMITS = """\
## What stays, and why

- **Query heads within a key/value group** (grouped queries): the unit is a key head with all its query heads. "The same
  query head of every group" would be a second set of units on the same rows of the query projection, and what is kept
  would be a product of both choices. A position belongs to one group here, so that every tensor's kept part is a plain
  list of positions and every cost a product of sums. With a single key head there is no such conflict: then the query
  heads are the units, and the key head stays.
- **Experts** behind a router with softmax and top-k: without one of them the others get its tokens. A gate multiplies
  weights, and no factor on the router's row makes an expert absent: a row of zero gives it a score of 0, not of minus
  infinity, and a router without bias has nothing to which minus infinity could be added. So a gate of zero does not
  equal the expert's absence. What would: a group whose dry run masks the router's scores, and that keeps at least as
  many units as the router picks. Groups know neither so far. Without softmax and top-k (sigmoid scores, and one einsum
  over scores, experts and hidden units) experts are units. A hidden unit of stacked experts is the same position in
  each of them; experts in a list have hidden units of their own. With
  transformers' default kernel, `grouped_mm`, hidden units stay as well: it refuses rows that are no multiple of 16
  bytes; pass `experts_implementation="eager"`, or `"batched_mm"` as was done for Mixtral here. The first loops over the
  experts that some token chose, which no exporter can follow: it is traced as `"batched_mm"`, which computes the same.
- **Convolutions whose weight is mixed from experts that are stored flat** (timm's CondConv): each position along that
  dimension belongs to an output and an input channel at once, and a position belongs to one group. Stored as (number,
  out, in, *kernel) and flattened for the product, they are followed.
- **The embedding of FNet**, which a Fourier transform mixes.

Configs are small (two layers, width 32), so that heads, first layers and embeddings weigh more than in published sizes.
T5's streams stay, since the encoder's state is an output, whose width the shared embedding gives to all streams, and so
does the first self-attention of each stack, which makes the position bias for all others. Of SegFormer mostly the
convolutions that cut patches are left, and the width of the only head of its first stage.

All rows of transformers were measured anew. Those of timm are older. Since the first 42 of them, up to the last but 26,
modulated, mixed and normed weights, products that sum nothing and partly written tensors are followed (hiera_tiny_224,
convit_tiny and sam2_hiera_tiny were measured after that), and sizes in the code of class attention (CaiT's and
XCiT's). The last 26 rows (from tiny_vit_21m_384 on) are from before the dry run removed different numbers
of units from different groups, or before biases that are put side by side were followed; of all these,
coat_tiny, xcit_nano_12_p8_224, xcit_nano_12_p16_384 and cait_xs24_384 were measured anew, after that.
Of timm's sample of 80, what is listed was measured, at 64 pixels or the smallest of 96, 128 and their own size that
they take, on one thread; the limit of time is one of the processor's seconds, but for tiny_vit_21m_384 and
crossvit_18_dagger_408, where it was the clock's of a busy machine.
"""


def _section(library: str, findings: Sequence[Finding]) -> str:
    own = [f for f in findings if f.library == library]
    traced = [f for f in own if f.removable is not None]
    wrong = sum(f.wrong for f in own)
    if not own:
        return ""
    mean = sum(f.removable or 0 for f in traced) / max(len(traced), 1)
    lines = [
        f"## {library} {own[0].version}\n",
        f"{len(own)} models, {len(traced)} traced, {sum(f.blocks > 0 for f in traced)} of them with blocks, "
        f"{wrong} wrong or crashed after a successful trace. Mean removable\nshare of those traced: "
        f"{100 * mean:.1f} %.\n",
        "| model | groups | blocks | removable | with streams | what is frozen most, or what went wrong |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for f in own:
        why = f.problem[:160] or "; ".join(f"{r} ({n})" for r, n in list((f.frozen or {}).items())[:2])
        cells = [f.model, str(f.groups), str(f.blocks), _percent(f.removable), _percent(f.with_streams), why]
        lines.append("| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?", choices=("transformers", "timm"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models, measured anew, printed")
    parser.add_argument("--seconds", type=int, default=120, help="longest time of the processor for one model")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    if options.library:
        import_torchvision()
        module = __import__(options.library)
        cases = FAMILIES if options.library == "transformers" else timm_sample(module)
        known = {f.model for f in recorded() if f.library == options.library}
        for name in options.only or [n for n in cases if n not in known]:
            build = cases.get(name) or _of_timm(name)
            line = json.dumps(asdict(measure(options.library, module, name, build, options.seconds)))
            print(line, flush=True)
            if not options.only:
                with RESULTS.open("a") as file:
                    file.write(line + "\n")
    if options.write:
        options.write.write_text(render(recorded()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
