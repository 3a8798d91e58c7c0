"""Backbones from torchvision: every classification model, with its published weights or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision import models

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity, cut
from tlresearch.backbones.weights import (
    cache_folder,
    check_hash,
    download,
    hash_in_name,
    is_url,
    load_stages,
    locate,
)
from tlresearch.base.errors import UserError, WeightsError, nearest
from tlresearch.base.files import sha256
from tlresearch.modality.image import Preprocessing

AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Heads that Inception and GoogLeNet have for training from scratch."""


def known_models() -> list[str]:
    """Returns the names of all classification models of torchvision."""
    return list(models.list_models(module=models))


def build_torchvision(
    model: str,
    *,
    weights: str | None = "default",
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
) -> StagedBackbone:
    """Builds a backbone from a classification model of torchvision.

    Args:
        model: Name in `torchvision.models`.
        weights: Enum name, ``default``, ``None`` for random weights, a file, or a URL.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: How finely it is cut.
        options: Further arguments of the model's constructor.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If there is no such model, or it does not take the options.
    """
    _check_name(model)
    published = find_published(model, weights)
    file = None
    if published is not None:
        file = download_published(published, weights_sha256)
    elif weights is not None:
        file = locate_weights(model, weights, weights_sha256)
    arguments = {**_defaults(model, pretrained=weights is not None), **(options or {})}
    if "aux_logits" in _defaults(model, pretrained=False):
        arguments["aux_logits"] = False
    try:
        if published is not None:
            with SkipInit():  # all of it is loaded
                network = models.get_model(model, weights=published, **arguments)
        else:
            network = models.get_model(model, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"backbone.options: torchvision/{model} cannot be built: {error}") from None
    preprocessing = _preprocessing(model, published, arguments)
    size = preprocessing.crop or 224
    pieces = cut(network, torch.zeros(1, preprocessing.channels, size, size), granularity=granularity)
    record = WeightsRecord(random_stages=tuple(pieces.stages))
    if published is not None and file is not None:
        record = WeightsRecord(str(published), sha256(file))
    elif file is not None:
        record = load_stages(pieces.stages, file, head=pieces.head, ignore=AUXILIARY, prefix=weights_prefix)
        record = replace(record, source=str(weights))
    return StagedBackbone(
        pieces.stages, out_features=pieces.out_features, preprocessing=preprocessing, weights=record, way="graph"
    )


def _check_name(model: str) -> None:
    """Refuses what torchvision doesn't have, or has for other things than single images."""
    if model in known_models():
        return
    if model in models.list_models():
        raise UserError(
            f"backbone.name: torchvision/{model} is no network for single images but one of video, optical "
            "flow, keypoints or quantised numbers, and no task here takes those"
        )
    raise UserError(
        f"backbone.name: torchvision has no model '{model}'{nearest(model, known_models(), count=5)}; all of them: "
        'python -c "import torchvision; print(torchvision.models.list_models())"'
    )


def find_published(model: str, weights: str | None) -> models.WeightsEnum | None:
    """Returns the published weights of this name; ``None`` if there are none, as for a file."""
    if weights is None:
        return None
    enum = models.get_model_weights(model)
    name = weights.removeprefix(f"{enum.__name__}.")
    if name == "default":
        if "DEFAULT" not in enum.__members__:
            raise WeightsError(f"backbone.weights: torchvision publishes none for {model}; give null or a file")
        name = "DEFAULT"
    return enum[name] if name in enum.__members__ else None


def locate_weights(model: str, weights: str, expected: str | None) -> Path:
    """Finds a weights file or downloads it from a URL; an error names the published weights of the model."""
    enum = models.get_model_weights(model)
    looks_like_file = is_url(weights) or Path(weights).suffix or "/" in weights
    try:
        return locate(weights, expected)
    except WeightsError:
        raise
    except UserError:
        if looks_like_file:
            raise
        known = [*(name for name in enum.__members__ if name != "DEFAULT"), "default"]
        raise WeightsError(
            f"backbone.weights: '{weights}' is no file and torchvision/{model} has no weights of this name"
            f"{nearest(weights, known)}; it has {', '.join(known)}"
        ) from None


def download_published(published: models.WeightsEnum, expected: str | None) -> Path:
    """Downloads published weights unless they are there, and checks their hash."""
    # torchvision does not look at the hash of a file that is there already.
    path = cache_folder() / published.url.rpartition("/")[2]
    return check_hash(download(published.url, path, hash_in_name(path)), expected)


def _defaults(model: str, *, pretrained: bool) -> dict[str, Any]:
    """Arguments that torchvision chooses by whether it loads weights itself."""
    if model not in ("googlenet", "inception_v3"):
        return {}
    if not pretrained:
        return {"aux_logits": False, "init_weights": True}
    # Their published weights expect the input normalised in another way, which the network does itself.
    return {"aux_logits": False, "init_weights": False, "transform_input": True}


def _preprocessing(model: str, published: models.WeightsEnum | None, arguments: Mapping[str, Any]) -> Preprocessing:
    enum = models.get_model_weights(model)
    if published is None and "DEFAULT" in enum.__members__:
        published = enum["DEFAULT"]
    if published is None:
        return Preprocessing(crop=224, resize=256)
    preset = published.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    if "image_size" in arguments:
        side = int(arguments["image_size"])
        crop, resize = side, round(resize * side / crop)
    return Preprocessing(
        crop=crop,
        resize=resize,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


class SkipInit(TorchFunctionMode):
    """Leaves out random initialisation, most of the time it takes to build a large network."""

    drawing = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs everything, but draws zeros instead of random numbers."""
        # Zeros, not nothing: a truncated normal distribution is drawn again until the values are in range.
        return args[0].zero_() if func in self.drawing else func(*args, **(kwargs or {}))
