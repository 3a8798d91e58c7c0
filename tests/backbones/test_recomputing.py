"""Gradient checkpointing: the same bits, and less that is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.finetuning.test_callback import make_phase, make_schedule, make_task, train
from tests.toy import toy_backbone
from tlresearch.backbones.recomputing import recomputed


@pytest.mark.parametrize("schedule", ["full", "lp_ft", "frozen in between"])
def test_training_is_the_same_to_the_bit(schedule: str) -> None:
    """With batch norm in train mode, whose statistics move once per batch, and dropout, which is drawn once."""
    phases = {
        "full": [make_phase(3, 2)],
        "lp_ft": [make_phase(0), make_phase(3)],
        "frozen in between": [make_phase(0, stages=(0, 2)), make_phase(1, frozen_norm="train")],
    }[schedule]
    found = []
    for recomputing in (False, True):
        backbone = toy_backbone()
        backbone.recomputing = recomputing
        task = make_task("adamw", backbone=backbone)
        plan = train(task, make_schedule(*phases))
        found.append((plan.history, {name: tensor.clone() for name, tensor in task.state_dict().items()}))
    assert found[0][0] == found[1][0]
    for name, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][name]), name


def kept(recomputing: bool) -> list[tuple[int, ...]]:
    """Shapes of what is kept for the backward pass."""
    backbone = toy_backbone()
    backbone.recomputing = recomputing
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        backbone(torch.ones(64, 1, 4, 4)).sum()
    return shapes


def test_what_stages_compute_on_their_way_is_not_kept() -> None:
    assert kept(True) == [(64, 1, 4, 4), (64, 4, 4, 4), (64, 4, 4, 4)]
    assert len(kept(False)) > 20


class Counting(nn.Module):
    """Counts its calls in a buffer, and stays in a graph."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(()))
        self.ran = 0

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        self.ran += 1
        self.calls += 1
        return {"hidden": (self.weight * x["hidden"]).exp(), "mask": x["mask"]}


def test_buffers_are_written_once_and_a_value_of_several_tensors_passes() -> None:
    stage = Counting()
    out = recomputed(stage, stage, {"hidden": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool)})
    out["hidden"].sum().backward()
    assert (stage.ran, int(stage.calls)) == (2, 1)
    assert stage.weight.grad is not None
    assert stage.weight.grad.item() == pytest.approx(2 * torch.e)
