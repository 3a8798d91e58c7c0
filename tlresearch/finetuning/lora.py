"""Low-rank adapters of peft inside the stages they belong to, and their merge into plain weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). An adapted layer keeps its weight, frozen,
under ``base_layer``; what is trained beside it are the parameters that the pattern ``@lora`` matches. Groups,
digests, checkpoints and resume need to know nothing of this: adapters are parameters of their stage. Once training
has ended `merge` gives the layers back as they were, the adapters added to their weights.
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
        targets: Patterns of the names of layers; empty takes every linear layer, or every convolution where the
            backbone has no linear layer.
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
                # One at a time, in a box of its own: peft finds layers by the ends of their names, and would
                # otherwise leave its records on the stage.
                parent, _, key = name.rpartition(".")
                holder = stage.get_submodule(parent)
                box = nn.ModuleDict({"layer": holder.get_submodule(key)})
                config = peft.LoraConfig(
                    r=rank,
                    lora_alpha=alpha,
                    lora_dropout=dropout,
                    target_modules=["layer"],
                    fan_in_fan_out=_transposed(box["layer"]),
                )
                peft.inject_adapter_in_model(config, box)
                setattr(holder, key, box["layer"])
    count = sum(map(len, chosen))
    log.info("%d layers of %d have an adapter of rank %d", count, sum(map(len, layers)), rank)
    return count


def merge(backbone: StagedBackbone) -> None:
    """Adds the adapters to the weights of their layers, in place; nothing of peft is left in the backbone."""
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
    """Layers an adapter changes the output of, and can be merged into.

    A layer whose weight is read instead of the layer being called (in a traced network, or inside
    `nn.MultiheadAttention`) would have an adapter without effect. peft has one for the whole of
    `nn.MultiheadAttention`, but it adds and subtracts the adapter at each step, so that the frozen weights drift.
    """
    called = None
    if isinstance(stage, fx.GraphModule):
        called = {str(node.target) for node in stage.graph.nodes if node.op == "call_module"}
    hidden: list[str] = []
    for name, module in stage.named_modules():
        if isinstance(module, nn.MultiheadAttention) or getattr(module, "weights_are_read", False):
            hidden.append(f"{name}.")
        if any(f"{name}.".startswith(prefix) for prefix in hidden) or not any(True for _ in module.parameters()):
            continue  # without parameters: a layer that another stage holds
        if called is not None and not any(name == target or name.startswith(f"{target}.") for target in called):
            continue
        if _linear(module) or _plain_convolution(module):
            yield name, module


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer, whose weight is ``(in, out)``; where peft is, transformers is too."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _plain_convolution(module: nn.Module) -> bool:
    """Whether peft's adapter fits: it knows neither groups nor dilation, nor any padding but zeros."""
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d))
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
    )


def _choose(layers: Sequence[dict[str, nn.Module]], targets: Sequence[str]) -> list[list[str]]:
    """Names of the layers to adapt, by stage."""
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
