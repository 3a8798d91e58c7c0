"""The schedule applied to parameters: groups that never change, and what a phase switches in them."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError
from tlresearch.finetuning.schedule import Phase
from tlresearch.finetuning.sharding import whole

NORM_TYPES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, those of timm and transformers included."""
    return isinstance(module, NORM_TYPES) or type(module).__name__.endswith(("Norm", "Norm2d", "RMSNorm", "NormAct"))


def parts(backbone: StagedBackbone, head: nn.Module) -> list[tuple[str, nn.Module]]:
    """The stages by name and, last, the head: what groups, rates and schedules are counted over."""
    return [*backbone.named_stages(), ("head", head)]


def build_groups(backbone: StagedBackbone, head: nn.Module, *, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Makes one optimizer group per stage and decay split; every parameter is in exactly one.

    Frozen parameters are in it too: they have no gradient, so the optimizer passes them by. Unfreezing them adds
    no group, and their moments live as long as the run.

    Args:
        backbone: The staged backbone.
        head: The head.
        decay_norm_and_bias: Whether norm weights and biases decay like the rest.

    Returns:
        Groups with ``params``, ``name``, ``stage`` (number; the head is the number of stages), ``decays``,
        ``lr`` and ``weight_decay`` (both set by the phases).

    Raises:
        ConfigError: If a parameter is shared between stages.
    """
    groups: list[dict[str, Any]] = []
    owner: dict[int, str] = {}
    for stage, (name, module) in enumerate(parts(backbone, head)):
        split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        exempt = set() if decay_norm_and_bias else {id(p) for p in _norms_and_biases(module)}
        for parameter_name, parameter in module.named_parameters():
            if id(parameter) in owner:
                raise ConfigError(
                    [f"backbone: '{parameter_name}' is in the stages {owner[id(parameter)]} and {name}"],
                    "groups",
                )
            owner[id(parameter)] = name
            split[id(parameter) not in exempt].append(parameter)
        for decays, parameters in split.items():
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "name": name if decays else f"{name}/no_decay",
                        "stage": stage,
                        "decays": decays,
                        "lr": 0.0,
                        "weight_decay": 0.0,
                    }
                )
    return groups


def apply_phase(phase: Phase, backbone: StagedBackbone, head: nn.Module) -> int:
    """Sets ``requires_grad`` of every parameter as the phase says, and nothing else.

    Returns:
        Number of trained parameters.

    Raises:
        ConfigError: If a pattern of the phase matches no parameter.
    """
    matched: set[str] = set()
    trained = 0
    everything = parts(backbone, head)
    for stage, (_, module) in enumerate(everything):
        is_head = stage == len(everything) - 1
        chosen = None if is_head or not phase.patterns else _matching(module, phase.patterns, matched)
        for parameter in module.parameters():
            parameter.requires_grad_(phase.trains(stage) and (chosen is None or id(parameter) in chosen))
            trained += parameter.numel() * parameter.requires_grad
            if not parameter.requires_grad:
                parameter.grad = None  # a gradient left over would still move it
    for pattern in phase.patterns:
        if pattern not in matched:
            examples = ", ".join(list(backbone.original_state_dict())[:3])
            raise ConfigError(
                [f"freeze: phase '{phase.name}': no parameter matches '{pattern}'; names look like {examples}"],
                "freeze",
            )
    return trained


def apply_modes(phase: Phase, backbone: StagedBackbone, head: nn.Module) -> None:
    """Sets train and eval mode for a training epoch of the phase.

    A stage without a trained parameter is frozen: it runs in eval mode, so that its dropout and stochastic depth
    are off and its norm statistics are used and kept. `frozen_norm: train` lets norm layers alone follow the
    batches. ``requires_grad=False`` would do none of this.
    """
    for _, module in parts(backbone, head):
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        frozen = frozen and any(True for _ in module.parameters())
        module.train(not frozen)
        if frozen and phase.frozen_norm == "train":
            for layer in module.modules():
                if is_norm(layer):
                    layer.train()
        elif not frozen and phase.frozen_norm == "eval":
            # Within a partly trained stage (patterns), a norm layer that is itself frozen keeps its statistics.
            for layer in module.modules():
                weights = list(layer.parameters(recurse=False))
                if is_norm(layer) and weights and not any(weight.requires_grad for weight in weights):
                    layer.eval()


def apply_rates(optimizer: Optimizer, rates: Sequence[float], weight_decay: float) -> None:
    """Writes the rate of each stage and the weight decay into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["stage"]]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def reset_state(optimizer: Optimizer) -> None:
    """Forgets every moment; the groups stay."""
    optimizer.state.clear()


def synchronise_buffers(backbone: StagedBackbone, head: nn.Module) -> None:
    """Gives every rank the buffers of the first: each has taken its own last batch into its norm statistics."""
    for _, module in parts(backbone, head):
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def frozen_tensors(phase: Phase, backbone: StagedBackbone, head: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields what must not change during the phase: frozen parameters, and the buffers of frozen layers.

    Buffers of norm layers are left out where `frozen_norm: train` lets them move.
    """
    for name, module in parts(backbone, head):
        for layer_name, layer in module.named_modules():
            weights = list(layer.parameters(recurse=False))
            for key, parameter in layer.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    yield f"{name}:{layer_name}.{key}", parameter
            moves = layer.training or (is_norm(layer) and phase.frozen_norm == "train")
            if not moves and not any(weight.requires_grad for weight in weights):
                for key, buffer in layer.named_buffers(recurse=False):
                    yield f"{name}:{layer_name}.{key}", buffer


def digests(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, str]:
    """Returns a hash of each tensor's bytes by name."""
    found = {}
    for name, tensor in tensors:
        data = whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        found[name] = hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()
    return found


def _matching(module: nn.Module, patterns: Sequence[str], matched: set[str]) -> set[int]:
    """Identities of the parameters that match a pattern; notes in `matched` which patterns did."""
    norms = {id(p) for layer in module.modules() if is_norm(layer) for p in layer.parameters(recurse=False)}
    chosen = set()
    for name, parameter in module.named_parameters():
        for pattern in patterns:
            if pattern == "@norm":
                hit = id(parameter) in norms
            elif pattern == "@bias":
                hit = name.rpartition(".")[2].endswith("bias")
            elif pattern == "@lora":
                hit = ".lora_" in f".{name}"
            else:
                hit = fnmatch.fnmatchcase(name, pattern)
            if hit:
                matched.add(pattern)
                chosen.add(id(parameter))
    return chosen


def _norms_and_biases(module: nn.Module) -> Iterator[nn.Parameter]:
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if is_norm(layer) or name.endswith("bias"):
                yield parameter
