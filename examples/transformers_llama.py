"""A small Llama learns the bytes of a text file inside Trainer, and grows: `python examples/transformers_llama.py`."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from apical.integrations.transformers import GrowthCallback, from_pretrained

LENGTH = 32


def windows(text: bytes) -> list[dict[str, torch.Tensor]]:
    """Neighbouring windows of bytes; the model shifts the labels by itself."""
    tokens = torch.tensor(list(text)).unfold(0, LENGTH, LENGTH // 2)
    return [{"input_ids": window, "labels": window} for window in tokens]


def build() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def main(folder: str = "runs/llama", text: str = __file__) -> None:
    data = windows(Path(text).read_bytes())
    example = {"input_ids": data[0]["input_ids"][None]}
    growth = GrowthCallback(example, "50% macs", streams="resize")  # the embedding width grows, too
    arguments = TrainingArguments(
        folder, num_train_epochs=6, per_device_train_batch_size=16, learning_rate=3e-3, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(build(), arguments, train_dataset=data, callbacks=[growth])
    trainer.train()
    for record in growth.grower.history:
        width = record["widths"]["model.embed_tokens"]
        print(f"epoch {record['epoch']}: {record['macs_fraction']:.0%} of the MACs, embedding width {width}")
    trainer.model.save_pretrained(f"{folder}/compact")  # since the callback, in a form that fits the grown model
    loaded = from_pretrained(f"{folder}/compact")
    same = torch.equal(loaded(**example).logits, trainer.model.eval()(**example).logits)
    print("loaded:", f"{sum(p.numel() for p in loaded.parameters()):,} parameters, same logits: {same}")


if __name__ == "__main__":
    main()
