"""A LightningModule as a project of somebody else's has it, its data, and how a test trains and resumes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

QUIET = (
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec",
    "ignore:Checkpoint directory .* exists",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # which Lightning does wrong alone
    "ignore:.*The dirpath has changed",
)
"""What Lightning says of small runs."""
STAGES = ["encoder.stem", "encoder.layer1", "encoder.layer2"]


class Encoder(nn.Module):
    """Three stages with batch norm and dropout, and a dropout between them that is no stage's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.between = nn.Dropout(0.3)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer2(self.layer1(self.between(self.stem(x))))
        return hidden.flatten(1)


class Photos(L.LightningModule):
    """A classifier with loss, metrics and optimizer of its own."""

    def __init__(self, optimizer: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 2))
        self.make = optimizer or (lambda module: torch.optim.AdamW(module.parameters(), lr=0.01))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.encoder(x))
        return scores

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        self.log("val_loss", nn.functional.cross_entropy(self(inputs), targets))

    def configure_optimizers(self) -> Any:
        return self.make(self)


def photos(samples: int = 48, seed: int = 1) -> TensorDataset:
    """Bright on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(samples) % 2
    images = torch.rand(samples, 1, 4, 4, generator=generator)
    images[targets == 0, :, :, :2] += 0.5
    images[targets == 1, :, :, 2:] += 0.5
    return TensorDataset(images, targets)


def loaders(data: Any = None, batch_size: int = 8) -> list[DataLoader[Any]]:
    """A shuffled loader for training and a plain one for validation, as everybody writes them."""
    data = data or photos()
    return [DataLoader(data, batch_size, shuffle=True), DataLoader(data, batch_size)]


def make_trainer(folder: Path | None, callbacks: Sequence[L.Callback], **options: Any) -> L.Trainer:
    """A plain trainer; with a folder, Lightning's own checkpoint is kept there after every epoch."""
    keeper = [ModelCheckpoint(folder, save_last=True)] if folder else []
    own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": own or bool(keeper),
    }
    return L.Trainer(callbacks=[*callbacks, *([] if own else keeper)], **{**quiet, **options})


def digest(module: nn.Module) -> str:
    """A hash of all weights and buffers."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return content.hexdigest()


def copy(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers as they are now."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of what has changed."""
    return {name for name in before if not torch.equal(before[name], after[name])}


class StoppedError(Exception):
    """Ends a training from within."""


class StopAt(L.Callback):
    """Ends training before the given step, counted over epochs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise StoppedError
