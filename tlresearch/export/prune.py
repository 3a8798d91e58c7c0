"""Structured pruning of a linear head: features with the smallest weights are left out, and what makes them, if it can.

As Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), by the norm of weights, of the head's columns here.
Where the features come from a layer with nothing but batch norm, activations and pooling behind it, as in MobileNetV2,
that layer is cut too. Whether it may be is not read off the graph: the cut backbone is run, and kept if it gives the
same features.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import UserError
from tlresearch.data.values import Value, leaves, stack

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Pruned(NamedTuple):
    """A network with a smaller head.

    Attributes:
        network: Backbone and head.
        told: What was cut, in words.
    """

    network: nn.Sequential
    told: str


class _Chosen(nn.Module):
    """Some of the features ``(batch, features)``."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the features that are kept."""
        return features.index_select(1, self.kept)


def prune_head(network: nn.Sequential, share: float) -> Pruned:
    """Leaves out the input features of a linear head whose weights have the smallest norm.

    Args:
        network: Backbone, and a head with one linear layer; it is not changed.
        share: Share of the features that go, above 0 and below 1.

    Raises:
        UserError: If the head is no linear one, or the share out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"--prune-head must be above 0 and below 1 but got {share:g}")
    backbone, head = network[0], network[1]
    weighted = [layer for layer in head.modules() if not list(layer.children()) and list(layer.parameters())]
    if len(weighted) != 1 or not isinstance(linear := weighted[0], nn.Linear):
        raise UserError("--prune-head is for classifications, whose head is one linear layer")
    assert isinstance(backbone, StagedBackbone)
    width = linear.in_features
    marked = copy.deepcopy(linear)
    prune.ln_structured(marked, "weight", min(round(share * width), width - 1), n=2, dim=1)  # type: ignore[no-untyped-call]
    kept = marked.get_buffer("weight_mask")[0].nonzero()[:, 0]
    smaller = nn.Linear(len(kept), linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        smaller.weight.copy_(linear.weight[:, kept])
        if linear.bias is not None:
            smaller.bias.copy_(linear.bias)
    told = f"the head keeps {len(kept)} of {width} features"
    cut = _cut(backbone, width, kept)
    if cut is not None:
        return Pruned(nn.Sequential(cut[0], smaller).eval(), f"{told}, and {cut[1]} makes no others")
    whole = nn.Sequential(copy.deepcopy(backbone), nn.Sequential(_Chosen(kept), smaller))
    return Pruned(whole.eval(), f"{told}; the backbone still makes all, since what is in front of the head needs them")


@torch.no_grad()
def _cut(backbone: StagedBackbone, width: int, kept: Tensor) -> tuple[StagedBackbone, str] | None:
    """The backbone with a last layer that makes only some features, and that layer's name; ``None`` if it needs all."""
    smaller = copy.deepcopy(backbone).eval()
    behind: list[nn.Module] = []
    for name, layer in reversed(list(smaller.named_modules())):
        if isinstance(layer, _NORMS) and layer.num_features == width:
            behind.append(layer)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == width and layer.groups == 1:
            layer.out_channels = len(kept)
        elif isinstance(layer, nn.Linear) and layer.out_features == width:
            layer.out_features = len(kept)
        else:
            continue
        if behind and behind[-1] is layer:
            continue
        for part in (layer, *behind):
            _keep_rows(part, width, kept)
        inputs = _random(backbone)
        try:
            found = smaller(inputs)
        except (RuntimeError, ValueError):
            return None  # something else needs them all, such as a connection past the layer
        wanted = copy.deepcopy(backbone).eval()(inputs)[:, kept]
        same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
        # Names within a stage are those of the original network.
        return (smaller, name.split(".", 2)[-1]) if same else None
    return None


def _keep_rows(layer: nn.Module, width: int, kept: Tensor) -> None:
    """Keeps the rows of a layer's parameters and buffers that belong to kept features."""
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.ndim and len(tensor) == width:
            rows = tensor.detach()[kept].clone()
            setattr(layer, name, nn.Parameter(rows) if isinstance(tensor, nn.Parameter) else rows)
    if isinstance(layer, _NORMS):
        layer.num_features = len(kept)


def _random(backbone: StagedBackbone) -> Value:
    """A batch of two inputs that are not all alike."""
    example: Value = backbone.preprocessing.example()
    generator = torch.Generator().manual_seed(0)
    batch = stack([example, example])
    for leaf in leaves(batch).values():
        if leaf.is_floating_point():
            leaf.copy_(torch.randn(leaf.shape, generator=generator))
    return batch
