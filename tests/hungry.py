"""A backbone that takes more memory than there is, ends a loader process or gives NaN: real errors, on demand."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.small_cnn import build_small_cnn

PETABYTE = 1 << 50


class Hungry(nn.Module):
    """Passes its input on, unless it is told otherwise.

    Args:
        fits: A batch of more samples asks for a petabyte.
        kill_loader: Whether a loader process is killed.
        nan_on_rank: The rank whose second training batch becomes NaN; none if negative.
    """

    def __init__(self, fits: int, kill_loader: bool, nan_on_rank: int) -> None:
        super().__init__()
        self.fits = fits
        self.kill_loader = kill_loader
        self.nan_on_rank = nan_on_rank
        self.trained = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.fits:
            torch.empty(PETABYTE, dtype=torch.uint8, device=inputs.device)
        if self.kill_loader and multiprocessing.active_children():
            multiprocessing.active_children()[0].kill()
        self.trained += self.training
        if self.training and self.trained == 2 and self.nan_on_rank >= 0 and distributed.is_initialized():
            return inputs * torch.nan if distributed.get_rank() == self.nan_on_rank else inputs
        return inputs


def hungry(*, fits: int = 10**6, kill_loader: bool = False, nan_on_rank: int = -1, **options: Any) -> StagedBackbone:
    """The small backbone with a stage in front that is `Hungry`."""
    plain = build_small_cnn(options={"in_channels": 1, "width": 4, **options})
    stages: Mapping[str, nn.Module] = {"hungry": Hungry(fits, kill_loader, nan_on_rank), **dict(plain.named_stages())}
    return StagedBackbone(
        stages, out_features=plain.out_features, preprocessing=plain.preprocessing, weights=plain.weights
    )


def hungry_yaml(**options: Any) -> str:
    """The backbone section of an experiment."""
    given = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items())
    return f"{{name: tests.hungry.hungry, weights: null, options: {{{given}}}}}"
