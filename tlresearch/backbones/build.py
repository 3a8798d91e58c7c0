"""From the `backbone` section of a config to a backbone: the table of families."""

from __future__ import annotations

import copy
from collections.abc import Callable

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.small_cnn import build_small_cnn
from tlresearch.backbones.timm_models import build_timm
from tlresearch.backbones.vision import build_torchvision
from tlresearch.config.paths import find_weights
from tlresearch.config.schema import BackboneConfig
from tlresearch.errors import UserError, call_object, nearest

FAMILIES: dict[str, Callable[..., StagedBackbone]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
}
"""Libraries by the part of the name before the slash."""

OURS: dict[str, Callable[..., StagedBackbone]] = {
    "small_cnn": build_small_cnn,
}
"""Backbones of our own by name."""


_last: dict[str, StagedBackbone] = {}
"""The backbone with loaded weights that was built last; the trials of a sweep ask for the same one."""


def build_backbone(config: BackboneConfig) -> StagedBackbone:
    """Builds the backbone that a config describes; the same one again is a copy of the first.

    Args:
        config: The `backbone` section. With a `checkpoint` the weights stay random: the caller loads them.

    Raises:
        UserError: If there is no such backbone, or its options or weights are wrong.
    """
    weights = None if config.checkpoint else config.weights
    # Random weights are drawn anew each time, or two seeds would start from the same ones; code of the user's own may
    # draw some too.
    if weights is None or "/" not in config.name:
        return _build(config, weights)
    key = f"{config} {_stamp(weights)}"
    if key not in _last:
        built = _build(config, weights)
        if built.weights.random_stages:
            return built
        _last.clear()
        _last[key] = built
    return copy.deepcopy(_last[key])


def _build(config: BackboneConfig, weights: str | None) -> StagedBackbone:
    family, slash, model = config.name.partition("/")
    build = FAMILIES.get(family) if slash else OURS.get(config.name)
    if build is not None:
        return build(
            model or config.name,
            weights=weights,
            weights_sha256=config.weights_sha256,
            granularity=config.granularity,
            options=config.options,
        )
    if not slash and "." in config.name:
        built = call_object(config.name, "backbone.name", config.options)
        if not isinstance(built, StagedBackbone):
            raise UserError(f"backbone.name: {config.name} must return a StagedBackbone but got {type(built).__name__}")
        return built
    raise UserError(_unknown(config.name))


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
    if not guess:
        from tlresearch.backbones.vision import known_models

        guess = nearest(f"torchvision/{name}", [f"torchvision/{model}" for model in known_models()])
    return f"backbone.name: unknown backbone '{name}'{guess}; known are {', '.join(known)}, or a dotted path"
