"""The loop of a practised Lightning user on a GPU: bf16, `torch.compile`, images decoded before, nothing recorded."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.loops.bare import batches, build, fast
from benchmarks.loops.same import WEIGHT_DECAY
from tlresearch.config.schema import ExperimentConfig


class Compiled(L.LightningModule):
    """Backbone and head of a task; `depth` stages are trained."""

    def __init__(self, network: nn.Module, compiled: Any, frozen: list[nn.Module], lr: float) -> None:
        super().__init__()
        self.network = network
        self.frozen = frozen
        self.lr = lr
        self.compiled = compiled

    def on_train_epoch_start(self) -> None:
        """Keeps the statistics of frozen batch norms."""
        for stage in self.frozen:
            stage.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.compiled(images.contiguous(memory_format=torch.channels_last)), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the loss."""
        images, labels = batch
        scores = self.compiled(images.contiguous(memory_format=torch.channels_last))
        self.log("val/loss", nn.functional.cross_entropy(scores, labels), on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr, weight_decay=WEIGHT_DECAY, fused=True)


def trial(config: ExperimentConfig, device: torch.device, *, depth: int) -> float:
    """Returns the seconds of one trial: compiling is included, network and decoded images are there before."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    task, data = build(config)
    frozen = list(task.backbone.stages)[: len(task.backbone.stages) - depth]
    for stage in frozen:
        stage.requires_grad_(False)
    network = nn.Sequential(task.backbone, task.head).to(memory_format=torch.channels_last)
    loaders: list[Any] = []
    for split, size in (("train", config.data.batch_size), ("val", config.data.eval_batch_size)):
        stored = batches(data, split, size)  # type: ignore[arg-type]
        images = torch.cat([batch.inputs for batch in stored])  # type: ignore[misc]
        labels = torch.cat([batch.targets for batch in stored])
        pinned = device.type == "cuda"
        loaders.append(DataLoader(TensorDataset(images, labels), size, shuffle=split == "train", pin_memory=pinned))
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        benchmark=True,
        max_epochs=config.freeze.epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(Compiled(network, fast(network, device), frozen, config.optimizer.lr), *loaders)
    return time.perf_counter() - began
