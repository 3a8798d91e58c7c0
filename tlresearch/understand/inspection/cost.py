"""What a backbone costs: multiply-adds of each stage, and the memory of a training step at each unfreeze depth."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.config.parts import make
from tlresearch.config.schema import OptimizerConfig
from tlresearch.modality.values import Value, leaves, stack, to_device


@dataclass(frozen=True)
class DepthCost:
    """Memory of a training step at one unfreeze depth, in bytes; float32, without the head.

    Attributes:
        depth: Stages trained, counted from the head.
        activations: What the backward pass needs of one sample.
        gradients: Gradients of the trained parameters.
        state: What the optimizer keeps of them.
        weights: All parameters and buffers, the same at every depth.
    """

    depth: int
    activations: int
    gradients: int
    state: int
    weights: int

    def total(self, batch: int) -> int:
        """Bytes of a step with `batch` samples."""
        return self.weights + self.gradients + self.state + batch * self.activations


def state_values(config: OptimizerConfig) -> int:
    """Returns how many values an optimizer keeps of each trained parameter: it makes a step on a small matrix."""
    weights = torch.nn.Parameter(torch.zeros(8, 8))
    weights.grad = torch.ones(8, 8)
    optimizer = make(config, "optimizer", [weights], lr=config.lr)
    optimizer.step()
    kept = [value for value in optimizer.state[weights].values() if isinstance(value, Tensor) and value.numel() > 1]
    return sum(value.numel() for value in kept) // weights.numel()


def multiply_adds(backbone: StagedBackbone, example: Value) -> list[int]:
    """Returns the multiply-adds of each stage for one sample: half the operations that torch counts.

    Counted are matrix products, convolutions and attention, which is nearly all; not norms, activations and pooling.

    Args:
        backbone: The backbone; it is left as it was.
        example: One input without the batch dimension.
    """
    counts = []
    with torch.no_grad(), evaluating(backbone):
        value = to_device(stack([example]), _device(backbone))
        for number, stage in enumerate(backbone.stages):
            with FlopCounterMode(display=False) as counter:
                value = backbone.step(number, stage, value)
            counts.append(counter.get_total_flops() // 2)
    return counts


def depth_costs(backbone: StagedBackbone, example: Value, state_values: int) -> list[DepthCost]:
    """Measures the memory of a training step at each unfreeze depth, 0 first.

    A copy of the backbone runs forward once, on two samples in training mode, with every parameter trained. What
    autograd keeps is gathered by stage: tensors, not the parameters among them, each storage once however often it is
    kept. At a depth it is what the trained stages keep. What an allocator or a convolution's workspace adds is not in
    it, and neither are the head and the largest intermediate value of the frozen stages.

    Args:
        backbone: The backbone; it is left as it was.
        example: One input without the batch dimension.
        state_values: Values the optimizer keeps of each parameter; see `state_values`.
    """
    kept = _kept_by_stage(copy.deepcopy(backbone), example)
    weights = sum(_bytes(tensor) for tensor in backbone.original_state_dict().values())
    sizes = [sum(_bytes(parameter) for parameter in stage.parameters()) for stage in backbone.stages]
    costs = []
    for depth in range(len(kept) + 1):
        boundary = len(kept) - depth
        storages: dict[int, int] = {}
        for stage in kept[boundary:]:
            storages.update(stage)
        trained = sum(sizes[boundary:])
        costs.append(DepthCost(depth, sum(storages.values()) // 2, trained, trained * state_values, weights))
    return costs


def _kept_by_stage(backbone: StagedBackbone, example: Value) -> list[dict[int, int]]:
    """Bytes by storage that each stage keeps for the backward pass of two samples."""
    backbone.train().requires_grad_(True)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    found: list[dict[int, int]] = []
    alive: list[Tensor] = []  # a storage that is freed could be taken for the next one at its address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[-1][storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.random.fork_rng(), saved_tensors_hooks(pack, lambda tensor: tensor):
        value = to_device(stack([example, example]), _device(backbone))
        for number, stage in enumerate(backbone.stages):
            found.append({})
            value = backbone.step(number, stage, value)
            alive.extend(leaves(value).values())
    return found


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
