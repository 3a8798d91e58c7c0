"""Optimizers by name; what decays and what does not are its two groups, which the freeze schedule splits by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import OptimizerConfig
from tlresearch.finetuning.param_groups import is_norm

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
}


FUSED = {"sgd", "adam", "adamw", "adagrad"}
"""Optimizers whose step torch can do in one kernel over all parameters."""


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
    """
    exempt = set() if config.decay_norm_and_bias else {id(p) for p in _norms_and_biases(backbone, head)}
    weights = list(dict.fromkeys((*backbone.parameters(), *head.parameters())))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if id(p) not in exempt], "name": "", "decays": True},
        {"params": [p for p in weights if id(p) in exempt], "name": "no_decay", "decays": False},
    ]
    given: dict[str, Any] = {
        "momentum": config.momentum,
        "nesterov": config.nesterov or None,
        "betas": tuple(config.betas) or None,
        "rho": config.rho,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    if fused and config.name in FUSED:
        arguments["fused"] = True
    return OPTIMIZERS[config.name]([group for group in groups if group["params"]], lr=config.lr, **arguments)


def _norms_and_biases(*modules: nn.Module) -> Iterator[nn.Parameter]:
    for layer in (layer for module in modules for layer in module.modules()):
        for name, parameter in layer.named_parameters(recurse=False):
            if is_norm(layer) or name.endswith("bias"):
                yield parameter
