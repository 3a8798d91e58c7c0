"""Strategies for several devices: every device holds all weights (DDP), or a part of them (FSDP)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from tlresearch.backbones.weights import load_tensors
from tlresearch.config.schema import TrainerConfig
from tlresearch.finetuning.sharding import placed_like, whole
from tlresearch.tasks.base import Task


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """Builds Lightning's strategy for a run; a single device needs none."""
    if config.devices == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy()
    # By default DDP broadcasts the statistics of norm layers before every step. The freeze schedule does so before
    # validation and at the end of an epoch, which are the only times at which they are used.
    return DDPStrategy(forward_sync_buffers=False)


class ShardedStrategy(DDPStrategy):
    """Data parallelism with weights, gradients and moments sharded over the ranks, stage by stage.

    Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (2023). It uses torch's
    `fully_shard`, whose parameters keep their own `requires_grad`, so a phase can freeze and unfreeze them. A stage's
    weights are gathered while it runs. During evaluation all weights are: ranks may evaluate different numbers of
    batches, and gathering is a collective operation.

    Everything outside of training sees whole tensors: digests, checkpoints, the best weights. A copy of the task is
    trained, because a sharded module cannot be converted back.
    """

    result: dict[str, Tensor]
    """Whole tensors on the CPU; set when training has ended."""

    def configure_ddp(self) -> None:
        """Shards the task; Lightning calls this when the weights are on their device and no optimizer exists yet."""
        task = self.lightning_module
        assert isinstance(task, Task)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for part in (*task.backbone.stages, task.head):
            if any(True for _ in part.parameters()):
                # The order matters: `fully_shard` adds hooks too. Ours run in front of its forward hook, which sees
                # our copy of the output, and behind its pre-hook, which works on the inputs first.
                part.register_forward_hook(lambda part, inputs, output: _own_memory(output))
                fully_shard(part, mesh=mesh)
                part.register_forward_pre_hook(lambda part, inputs: _own_memory(inputs))
        fully_shard(task, mesh=mesh)

    def on_validation_start(self) -> None:
        """Gathers all weights for the time of evaluation."""
        self._reshard_after_forward(False)
        for module in self._sharded():
            module.unshard()

    def on_validation_end(self) -> None:
        """Shards the weights again."""
        self._reshard_after_forward(True)
        for module in self._sharded():
            module.reshard()

    def on_train_end(self) -> None:
        """Keeps the result, before Lightning moves the weights to the CPU."""
        assert self.lightning_module is not None
        self.result = {name: whole(tensor).cpu() for name, tensor in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the state with whole tensors, so that a checkpoint fits any number of devices."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        moments = {
            number: {key: whole(value) for key, value in buffers.items()} for number, buffers in state["state"].items()
        }
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads whole tensors; each rank keeps its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                number: {key: _part(value, parameters[number]) for key, value in buffers.items()}
                for number, buffers in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})

    def _sharded(self) -> list[FSDPModule]:
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    def _reshard_after_forward(self, yes: bool) -> None:
        for module in self._sharded():
            module.set_reshard_after_forward(yes, recurse=False)


def trained_copy(trainer: L.Trainer, task: Task) -> Task:
    """Returns the task for Lightning to train: a copy if training shards it, otherwise the task itself."""
    return copy.deepcopy(task) if isinstance(trainer.strategy, ShardedStrategy) else task


def take_result(trainer: L.Trainer, task: Task) -> None:
    """Loads the trained weights of the sharded copy, if there is one, into the task."""
    if isinstance(trainer.strategy, ShardedStrategy):
        load_tensors(task, trainer.strategy.result, "the result of training")


def _own_memory(values: Any) -> Any:
    """Copies views: FSDP's hooks in the autograd graph hang on them, and an in-place operation would cut them off."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) and value._is_view() else value, values)


def _part(value: Any, parameter: Tensor) -> Any:
    """Returns this rank's part of a moment. A value of another shape, such as a step count, is no moment."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return placed_like(value.to(parameter.device), parameter)
    return value
