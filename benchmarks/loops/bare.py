"""A task's steps in bare PyTorch: the same network, loss and batches, without Lightning, schedule, metrics or records.

Batches are collated once and stay in pinned memory. Everything a practised user would set is set: bfloat16 by autocast,
channels-last, the fused optimizer, cudnn's benchmark, transfers that nobody waits for, perhaps `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from benchmarks.loops.same import SEED, WEIGHT_DECAY
from benchmarks.loops.watch import EpochWatch
from tlresearch.activations.inference import arranged, autocast
from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.presets import build_schedule
from tlresearch.modality.values import to_device
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, needed_end


def fast(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compiles a function; on the CPU, where only the loop is tried, it is traced without minutes of C++.

    What was compiled before is dropped: past eight networks of one class, torch runs further ones uncompiled.
    """
    torch.compiler.reset()
    return torch.compile(forward, backend="inductor" if device.type == "cuda" else "eager")


def quick_convolutions() -> AbstractContextManager[Any]:
    """Has cudnn time its algorithms, and forget it afterwards: ours in the same process must not profit."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True)  # type: ignore[no-untyped-call]


def build(config: ExperimentConfig) -> tuple[Task, Data]:
    """Builds the network and the data of an experiment."""
    backbone = build_backbone(config.backbone, needed_end(config.task))
    data = build_data(config.data, preprocessing=backbone.preprocessing, seed=SEED)
    return build_task(config, backbone, data, build_schedule(config, backbone.stage_names)), data


def batches(data: Data, split: SplitName, size: int) -> list[Batch]:
    """All batches of a split, in pinned memory where there is a GPU."""
    return list(make_loader(data.splits[split], batch_size=size, shuffle=split == "train", seed=SEED))


def train(config: ExperimentConfig, device: torch.device, watch: EpochWatch, *, compiled: bool) -> None:
    """Trains all weights for the experiment's epochs, and evaluates the loss on validation after each."""
    task, data = build(config)
    task.arrange(config.trainer.memory_format)
    task.to(device)
    optimizer = torch.optim.AdamW(task.parameters(), lr=config.optimizer.lr, weight_decay=WEIGHT_DECAY, fused=True)
    forward: Callable[[Any], Any] = fast(task.forward, device) if compiled else task.forward

    def precise() -> AbstractContextManager[Any]:
        return autocast(config.trainer.precision, device)

    def loss_of(batch: Batch) -> Tensor:
        moved = to_device(batch, device)
        with precise():
            return task.loss(forward(moved.inputs), moved.targets)

    training = batches(data, "train", config.data.batch_size)
    validation = batches(data, "val", config.data.eval_batch_size)
    with quick_convolutions():
        for _ in range(config.freeze.epochs):
            task.train()
            for batch in training:
                optimizer.zero_grad()
                loss_of(batch).backward()
                optimizer.step()
            task.eval()
            with torch.no_grad():
                for batch in validation:
                    loss_of(batch)
            watch()


def frozen_pass(config: ExperimentConfig, device: torch.device, *, compiled: bool) -> Callable[[], None]:
    """Returns a function that runs the backbone over the training split and brings the result to the CPU."""
    task, data = build(config)
    task.arrange(config.trainer.memory_format)
    backbone = task.backbone.to(device).eval()
    forward: Callable[[Any], Any] = fast(backbone, device) if compiled else backbone
    stored = batches(data, "train", config.data.eval_batch_size)

    def run() -> None:
        with quick_convolutions(), torch.inference_mode(), autocast(config.trainer.precision, device):
            for batch in stored:
                inputs = arranged(to_device(batch.inputs, device), config.trainer.memory_format)
                forward(inputs).cpu()

    return run
