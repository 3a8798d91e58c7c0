"""Frozen stages run as inference: copies without gradients, with batch norm folded into convolutions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse

from tlresearch.backbones.base import StagedBackbone
from tlresearch.modality.values import Value, to_device


@dataclass(frozen=True)
class Inference:
    """How frozen stages are run.

    Attributes:
        precision: ``"32-true"``, or ``"bf16-mixed"``: autocast to bfloat16, where sensitive layers keep float32.
        memory_format: ``"contiguous"`` or ``"channels_last"``: the order of image tensors in memory.
    """

    precision: str = "32-true"
    memory_format: str = "contiguous"


def frozen(
    backbone: StagedBackbone, how: Inference, device: torch.device, start: int = 0, stop: int | None = None
) -> Callable[[Value], Value]:
    """Returns a function that runs copies of stages one after another in eval mode.

    Args:
        backbone: The backbone; it is not changed.
        how: Precision and memory format.
        device: Where the stages are; inputs are moved there.
        start: First stage to run.
        stop: Stage to stop before; ``None`` runs to the end.
    """
    copies = [_folded(stage) for stage in backbone.stages[start:stop]]
    if how.memory_format == "channels_last":
        copies = [stage.to(memory_format=torch.channels_last) for stage in copies]

    def run(value: Value) -> Value:
        value = arranged(to_device(value, device), how.memory_format)
        with torch.inference_mode(), autocast(how.precision, device):
            for number, stage in enumerate(copies, start):
                value = backbone.step(number, stage, value)
        return value

    return run


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context of a precision: autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision.startswith("bf16") else contextlib.nullcontext()


def arranged(value: Value, memory_format: str) -> Value:
    """Puts image tensors ``(batch, C, H, W)`` into a memory format; any other tensor stays as it is."""
    if memory_format != "channels_last":
        return value
    if isinstance(value, Tensor):
        return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
    return {
        name: leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf
        for name, leaf in value.items()
    }


def _folded(stage: nn.Module) -> nn.Module:
    copied = copy.deepcopy(stage).eval().requires_grad_(False)
    # Only a traced graph says which batch norm follows which convolution; in any other module the order of the
    # submodules says nothing about the order of the computation.
    return fuse(copied, inplace=True, no_trace=True) if isinstance(copied, GraphModule) else copied
