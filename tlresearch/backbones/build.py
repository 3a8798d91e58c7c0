"""From the `backbone` section of a config to a backbone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.backbones.channels import adapt_channels
from tlresearch.backbones.dense import DETECTION, SEGMENTATION, build_dense
from tlresearch.backbones.log_mel import with_log_mel
from tlresearch.backbones.of_module import of_module
from tlresearch.backbones.pairs import for_pairs
from tlresearch.backbones.pyramid import PyramidBackbone, to_maps
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import UserError, load_object, nearest
from tlresearch.base.paths import find_weights
from tlresearch.config.catalogue import BACKBONES
from tlresearch.config.parts import is_own, make
from tlresearch.config.schema import BackboneConfig


def build_vision(model: str, **arguments: Any) -> StagedBackbone:
    """Builds a backbone of torchvision: a classifier's, or that of a segmentation or detection network."""
    return (build_dense if model in (*SEGMENTATION, *DETECTION) else build_torchvision)(model, **arguments)


def build_log_mel(model: str, *, weights: str | None, options: Mapping[str, Any], **arguments: Any) -> StagedBackbone:
    """Builds an image backbone behind a spectrogram, whose arguments are `options.log_mel`."""
    inner = {name: value for name, value in options.items() if name != "log_mel"}
    backbone = _make(BackboneConfig(name=model, weights=weights, options=inner, **arguments), weights, "pooled")
    front = options.get("log_mel", {})
    try:
        inspect.signature(with_log_mel).bind(backbone, **front)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(with_log_mel).parameters)[1:])
        raise UserError(f"backbone.options.log_mel: {error}; it takes {known}") from None
    return with_log_mel(backbone, **front)


_last: dict[str, StagedBackbone] = {}
"""The backbone with loaded weights that was built last; the trials of a sweep ask for the same one."""


def build_backbone(config: BackboneConfig, end: End = "pooled") -> StagedBackbone:
    """Builds the backbone that a config describes; the same one again is a copy of the first.

    Args:
        config: The `backbone` section. With a `checkpoint` the weights stay random: the caller loads them.
        end: What the task needs at the backbone's end.

    Raises:
        UserError: If there is no such backbone, or its options or weights are wrong.
    """
    weights = None if config.checkpoint else config.weights
    # Random weights are drawn anew each time, or two seeds would start from the same ones; code of the user's own may
    # draw some too.
    if weights is None or "/" not in config.name:
        return _build(config, weights, end)
    key = f"{config} {end} {_stamp(weights)}"
    if key not in _last:
        built = _build(config, weights, end)
        if built.weights.random_stages:
            return built
        _last.clear()
        _last[key] = built
    return copy.deepcopy(_last[key])


def _build(config: BackboneConfig, weights: str | None, end: End) -> StagedBackbone:
    # Every image backbone has maps on its way, so its builder need not know of them.
    backbone = _make(config, weights, "pooled" if end == "maps" else end)
    if config.in_channels is not None:
        adapt_channels(backbone, config.in_channels)
    if config.pairs is not None:
        return for_pairs(backbone, config.pairs, end)
    if end == "maps":
        return to_maps(backbone, config.name)
    if isinstance(backbone, PyramidBackbone):
        raise UserError(f"backbone.name: {config.name} ends in feature maps: it is for segmentation or detection")
    return backbone


def _make(config: BackboneConfig, weights: str | None, end: End) -> StagedBackbone:
    if is_own(config):
        return _own(config, end)
    build = BACKBONES.load(config.name, "backbone.name")
    made: StagedBackbone = build(
        config.name.partition("/")[2] or config.name,
        weights=weights,
        weights_sha256=config.weights_sha256,
        granularity=config.granularity,
        options=config.options,
        **_prefix(build, config),
        **_pairs(build, config),
        **_end(build, config.name, end),
    )
    return made


def _own(config: BackboneConfig, end: End) -> StagedBackbone:
    """What a dotted path gives: a staged backbone, or any network, which is taken apart."""
    if "." not in config.name or "/" in config.name:
        raise UserError(_unknown(config.name))
    made = make(config, "backbone", **_end(load_object(config.name, "backbone.name"), config.name, end))
    if isinstance(made, StagedBackbone):
        return made
    if isinstance(made, nn.Module):
        return of_module(made, config.name, side=config.side, granularity=config.granularity)
    raise UserError(
        f"backbone.name: {config.name} must give an nn.Module or a StagedBackbone, but gave {type(made).__name__}"
    )


def _prefix(build: Callable[..., StagedBackbone], config: BackboneConfig) -> dict[str, str]:
    """The argument that says where in a weights file the backbone lies."""
    if config.weights_prefix is None:
        return {}
    parameters = inspect.signature(build).parameters.values()
    if not any(p.name == "weights_prefix" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise UserError(f"backbone.weights_prefix: {config.name} reads the files of its own kind only; leave it out")
    return {"weights_prefix": config.weights_prefix}


def _pairs(build: Callable[..., StagedBackbone], config: BackboneConfig) -> dict[str, bool]:
    """The argument that says that two texts are read as one input."""
    takes = config.pairs == "joint" and "pairs" in inspect.signature(build).parameters
    return {"pairs": True} if takes else {}


def _end(build: Callable[..., StagedBackbone], name: str, end: End) -> dict[str, End]:
    """The argument that asks for another end than the usual one."""
    if end == "pooled":
        return {}
    if "end" not in inspect.signature(build).parameters:
        raise UserError(f"backbone.name: {name} has no end of the kind '{end}', which the task needs")
    return {"end": end}


def _stamp(weights: str) -> str:
    """What changes when a local weights file does; nothing for weights by name."""
    try:
        state = find_weights(weights).stat()
    except UserError:
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"


def _unknown(name: str) -> str:
    guess = nearest(name, BACKBONES.names)
    if "yolo" in name.lower():
        guess = "; the YOLO on offer is YOLOS, such as hf/hustvl/yolos-tiny"
    if not guess:
        from tlresearch.backbones.vision import known_models

        guess = nearest(f"torchvision/{name}", [f"torchvision/{model}" for model in known_models()])
    return f"backbone.name: unknown backbone '{name}'{guess}; known: {BACKBONES.listing}"
