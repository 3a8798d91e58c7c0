"""Parts as a user writes them, right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

from tlresearch.config.schema import FreezeConfig, PhaseConfig


class Needy(torch.optim.SGD):
    """An optimizer with an argument that has no default."""

    def __init__(self, params: Any, rank: int, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.rank = rank


def number(params: Any, lr: float = 1e-3) -> int:
    """No optimizer."""
    return 3


def refuse(params: Any) -> torch.optim.Optimizer:
    """Refuses whatever it gets."""
    raise ValueError("never")


def half(params: Any, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Forgets all groups but the first."""
    return torch.optim.SGD(params[:1], lr=lr)


def inside_out(freeze: FreezeConfig, stages: Sequence[str], first: int = 1) -> list[PhaseConfig]:
    """A stage in the middle first, then all of them."""
    return [
        PhaseConfig(name="middle", stages=[stages[len(stages) // 2]], epochs=first),
        PhaseConfig(name="all", unfreeze_depth="all", epochs=freeze.epochs - first),
    ]


def no_phases(freeze: FreezeConfig, stages: Sequence[str]) -> int:
    """Returns no phases."""
    return 3


def wrong_phase(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Says nothing of what is trained."""
    return [PhaseConfig(name="nothing", epochs=1)]


def no_scheduler(optimizer: torch.optim.Optimizer) -> int:
    """No scheduler."""
    return 3


class Margin(torch.nn.Module):
    """A loss as a class."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the multi-class hinge loss."""
        return functional.multi_margin_loss(outputs, targets, margin=self.margin)


def sharpened(outputs: Tensor, targets: Tensor, by: float) -> Tensor:
    """A loss as a function."""
    return functional.cross_entropy(outputs * by, targets)


class Learnt(Margin):
    """A loss with a weight that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


class Undirected(MeanMetric):
    """A metric that does not say which way it is better."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:  # type: ignore[override]
        """Takes the predictions."""
        super().update(predictions)


class Counter(L.Callback):
    """Writes the number of each epoch that ends."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the number."""
        with self.file.open("a") as file:
            file.write(f"{trainer.current_epoch}\n")
