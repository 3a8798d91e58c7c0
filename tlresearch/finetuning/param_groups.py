"""The schedule applied to parameters: groups that never change, and what a phase switches in them."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from tlresearch.base.errors import ConfigError
from tlresearch.finetuning.parts import HEAD, Parts
from tlresearch.finetuning.schedule import Phase
from tlresearch.finetuning.sharding import whole

NORM_TYPES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, those of timm and transformers included."""
    return isinstance(module, NORM_TYPES) or type(module).__name__.endswith(("Norm", "Norm2d", "RMSNorm", "NormAct"))


def regroup(optimizer: Optimizer, parts: Parts, module: nn.Module) -> list[dict[str, Any]]:
    """Splits each group of an optimizer by stage, in place; every parameter is in exactly one group from then on.

    Frozen parameters are in it too: they have no gradient, so the optimizer passes them by. Unfreezing them adds
    no group, and their moments live as long as the run.

    Args:
        optimizer: An optimizer that has made no step yet.
        parts: The stages and the head.
        module: The module they are of.

    Returns:
        The groups as they were, without their parameters. The new ones keep all settings of theirs, and have a
        ``name``, a ``stage`` (number; the head is the number of stages, -1 is what no phase trains), ``origin``
        (number of the group they were part of) and ``decays``.

    Raises:
        ConfigError: If a parameter is in two stages, in no group, or of another module.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    stages = _stage_numbers(parts, names)
    origins: dict[int, int] = {}
    originals = optimizer.param_groups[:]
    problems = []
    for origin, group in enumerate(originals):
        origins |= {id(parameter): origin for parameter in group["params"]}
    strangers = sum(identity not in names for identity in origins)
    if strangers:
        problems.append(
            f"configure_optimizers: {strangers} parameters of the optimizer are of no submodule of "
            f"{type(module).__name__}; make what they belong to an attribute of it"
        )
    lacking = [names[identity] for identity in stages if identity not in origins and identity not in parts.fixed]
    if lacking:
        problems.append(
            f"configure_optimizers: the optimizer lacks {_listing(lacking)}; give it all parameters of the module "
            "(self.parameters()), the schedule says which are trained when"
        )
    if problems:
        raise ConfigError(problems, f"FreezeSchedule on {type(module).__name__}")
    groups = []
    for stage, part in [*enumerate(parts.names), (-1, "untrained")]:
        for origin, group in enumerate(originals):
            parameters = [parameter for parameter in group["params"] if stages.get(id(parameter), -1) == stage]
            if not parameters:
                continue
            settings = {key: _own_copy(value) for key, value in group.items() if key not in ("params", "param_names")}
            own_name = group.get("name", str(origin) if origin else "")
            settings |= {"name": f"{part}/{own_name}" if own_name else part, "stage": stage, "origin": origin}
            settings.setdefault("decays", len(originals) == 1 or bool(group.get("weight_decay")))
            groups.append({"params": parameters, **settings})
    optimizer.param_groups[:] = groups
    return [{**group, "params": []} for group in originals]


def _stage_numbers(parts: Parts, names: Mapping[int, str]) -> dict[int, int]:
    """Number of the stage of each parameter, by its identity."""
    stages: dict[int, int] = {}
    problems = []
    for stage, (part, module) in enumerate(parts):
        for parameter_name, parameter in module.named_parameters():
            before = stages.setdefault(id(parameter), stage)
            if before != stage:
                name = names.get(id(parameter), parameter_name)
                problems.append(
                    f"'{name}' is in the stages {parts.names[before]} and {part}; "
                    "what shares weights belongs to one stage"
                )
    if problems:
        raise ConfigError(problems, "stages")
    return stages


def _own_copy(value: Any) -> Any:
    """A rate may be a tensor, which must not be shared between groups."""
    return value.clone() if isinstance(value, Tensor) else value


def _listing(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def apply_phase(phase: Phase, parts: Parts) -> int:
    """Sets ``requires_grad`` of every parameter as the phase says, and nothing else.

    Returns:
        Number of trained parameters.

    Raises:
        ConfigError: If a pattern of the phase matches no parameter.
    """
    matched: set[str] = set()
    trained = 0
    for stage, (name, module) in enumerate(parts):
        is_head = name == HEAD
        chosen = None if is_head or not phase.patterns else _matching(module, phase.patterns, matched)
        for parameter in module.parameters():
            chooses = chosen is None or id(parameter) in chosen
            parameter.requires_grad_(phase.trains(stage) and chooses and id(parameter) not in parts.fixed)
            trained += parameter.numel() * parameter.requires_grad
            if not parameter.requires_grad:
                parameter.grad = None  # a gradient left over would still move it
    for pattern in phase.patterns:
        if pattern not in matched:
            examples = ", ".join([key for module in parts.modules[:-1] for key, _ in module.named_parameters()][:3])
            raise ConfigError(
                [f"freeze: phase '{phase.name}': no parameter matches '{pattern}'; names look like {examples}"],
                "freeze",
            )
    return trained


def apply_modes(phase: Phase, parts: Parts) -> None:
    """Sets train and eval mode for a training epoch of the phase.

    A stage without a trained parameter is frozen: it runs in eval mode, so that its dropout and stochastic depth
    are off and its norm statistics are used and kept. `frozen_norm: train` lets norm layers alone follow the
    batches. ``requires_grad=False`` would do none of this.
    """
    for _, module in parts:
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
    for module, container in parts.followers:
        module.training = any(parameter.requires_grad for parameter in container.parameters())


def apply_rates(
    optimizer: Optimizer, rates: Sequence[float], weight_decay: float | None, own: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes the rate of each stage and the weight decay into the groups.

    Args:
        optimizer: The optimizer, after `regroup`.
        rates: Rate of each stage and, last, of the head; factors on the rates of `own` where that is given.
        weight_decay: Weight decay of what decays; ``None`` leaves every group its own.
        own: The groups as the module's scheduler has them now; what else it moves (momentum) is taken over.
    """
    for group in optimizer.param_groups:
        if group["stage"] < 0:
            continue
        rate = rates[group["stage"]]
        if own:
            moved = own[group["origin"]]
            rate *= float(moved["lr"])
            group.update({key: moved[key] for key in ("momentum", "betas") if key in moved})
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        if weight_decay is not None and "weight_decay" in group:
            group["weight_decay"] = weight_decay if group["decays"] else 0.0


def stage_rates(optimizer: Optimizer, count: int) -> tuple[float, ...]:
    """The highest rate of each stage and, last, of the head, as it stands in the groups."""
    rates = [0.0] * count
    for group in optimizer.param_groups:
        if group["stage"] >= 0:
            rates[group["stage"]] = max(rates[group["stage"]], float(group["lr"]))
    return tuple(rates)


def reset_state(optimizer: Optimizer) -> None:
    """Forgets every moment; the groups stay."""
    optimizer.state.clear()


def synchronise_buffers(parts: Parts) -> None:
    """Gives every rank the buffers of the first: each has taken its own last batch into its norm statistics."""
    for _, module in parts:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def frozen_tensors(phase: Phase, parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """Yields what must not change during the phase: frozen parameters, and the buffers of frozen layers.

    Buffers of norm layers are left out where `frozen_norm: train` lets them move.
    """
    for name, module in parts:
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
