"""Language modelling: the next word of a stream of text. Its loss, its data, and how a model is built for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from apical._checks import check
from apical.data import Corpus, TokenStream, read_bytes, read_corpus
from apical.errors import ConfigError, TrainingError
from apical.recipes._model import ModelConfig, build_model, tried_out
from apical.recipes._task_kind import Described, Facts, Prepared, Serving, TaskKind, last_name, not_known, register_task
from apical.training import BatchResult, Loaders, Metric, TrainingConfig, processes
from apical.training._config import resolve_device


class LanguageModelling:
    """Cross-entropy per token (in nats) and its exponential, the perplexity, of windows of parallel streams.

        perplexity = exp(−1/N Σ ln p(token | the tokens before it in its stream))

    The model maps (tokens, state) to (logits, state); the first window of a pass gets no state. The state that a
    window ends with is detached and given to the next one (truncated backpropagation through time), and resized with
    the network where a method restructures between windows. A sample is one window of one stream.

    Attributes:
        state: what the next window starts with; None at the beginning of a pass.

    Example:
        >>> class Uniform(nn.Module):
        ...     def forward(self, tokens, state=None):
        ...         return torch.zeros(*tokens.shape, 8), ()
        >>> task = LanguageModelling()
        >>> tokens = torch.zeros(5, 2, dtype=torch.long)  # (T, B)
        >>> result = task.batch(Uniform(), tokens, tokens, training=False)
        >>> {name: round(value, 3) for name, value in task.results(float(result.loss), result.counts).items()}
        {'perplexity': 8.0}
    """

    name = "language"
    unit = "sequences"
    metrics = (Metric("perplexity", "ppl", higher_is_better=False),)

    def __init__(self) -> None:
        self.state: Any = None

    def begin(self, training: bool) -> None:  # noqa: ARG002 (both kinds of pass start alike)
        """Forget the stream: the next window is the first of a pass."""
        self.state = None

    def batch(self, model: nn.Module, inputs: Tensor, targets: Tensor, training: bool) -> BatchResult:
        """Tokens (T, B) and the tokens that follow them (T, B) to loss and counts."""
        outputs = model(inputs) if self.state is None else model(inputs, self.state)
        if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
            raise TrainingError(
                f"{type(model).__name__} returned {type(outputs).__name__}, expected the pair (logits, state) of a "
                "model that goes on with a stream"
            )
        logits, state = outputs  # (T, B, vocabulary)
        # A copy, since a model may write its next outputs over these.
        self.state = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, state)
        logits = logits if training else logits.float()
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        tokens = targets.numel()
        return BatchResult(loss, tokens, targets.shape[1], torch.tensor([tokens]))

    def results(self, loss: float, _counts: Tensor, /) -> dict[str, float]:
        """The exponential of the mean loss; infinite where that is too large for a float."""
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf}


@dataclass(frozen=True)
class TextConfig:
    """The text, and how it is cut into windows. `training.batch_size` is the number of streams read side by side.

    Attributes:
        path: folder of train.txt, valid.txt, test.txt or ptb.train.txt, ... (looked up here, then below the data
            root).
        bptt: tokens of a window, over which gradients are followed (truncated backpropagation through time).
        max_words: vocabulary of the most frequent training words only, ``<unk>`` and ``<eos>`` included; None for all.
        eval_streams: streams of validation and test text; each starts without a past, so fewer are more exact.
        limit: at most so many tokens of each file, its first ones, for short runs; None for all.
        unit: what a token is: ``"words"`` between blanks, or ``"bytes"``, for which ``path`` may also be a single file.
    """

    path: str
    bptt: int = 35
    max_words: int | None = None
    eval_streams: int = 10
    limit: int | None = None
    unit: Literal["words", "bytes"] = "words"

    def __post_init__(self) -> None:
        check(
            "data",
            {
                f"bptt={self.bptt}, expected at least 2": self.bptt >= 2,
                f"max_words={self.max_words}, expected at least 3": self.max_words is None or self.max_words >= 3,
                f"eval_streams={self.eval_streams}, expected at least 1": self.eval_streams >= 1,
                f"limit={self.limit}, expected at least 2": self.limit is None or self.limit >= 2,
                f"unit={self.unit!r}, expected 'words' or 'bytes'": self.unit in ("words", "bytes"),
                "max_words counts words, there are 256 bytes; set it to null, or take the recipe gpt-bytes": self.unit
                == "words"
                or self.max_words is None,
            },
        )


def _prepare(config: TextConfig, training: TrainingConfig) -> Prepared:
    if not config.path:
        raise ConfigError("no data: name the folder of the text files with --data FOLDER")
    if config.unit == "bytes":
        corpus = read_bytes(config.path, limit=config.limit)
    else:
        corpus = read_corpus(config.path, max_words=config.max_words, limit=config.limit)
    device, team = resolve_device(training.device), processes()
    team.share(training.batch_size)  # of equally many streams each, so that the mean of their losses is the batch's

    stream = partial(TokenStream, window=config.bptt, device=device, rank=team.rank, world_size=team.count)
    loaders = Loaders(
        stream(corpus.train, training.batch_size, drop_last=True),
        stream(corpus.validation, config.eval_streams),
        stream(corpus.test, config.eval_streams),
    )
    facts = {"vocab_size": len(corpus.vocabulary), "bptt": config.bptt}
    words = {"vocabulary.txt": "".join(f"{word}\n" for word in corpus.vocabulary.words)}
    return Prepared(loaders, LanguageModelling(), facts, _notes(corpus, config), words)


def _notes(corpus: Corpus, config: TextConfig) -> Mapping[str, Any]:
    tokens = {name: len(getattr(corpus, name)) for name in ("train", "validation", "test")}
    return {
        "vocab_size": len(corpus.vocabulary),
        "tokens": tokens,
        "unknown_tokens": dict(corpus.unknown),
        "tokens_per_sample": config.bptt,
    }


KNOWN: dict[str, tuple[int, int]] = {"ptb": (929_589, 10_000), "wikitext-2": (2_088_628, 33_278)}
"""Training tokens, an end of line being one, and size of the vocabulary, of public texts."""


def _foreseen(config: TextConfig, training: TrainingConfig, told: Described) -> tuple[int, Facts]:
    """Windows of all streams in an epoch, and the vocabulary."""
    if told.shape is not None:
        raise ConfigError("a text takes no --input; its windows are as large as --set data.bptt=N says")
    tokens, words = KNOWN.get(last_name(config.path), (0, 0)) if config.unit == "words" else (0, 256)
    if config.limit is not None:
        tokens = min(tokens, config.limit)
        words = words if config.unit == "bytes" else 0  # of a part of the text it is not known
    windows = max(0, tokens // training.batch_size - 1) // config.bptt
    number = told.images or windows * training.batch_size
    vocabulary = told.classes or min(words, config.max_words or words)
    if not number or not vocabulary:
        give = "--images (windows) and --classes (size of the vocabulary), such as --images 20000 --classes 10000"
        raise not_known(config.path, KNOWN, give)
    return number, {"vocab_size": vocabulary, "bptt": config.bptt}


def _template(config: ModelConfig, facts: Facts) -> nn.Module:
    model = build_model(config, vocab_size=facts["vocab_size"], context_length=facts["bptt"])
    _check_outputs(model, facts, config.name)
    return model


def _check_outputs(model: nn.Module, facts: Facts, name: str) -> None:
    """Refuse a model that does not map (tokens, state) to (logits, state)."""
    tokens, expected = torch.zeros(2, 1, dtype=torch.long), (2, 1, facts["vocab_size"])
    with tried_out(model, f"model {name} does not run on tokens (T, B) and the state that it returned"):
        outputs = model(tokens)
        logits, state = outputs if isinstance(outputs, (tuple, list)) and len(outputs) == 2 else (outputs, None)
        if state is not None:
            model(tokens, state)
    if state is None or not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        what = "a state" if state is not None else "no state"
        raise ConfigError(
            f"model {name} returns logits {got} and {what} for 2 tokens of 1 stream, expected the pair (logits "
            f"{expected}, state). See apical.models.LSTMLanguageModel for the interface"
        )


def _example(facts: Facts, device: torch.device) -> tuple[Tensor, ...]:
    tokens = torch.arange(facts["bptt"], device=device) % facts["vocab_size"]
    return (tokens.unsqueeze(1),)  # (T, 1): a window of one stream, which is what a sample is


def _serving(model: nn.Module, facts: Facts) -> Serving:
    """One token of every stream, with the state before it: what a running stream needs. Without a state, a window."""
    tokens = torch.zeros(1, 2, dtype=torch.long)  # (T, B)
    with torch.no_grad():
        _, state = model(tokens)
    parts = [f"state_{number}" for number in range(len(pytree.tree_leaves(state)))]
    if not parts:
        return Serving((torch.zeros(facts["bptt"], 2, dtype=torch.long),), 1, ("tokens",), ("logits",))
    names = ("tokens", *parts), ("logits", *(f"next_{part}" for part in parts))
    return Serving((tokens, state), 1, *names)


register_task("language", TaskKind(TextConfig, _prepare, _foreseen, _template, _example, _serving, batch_dim=1))
