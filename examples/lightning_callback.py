"""A convolutional network grows inside Lightning's Trainer: `python examples/lightning_callback.py`."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import apical
from apical.data import synthetic_images
from apical.integrations.lightning import GrowthCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
        )  # fmt: skip

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)}


def main(folder: str = "runs/lightning") -> None:
    pl.seed_everything(0, verbose=False)
    images = synthetic_images(num_images=256, num_classes=4, size=16)
    loader = DataLoader(TensorDataset(images.images / 255.0, images.labels), batch_size=32, shuffle=True)
    growth = GrowthCallback(torch.zeros(1, 3, 16, 16), "50% macs", divisor=4)
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", callbacks=[growth], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    classifier = Classifier()
    trainer.fit(classifier, loader)
    for record in growth.grower.history:
        print(f"epoch {record['epoch']}: {record['macs_fraction']:.0%} of the MACs, widths {record['widths']}")
    apical.save(classifier.model, f"{folder}/compact")


if __name__ == "__main__":
    main()
