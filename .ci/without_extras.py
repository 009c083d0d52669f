"""Tries an installed apical in an environment that has none of its extras; run away from the checkout."""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import tempfile

EXTRAS = ("PIL", "pyarrow", "sklearn", "yaml", "onnx", "onnxruntime", "onnxscript", "tensorboard", "lightning",
          "transformers", "accelerate", "timm", "torchvision", "wandb", "mlflow", "trackio",
          "huggingface_hub")  # fmt: skip


def main() -> None:
    present = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not present, f"this environment has extras: {present}"
    import apical

    assert "site-packages" in str(apical.__file__), apical.__file__
    facts = importlib.metadata.metadata("apical")
    assert facts["Version"] == apical.__version__
    assert facts["License-Expression"] == "Apache-2.0", facts["License-Expression"]
    for module in pkgutil.walk_packages(apical.__path__, "apical."):
        if ".integrations." not in module.name and module.name != "apical.__main__":
            importlib.import_module(module.name)
    grow()
    print(f"apical {apical.__version__}: every package imports, a network grows, is saved and loaded, without extras")


def grow() -> None:
    import torch
    from torch import nn

    import apical

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

    model, x, y = build(), torch.randn(32, 4), torch.randint(3, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    grower = apical.Grower(model, optimizer, x[:1], "50% macs", epochs=3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        grower.end_epoch()
    grower.finish()
    with tempfile.TemporaryDirectory() as folder:
        apical.save(model, folder)
        assert torch.equal(apical.load(build(), folder)(x), model(x))


if __name__ == "__main__":
    main()
