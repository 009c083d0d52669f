"""The recipes for language modelling."""

from __future__ import annotations

from apical.growth import GrowthConfig
from apical.recipes._config import RunConfig, register_recipe
from apical.recipes._model import ModelConfig
from apical.recipes.tasks.language._task import TextConfig
from apical.training import OptimizerConfig, ScheduleConfig, TrainingConfig


@register_recipe("ptb-lstm-small")
def ptb_lstm_small() -> RunConfig:
    """Zaremba's small LSTM (2x200) on the Penn Treebank, 50 % of its parameters.

    Schedule of Zaremba et al. 2014 (arXiv:1409.2329): 13 epochs, the learning rate is halved at each one after 4.
    """
    training = _zaremba(epochs=13, constant=4, decay=0.5, window=20, clip=5)
    return _language("ptb-lstm-small", ModelConfig("lstm_small"), TextConfig("ptb", bptt=20), training, "50% params")


@register_recipe("ptb-lstm-large")
def ptb_lstm_large() -> RunConfig:
    """Zaremba's large LSTM (2x1500) on the Penn Treebank, 40 % of its parameters.

    The budget is the paper's parameter sparsity of 0.6 for a two-layer LSTM [SCS]. 55 epochs, the learning rate falls
    by 1.15 at each one after 14.
    """
    training = _zaremba(epochs=55, constant=14, decay=1 / 1.15, window=35, clip=10)
    growth = GrowthConfig(divisor=4, seed_fraction=0.5)
    return _language("ptb-lstm-large", ModelConfig("lstm_large"), TextConfig("ptb"), training, "40% params", growth)


@register_recipe("wikitext2-lstm")
def wikitext2_lstm() -> RunConfig:
    """Zaremba's medium LSTM (2x650) on WikiText-2, 50 % of its parameters.

    39 epochs, the learning rate falls by 1.2 at each one after 6, as for the medium network of Zaremba et al. 2014.
    """
    training = _zaremba(epochs=39, constant=6, decay=1 / 1.2, window=35, clip=5)
    return _language("wikitext2-lstm", ModelConfig("lstm_medium"), TextConfig("wikitext-2"), training, "50% params")


@register_recipe("gpt-wikitext2")
def gpt_wikitext2() -> RunConfig:
    """A small GPT (6 blocks of width 192) on the 5,000 most frequent words of WikiText-2, 50 % of its MACs.

    Of all 33,278 words the head alone would take two thirds of the MACs. AdamW with cosine schedule; the settings are
    usual ones and were not tuned.
    """
    return _gpt("gpt-wikitext2", TextConfig("wikitext-2", bptt=128, max_words=5_000, eval_streams=32))


@register_recipe("gpt-bytes")
def gpt_bytes() -> RunConfig:
    """The GPT of gpt-wikitext2 on the bytes of any file: --data FILE, 50 % of its MACs."""
    return _gpt("gpt-bytes", TextConfig("", bptt=128, eval_streams=32, unit="bytes"))


def _gpt(name: str, data: TextConfig) -> RunConfig:
    training = TrainingConfig(
        epochs=20,
        batch_size=32,
        optimizer=OptimizerConfig("adamw", lr=1e-3, weight_decay=0.1, decay_vectors=False),
        schedule=ScheduleConfig("cosine", warmup_epochs=1.0),
        clip_grad_norm=1.0,
        amp="auto",
    )
    return _language(name, ModelConfig("gpt_small"), data, training, "50% macs", GrowthConfig())


def _language(
    name: str,
    model: ModelConfig,
    data: TextConfig,
    training: TrainingConfig,
    budget: str,
    growth: GrowthConfig | None = None,
) -> RunConfig:
    # Much narrower ones stay at word frequencies for long.
    growth = growth or GrowthConfig(seed_fraction=0.5)
    return RunConfig(name, model, data, training, budget, growth, task="language")


def _zaremba(epochs: int, constant: int, decay: float, window: int, clip: float) -> TrainingConfig:
    """The paper's plain SGD: learning rate 1 and a largest norm of `clip` for the loss *summed* over a window.

    Ours is the mean over its tokens, whose gradient is `window` times smaller: the same steps follow from a rate so
    many times larger and a norm so many times smaller.
    """
    return TrainingConfig(
        epochs=epochs,
        batch_size=20,
        optimizer=OptimizerConfig(lr=float(window), momentum=0.0, weight_decay=0.0),
        schedule=ScheduleConfig("decay", constant_epochs=float(constant), gamma=decay),
        clip_grad_norm=clip / window,
    )
