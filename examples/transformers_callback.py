"""A vision transformer grows inside Hugging Face's Trainer: `python examples/transformers_callback.py`."""

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import apical
from apical.data import synthetic_images
from apical.integrations.transformers import GrowthCallback


class Images(Dataset):
    def __init__(self) -> None:
        arrays = synthetic_images(num_images=128, num_classes=4, size=16)
        self.images, self.labels = arrays.images / 127.5 - 1, arrays.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def build() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=4,
            attn_implementation="eager",
        )
    )


def main(folder: str = "runs/transformers") -> None:
    growth = GrowthCallback(torch.zeros(1, 3, 16, 16), "60% macs", divisor=4)
    arguments = TrainingArguments(
        folder, num_train_epochs=6, per_device_train_batch_size=32, learning_rate=1e-3, use_cpu=True,
        save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(build(), arguments, train_dataset=Images(), callbacks=[growth])
    trainer.train()
    for record in growth.grower.history:
        print(f"epoch {record['epoch']}: {record['macs_fraction']:.0%} of the MACs, {record['blocks']} blocks")
    apical.save(trainer.model, f"{folder}/compact")
    apical.load(build(), f"{folder}/compact")


if __name__ == "__main__":
    main()
