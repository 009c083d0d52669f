"""Language modelling on a stream: the state is handed on from window to window."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from apical.errors import TrainingError
from apical.training._task import BatchResult, Metric


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
        """Forgets the stream: the next window is the first of a pass."""
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
        # A copy, since a model that runs as a CUDA graph writes its next outputs over these.
        self.state = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, state)
        logits = logits if training else logits.float()
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        tokens = targets.numel()
        return BatchResult(loss, tokens, targets.shape[1], torch.tensor([tokens]))

    def results(self, loss: float, _counts: Tensor, /) -> dict[str, float]:
        """The exponential of the mean loss; infinite where that is too large for a float."""
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf}
