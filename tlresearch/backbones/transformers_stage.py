"""A part of a model of transformers as a stage: it owns modules under their names in the whole model."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn


class ModelStage(nn.Module):
    """Part of a model of transformers; the modules it owns are registered under their names in the whole model.

    Args:
        model: The whole model.
        owned: Paths of the modules that belong to this stage.
    """

    def __init__(self, model: nn.Module, *owned: str) -> None:
        super().__init__()
        self.config: Any = model.config
        for path in owned:
            *folders, name = path.split(".")
            place: nn.Module = self
            for folder in folders:
                if folder not in place._modules:
                    place.add_module(folder, nn.Module())
                place = place.get_submodule(folder)
            place.add_module(name, model.get_submodule(path))

    def extra_repr(self) -> str:
        """What its results depend on beside weights and layers; stored activations are kept apart by it."""
        import transformers

        settings = hashlib.sha256(self.config.to_json_string(use_diff=False).encode()).hexdigest()[:16]
        attention = self.config._attn_implementation
        return f"{self.config.model_type} {settings}, transformers {transformers.__version__}, {attention}"
