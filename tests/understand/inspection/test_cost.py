"""Multiply-adds are those that can be counted by hand; memory grows with depth and is what autograd keeps."""

from __future__ import annotations

import torch
from torch import nn

from tests.toy import toy_backbone
from tlresearch.backbones.base import StagedBackbone
from tlresearch.finetuning.param_groups import digests
from tlresearch.modality.image import Preprocessing
from tlresearch.understand.inspection.cost import depth_costs, multiply_adds

FLOAT = 4


def linear_backbone() -> StagedBackbone:
    """5 -> 7 -> 3 with a ReLU between: everything about it is known."""
    stages = {"first": nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.ReLU()), "second": nn.Linear(7, 3)}
    return StagedBackbone(stages, out_features=3, preprocessing=Preprocessing(crop=None, resize=None))


def test_multiply_adds_of_linear_layers_and_convolutions() -> None:
    assert multiply_adds(linear_backbone(), torch.zeros(5)) == [5 * 7, 7 * 3]
    toy = [16 * 9 * 1 * 4, 16 * 9 * 4 * 4, 16 * 4 * 6]  # positions x kernel x channels in x channels out
    assert multiply_adds(toy_backbone(), torch.zeros(1, 4, 4)) == toy


def test_memory_at_each_depth() -> None:
    backbone = linear_backbone()
    head, last, everything = depth_costs(backbone, torch.zeros(5), state_values=2)
    weights = 5 * 7 + 7 + 7 * 3 + 3
    assert (head.activations, head.gradients, head.state, head.weights) == (0, 0, 0, weights * FLOAT)
    # The second layer keeps its input; the first one too, and the ReLU its output, which is the same tensor.
    assert last.activations == 7 * FLOAT
    assert everything.activations == (5 + 7) * FLOAT
    assert (last.gradients, last.state) == (24 * FLOAT, 48 * FLOAT)
    assert everything.total(10) == everything.weights * 4 + 10 * everything.activations


def test_looking_changes_nothing() -> None:
    backbone = toy_backbone()
    before, state = digests(iter(backbone.state_dict().items())), torch.random.get_rng_state()
    backbone.eval()
    costs = depth_costs(backbone, torch.zeros(1, 4, 4), state_values=1)
    assert digests(iter(backbone.state_dict().items())) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not backbone.training
    kept = [cost.activations for cost in costs]
    assert kept == sorted(kept)
    assert kept[-1] > kept[1] > 0
