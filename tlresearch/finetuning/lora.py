"""peft's low-rank adapters inside the stages of a backbone, and merging them into the weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). An adapted layer keeps its frozen weight
under ``base_layer``; the pattern ``@lora`` matches the adapter's parameters, which are trained. Adapters are parameters
of their stage, so groups, digests, checkpoints and resume need no code for them. After training, `merge` adds the
adapters to the weights and restores the original layers.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError, MissingExtraError

log = logging.getLogger(__name__)


def inject(
    backbone: StagedBackbone,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> int:
    """Puts an adapter on layers of the backbone, in place.

    The adapted backbone gives the same outputs as before: an adapter's second matrix starts at 0.

    Args:
        backbone: The staged backbone.
        rank: Inner width of the adapters.
        alpha: The adapter's output is multiplied by ``alpha / rank``.
        dropout: Dropout in front of each adapter.
        targets: Patterns of layer names; if empty, every linear layer, or every convolution of a backbone without
            linear layers.
        seed: Seed of the adapters' first weights.

    Returns:
        Number of adapted layers.

    Raises:
        MissingExtraError: If peft is not installed.
        ConfigError: If a pattern matches no layer that can be adapted.
    """
    peft = _peft()
    layers = [dict(_adaptable(stage)) for stage in backbone.stages]
    chosen = _choose(layers, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage, names in zip(backbone.stages, chosen, strict=True):
            for name in names:
                # Each layer is adapted inside a container of its own: peft finds layers by the ends of their names,
                # which may be ambiguous in a stage, and would leave its own attributes on the stage.
                parent, _, key = name.rpartition(".")
                holder = stage.get_submodule(parent)
                container = nn.ModuleDict({"layer": holder.get_submodule(key)})
                config = peft.LoraConfig(
                    r=rank,
                    lora_alpha=alpha,
                    lora_dropout=dropout,
                    target_modules=["layer"],
                    fan_in_fan_out=_transposed(container["layer"]),
                )
                peft.inject_adapter_in_model(config, container)
                setattr(holder, key, container["layer"])
    count = sum(map(len, chosen))
    log.info("%d layers of %d have an adapter of rank %d", count, sum(map(len, layers)), rank)
    return count


def merge(backbone: StagedBackbone) -> None:
    """Adds the adapters to the weights of their layers, in place, and removes peft's layers from the backbone."""
    for stage in backbone.stages:
        for name, layer in list(_adapted(stage)):
            layer.merge(safe_merge=True)
            parent, _, key = name.rpartition(".")
            setattr(stage.get_submodule(parent), key, layer.get_base_layer())


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", "text") from None
    return peft


def _adapted(stage: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in stage.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def _adaptable(stage: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the layers on which an adapter has an effect and into which it can be merged.

    An adapter has no effect on a layer whose weight is read without calling the layer, as in a traced network or
    inside `nn.MultiheadAttention`. peft can adapt a whole `nn.MultiheadAttention`, but it adds the adapter to the
    weights and subtracts it again at each step, so rounding makes the frozen weights drift.
    """
    called = None
    if isinstance(stage, fx.GraphModule):
        called = {str(node.target) for node in stage.graph.nodes if node.op == "call_module"}
    hidden: list[str] = []
    for name, module in stage.named_modules():
        if isinstance(module, nn.MultiheadAttention) or getattr(module, "weights_are_read", False):
            hidden.append(f"{name}.")
        if any(f"{name}.".startswith(prefix) for prefix in hidden) or not any(True for _ in module.parameters()):
            continue  # a layer without parameters here is held by another stage
        if called is not None and not any(name == target or name.startswith(f"{target}.") for target in called):
            continue
        if _linear(module) or _plain_convolution(module):
            yield name, module


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, whose weight is ``(in, out)``."""
    # transformers is installed wherever peft is, which depends on it.
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _plain_convolution(module: nn.Module) -> bool:
    """Whether peft can adapt a convolution: it supports neither groups nor dilation, and only padding with zeros."""
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d))
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
    )


def _choose(layers: Sequence[dict[str, nn.Module]], targets: Sequence[str]) -> list[list[str]]:
    """Returns the names of the layers to adapt, by stage."""
    every = [name for stage in layers for name in stage]
    if targets:
        missing = [pattern for pattern in targets if not fnmatch.filter(every, pattern)]
        if missing:
            examples = ", ".join(every[:3]) or "none"
            raise ConfigError(
                [
                    f"freeze.lora.targets: '{p}' matches no layer that takes an adapter, such as {examples}"
                    for p in missing
                ],
                "lora",
            )
        return [[name for name in stage if any(fnmatch.fnmatchcase(name, p) for p in targets)] for stage in layers]
    if not every:
        raise ConfigError(["freeze.lora: this backbone has no layer that takes an adapter"], "lora")
    linear = any(_linear(layer) for stage in layers for layer in stage.values())
    return [[name for name, layer in stage.items() if not linear or _linear(layer)] for stage in layers]
