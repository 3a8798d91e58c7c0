"""Optimizers by name over the fixed parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import OptimizerConfig
from tlresearch.finetuning.param_groups import build_groups

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
    """Makes the optimizer with one group per stage and decay split; the freeze schedule sets the rates.

    Args:
        config: The experiment's optimizer section.
        backbone: The staged backbone.
        head: The head.
        fused: Whether one kernel may update all parameters. A fused step unscales 16-bit gradients itself, which
            does not go with clipping them.
    """
    groups = build_groups(backbone, head, decay_norm_and_bias=config.decay_norm_and_bias)
    given: dict[str, Any] = {
        "momentum": config.momentum,
        "nesterov": config.nesterov or None,
        "betas": tuple(config.betas) or None,
        "rho": config.rho,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    if fused and config.name in FUSED:
        arguments["fused"] = True
    # `lr` of the groups is 0 until the first phase writes it; some optimizers refuse 0 as a default.
    return OPTIMIZERS[config.name](groups, lr=config.lr, **arguments)
