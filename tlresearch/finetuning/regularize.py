"""Regularisers for fine-tuning: L2-SP, weight averaging, stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torchvision.ops import StochasticDepth

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.weights import load_tensors
from tlresearch.base.errors import ConfigError


class L2SP:
    """L2-SP: half the squared distance of the backbone's trained weights from their initial values, times `strength`.

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks"
    (ICML 2018). The head has no pretrained weights, so only weight decay acts on it.

    Args:
        backbone: The backbone with its pretrained weights; a copy of them is kept.
        strength: Factor of the penalty.
    """

    def __init__(self, backbone: StagedBackbone, strength: float) -> None:
        self.strength = strength
        self.start = {name: weight.detach().clone() for name, weight in backbone.named_parameters()}

    def __call__(self, backbone: StagedBackbone) -> Tensor:
        """Returns the penalty, a scalar, over the parameters that are trained in this phase."""
        distance = torch.zeros(())
        for name, weight in backbone.named_parameters():
            if weight.requires_grad:
                start = self.start[name] = self.start[name].to(weight.device)
                distance = distance.to(weight.device) + (weight - start).square().sum()
        return 0.5 * self.strength * distance


def set_stochastic_depth(backbone: nn.Module, probability: float) -> None:
    """Sets the drop probability of residual branches, rising linearly to `probability` at the deepest one.

    Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), for backbones that have it built in.

    Raises:
        ConfigError: If the backbone has no such layer.
    """
    layers = [m for m in backbone.modules() if isinstance(m, StochasticDepth) or type(m).__name__ == "DropPath"]
    if not layers:
        raise ConfigError(
            ["regularize.stochastic_depth: this backbone has no stochastic depth; leave it null"],
            "regularize",
        )
    for index, layer in enumerate(layers, start=1):
        rate = probability * index / len(layers)
        setattr(layer, "p" if isinstance(layer, StochasticDepth) else "drop_prob", rate)


class WeightAverage(L.Callback):
    """An exponential moving average of the trained weights, which validation, test and the result use.

    Polyak and Juditsky 1992; bias-corrected at the start as in timm: the decay is at most ``(1 + n) / (10 + n)``
    at step n, so that the initial weights do not dominate early averages. For frozen weights the average is set to the
    weights themselves, so that validation and the activation cache agree.

    The average is in the module only during validation. Training, digests of frozen weights and the weights in
    checkpoints use the trained weights. The freeze schedule reads the average when it keeps the best epoch.

    Args:
        decay: Share of the average that each step keeps.
        tensors: Names and tensors that change, such as `Task.changing_state`.
    """

    def __init__(self, decay: float, tensors: Callable[[], dict[str, Tensor]]) -> None:
        self.decay = decay
        self.tensors = tensors
        self.average: dict[str, Tensor] = {}
        self.steps = 0
        self._trained: dict[str, Tensor] = {}

    def current(self) -> dict[str, Tensor]:
        """Returns the average."""
        return self.average

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the average at the initial weights, or moves the average of a resumed run to their device."""
        now = self.tensors()
        start = self.average or now
        self.average = {name: start[name].detach().to(tensor.device, copy=True) for name, tensor in now.items()}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the average of frozen layers to their weights."""
        now = self.tensors()
        for prefix, layer in pl_module.named_modules():
            weights = list(layer.parameters(recurse=False))
            if weights and not any(weight.requires_grad for weight in weights):
                keys = [*dict(layer.named_parameters(recurse=False)), *dict(layer.named_buffers(recurse=False))]
                for name in (f"{prefix}.{key}" for key in keys):
                    if name in now:
                        self.average[name].copy_(now[name])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average towards the weights after each step of the optimizer; counters are copied."""
        if trainer.global_step == self.steps:
            return  # the optimizer made no step: gradients are being accumulated
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in self.tensors().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the average for evaluation."""
        if trainer.state.fn == TrainerFn.FITTING:  # not `trainer.training`, which is false during validation
            self._trained = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
            # Not every tensor is required: stages that never change have no average.
            load_tensors(pl_module, self.average, "the average of the weights", required=())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the trained weights again."""
        if self._trained:
            load_tensors(pl_module, self._trained, "the trained weights", required=())
            self._trained = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the average equal on all ranks: norm statistics differ, because each rank has seen other batches."""
        if trainer.world_size > 1:
            for tensor in self.average.values():
                distributed.broadcast(tensor, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the average and the number of steps in it."""
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.average, self.steps = state["average"], state["steps"]
