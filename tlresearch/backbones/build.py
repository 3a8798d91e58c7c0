"""From the `backbone` section of a config to a backbone: the table of families."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.backbones.channels import adapt_channels
from tlresearch.backbones.dense import DETECTION, SEGMENTATION, build_dense
from tlresearch.backbones.log_mel import with_log_mel
from tlresearch.backbones.mnist_cnn import build_mnist_cnn
from tlresearch.backbones.pairs import for_pairs
from tlresearch.backbones.pyramid import PyramidBackbone, to_maps
from tlresearch.backbones.small_cnn import build_small_cnn
from tlresearch.backbones.speech_embedding import build_speech_embedding
from tlresearch.backbones.timm_models import build_timm
from tlresearch.backbones.transformers import build_transformer
from tlresearch.backbones.vision import build_torchvision
from tlresearch.backbones.word_cnn import build_word_cnn
from tlresearch.base.errors import UserError, call_object, load_object, nearest
from tlresearch.base.paths import find_weights
from tlresearch.config.schema import BackboneConfig


def _torchvision(model: str, **arguments: Any) -> StagedBackbone:
    return (build_dense if model in (*SEGMENTATION, *DETECTION) else build_torchvision)(model, **arguments)


def _log_mel(model: str, *, weights: str | None, options: Mapping[str, Any], **arguments: Any) -> StagedBackbone:
    """An image backbone behind a spectrogram, whose arguments are `options.log_mel`."""
    inner = {name: value for name, value in options.items() if name != "log_mel"}
    backbone = _make(BackboneConfig(name=model, weights=weights, options=inner, **arguments), weights, "pooled")
    front = options.get("log_mel", {})
    try:
        inspect.signature(with_log_mel).bind(backbone, **front)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(with_log_mel).parameters)[1:])
        raise UserError(f"backbone.options.log_mel: {error}; it takes {known}") from None
    return with_log_mel(backbone, **front)


FAMILIES: dict[str, Callable[..., StagedBackbone]] = {
    "torchvision": _torchvision,
    "timm": build_timm,
    "hf": build_transformer,
    "log_mel": _log_mel,
}
"""Libraries by the part of the name before the slash."""

OURS: dict[str, Callable[..., StagedBackbone]] = {
    "mnist_cnn": build_mnist_cnn,
    "small_cnn": build_small_cnn,
    "word_cnn": build_word_cnn,
    "speech_embedding": build_speech_embedding,
}
"""Backbones of our own by name."""


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
    family, slash, model = config.name.partition("/")
    build = FAMILIES.get(family) if slash else OURS.get(config.name)
    if build is not None:
        return build(
            model or config.name,
            weights=weights,
            weights_sha256=config.weights_sha256,
            granularity=config.granularity,
            options=config.options,
            **_prefix(build, config),
            **_pairs(build, config),
            **_end(build, config.name, end),
        )
    if not slash and "." in config.name:
        built = call_object(
            config.name,
            "backbone.name",
            {**config.options, **_end(load_object(config.name, "backbone.name"), config.name, end)},
        )
        if not isinstance(built, StagedBackbone):
            raise UserError(f"backbone.name: {config.name} must return a StagedBackbone but got {type(built).__name__}")
        return built
    raise UserError(_unknown(config.name))


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
    known = [*OURS, *(f"{family}/<model>" for family in FAMILIES)]
    guess = nearest(name.partition("/")[0], [*OURS, *FAMILIES])
    if "yolo" in name.lower():
        guess = "; the YOLO on offer is YOLOS, such as hf/hustvl/yolos-tiny"
    if not guess:
        from tlresearch.backbones.vision import known_models

        guess = nearest(f"torchvision/{name}", [f"torchvision/{model}" for model in known_models()])
    return f"backbone.name: unknown backbone '{name}'{guess}; known are {', '.join(known)}, or a dotted path"
