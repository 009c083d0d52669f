"""Growth in a loop with Accelerate, in one process or several: `accelerate launch examples/accelerate_pattern.py`."""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import apical
from apical.data import synthetic_images
from apical.integrations.accelerate import rewrapped

EPOCHS = 6


def main(folder: str = "runs/accelerate") -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    arrays = synthetic_images(num_images=256, num_classes=4, size=16)
    loader = DataLoader(TensorDataset(arrays.images / 255.0, arrays.labels), batch_size=32, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    grower = apical.Grower(model, optimizer, torch.zeros(1, 3, 16, 16), "50% macs", EPOCHS, divisor=4)  # before prepare
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    for epoch in range(EPOCHS):
        for images, labels in loader:
            with accelerator.accumulate(prepared):
                loss = nn.functional.cross_entropy(prepared(images), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        record = grower.end_epoch()
        prepared = rewrapped(accelerator, prepared)
        accelerator.print(f"epoch {epoch}: {record['macs_fraction']:.0%} of the MACs, widths {record['widths']}")
    grower.finish()
    if accelerator.is_main_process:
        apical.save(accelerator.unwrap_model(prepared), f"{folder}/compact")


if __name__ == "__main__":
    main(*sys.argv[1:])
