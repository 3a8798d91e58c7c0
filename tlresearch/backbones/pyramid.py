"""Backbones that end in feature maps: what segmentation and detection heads are put on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tlresearch.backbones.base import StagedBackbone, WeightsRecord, evaluating, unchanged
from tlresearch.backbones.channels import channel_axes, channel_axis
from tlresearch.backbones.text import Recipe
from tlresearch.backbones.tracing import Shape, propagate
from tlresearch.base.errors import UserError
from tlresearch.modality.base import expect
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.values import SINGLE, Value

CURRENT = "x"
"""Name of the running value beside the maps that were passed by."""

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class FeatureMap:
    """A map at the end of a stage.

    Attributes:
        name: Name under which the head finds it.
        channels: Number of its channels.
        stride: Input pixels per position.
        channels_last: Whether the stage gives it as ``(batch, H, W, C)``; the head always gets ``(batch, C, H, W)``.
    """

    name: str
    channels: int
    stride: int
    channels_last: bool = False


class PyramidBackbone(StagedBackbone):
    """A backbone whose output is a dict of feature maps ``(batch, C, H, W)`` by name, finest first.

    Skip connections need maps of earlier stages, so a value that crosses a boundary carries the maps in front of it,
    beside the running value ``"x"`` where that is none of them. A stage itself still takes and gives one tensor.

    Args:
        stages: The stages in order, by name.
        maps: The maps by the number of the stage that gives them.
        neck: The last stage where it joins the maps, such as a feature pyramid network: it takes and gives a dict.
        neck_maps: What the neck gives; needed with `neck`.
        preprocessing: What the inputs must look like.
        weights: Where the weights came from.
        native_head: Makes the head that the original network has, for a number of classes; ``None`` if it has none.
        spatial: Whether its maps are maps; what is none can be read by its native head alone.
        save_files: Writes its settings into a folder and says how to build it from them; ``None`` where the name says
            it all.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        maps: Mapping[int, FeatureMap],
        preprocessing: Preprocessing,
        neck: nn.Module | None = None,
        neck_maps: Sequence[FeatureMap] = (),
        weights: WeightsRecord | None = None,
        native_head: partial[nn.Module] | None = None,
        spatial: bool = True,
        save_files: Callable[[Path], Recipe] | None = None,
    ) -> None:
        body = dict(stages)
        self_maps = tuple(neck_maps) if neck is not None else tuple(maps.values())
        super().__init__(
            {**body, "neck": neck} if neck is not None else body,
            out_features=self_maps[-1].channels,
            preprocessing=preprocessing,
            weights=weights,
        )
        self.body = len(body)
        self.taps = dict(maps)
        self.maps = self_maps
        self.native_head = native_head
        self.spatial = spatial
        self.save_files = save_files

    def step(self, number: int, stage: nn.Module, x: Value) -> Any:
        """Runs one stage on the running value and carries on the maps in front of it; at the end, the maps alone."""
        maps = {name: leaf for name, leaf in x.items() if name != CURRENT} if isinstance(x, dict) else {}
        if number == self.body:
            return stage(maps)
        before = self.taps.get(number - 1)
        current = stage(x if isinstance(x, Tensor) else x[before.name if before is not None else CURRENT])
        tap = self.taps.get(number)
        if tap is not None:
            maps[tap.name] = current
        if number == self.body - 1:
            return {tap.name: _channels_first(maps[tap.name], tap) for tap in self.taps.values()}
        if tap is not None:
            return maps
        return {CURRENT: current, **maps} if maps else current


def _channels_first(leaf: Tensor, tap: FeatureMap) -> Tensor:
    return leaf.permute(0, 3, 1, 2).contiguous() if tap.channels_last else leaf


def to_maps(backbone: StagedBackbone, name: str) -> StagedBackbone:
    """Turns an image backbone into one that ends in its feature maps: the global pooling and all behind it go.

    There is one map per resolution, that of the last stage which has it. Weights and names of the stages stay.

    Args:
        backbone: A backbone that ends in a tensor ``(batch, features)``; one that ends in maps is returned as it is.
        name: Its name, for the error.

    Raises:
        UserError: If it has no feature maps, such as a plain vision transformer.
    """
    if isinstance(backbone, PyramidBackbone):
        return backbone
    complaint = UserError(f"backbone.name: {name} takes no images and gives no feature maps, which the task needs")
    preprocessing = expect(backbone.preprocessing, Preprocessing, complaint)
    side = preprocessing.crop or 64
    stages: dict[str, nn.Module] = {}
    by_stride: dict[int, tuple[int, FeatureMap]] = {}
    with unchanged(backbone), FakeTensorMode(allow_non_fake_inputs=True) as mode, evaluating(backbone):
        x = mode.from_tensor(torch.zeros(1, preprocessing.channels, side, side))
        axis = 1
        for (stage_name, whole), axes in zip(backbone.named_stages(), channel_axes(backbone), strict=True):
            after, stage = whole(x), whole
            if not isinstance(after, Tensor):  # a network cut by its structure carries more than the map
                break
            if not _is_map(after.shape):
                shortened = _without_pooling(whole, tuple(x.shape))
                if shortened is None:
                    break
                after, stage = shortened(x), shortened
                axis = channel_axis(after.shape, None, axis)
            else:
                axis = axes.get(SINGLE, axis)
            height = after.shape[1 if axis == 3 else 2]
            tap = FeatureMap(str(len(stages)), int(after.shape[axis]), round(side / int(height)), axis == 3)
            by_stride[tap.stride] = (len(stages), tap)
            stages[stage_name] = stage
            if stage is not whole:
                break
            x = after
    if len(by_stride) < 2:
        raise UserError(
            f"backbone.name: {name} has no feature maps of several resolutions, which this task needs; "
            "take a convolutional network or a hierarchical transformer such as torchvision/swin_t"
        )
    weights = replace(
        backbone.weights, random_stages=tuple(stage for stage in backbone.weights.random_stages if stage in stages)
    )
    taps = {number: replace(tap, name=str(level)) for level, (number, tap) in enumerate(by_stride.values())}
    return PyramidBackbone(stages, maps=taps, preprocessing=preprocessing, weights=weights)


def _is_map(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[2] > 1 and (shape[1] > 1)


def _without_pooling(stage: nn.Module, shape: Sequence[int]) -> nn.Module | None:
    """Ends a stage with its last feature map; ``None`` if it has none."""
    if isinstance(stage, fx.GraphModule):
        return _shorten_graph(stage, shape)
    if type(stage) is nn.Sequential:
        kept = nn.Sequential()
        for child_name, child in stage.named_children():
            if isinstance(child, (*_POOLS, nn.Flatten)):
                break
            kept.add_module(child_name, child)
        return kept if any(True for _ in kept.parameters()) else None
    return None


def _shorten_graph(stage: fx.GraphModule, shape: Sequence[int]) -> nn.Module | None:
    graph = fx.Graph()
    values = propagate(stage, stage.graph, torch.zeros(1, *shape[1:]))
    last = None
    for node in stage.graph.nodes:
        value = values.get(node)
        if isinstance(value, Shape) and _is_map(value) and node.op != "placeholder" and not _pools(stage, node):
            last = node
    if last is None:
        return None
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(stage.graph, copied)
    graph.output(copied[last])
    shortened = fx.GraphModule(stage, graph)
    shortened.graph.eliminate_dead_code()
    # Once more, from what is left: a module keeps the layers that its graph names, and no other.
    ended = fx.GraphModule(shortened, shortened.graph, class_name="Stage")
    ended.training = True  # as every new module; its layers get their own mode back
    return ended


def _pools(stage: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(stage.get_submodule(str(node.target)), _POOLS)
    return "adaptive" in getattr(node.target, "__name__", "")
