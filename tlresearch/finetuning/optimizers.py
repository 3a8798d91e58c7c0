"""The optimizer of a run: what decays and what does not are its two groups, which the schedule splits by stage."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError
from tlresearch.config.catalogue import OPTIMIZERS
from tlresearch.config.parts import make
from tlresearch.config.schema import OptimizerConfig
from tlresearch.finetuning.param_groups import is_norm


def build_optimizer(
    config: OptimizerConfig, backbone: StagedBackbone, head: nn.Module, *, fused: bool = True
) -> Optimizer:
    """Makes the optimizer over every parameter; the freeze schedule splits its groups by stage and sets the rates.

    Args:
        config: The experiment's optimizer section.
        backbone: The staged backbone.
        head: The head.
        fused: Whether one kernel may update all parameters. A fused step unscales 16-bit gradients itself, which
            does not go with clipping them.

    Raises:
        ConfigError: If it cannot be made, or is to decay weights and cannot.
    """
    exempt = set() if config.decay_norm_and_bias else {id(p) for p in _norms_and_biases(backbone, head)}
    weights = list(dict.fromkeys((*backbone.parameters(), *head.parameters())))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if id(p) not in exempt], "name": "", "decays": True},
        {"params": [p for p in weights if id(p) in exempt], "name": "no_decay", "decays": False},
    ]
    given = {"lr": config.lr, **({"fused": True} if fused and _fuses(config.name) else {})}
    optimizer: Optimizer = make(config, "optimizer", [group for group in groups if group["params"]], **given)
    if config.weight_decay and not any("weight_decay" in group for group in optimizer.param_groups):
        raise ConfigError([f"optimizer.weight_decay: {config.name} has none; set it to 0"], "optimizer")
    return optimizer


def _fuses(name: str) -> bool:
    """Whether an optimizer's step can be done in one kernel over all parameters, as torch's own say."""
    kind = OPTIMIZERS.load(name, "optimizer.name")
    return kind.__module__.startswith("torch.optim") and "fused" in inspect.signature(kind).parameters


def _norms_and_biases(*modules: nn.Module) -> Iterator[nn.Parameter]:
    for layer in (layer for module in modules for layer in module.modules()):
        for name, parameter in layer.named_parameters(recurse=False):
            if is_norm(layer) or name.endswith("bias"):
                yield parameter
