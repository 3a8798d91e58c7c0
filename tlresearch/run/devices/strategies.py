"""How several devices work together: each with all weights, or each with its part of them."""

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
    """Builds Lightning's strategy of a run; one device needs none."""
    if config.devices == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy()
    # DDP would hand out norm statistics in front of every step. The freeze schedule does so in front of validation and
    # at an epoch's end, which is when they are looked at.
    return DDPStrategy(forward_sync_buffers=False)


class ShardedStrategy(DDPStrategy):
    """Data parallelism whose weights, gradients and moments are shared out over the ranks, stage by stage.

    Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (2023); torch's `fully_shard`, whose
    parameters keep their own `requires_grad`, so that a phase can freeze and unfreeze them. A stage's weights are whole
    while it runs, and during evaluation all are, since ranks may evaluate unequally many batches.

    Everything outside of training sees whole tensors: digests, checkpoints, the best weights. What is trained is a copy
    of the task, since a sharded one cannot be turned back.
    """

    result: dict[str, Tensor]
    """Whole tensors on the CPU, once training has ended."""

    def configure_ddp(self) -> None:
        """Shards the task; Lightning calls it when the weights are on their device and there is no optimizer yet."""
        task = self.lightning_module
        assert isinstance(task, Task)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for part in (*task.backbone.stages, task.head):
            if any(True for _ in part.parameters()):
                part.register_forward_hook(lambda part, inputs, output: _own_memory(output))
                fully_shard(part, mesh=mesh)
                part.register_forward_pre_hook(lambda part, inputs: _own_memory(inputs))
        fully_shard(task, mesh=mesh)

    def on_validation_start(self) -> None:
        """Makes the weights whole for the time of evaluation."""
        self._reshard_after_forward(False)
        for module in self._sharded():
            module.unshard()

    def on_validation_end(self) -> None:
        """Shares them out again."""
        self._reshard_after_forward(True)
        for module in self._sharded():
            module.reshard()

    def on_train_end(self) -> None:
        """Takes the result, before Lightning moves the weights away."""
        assert self.lightning_module is not None
        self.result = {name: whole(tensor).cpu() for name, tensor in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the state with whole tensors, as one device would have it."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        moments = {n: {key: whole(value) for key, value in kept.items()} for n, kept in state["state"].items()}
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up whole tensors, each rank its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                number: {key: _part(value, parameters[number]) for key, value in kept.items()}
                for number, kept in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})

    def _sharded(self) -> list[FSDPModule]:
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    def _reshard_after_forward(self, yes: bool) -> None:
        for module in self._sharded():
            module.set_reshard_after_forward(yes, recurse=False)


def trained_copy(trainer: L.Trainer, task: Task) -> Task:
    """The task that Lightning is to train: a copy of it where training shards it, or itself."""
    return copy.deepcopy(task) if isinstance(trainer.strategy, ShardedStrategy) else task


def take_result(trainer: L.Trainer, task: Task) -> None:
    """Puts into the task what its sharded copy has come to."""
    if isinstance(trainer.strategy, ShardedStrategy):
        load_tensors(task, trainer.strategy.result, "the result of training")


def _own_memory(values: Any) -> Any:
    """Copies what is a view: autograd finds a stage's weights through it, and writing into it would cut that way."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) and value._is_view() else value, values)


def _part(value: Any, parameter: Tensor) -> Any:
    """This rank's part of a moment; what has not its parameter's shape, such as a count of steps, is no moment."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return placed_like(value.to(parameter.device), parameter)
    return value
