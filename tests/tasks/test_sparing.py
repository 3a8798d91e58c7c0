"""What detectors learn of objects that are neither right nor wrong: nothing, where they would learn background."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.plane import CROWD, DIFFICULT
from tlresearch.tasks.detectors import DETECTORS
from tlresearch.tasks.sparing import sparing

REAL, MARKED, ELSEWHERE = [4.0, 4, 20, 20], [30.0, 30, 60, 60], [4.0, 40, 20, 60]
PART = [32.0, 32, 40, 40]
"""Of the marked object: a tenth of it, all inside."""
CANDIDATES = torch.tensor([REAL, MARKED, ELSEWHERE, PART])


def detector(name: str) -> Any:
    torch.manual_seed(0)
    backbone: Any = build_backbone(BackboneConfig(name="small_cnn", weights=None), "maps")
    return DETECTORS[name](backbone.maps, 2, 64, width=32, anchor_scale=0.5).detector


def target(mark: int) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([REAL, MARKED]), "marks": torch.tensor([0, mark])}


LEARNT = [{"boxes": torch.tensor([REAL]), "labels": torch.tensor([1])}]


@pytest.mark.parametrize("mark", [0, DIFFICULT, CROWD])
@pytest.mark.parametrize("name", ["retinanet", "fcos", "ssd"])
def test_scores_on_a_marked_object_are_not_pulled_at(name: str, mark: int) -> None:
    whole = detector(name)
    scores = torch.zeros(1, 4, 3, requires_grad=True)
    outputs = {"cls_logits": scores, "bbox_regression": torch.zeros(1, 4, 4), "bbox_ctrness": torch.zeros(1, 4, 1)}
    matched = [torch.tensor([0, -1, -1, -1])]
    with sparing(whole, [target(mark)]):
        losses = (whole if name == "ssd" else whole.head).compute_loss(LEARNT, outputs, [CANDIDATES], matched)
    (gradient,) = torch.autograd.grad(losses["classification"], scores)
    pulled = gradient[0].abs().sum(dim=1) > 0
    # The anchors of FCOS are points: each that lies in the object is spared.
    part = mark == CROWD or (mark == DIFFICULT and name == "fcos")
    assert pulled.tolist() == [True, mark == 0, True, not part]


@pytest.mark.parametrize("mark", [0, DIFFICULT, CROWD])
def test_candidates_on_a_marked_object_are_not_drawn_as_background(mark: int) -> None:
    whole = detector("faster_rcnn")
    with sparing(whole, [target(mark)]):
        anchors, _ = whole.rpn.assign_targets_to_anchors([CANDIDATES], LEARNT)
        _, proposals = whole.roi_heads.assign_targets_to_proposals([CANDIDATES], [LEARNT[0]["boxes"]], [torch.ones(1)])
    spared = [1, -1 if mark else 0, 0, -1 if mark == CROWD else 0]
    assert (anchors[0].tolist(), proposals[0].tolist()) == (spared, spared)
    after, _ = whole.rpn.assign_targets_to_anchors([CANDIDATES], LEARNT)
    assert after[0].tolist() == [1, 0, 0, 0]  # it is as it was
    assert not {"compute_loss", "assign_targets_to_anchors"} & {*vars(whole), *vars(whole.rpn), *vars(whole.roi_heads)}


@pytest.mark.parametrize("name", DETECTORS)
def test_an_image_with_nothing_but_marked_objects_is_learnt_from(name: str) -> None:
    backbone: Any = build_backbone(BackboneConfig(name="small_cnn", weights=None), "maps")
    head = DETECTORS[name](backbone.maps, 2, 64, width=32, anchor_scale=0.5)
    maps = head(backbone(torch.rand(2, 3, 64, 64)))
    marked = [torch.tensor([[*MARKED, 1, DIFFICULT]]), torch.tensor([[*REAL, 0, 0], [*MARKED, 1, CROWD]])]
    losses = head.losses(maps, marked)
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
