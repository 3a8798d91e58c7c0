"""Torchvision's segmentation and detection models: body and neck as stages, their own head for new classes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision import models

from tlresearch.backbones.base import StagedBackbone, WeightsRecord, unchanged
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.pyramid import FeatureMap, PyramidBackbone
from tlresearch.backbones.vision import SkipInit, download_published, find_published, locate_weights
from tlresearch.backbones.weights import load_stages, load_tensors, read, under
from tlresearch.base.errors import UserError
from tlresearch.base.files import sha256
from tlresearch.modality.image import Preprocessing

log = logging.getLogger(__name__)

SEGMENTATION = tuple(models.list_models(module=models.segmentation))
DETECTION = tuple(name for name in models.list_models(module=models.detection) if "keypoint" not in name)

_HEADS = ("classifier", "aux_classifier", "rpn", "roi_heads", "head")
_SIDE = 640  # of detectors that take any size; torchvision's own 800 to 1333 costs three times as much


def build_dense(
    model: str,
    *,
    weights: str | None = "default",
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
) -> StagedBackbone:
    """Builds a backbone from a segmentation or detection model of torchvision.

    The stages are those of its body, then the neck (feature pyramid, or SSD's extra layers) where it has one. The
    head is made anew for the user's classes by `PyramidBackbone.native_head`, and starts from the weights where
    shapes agree.

    Args:
        model: Name in `torchvision.models.segmentation` or `torchvision.models.detection`.
        weights: Enum name, ``default``, ``None`` for random weights, a file, or a URL.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: Must be ``stage``.
        options: Further arguments of the model's constructor.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If it does not take the options.
    """
    if granularity != "stage":
        raise UserError(f"backbone.granularity: torchvision/{model} is cut into stages only")
    published = find_published(model, weights)
    file = download_published(published, weights_sha256) if published is not None else None
    if published is None and weights is not None:
        file = locate_weights(model, weights, weights_sha256)
    network = _network(model, options, weights=published)
    preprocessing = _preprocessing(network)
    pieces = _pieces(network)
    whole = {**pieces.stages, **({"neck": pieces.neck} if pieces.neck is not None else {})}
    record, state = WeightsRecord(random_stages=tuple(whole)), {}
    if published is not None and file is not None:
        record, state = WeightsRecord(str(published), sha256(file)), dict(network.state_dict())
    elif file is not None:
        record = replace(load_stages(whole, file, ignore=_HEADS, prefix=weights_prefix), source=str(weights))
        state = under(read(file), record.prefix)
    head = {name: tensor for name, tensor in state.items() if name.startswith(tuple(f"{h}." for h in _HEADS))}
    side = preprocessing.crop or _SIDE
    maps, neck_maps = _measure(pieces, preprocessing.channels, side)
    return PyramidBackbone(
        pieces.stages,
        maps=maps,
        neck=pieces.neck,
        neck_maps=neck_maps,
        preprocessing=preprocessing,
        weights=record,
        native_head=partial(_native_head, model, dict(options or {}), head),
    )


def _network(model: str, options: Mapping[str, Any] | None, weights: models.WeightsEnum | None, **more: Any) -> Any:
    arguments = {**(options or {}), **more}
    try:
        if weights is not None:
            with SkipInit():  # all of it is loaded
                return models.get_model(model, weights=weights, **arguments)
        return models.get_model(model, weights=None, weights_backbone=None, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"backbone.options: torchvision/{model} cannot be built: {error}") from None


def _native_head(
    model: str, options: Mapping[str, Any], state: Mapping[str, Tensor], classes: int, *, masks: bool = False
) -> nn.Module:
    """The head of a model for a number of classes; a detector counts the background as one more.

    Args:
        model: Its name.
        options: Further arguments of its constructor.
        state: Its weights by name, if there are any.
        classes: Number of classes.
        masks: Whether the targets are masks of objects; of boxes alone Mask R-CNN could not learn any.

    Returns:
        A segmentation model's classifier, which takes the maps, or a detector without backbone and transform.
    """
    detects = model in DETECTION
    network = _network(model, options, weights=None, num_classes=classes + detects)
    if detects:
        network.backbone, network.transform = nn.Identity(), nn.Identity()
        if model.startswith("maskrcnn") and not masks:
            network.roi_heads.mask_roi_pool = network.roi_heads.mask_head = network.roi_heads.mask_predictor = None
        head, prefix = network, ""
    else:
        head, prefix = network.classifier, "classifier."
    wanted = head.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    placed = {name: tensor for name, tensor in given.items() if name in wanted}
    # Layers whose size is the number of classes are made anew, and which these are each model decides.
    new = load_tensors(head, placed, f"the head of {model}", required=(), other_shapes=wanted)
    if state:
        named = [name for name in new if not name.endswith("num_batches_tracked")]
        log.info("head of %s: %d tensors from the weights, new: %s", model, len(wanted) - len(new), ", ".join(named))
    assert isinstance(head, nn.Module)
    return head


class _Pieces:
    """Stages, the names of the maps by the number of their stage, and the neck."""

    def __init__(self) -> None:
        self.stages: dict[str, nn.Module] = {}
        self.taps: dict[int, str] = {}
        self.neck: nn.Module | None = None


def _pieces(network: Any) -> _Pieces:
    backbone = network.backbone
    found = _Pieces()
    if hasattr(backbone, "extra"):
        last = [name for name, _ in backbone.features.named_children()][-1]
        # SSD-lite takes a map after each of its two parts, SSD one at the end.
        parts = {name: name for name in ("0", "1")} if len(backbone.features) == 2 else {last: "0"}
        _add(found, "backbone.features", backbone.features, parts)
        found.neck = _SsdNeck(backbone)
    elif hasattr(backbone, "fpn"):
        _add(found, "backbone.body", backbone.body, backbone.body.return_layers)
        found.neck = _nested("backbone", {"fpn": backbone.fpn})
    else:
        _add(found, "backbone", backbone, {n: to for n, to in backbone.return_layers.items() if to != "aux"})
    return found


def _add(found: _Pieces, prefix: str, body: nn.Module, taps: Mapping[str, str]) -> None:
    """Cuts a body at its maps, at its containers, and where single layers change the resolution."""
    children = dict(body.named_children())
    groups: list[list[str]] = [[]]
    before = 0
    for name, side in zip(children, _sides(children.values()), strict=True):
        if any(True for _ in children[name].parameters()):
            after_tap = bool(groups[-1]) and groups[-1][-1] in taps
            if groups[-1] and (after_tap or type(children[name]) is nn.Sequential or side != before):
                groups.append([])
            before = side
        groups[-1].append(name)
    for number, names in enumerate(groups):
        short = names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"
        name = short if not short[0].isdigit() else f"features.{short}"
        name = "stem" if number == 0 and not short[0].isdigit() else name
        found.stages[name] = _nested(prefix, {child: children[child] for child in names})
        if names[-1] in taps:
            found.taps[number] = str(taps[names[-1]])


def _sides(children: Iterable[nn.Module]) -> list[int]:
    """Side of each layer's output for an image of 256 pixels."""
    sides = []
    layers = nn.ModuleList(children)
    with torch.no_grad(), unchanged(layers), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.zeros(2, 3, 256, 256))
        for child in layers:
            x = child(x)
            sides.append(int(x.shape[-1]))
    return sides


def _nested(prefix: str, children: Mapping[str, nn.Module]) -> nn.Module:
    """Layers that run one after another, under the names they had in the whole network."""
    inner: nn.Module = nn.Sequential(OrderedDict(children))
    for name in reversed(prefix.split(".")):
        inner = nn.Sequential(OrderedDict({name: inner}))
    return inner


class _SsdNeck(nn.Module):
    """SSD's extra layers, and the rescaling of its first map."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.extra = backbone.extra
        scale = getattr(backbone, "scale_weight", None)
        if scale is not None:
            self.backbone.scale_weight = scale

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns all maps the detector looks at."""
        found = list(maps.values())
        x = found[-1]
        scale = getattr(self.backbone, "scale_weight", None)
        if scale is not None:
            found[0] = scale.view(1, -1, 1, 1) * nn.functional.normalize(found[0])
        for block in self.backbone.extra:  # type: ignore[union-attr]
            x = block(x)
            found.append(x)
        return {str(number): leaf for number, leaf in enumerate(found)}


def _measure(pieces: _Pieces, channels: int, side: int) -> tuple[dict[int, FeatureMap], tuple[FeatureMap, ...]]:
    taps = {number: FeatureMap(name, 0, 1) for number, name in pieces.taps.items()}
    parts = nn.ModuleList([*pieces.stages.values(), *([pieces.neck] if pieces.neck is not None else [])])
    with torch.no_grad(), unchanged(parts), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.zeros(2, channels, side, side))
        maps = {}
        for number, stage in enumerate(pieces.stages.values()):
            x = stage(x)
            if number in taps:
                maps[taps[number].name] = x
                taps[number] = replace(taps[number], channels=int(x.shape[1]), stride=round(side / x.shape[-1]))
        joined = pieces.neck(maps) if pieces.neck is not None else {}
    neck = tuple(FeatureMap(n, int(leaf.shape[1]), round(side / leaf.shape[-1])) for n, leaf in joined.items())
    return taps, neck


def _preprocessing(network: Any) -> Preprocessing:
    transform = getattr(network, "transform", None)
    if transform is None:
        return Preprocessing(crop=520, resize=520)
    side = transform.fixed_size[0] if transform.fixed_size else _SIDE
    return Preprocessing(side, side, mean=tuple(transform.image_mean), std=tuple(transform.image_std))
