"""Detection: heads of every kind, metrics against known values, and runs that learn and are cached."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.dense import boxes_text, save_boxes, shapes
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.plane import CROWD, DIFFICULT
from tlresearch.run.fit import fit
from tlresearch.tasks import detection
from tlresearch.tasks.detection import BoxMeters
from tlresearch.tasks.detectors import DETECTORS, DetectionHead, native
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytest.importorskip("pycocotools", reason="the extra detection is not installed")
TARGETS = [torch.tensor([[8.0, 8, 40, 40, 0], [30, 20, 60, 62, 2]]), torch.zeros(0, 5)]


pytestmark = pytest.mark.usefixtures("tables")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_boxes(tmp_path_factory.mktemp("shapes"))


def maps_and_head(name: str) -> tuple[dict[str, Tensor], DetectionHead]:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="small_cnn", weights=None), "maps")
    head = DETECTORS[name](backbone.maps, 3, 64, width=32, anchor_scale=0.5)
    return backbone(torch.rand(2, 3, 64, 64)), head


@pytest.mark.parametrize("name", DETECTORS)
def test_heads_give_losses_and_detections_in_either_mode(name: str) -> None:
    maps, head = maps_and_head(name)
    for training in (True, False):
        head.train(training)
        pyramid = head(maps)
        losses = head.losses(pyramid, TARGETS)
        assert sum(losses.values()).isfinite()  # type: ignore[union-attr]
        assert head.detector.training is training
        for found in head.detections(pyramid):
            assert found["boxes"].shape == (len(found["scores"]), 4)
            assert len(found["labels"]) == 0 or 0 <= int(found["labels"].min()) <= int(found["labels"].max()) < 3
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= 64).all()
    sum(head.losses(head.train()(maps), TARGETS).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in head.parameters())


def test_a_head_learns_the_boxes_of_its_samples() -> None:
    maps, head = maps_and_head("fcos")
    maps = {name: leaf.detach() for name, leaf in maps.items()}
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head.losses(head(maps), TARGETS).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    found = head.eval().detections(head(maps))[0]
    for box in TARGETS[0]:
        same = found["labels"] == int(box[4])
        assert (found["boxes"][same] - box[:4]).abs().amax(dim=1).min() < 6  # and under its own class number


def test_a_torchvision_detectors_own_head_takes_its_necks_maps() -> None:
    backbone = build_backbone(
        BackboneConfig(name="torchvision/ssdlite320_mobilenet_v3_large", weights=None), "maps"
    ).eval()
    head = native(backbone.native_head(3), 320).eval()  # type: ignore[operator, misc]
    with torch.no_grad():
        pyramid = head(backbone(torch.rand(1, 3, 320, 320)))
        assert sum(head.losses(pyramid, [TARGETS[0]]).values()) > 0
        assert len(head.detections(pyramid)) == 1


def test_metrics_of_a_split_by_hand() -> None:
    meters = BoxMeters(("a", "b b", "c"))
    boxes = torch.tensor([[0.0, 0, 10, 10, 0], [20, 20, 40, 40, 1]])
    exact = {"boxes": boxes[:1, :4], "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    given = {"boxes": boxes[:, :4], "labels": boxes[:, 4].long()}
    meters.update([exact], [given], torch.tensor(2.0))
    found = meters.finish()
    # Class a is found exactly, class b b is missed, and class c is not there.
    assert (found["map_a"], found["map_b_b"], found["loss"]) == (1.0, 0.0, 2.0)
    assert found["map"] == found["map_50"] == found["recall"] == 0.5
    assert math.isnan(found["map_c"])
    # Overlap 10*12 of a box 10*10 in one of 10*12 is 0.83: counted from 0.5 to 0.8, 7 of 10 thresholds.
    wider = {**exact, "boxes": torch.tensor([[0.0, 0, 10, 12]])}
    first = {name: leaf[:1] for name, leaf in given.items()}
    meters.update([wider], [first], torch.tensor(1.0))
    found = meters.finish()
    assert found["map"] == pytest.approx(0.7)
    assert found["map_75"] == 1.0
    none = {name: leaf[:0] for name, leaf in given.items()}
    meters.update([{name: leaf[:0] for name, leaf in exact.items()}], [none], torch.tensor(1.0))
    assert math.isnan(meters.finish()["map"])  # nothing there, nothing found


def detections(*boxes: list[float]) -> dict[str, Tensor]:
    """Boxes found, the surest first, all of class 0."""
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }


def judged(found: dict[str, Tensor], *marked: tuple[list[float], int]) -> dict[str, float]:
    """Metrics of one image with an object at 0, 0, 10, 10 and marked ones."""
    head = maps_and_head("fcos")[1]
    rows = [[0.0, 0, 10, 10, 0, 0], *([*box, 0, mark] for box, mark in marked)]
    meters = BoxMeters(("a",))
    meters.update([found], [head.as_given(torch.tensor(rows))], torch.tensor(1.0))
    return meters.finish()


FAR: list[float] = [30.0, 30, 50, 50]


def test_a_difficult_object_counts_neither_for_nor_against_a_detector() -> None:
    alone, right = judged(detections([0, 0, 10, 10])), detections([0, 0, 10, 10])
    assert alone["map"] == alone["recall"] == 1.0
    assert judged(right, (FAR, DIFFICULT)) == alone  # it is missed
    # It is found, twice, with more certainty than the other one.
    assert judged(detections(FAR, [30, 30, 50, 49], [0, 0, 10, 10]), (FAR, DIFFICULT)) == alone
    assert judged(detections(FAR, [0, 0, 10, 10]))["map"] == 0.5  # what is found elsewhere is wrong
    part = detections([30, 30, 36, 36], [0, 0, 10, 10])  # of the difficult object: found wrongly
    assert judged(part, (FAR, DIFFICULT))["map"] == 0.5
    assert judged(part, (FAR, CROWD)) == alone  # of a crowd: any of its members


def test_a_class_with_nothing_but_difficult_objects_has_no_precision() -> None:
    head = maps_and_head("fcos")[1]
    meters = BoxMeters(("a", "b"))
    target = torch.tensor([[0.0, 0, 10, 10, 0, 0], [*FAR, 1, DIFFICULT]])
    meters.update([detections([0, 0, 10, 10])], [head.as_given(target)], torch.tensor(1.0))
    values = meters.finish()
    assert (values["map"], values["map_a"]) == (1.0, 1.0)
    assert math.isnan(values["map_b"])


def test_marks_change_nothing_where_there_are_none() -> None:
    for name in DETECTORS:
        maps, head = maps_and_head(name)
        pyramid = head.train()(maps)
        losses = []
        for targets in (TARGETS, [torch.cat([boxes, torch.zeros(len(boxes), 1)], dim=1) for boxes in TARGETS]):
            torch.manual_seed(1)
            losses.append({key: float(value.detach()) for key, value in head.losses(pyramid, targets).items()})
        assert losses[0] == losses[1]
        assert "compute_loss" not in vars(head.detector)


def test_a_cached_run_equals_the_uncached_one_and_records_boxes(root: Path) -> None:
    probe = "{schedule: depth, unfreeze_depth: 1, epochs: 2}"
    cached = fit(load_text(boxes_text(root, freeze=probe, tracking="{model: false, system_metrics: false}")))
    plain = fit(load_text(boxes_text(root, freeze=probe, cache="{enabled: false}")))
    for one, other in zip(cached.history, plain.history, strict=True):
        assert one == pytest.approx(other, abs=1e-4, nan_ok=True)
    assert {"val/map", "val/map_50", "val/recall", "val/map_disc", "train/loss"} <= cached.history[0].keys()
    assert cached.history[1]["train/loss"] < cached.history[0]["train/loss"]
    assert "test/map" in cached.metrics
    figures = {item.path for item in connect().client.list_artifacts(cached.run_id, "figures")}
    assert "figures/detections.png" in figures


def test_looking_at_validation_does_not_move_training(root: Path) -> None:
    # Faster R-CNN draws which boxes it learns from, in the loss of evaluation too.
    text = boxes_text(root, task="{name: detection, options: {width: 8}}", freeze="{schedule: linear_probe, epochs: 1}")
    config = load_text(text)
    task = fit(config).task
    maps = task.detector(task.backbone(torch.rand(2, 3, 32, 32)))  # type: ignore[operator]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    task.eval()
    targets = [boxes.clamp(max=torch.tensor([64.0, 64, 64, 64, 1])) for boxes in TARGETS]  # of two classes
    first = task.loss(maps, targets)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(task.loss(maps, targets), first)


def test_mistakes_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"task.options.detector: unknown 'fcoss' \(did you mean 'fcos'\?\)"):
        fit(load_text(boxes_text(root, task="{name: detection, options: {detector: fcoss}}")))
    with pytest.raises(UserError, match=r"task.options.width: fcos normalises in 32 groups: take a multiple of 32"):
        fit(load_text(boxes_text(root, task="{name: detection, options: {detector: fcos, width: 24}}")))
    monkeypatch.setattr(detection, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pycocotools is not installed: .*tlresearch\[detection\]"):
        fit(load_text(boxes_text(root)))


def test_the_logged_model_predicts_boxes_in_pixels_of_the_image(root: Path) -> None:
    tracking = "{figures: false, system_metrics: false}"
    text = boxes_text(root, freeze="{schedule: full, epochs: 1}", tracking=tracking)
    result = fit(load_text(text.replace("detector: fcos", "detector: ssd")))
    model = Runs().get(result.run_id).model_id
    large = np.kron(shapes(0)[0], np.ones((2, 2, 1))).astype(np.uint8)
    answer = load_model(connect(), model).predict([large[:, :48]])
    assert list(answer.columns) == ["boxes", "classes", "scores"]
    boxes = np.array(answer["boxes"][0])
    assert len(boxes) == len(answer["scores"][0])
    assert boxes.max() > 33  # not in pixels of the input, which has 32
    assert (boxes[:, 0::2] <= 48).all()
    assert (boxes[:, 1::2] <= 64).all()
    assert set(answer["classes"][0]) <= {"square", "disc"}


def test_gradients_are_clipped_under_autocast_too(root: Path) -> None:
    trainer = "{precision: bf16-mixed, memory_format: contiguous, gradient_clip: 1.0, monitor: val/map}"
    result = fit(load_text(boxes_text(root, freeze="{schedule: full, epochs: 1}", trainer=trainer)))
    assert math.isfinite(result.history[0]["train/loss"])
