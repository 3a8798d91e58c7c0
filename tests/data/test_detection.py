"""Images with boxes: VOC, COCO and instance masks say the same; boxes move with their image."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.annotations import to_boxes
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.modality.image import Preprocessing

HEIGHT, WIDTH = 20, 40
BOXES = {
    "a": [("dog", (4, 2, 12, 10)), ("cat", (20, 5, 36, 17))],
    "b": [("cat", (0, 0, 8, 8))],
    "c": [],
    "d": [("dog", (10, 10, 30, 16))],
}


def picture(objects: Any) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for _, (x0, y0, x1, y1) in objects:
        pixels[y0:y1, x0:x1] = 255
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for stem, objects in BOXES.items():
        save(tmp_path / f"JPEGImages/{stem}.png", picture(objects))
        each = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for name, b in objects
        )
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{stem}.xml").write_text(f"<annotation>{each}</annotation>")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c -1\nd 1\n")
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, stems in (("train", "ab"), ("valid", "cd")):
        images, annotations = [], []
        for number, stem in enumerate(stems):
            save(tmp_path / part / f"{stem}.png", picture(BOXES[stem]))
            images.append({"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH})
            for name, (x0, y0, x1, y1) in BOXES[stem]:
                category = {"cat": 3, "dog": 7}[name]
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append({"image_id": number, "category_id": category, "bbox": box, "iscrowd": 0})
        annotations.append({"image_id": 0, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
        categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
    return tmp_path


def build(name: str, root: Path, *, side: int = 40, **settings: Any) -> Data:
    config = DataConfig(name=name, root=str(root), image_size=side, **settings)
    return build_data(config, preprocessing=Preprocessing(32, 32), seed=0)


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_both_formats_say_the_same(name: str, request: pytest.FixtureRequest) -> None:
    data = build(name, request.getfixturevalue(name))
    assert (data.kind, data.classes) == ("boxes", ("cat", "dog"))
    found = {
        Path(n).stem: split.targets[i].tolist() for split in data.splits.values() for i, n in enumerate(split.names)
    }
    expected = {s: [[*box, float(n == "dog")] for n, box in objects] for s, objects in BOXES.items()}
    assert found == expected
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 2, "val": 2}


def test_masks_with_a_number_per_object(tmp_path: Path) -> None:
    for stem, objects in BOXES.items():
        save(tmp_path / f"PNGImages/{stem}.png", picture(objects))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for number, (_, (x0, y0, x1, y1)) in enumerate(objects, start=1):
            mask[y0:y1, x0:x1] = number
        save(tmp_path / f"PedMasks/{stem}_mask.png", mask)
    data = build("instance_masks", tmp_path, options={"name": "person"})
    assert data.classes == ("person",)
    found = {
        Path(n).stem: split.targets[i][:, :4].tolist()
        for split in data.splits.values()
        for i, n in enumerate(split.names)
    }
    assert found == {stem: [list(map(float, box)) for _, box in objects] for stem, objects in BOXES.items()}


def test_boxes_are_scaled_with_their_image(voc: Path) -> None:
    image, target, _ = build("voc", voc, side=80).splits["train"][SampleKey(0, 0)]
    assert target[0].tolist() == [8.0, 4.0, 24.0, 20.0, 1.0]
    white = image[0] > 1
    assert white[5:19, 9:23].all()  # the letterbox fills up below: 80 x 40 pixels are the image
    assert not white[:, 30:36].any()
    stretched = build("voc", voc, side=80, options={"fit": "stretch"}).splits["train"][SampleKey(0, 0)][1]
    assert stretched[0].tolist() == [8.0, 8.0, 24.0, 40.0, 1.0]


@pytest.mark.parametrize("augment", ["flip", "crop_flip"])
def test_boxes_move_with_their_image(voc: Path, augment: str) -> None:
    split = build("voc", voc, side=80, augment=augment).splits["train"]
    moved = set()
    for epoch in range(12):
        image, target, _ = split[SampleKey(1, epoch)]
        white = image[0] > 1
        moved.add(tuple(target.flatten().tolist()))
        for x0, y0, x1, y1, number in target.tolist():
            assert number == 0
            assert white[round(y0 + 2) : round(y1 - 2), round(x0 + 2) : round(x1 - 2)].all()
        assert len(target) or not white.any() or white.sum() < 200
    assert len(moved) > 1


def test_boxes_without_area_are_left_out_and_counted(voc: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes, empty = to_boxes([("cat", (1, 1, 1, 5)), ("cat", (0, 0, 2, 2)), ("cow", (0, 0, 1, 1))], ["cat"])
    assert (boxes.tolist(), empty) == ([[0.0, 0.0, 2.0, 2.0, 0.0]], 1)
    text = (voc / "Annotations/d.xml").read_text()
    (voc / "Annotations/d.xml").write_text(text.replace("<xmin>10<", "<xmin>30<"))
    (voc / "Annotations/a.xml").write_text((voc / "Annotations/a.xml").read_text().replace("<xmax>36<", "<xmax>99<"))
    with caplog.at_level(logging.WARNING):
        data = build("voc", voc)
    assert "1 boxes without area and 0 crowd regions are left out" in caplog.text
    assert data.splits["train"].targets[0][1].tolist() == [20.0, 5.0, 40.0, 17.0, 0.0]  # clipped to the image


def test_only_the_wanted_classes(voc: Path) -> None:
    data = build("voc", voc, classes=["dog"])
    assert data.classes == ("dog",)
    assert [len(data.splits["train"].targets[i]) for i in (0, 1)] == [1, 0]
    with pytest.raises(DataError, match=r"data.classes: unknown to .*'dogs' \(did you mean 'dog'\?\)"):
        build("voc", voc, classes=["dogs"])


def test_an_endless_value_is_not_repeated_in_full(voc: Path) -> None:
    file = voc / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("<xmin>", f"<xmin>{'[' * 5000}", 1))
    with pytest.raises(DataError, match=r"its annotation b.xml cannot be read: could not convert") as caught:
        build("voc", voc)
    assert len(str(caught.value)) < 1000


def test_mistakes_are_named(voc: Path) -> None:
    (voc / "Annotations/b.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"JPEGImages/b.png: its annotation b.xml cannot be read"):
        build("voc", voc)
    assert set(build("voc", voc, on_error="skip").skipped) == {"JPEGImages/b.png"}
    with pytest.raises(DataError, match=r"no folder 'Labels'; name it by data.options.annotations"):
        build("voc", voc, options={"annotations": "Labels"})
    with pytest.raises(DataError, match=r"data.options.annotations: name COCO's JSON files"):
        build("coco", voc)
    (voc / "x.json").write_text("{}")
    with pytest.raises(DataError, match="is not in COCO's format: KeyError"):
        build("coco", voc, options={"annotations": "x.json"})


def test_real_blood_cells(real: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    data = build("voc", Path(real("bccd")), side=64)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 205, "val": 87, "test": 72}
    boxes = torch.cat([boxes for split in data.splits.values() for boxes in split.targets])
    assert len(boxes) == 4886
    assert "2 boxes without area" in caplog.text
    counts = dict(zip(data.classes, boxes[:, 4].long().bincount().tolist(), strict=True))
    assert counts["RBC"] > 4100
    assert ((boxes[:, 2:4] - boxes[:, :2]) > 0).all()
