"""A word-level LSTM that classifies short texts: gates that leave one by one against units alone at equal parameters.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2     # MIT; has the texts as a folder in a folder
    tar xzf vaderSentiment-3.3.2.tar.gz
    tar xzf vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz
    python benchmarks/text_classification.py --data hutto_ICWSM_2014 --task sentiment --out RESULTS.jsonl
    python benchmarks/text_classification.py --table --out RESULTS.jsonl

The texts are sentences and short messages of four sources (film reviews, product reviews, newspaper editorials, tweets)
that about 20 people each rated from -4 to 4 (Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text*, ICWSM 2014). Two tasks have the same texts and differ in their labels alone:

    sentiment   whether the mean rating is positive
    source      which of the four sources a text is from

Texts whose mean rating lies within 0.5 of zero are left out. Sentences of one review or editorial are in one split:
70 % are trained on, 10 % held out for all decisions, 20 % for the test. Methods:

    gates       `apical.Grower`, restructured between steps; units and gates
    units       the same with units alone
    uniform     a fixed network of so many units as the budget allows
    dense       the whole network

Word vectors keep their width, so that a share of the multiply-adds is the same share of the recurrent layer's weights.
One JSON line for each run; runs that the file has are not repeated. Adam with a cosine schedule; batches of texts of
similar lengths, padded; the classifier reads the state after each text's last word. Settings were chosen on the
held-out texts of seed 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from learning import add, read
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trial import Fixed, cosine

import apical
from apical.baselines import uniform_keep
from apical.data import Vocabulary
from apical.models import split_gates_

SOURCES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
TASKS = {"sentiment": 2, "source": len(SOURCES)}  # classes
METHODS = ("gates", "units", "uniform", "dense")
NEUTRAL, LONGEST, WORDS = 0.5, 48, 3000  # mean rating, words of a text, words of the vocabulary
EMBEDDING, HIDDEN, DROPOUT, BUDGET = 48, 128, 0.5, "25% macs"
EPOCHS, BATCH, LEARNING_RATE, CLIP = 6, 64, 5e-3, 1.0
GROWTH = {"seed_fraction": 1.0, "growth_end": 0.75}  # nothing is learned in the first epochs
TYPICAL = 20  # words of the text whose MACs are counted
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]")


@dataclass(frozen=True)
class Text:
    """A text, and what people said of it.

    Attributes:
        source: place in `SOURCES`.
        document: the review, editorial or message that it is from.
        rating: mean of the ratings, -4 to 4.
        words: lower case, punctuation marks as words of their own.
    """

    source: int
    document: str
    rating: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Texts as numbers of words, and their labels."""

    texts: list[Tensor]  # (length,) int64 each
    labels: Tensor  # (N,) int64


class Classifier(nn.Module):
    """Embedding, one LSTM, a linear function of the state after the last word."""

    def __init__(self, words: int, classes: int, embedding: int = EMBEDDING, hidden: int = HIDDEN,
                 dropout: float = DROPOUT, gates: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(words, embedding)
        self.rnn = nn.LSTM(embedding, hidden)
        self.head = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)
        if gates:
            split_gates_(self)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, classes) of padded texts (T, B) with so many words each (B,)."""
        outputs, _ = self.rnn(self.dropout(self.embedding(tokens)))  # (T, B, hidden)
        last = outputs[lengths - 1, torch.arange(tokens.shape[1])]  # (B, hidden)
        logits: Tensor = self.head(self.dropout(last))
        return logits


def read_texts(folder: Path) -> list[Text]:
    """The rated texts of all sources, each once, without those that are neither positive nor negative."""
    found: dict[tuple[str, ...], Text] = {}
    for source, name in enumerate(SOURCES):
        path = folder / f"{name}_GroundTruth.txt"
        if not path.is_file():
            raise SystemExit(
                f"{path} does not exist; --data takes the folder hutto_ICWSM_2014 of vaderSentiment's source package: "
                "see the first lines of --help"
            )
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                identity, rating, text = line.split("\t")
                value = float(rating)
            except ValueError:
                raise SystemExit(f"{path}, line {number}: expected identity, mean rating and text between tabs, got "
                                 f"{line[:60]!r}") from None  # fmt: skip
            words = tuple(_WORD.findall(text.lower()))[:LONGEST]
            if abs(value) > NEUTRAL and words:
                # sentences of a document are numbered document_sentence
                found.setdefault(words, Text(source, f"{name} {identity.split('_')[0]}", value, words))
    return list(found.values())


def split(texts: list[Text]) -> tuple[list[Text], list[Text], list[Text]]:
    """To train on, to decide by and to test on: 70, 10 and 20 % of the documents, always the same ones."""
    documents = sorted({text.document for text in texts})
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    place = {document: position / len(documents) for document, position in zip(documents, order, strict=True)}
    ends = ((0.0, 0.7), (0.7, 0.8), (0.8, 1.0))
    first, second, third = ([t for t in texts if low <= place[t.document] < high] for low, high in ends)
    return first, second, third


def parts(texts: list[Text], task: str) -> tuple[tuple[Part, Part, Part], int]:
    """The three splits as numbers, and how many words the vocabulary has (that of the training texts)."""
    splits = split(texts)
    vocabulary = Vocabulary.of([" ".join(t.words) for t in splits[0]], WORDS)

    def numbered(some: list[Text]) -> Part:
        labels = [t.source if task == "source" else int(t.rating > 0) for t in some]
        return Part([torch.tensor(vocabulary.encode(" ".join(t.words))[0]) for t in some], torch.tensor(labels))

    first, second, third = map(numbered, splits)
    return (first, second, third), len(vocabulary)


def batches(part: Part, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Padded texts (T, B), their lengths (B,) and labels (B,), texts of similar lengths together.

    With a generator texts and batches come in a random order, and the rest that fills no batch is left out.
    """
    lengths = torch.tensor([len(text) for text in part.texts])
    count = len(lengths)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    chosen: list[Tensor] = []
    for pool in order.split(16 * BATCH):
        chosen += pool[lengths[pool].argsort(stable=True)].split(BATCH)
    if generator is not None:
        chosen = [batch for batch in chosen if len(batch) == BATCH]
        chosen = [chosen[k] for k in torch.randperm(len(chosen), generator=generator).tolist()]
    for batch in chosen:
        padded = nn.utils.rnn.pad_sequence([part.texts[k] for k in batch.tolist()])
        yield padded, lengths[batch], part.labels[batch]


def choose(method: str, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int,
           options: dict[str, Any]) -> tuple[Any, apical.Structure]:  # fmt: skip
    """The method, with the model brought to its first shape; and the template's structure."""
    example = (torch.zeros(TYPICAL, 2, dtype=torch.long), torch.tensor([TYPICAL, TYPICAL - 3]))
    structure = apical.trace(model, example)
    if method in ("gates", "units"):
        return apical.Grower(model, optimizer, example, BUDGET, EPOCHS, structure=structure, seed=seed,
                             steps_per_epoch=steps, ignore=("embedding",), **(GROWTH | options)), structure  # fmt: skip
    least = {group.name: EMBEDDING if group.name == "embedding" else 1 for group in structure.groups}
    widths = uniform_keep(structure, "100% macs" if method == "dense" else BUDGET, least=least)
    keep = {name: list(range(width)) for name, width in widths.items()}
    apical.resize_(model, structure, keep, optimizer=optimizer)
    return Fixed(structure, keep, ()), structure


def trained(method: str, task: str, seed: int, texts: list[Text], options: dict[str, Any]) -> dict[str, Any]:
    """The record of one run."""
    (train, held_out, test), words = parts(texts, task)
    torch.manual_seed(seed)
    model = Classifier(words, TASKS[task], gates=method == "gates")
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    steps = len(train.texts) // BATCH
    chosen, structure = choose(method, model, optimizer, seed, steps, options)
    whole = structure.num_params()
    generator, epochs = torch.Generator().manual_seed(seed), []
    wall, processor = time.perf_counter(), time.process_time()
    for epoch in range(EPOCHS):
        model.train()
        losses = []
        for step, (tokens, lengths, labels) in enumerate(batches(train, generator)):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * cosine(epoch + step / steps, EPOCHS)
            loss = cross_entropy(model(tokens, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses.append(loss.item())
            if hasattr(chosen, "end_step"):
                chosen.end_step()
        epochs.append({**chosen.end_epoch(), "loss": statistics.mean(losses), "gates": gate_counts(model)})
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    chosen.finish()
    judged = time.process_time()
    tested = accuracy(model, test)
    judged = time.process_time() - judged
    last = epochs[-1]
    shown = ("macs_fraction", "widths", "gates", "loss")
    return {
        "accuracy": accuracy(model, held_out), "test_accuracy": tested,
        "params_fraction": last["num_params"] / whole, "num_params": last["num_params"],
        "macs_fraction": last["macs_fraction"], "train_macs": sum(epoch["macs_fraction"] for epoch in epochs),
        "seconds": wall, "cpu_seconds": processor, "test_cpu_seconds": judged,
        "last": {name: last[name] for name in shown} | {"skipped": []},
        "trajectory": [{name: epoch[name] for name in shown} for epoch in epochs],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "apical": apical.__version__},
    }  # fmt: skip


def gate_counts(model: Any) -> dict[str, int]:
    """How many units there are, and how many of them have each gate."""
    units: int = model.rnn.hidden_size
    return {"units": units, **(model.rnn.gate_counts() if hasattr(model.rnn, "gate_counts") else {})}


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """Share of texts that are classified rightly."""
    model.eval()
    hits = sum(int((model(tokens, lengths).argmax(1) == labels).sum()) for tokens, lengths, labels in batches(part))
    return hits / len(part.labels)


def table(lines: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds; of gates the share of the final units that have each."""
    print(
        "| task | method | test accuracy | held out | parameters | CPU seconds, training | test | units | i, f, g, o |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    kinds = list(dict.fromkeys((line["setting"], line["method"], json.dumps(line["options"])) for line in lines))
    for task, method, options in kinds:
        runs = [r for r in lines if (r["setting"], r["method"], json.dumps(r["options"])) == (task, method, options)]

        def cell(name: str, pattern: str, scale: float = 1.0, runs: list[dict[str, Any]] = runs) -> str:
            values = [scale * run[name] for run in runs]
            spread = f" ± {pattern.format(statistics.stdev(values))}" if len(values) > 1 else ""
            return pattern.format(statistics.mean(values)) + spread

        units = ", ".join(str(run["last"]["gates"]["units"]) for run in runs)
        gates = "; ".join(shares(run["last"]["gates"]) for run in runs) if method == "gates" else "all"
        print(f"| {task} | {method} {options + ' ' if options != '{}' else ''}({len(runs)} seeds) | "
              f"{cell('test_accuracy', '{:.1f}', 100)} | {cell('accuracy', '{:.1f}', 100)} | "
              f"{cell('params_fraction', '{:.1f}', 100)} % | {cell('cpu_seconds', '{:.0f}')} | "
              f"{cell('test_cpu_seconds', '{:.2f}')} | {units} | {gates} |")  # fmt: skip


def shares(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[gate] / counts['units']:.2f}" for gate in "ifgo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with the texts, hutto_ICWSM_2014")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of growth; names a variant")
    parser.add_argument("--table", action="store_true", help="only show what --out has")
    arguments = parser.parse_args()
    if arguments.table:
        table(read(arguments.out))
        return
    if arguments.data is None or arguments.task is None:
        parser.error("a run needs --data and --task")
    options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    texts = read_texts(arguments.data)
    for seed in arguments.seeds:
        for method in arguments.methods:
            key = {"setting": arguments.task, "method": method, "seed": seed, "options": options}
            if not any(all(line[k] == v for k, v in key.items()) for line in read(arguments.out)):
                add(arguments.out, key | trained(method, arguments.task, seed, texts, options))


if __name__ == "__main__":
    main()
