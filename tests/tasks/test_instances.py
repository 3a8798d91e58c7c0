"""Masks of single objects: where they come from, how they move, the head that learns them, and a whole run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.dense import instances_text, save_boxes, save_instances, shapes
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.vision import SkipInit
from tlresearch.base.errors import UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig, DataConfig, TaskConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.plane import CROWD
from tlresearch.modality.image import Preprocessing
from tlresearch.run.fit import fit
from tlresearch.tasks.detection import BoxMeters, DetectionTask, InstancesTask, box_pictures
from tlresearch.tasks.detectors import InstanceHead, mask_rcnn
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytest.importorskip("pycocotools", reason="the extra detection is not installed")
pytestmark = [
    pytest.mark.usefixtures("tables"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools' own
]
WANTED = Preprocessing(crop=64, resize=64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_instances(tmp_path_factory.mktemp("shapes"))


def build(root: Path, name: str = "instance_masks", **fields: object) -> Data:
    options = {"targets": "masks", **fields.pop("options", {})}  # type: ignore[dict-item]
    config = DataConfig(name=name, root=str(root), options=options, **fields)  # type: ignore[arg-type]
    return build_data(config, preprocessing=WANTED, seed=0)


def test_masks_are_framed_and_augmented_with_their_image(root: Path) -> None:
    data = build(root, augment="flip")
    train = data.splits["train"]
    assert data.kind == "instances"
    seen = set()
    for key in (SampleKey(index, epoch) for index in range(4) for epoch in range(4)):
        image, planes, _ = train[key]
        assert planes.shape == (2, 64, 64)
        square, disc = planes > 0
        assert image[:, square].mean() > 1  # bright
        assert image[:, disc].mean() < -1  # dark
        seen.add(float(square.nonzero()[:, 1].float().mean()) < 32)
    assert len(seen) == 2  # some are mirrored, some are not
    cut = build(root, augment="crop_flip").splits["train"]
    counts = {len(cut[SampleKey(index, epoch)][1]) for index in range(4) for epoch in range(4)}
    assert min(counts) < 2  # what lies outside of a crop is gone


def test_another_mask_is_another_data_set(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "shapes")
    before = build(tmp_path / "shapes").fingerprint.digest
    path = tmp_path / "shapes/PedMasks/0_mask.png"
    mask = np.array(Image.open(path))
    rows, columns = np.nonzero(mask == 1)
    mask[rows[len(rows) // 2], columns[len(rows) // 2]] = 0  # a hole: the box stays
    Image.fromarray(mask).save(path)
    assert build(tmp_path / "shapes").fingerprint.digest != before
    Image.fromarray(mask[:20]).save(path)
    with pytest.raises(UserError, match=r"0\.png: it is 32x32 but its mask is 32x20"):
        build(tmp_path / "shapes")


def test_coco_polygons_and_run_lengths(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "square"}, {"id": 7, "name": "disc"}]
    (tmp_path / "train").mkdir()
    for number in range(6):
        image, mask, (square, disc) = shapes(number)
        Image.fromarray(image).save(tmp_path / f"train/{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
        x0, y0, x1, y1 = square[1]
        coded = coco.encode(np.asfortranarray((mask == 2).astype(np.uint8)))
        runs = {"size": coded["size"], "counts": coded["counts"].decode()}
        outline: object = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        for category, box, segmentation in ((1, square[1], outline), (7, disc[1], runs)):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": number, "category_id": category, "bbox": xywh,
                 "segmentation": segmentation}
            )  # fmt: skip
    file = tmp_path / "train/_annotations.coco.json"
    file.write_text(json.dumps(content))
    train = build(tmp_path, "coco", image_size=32).splits["train"]
    number = int(Path(train.names[0]).stem)
    assert torch.equal(train.targets[0].amax(dim=0).byte(), torch.from_numpy(shapes(number)[1]))  # class + 1
    only = build(tmp_path, "coco", image_size=32, classes=["disc", "square"]).splits["train"].targets[0]
    assert sorted(only.flatten(1).amax(dim=1).tolist()) == [1, 2]
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"an object without a segmentation.*data\.options\.targets=boxes"):
        build(tmp_path, "coco")


def test_a_crowd_of_coco_has_a_mask_that_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    images, annotations = [], []
    for number in range(6):
        Image.fromarray(shapes(number)[0]).save(tmp_path / f"train/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
        crowd = {"size": [32, 32], "counts": [0, 320, 704]}  # the first ten columns
        outline = [[12, 4, 20, 4, 20, 12, 12, 12]]
        annotations += [
            {"image_id": number, "category_id": 1, "bbox": [0, 0, 10, 32], "segmentation": crowd, "iscrowd": 1},
            {"image_id": number, "category_id": 1, "bbox": [12, 4, 8, 8], "segmentation": outline},
        ]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(content))
    data = build(tmp_path, "coco", image_size=64, augment="flip")
    train = data.splits["train"]
    given = InstanceHead.as_given(None, train[SampleKey(0, 0)][1])  # type: ignore[arg-type]
    assert (given["marks"].tolist(), given["labels"].tolist()) == ([CROWD, 0], [0, 0])
    assert given["boxes"][0].tolist() in ([0, 0, 20, 64], [44, 0, 64, 64])
    assert given["masks"].sum(dim=(1, 2)).tolist() == [20 * 64, 16 * 16]
    head = mask_rcnn(maps_of(), 1, 64, width=16, anchor_scale=0.5)
    backbone = build_backbone(BackboneConfig(name="small_cnn", weights=None, options={"width": 4}), "maps")
    losses = head.losses(head(backbone(train[SampleKey(0, 0)][0][None])), [train[SampleKey(0, 0)][1]])
    assert all(bool(value.isfinite()) for value in losses.values())


def maps_of() -> Any:
    """Feature maps of the toy backbone."""
    backbone: Any = build_backbone(BackboneConfig(name="small_cnn", weights=None, options={"width": 4}), "maps")
    return backbone.maps


def test_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.options\.targets: voc has boxes only; masks need coco or instance_mas"):
        build(save_boxes(tmp_path), "voc")
    with pytest.raises(UserError, match=r"data\.options\.targets: unknown 'mask'; choose from boxes, masks"):
        build(root, options={"targets": "mask"})
    with pytest.raises(UserError, match=r"instances learns instances targets, but those of .* are boxes"):
        fit(load_text(instances_text(root).replace("targets: masks", "targets: boxes")))
    with pytest.raises(UserError, match=r"task\.options\.detector: unknown 'fcos'; choose from mask_rcnn"):
        fit(load_text(instances_text(root, task="{name: instances, options: {detector: fcos}}")))


def test_a_head_learns_the_masks_of_its_samples(root: Path) -> None:
    torch.manual_seed(0)
    train = build(root).splits["train"]
    image, planes, _ = train[SampleKey(0, 0)]
    backbone = build_backbone(BackboneConfig(name="small_cnn", weights=None, options={"width": 4}), "maps")
    maps = {name: leaf.detach() for name, leaf in backbone(image[None]).items()}
    head = mask_rcnn(backbone.maps, 1, 64, width=16, anchor_scale=0.5)  # type: ignore[union-attr]
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        losses = head.losses(head(maps), [planes])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append(float(losses["loss_mask"].detach()))
    assert min(history[-5:]) < 0.6 * history[0]
    found = head.eval().detections(head(maps))[0]
    assert found["masks"].shape == (len(found["scores"]), 64, 64)
    assert found["masks"].dtype == torch.bool
    empty = head.losses(head(maps), [planes[:0]])  # an image without an object
    assert all(bool(value.isfinite()) for value in empty.values())


def test_masks_are_counted_by_their_own_overlap() -> None:
    plane = torch.zeros(1, 20, 20, dtype=torch.bool)
    plane[:, 5:15, 5:15] = True
    hollow = plane.clone()
    hollow[:, 6:14, 6:14] = False  # the same box, but 36 of 100 pixels
    given = InstanceHead.as_given(None, plane.to(torch.uint8))  # type: ignore[arg-type]
    assert given["boxes"].tolist() == [[5, 5, 15, 15]]
    meters = BoxMeters(("object",), masks=True)
    found = {"boxes": given["boxes"], "labels": given["labels"], "scores": torch.tensor([0.9]), "masks": hollow}
    meters.update([found], [given], torch.tensor(1.0))
    values = meters.finish()
    assert (values["map"], values["mask_map"], values["mask_map_object"]) == (1.0, 0.0, 0.0)


def test_torchvisions_own_head_keeps_its_masks_only_for_this_task() -> None:
    sized = Preprocessing(crop=64, resize=None)
    with SkipInit():
        backbone = build_backbone(BackboneConfig(name="torchvision/maskrcnn_resnet50_fpn", weights=None), "maps")
        head = InstancesTask.build_head(TaskConfig(name="instances"), backbone, ("a", "b"), sized)
        boxes = DetectionTask.build_head(TaskConfig(name="detection"), backbone, ("a", "b"), sized)
    assert isinstance(head, InstanceHead)
    assert head.detector.roi_heads.mask_head is not None  # type: ignore[union-attr]
    assert boxes.detector.roi_heads.mask_head is None  # type: ignore[union-attr]


def test_a_cached_run_equals_the_uncached_one_and_serves_masks(root: Path) -> None:
    probe = "{schedule: depth, unfreeze_depth: 1, epochs: 1}"
    tracking = "{system_metrics: false}"
    cached = fit(load_text(instances_text(root, freeze=probe, tracking=tracking)))
    plain = fit(load_text(instances_text(root, freeze=probe, cache="{enabled: false}")))
    assert cached.history[0] == pytest.approx(plain.history[0], abs=1e-4, nan_ok=True)
    assert {"val/map", "val/mask_map", "val/mask_map_50", "val/mask_recall"} <= cached.history[0].keys()
    assert "test/mask_map" in cached.metrics
    figures = {item.path for item in connect().client.list_artifacts(cached.run_id, "figures")}
    assert "figures/detections.png" in figures
    model = Runs().get(cached.run_id).model_id
    answer = load_model(connect(), model).predict([np.kron(shapes(0)[0], np.ones((2, 2, 1))).astype(np.uint8)[:, :48]])
    assert list(answer.columns) == ["boxes", "classes", "scores", "mask"]
    mask = np.array(answer["mask"][0])
    assert mask.shape == (64, 48)  # of the image
    assert mask.max() <= len(answer["boxes"][0])


def test_an_image_without_objects_stays(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "shapes")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "shapes/PedMasks/0_mask.png")
    data = build(tmp_path / "shapes", augment="flip")
    empty = [
        part[SampleKey(index, 0)][1]
        for part in data.splits.values()
        for index in range(len(part))
        if part.names[index].endswith("/0.png")
    ]
    assert [tuple(planes.shape) for planes in empty] == [(0, 64, 64)]


def test_masks_are_laid_over_the_picture() -> None:
    mask = torch.zeros(20, 20, dtype=torch.int64)
    mask[4:8, 4:8] = 2
    row = {"boxes": [[0, 0, 20, 20], [3, 3, 9, 9]], "classes": ["a", "b"], "scores": [0.2, 0.9], "mask": mask.tolist()}
    grey = torch.full((3, 20, 20), 128, dtype=torch.uint8)
    drawn = np.asarray(box_pictures(grey, row, ["a", "b"])["overlay"])
    assert (drawn[5:7, 5:7] != 128).any(axis=-1).all()  # inside of the box, where the object is
    assert (drawn[15:, 15:] == 128).all()
