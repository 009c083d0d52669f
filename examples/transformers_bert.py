"""BERT, from a config, learns to classify and grows inside Trainer: `python examples/transformers_bert.py`."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from apical.integrations.transformers import GrowthCallback, from_pretrained

CLASSES, LENGTH = 4, 12


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Random words with one that gives the class away, at any place."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(CLASSES + 1, 50, (count, LENGTH), generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    words[torch.arange(count), torch.randint(LENGTH, (count,), generator=generator)] = labels + 1
    return [{"input_ids": w, "labels": label} for w, label in zip(words, labels, strict=True)]


def build() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=LENGTH, num_labels=CLASSES, hidden_dropout_prob=0.0,
        )
    )  # fmt: skip


def main(folder: str = "runs/bert") -> None:
    data = sentences(512)
    example = {"input_ids": data[0]["input_ids"][None]}
    growth = GrowthCallback(example, "50% macs")
    arguments = TrainingArguments(
        folder, num_train_epochs=6, per_device_train_batch_size=32, learning_rate=3e-3, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(build(), arguments, train_dataset=data, callbacks=[growth])
    trainer.train()
    for record in growth.grower.history:
        print(f"epoch {record['epoch']}: {record['macs_fraction']:.0%} of the MACs")
    print("heads per layer:", [v for name, v in growth.grower.history[-1]["widths"].items() if "attention" in name])
    trainer.model.save_pretrained(f"{folder}/compact")  # since the callback, in a form that fits the grown model
    loaded = from_pretrained(f"{folder}/compact")
    tokens, labels = (torch.stack([d[key] for d in data]) for key in ("input_ids", "labels"))
    with torch.no_grad():
        right = (loaded(input_ids=tokens).logits.argmax(-1) == labels).float().mean().item()
    print(f"loaded: {right:.0%} of the training sentences right")


if __name__ == "__main__":
    main()
