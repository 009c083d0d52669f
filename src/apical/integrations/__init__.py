"""Growth inside other frameworks' loops. Nothing is imported until asked for, and nothing of it is needed otherwise.

- `apical.integrations.lightning.GrowthCallback` for Lightning's Trainer (``pip install 'apical[integrations]'``)
- `apical.integrations.transformers.GrowthCallback` for Hugging Face's Trainer
- `apical.integrations.accelerate.rewrapped` for loops with Hugging Face Accelerate
"""

__all__: list[str] = []  # nothing here: each module needs its own framework
