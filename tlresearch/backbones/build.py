"""From the `backbone` section of a config to a backbone: the table of families."""

from __future__ import annotations

from collections.abc import Callable

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.small_cnn import build_small_cnn
from tlresearch.backbones.timm_models import build_timm
from tlresearch.backbones.vision import build_torchvision
from tlresearch.config.schema import BackboneConfig
from tlresearch.errors import UserError, load_object, nearest

FAMILIES: dict[str, Callable[..., StagedBackbone]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
}
"""Libraries by the part of the name before the slash."""

OURS: dict[str, Callable[..., StagedBackbone]] = {
    "small_cnn": build_small_cnn,
}
"""Backbones of our own by name; they take any number of input channels."""


def build_backbone(config: BackboneConfig, *, in_channels: int = 3) -> StagedBackbone:
    """Builds the backbone that a config describes.

    Args:
        config: The `backbone` section. With a `checkpoint` the weights stay random: the caller loads them.
        in_channels: Channels of the data; only backbones of our own follow it.

    Raises:
        UserError: If there is no such backbone, or its options or weights are wrong.
    """
    family, slash, model = config.name.partition("/")
    if slash and family in FAMILIES:
        return FAMILIES[family](
            model,
            weights=None if config.checkpoint else config.weights,
            weights_sha256=config.weights_sha256,
            granularity=config.granularity,
            options=config.options,
        )
    if config.name in OURS:
        return OURS[config.name](
            config.name,
            weights=None if config.checkpoint else config.weights,
            weights_sha256=config.weights_sha256,
            granularity=config.granularity,
            options=config.options,
            in_channels=in_channels,
        )
    if not slash and "." in config.name:
        built = load_object(config.name, "backbone.name")(**config.options)
        if not isinstance(built, StagedBackbone):
            raise UserError(f"backbone.name: {config.name} must return a StagedBackbone but got {type(built).__name__}")
        return built
    raise UserError(_unknown(config.name))


def _unknown(name: str) -> str:
    known = [*OURS, *(f"{family}/<model>" for family in FAMILIES)]
    guess = nearest(name.partition("/")[0], [*OURS, *FAMILIES])
    if not guess:
        from tlresearch.backbones.vision import known_models

        guess = nearest(f"torchvision/{name}", [f"torchvision/{model}" for model in known_models()])
    return f"backbone.name: unknown backbone '{name}'{guess}; known are {', '.join(known)}, or a dotted path"
