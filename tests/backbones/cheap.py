"""Networks filled with cheap deterministic values that neither vanish nor explode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision import models

from tlresearch.backbones.vision import SkipInit

SIZES = {
    "alexnet": 80,
    "inception_v3": 96,
    "googlenet": 48,
    "maxvit_t": 224,
    "efficientnet_v2_m": 64,
    "efficientnet_v2_l": 64,
}
"""Side of the smallest input, where 32 pixels are too few."""

BUILT_SMALLER = {"vit_b_16": 32, "vit_b_32": 64, "vit_l_16": 32, "vit_l_32": 64, "vit_h_14": 28}
"""Networks that take one input size only, and a smaller one to build them for."""


def torchvision_network(name: str) -> nn.Module:
    """Builds a network of torchvision without auxiliary heads."""
    arguments: dict[str, object] = {}
    if name in BUILT_SMALLER:
        arguments["image_size"] = BUILT_SMALLER[name]
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False}
    with SkipInit():
        network = models.get_model(name, weights=None, **arguments)
    assert isinstance(network, nn.Module)
    return fill(network)


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Fills every parameter and buffer with a pattern of prime length, scaled by what it is for."""
    pattern = torch.randn(10007, generator=torch.Generator().manual_seed(0))
    pattern -= pattern.mean()  # or a wide layer on positive inputs would be all negative
    norms: dict[str, bool] = {}
    for name, module in network.named_modules():
        for key, _ in module.named_parameters(recurse=False):
            norms[f"{name}.{key}".lstrip(".")] = "Norm" in type(module).__name__
    for index, (name, tensor) in enumerate((*network.named_parameters(), *network.named_buffers())):
        if not tensor.is_floating_point():
            continue
        values = pattern.roll(index)
        if name.endswith("running_var"):
            values = 1 + 0.2 * values.abs()
        elif norms.get(name) and name.endswith("weight"):
            values = 0.8 + 0.1 * values
        elif tensor.ndim < 2:
            values = 0.1 * values
        elif tensor.ndim in (2, 4):
            values = values * (1.6 / tensor[0].numel()) ** 0.5
        else:
            values = 0.3 * values
        _tile(tensor, values)
    return network


@torch.no_grad()
def calibrate(network: nn.Module, x: Tensor) -> None:
    """Sets the statistics of batch norm to those of `x`, so that no signal fades on its way; ends in eval mode."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    network(x)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_var is not None
        norm.running_var.clamp_(min=0.05)  # of very few values


def _tile(tensor: Tensor, values: Tensor) -> None:
    flat = tensor.view(-1)
    rows = flat.numel() // values.numel()
    flat[: rows * values.numel()].view(rows, values.numel()).copy_(values.expand(rows, -1))
    rest = flat[rows * values.numel() :]
    rest.copy_(values[: rest.numel()])


def images(count: int, side: int) -> Tensor:
    """Returns random images."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def without_head(network: nn.Module, head: str) -> nn.Module:
    """Replaces the head, and a dropout directly in front of it, by nothing."""
    parent, _, name = head.rpartition(".")
    container = network.get_submodule(parent)
    setattr(container, name, nn.Identity())
    if isinstance(container, nn.Sequential) and name.isdigit() and int(name) > 0:
        if isinstance(container[int(name) - 1], nn.Dropout):
            container[int(name) - 1] = nn.Identity()
    elif isinstance(getattr(network, "dropout", None), nn.Dropout):
        network.dropout = nn.Identity()
    return network


def run(stages: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Runs stages one after another; none may change what it was given, since that may lie in a cache."""
    for name, stage in stages.items():
        before, version = x, x._version
        x = stage(x)
        assert before._version == version, f"{name} changes its input in place"
    return x


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Asserts equality to 1e-5 of the largest value, for values that are worth comparing."""
    scale = expected.abs().max()
    assert torch.isfinite(scale)
    assert scale > 1e-6
    assert expected.std() > 1e-3 * scale
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * scale


def assert_covers(stages: Mapping[str, nn.Module], network: nn.Module, head: str | None) -> None:
    """Asserts that each parameter and buffer of `network` but the head's is in exactly one stage, by its name."""
    for kind in ("named_parameters", "named_buffers"):
        expected = {
            name: tensor.data_ptr()
            for name, tensor in getattr(network, kind)()
            if head is None or not name.startswith(f"{head}.")
        }
        found = [(name, tensor.data_ptr()) for stage in stages.values() for name, tensor in getattr(stage, kind)()]
        assert len(found) == len(expected)
        assert not any("_tensor_constant" in name for name, _ in found)
        assert dict(found) == expected
    states = [stage.state_dict() for stage in stages.values()]
    keys = [key for state in states for key in state]
    wanted = [key for key in network.state_dict() if head is None or not key.startswith(f"{head}.")]
    assert sorted(keys) == sorted(wanted)
