"""Backbones from timm, with the extra `timm`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity, cut
from tlresearch.backbones.stages import Division, Vector, divide, report
from tlresearch.backbones.weights import digest, is_url, load_stages, locate
from tlresearch.base.errors import MissingExtraError, UserError, WeightsError, first_line, nearest
from tlresearch.modality.image import Preprocessing


def build_timm(
    model: str,
    *,
    weights: str | None = "default",
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
) -> StagedBackbone:
    """Builds a backbone from a model of timm.

    Args:
        model: Name in timm, with or without a tag (``resnet18.a1_in1k``).
        weights: ``default``, a tag, ``None`` for random weights, a file, or a URL.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: How finely it is cut.
        options: Further arguments of `timm.create_model`.

    Raises:
        MissingExtraError: If timm is not installed.
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If there is no such model, or it does not take the options.
    """
    timm = _import()
    name, tags, tag, weights = _named(timm, model, weights)
    full = f"{name}.{tag}" if tag else name
    network = _create(timm, full, pretrained=weights == "default", options=dict(options or {}))
    published: Any = network.pretrained_cfg
    preprocessing = _preprocessing(timm, network)
    division = _divide(timm, network, preprocessing, granularity)
    report(f"timm/{model}", division)
    record = WeightsRecord(random_stages=tuple(division.stages))
    if weights == "default":
        state = {key: value for stage in division.stages.values() for key, value in stage.state_dict().items()}
        record = WeightsRecord(f"timm/{published['architecture']}.{published['tag']}", digest(state))
    elif weights is not None:
        if not is_url(weights) and "." not in weights and "/" not in weights:
            raise WeightsError(
                f"backbone.weights: '{weights}' is neither a file nor a tag of timm/{name}"
                f"{nearest(weights, tags)}; it has {', '.join(tags) or 'none'}"
            )
        file = locate(weights, weights_sha256)
        head = published.get("classifier")
        heads = (head,) if isinstance(head, str) else tuple(head or ())
        record = replace(load_stages(division.stages, file, ignore=heads, prefix=weights_prefix), source=weights)
    assert isinstance(division.result, Tensor)
    return StagedBackbone(
        division.stages,
        out_features=division.result.shape[1],
        preprocessing=preprocessing,
        weights=record,
        way=division.way,
        reasons=division.reasons,
    )


def _named(timm: ModuleType, model: str, weights: str | None) -> tuple[str, list[str], str, str | None]:
    """Name of a network, the tags of its weights, the tag that is asked for, and the weights without one."""
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        raise UserError(
            f"backbone.name: timm has no model '{name}'{nearest(name, timm.list_models(), count=5)}; all of them: "
            'python -c "import timm; print(timm.list_models())"'
        )
    tags = [published.partition(".")[2] for published in timm.list_pretrained(f"{name}.*")]
    if weights in tags:
        return name, tags, weights or "", "default"
    if tag and tag not in tags:
        raise UserError(f"backbone.name: timm/{name} has no tag '{tag}'{nearest(tag, tags)}; it has {tags}")
    return name, tags, tag, weights


def _import() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError:
        raise MissingExtraError("timm", "timm") from None
    module: ModuleType = timm
    return module


def _create(timm: ModuleType, name: str, *, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        network = timm.create_model(name, pretrained=pretrained, **{**options, "num_classes": 0})
    except TypeError as error:
        raise UserError(f"backbone.options: timm/{name} cannot be built: {error}") from None
    except Exception as error:  # the hub client and its HTTP library have many
        if not pretrained:
            raise
        reason = first_line(error)
        raise WeightsError(
            f"backbone.weights: the weights of timm/{name} cannot be downloaded ({reason}); download them "
            "elsewhere, then give the file as backbone.weights=FILE"
        ) from None
    assert isinstance(network, nn.Module)
    return network


def _divide(timm: ModuleType, network: nn.Module, preprocessing: Preprocessing, granularity: Granularity) -> Division:
    side = preprocessing.crop or 224
    example = torch.zeros(1, preprocessing.channels, side, side)

    def graph() -> dict[str, nn.Module]:
        leaves, functions = timm.models.get_notrace_modules(), timm.models.get_notrace_functions()
        return cut(network, example, granularity=granularity, head="none", leaves=leaves, functions=functions).stages

    return divide(
        network, Vector(getattr(network, "num_features", None)), example, granularity=granularity, graph=graph
    )


def _preprocessing(timm: ModuleType, network: nn.Module) -> Preprocessing:
    config = timm.data.resolve_model_data_config(network)
    # What it was built for, by `img_size`, may not be what its weights were trained with.
    side = int(getattr(getattr(network, "patch_embed", None), "img_size", config["input_size"])[-1])
    return Preprocessing(
        crop=side,
        resize=math.floor(side / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
