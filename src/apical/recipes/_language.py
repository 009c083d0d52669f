"""Language modelling: the next word of a stream of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from apical.data import Corpus, TokenStream, read_bytes, read_corpus
from apical.errors import ConfigError
from apical.recipes._config import ModelConfig
from apical.recipes._model import build_model
from apical.recipes._tasks import Facts, Prepared, Serving, TaskKind, register_task
from apical.training import LanguageModelling, Loaders, TrainingConfig, resolve_device


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
        rules = {
            f"bptt={self.bptt}, expected at least 2": self.bptt >= 2,
            f"max_words={self.max_words}, expected at least 3": self.max_words is None or self.max_words >= 3,
            f"eval_streams={self.eval_streams}, expected at least 1": self.eval_streams >= 1,
            f"limit={self.limit}, expected at least 2": self.limit is None or self.limit >= 2,
            f"unit={self.unit!r}, expected 'words' or 'bytes'": self.unit in ("words", "bytes"),
            "max_words counts words, there are 256 bytes": self.unit == "words" or self.max_words is None,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("data: " + "; ".join(broken))


def _prepare(config: TextConfig, training: TrainingConfig) -> Prepared:
    if not config.path:
        raise ConfigError("no data: name the folder of the text files with --data FOLDER")
    if config.unit == "bytes":
        corpus = read_bytes(config.path, limit=config.limit)
    else:
        corpus = read_corpus(config.path, max_words=config.max_words, limit=config.limit)
    device = resolve_device(training.device)
    loaders = Loaders(
        TokenStream(corpus.train, training.batch_size, config.bptt, drop_last=True, device=device),
        TokenStream(corpus.validation, config.eval_streams, config.bptt, device=device),
        TokenStream(corpus.test, config.eval_streams, config.bptt, device=device),
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


def _template(config: ModelConfig, facts: Facts) -> nn.Module:
    model = build_model(config, vocab_size=facts["vocab_size"], context_length=facts["bptt"])
    _check_outputs(model, facts, config.name)
    return model


def _check_outputs(model: nn.Module, facts: Facts, name: str) -> None:
    """Refuse a model that does not map (tokens, state) to (logits, state)."""
    tokens, training = torch.zeros(2, 1, dtype=torch.long), model.training
    expected = (2, 1, facts["vocab_size"])
    try:
        with torch.no_grad():
            outputs = model.eval()(tokens)
            logits, state = outputs if isinstance(outputs, (tuple, list)) and len(outputs) == 2 else (outputs, None)
            if state is not None:
                model(tokens, state)
    except Exception as error:
        raise ConfigError(
            f"model {name} does not run on tokens (T, B) and the state that it returned: {type(error).__name__}: "
            f"{str(error).strip()}"
        ) from error
    finally:
        model.train(training)
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


register_task("language", TaskKind(TextConfig, _prepare, _template, _example, _serving, batch_dim=1))
