"""The same results and gradients as the network's own, at every boundary of its stages."""

from __future__ import annotations

import torch
from torch import nn

from tlresearch.backbones.base import StagedBackbone, unchanged
from tlresearch.backbones.recording import Drive
from tlresearch.backbones.structure import difference, total
from tlresearch.modality.values import Value, from_leaves, leaves


def assert_equal_at_every_boundary(network: nn.Module, drive: Drive, backbone: StagedBackbone, value: Value) -> None:
    """Runs up to each boundary and from there, as a frozen prefix and a trained suffix do."""
    network.train().eval()
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with unchanged(network):
        expected = drive(network, value)
    summed = total(expected, squared=True)
    assert summed is not None
    gradients = torch.autograd.grad(summed, list(named.values()), allow_unused=True)
    by_tensor = {
        id(parameter): (name, gradient) for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
    }
    for boundary in range(1, len(backbone.stages)):
        with torch.no_grad():
            entering = backbone.eval()(value, stop=boundary)
        entering = from_leaves({name: leaf.detach() for name, leaf in leaves(entering).items()})
        backbone.train().eval()  # some networks keep what they computed without a gradient until they train again
        result = backbone(entering, start=boundary)
        assert difference(result, leaves(expected)) is None, (boundary, difference(result, leaves(expected)))
        trained = [p for p in backbone.stages[boundary:].parameters() if p.requires_grad]
        summed = total(result, squared=True)
        reached = (
            torch.autograd.grad(summed, trained, allow_unused=True) if summed is not None else [None] * len(trained)
        )
        for parameter, gradient in zip(trained, reached, strict=True):
            name, right = by_tensor[id(parameter)]
            if right is None or gradient is None:
                empty = gradient if right is None else right
                assert empty is None or not empty.any(), (boundary, name)
            else:
                assert difference(gradient, {"value": right}, 1e-4) is None, (boundary, name)
