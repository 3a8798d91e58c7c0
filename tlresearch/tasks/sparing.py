"""Objects that are neither right nor wrong, in training: no detector learns that they are background."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_area

from tlresearch.data.plane import CROWD

_ON = 0.4
"""Overlap with an object that is neither right nor wrong from which a candidate is no background.

Between the 0.3 and 0.5 below which torchvision's detectors take a candidate as background.
"""
_ASSIGNMENTS = (("rpn", "assign_targets_to_anchors", 0), ("roi_heads", "assign_targets_to_proposals", 1))
"""Parts of a detector of two stages, their methods that label candidates, and which of their answers are the labels."""
_CERTAIN = -100.0
"""Score of a class that is certainly not there: its loss and the gradient of that are 0."""


@contextlib.contextmanager
def sparing(detector: nn.Module, targets: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
    """Keeps candidates on objects that are neither right nor wrong out of a detector's losses, as long as it lasts.

    Candidates are anchors and proposals. Those that the detector gives to an object still count for that. A detector
    that matches what it has found instead, as YOLOS does, learns such objects as background.

    Args:
        detector: A detector of torchvision.
        targets: For each image ``boxes`` and ``marks``.
    """
    if not any(target["marks"].any() for target in targets):
        yield
        return
    marked = [(target["boxes"][target["marks"] > 0], target["marks"][target["marks"] > 0]) for target in targets]

    def on_marked(number: int, candidates: Tensor) -> Tensor:
        boxes, marks = marked[number]
        if not len(boxes):
            return torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
        # The anchors of FCOS are points: what counts is whether they lie in a box.
        inside = (marks == CROWD) | isinstance(detector, FCOS)
        return _overlap(candidates, boxes, inside).amax(dim=1) >= _ON

    with contextlib.ExitStack() as changed:
        dense = next(
            (part for part in (getattr(detector, "head", None), detector) if hasattr(part, "compute_loss")), None
        )
        if dense is not None:
            loss: Any = dense.compute_loss

            def spared_loss(targets: Any, outputs: dict[str, Tensor], anchors: Any, matched: list[Tensor]) -> Any:
                spared = torch.stack([on_marked(n, a) & (matched[n] < 0) for n, a in enumerate(anchors)])
                certain = torch.full_like(outputs["cls_logits"], _CERTAIN)
                if isinstance(detector, SSD):
                    certain[..., 0] = 0.0  # the class of the background
                scores = torch.where(spared[..., None], certain, outputs["cls_logits"])
                return loss(targets, {**outputs, "cls_logits": scores}, anchors, matched)

            changed.enter_context(_replaced(dense, "compute_loss", spared_loss))
        for name, method, place in _ASSIGNMENTS:
            part: Any = getattr(detector, name, None)
            if part is not None:
                spared = _spared_assignment(getattr(part, method), place, on_marked)
                changed.enter_context(_replaced(part, method, spared))
        yield


def _spared_assignment(
    assign: Callable[..., Any], place: int, on_marked: Callable[[int, Tensor], Tensor]
) -> Callable[..., Any]:
    """Wraps a method that gives candidates their labels: 0 is background, and the sampler passes -1 by."""

    def spared(candidates: list[Tensor], *targets: Any) -> Any:
        answer = assign(candidates, *targets)
        for number, labels in enumerate(answer[place]):
            labels[on_marked(number, candidates[number]) & (labels == 0)] = -1
        return answer

    return spared


def _overlap(candidates: Tensor, boxes: Tensor, inside: Tensor) -> Tensor:
    """Overlap of candidates with boxes ``(candidates, boxes)``: over their union, or over the candidate if `inside`."""
    low = torch.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    own = box_area(candidates)[:, None]
    return shared / torch.where(inside, own, own + box_area(boxes) - shared).clamp(min=1e-6)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Puts another method in place of one of an object's."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
