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
from tlresearch.data.annotations import Object, to_boxes
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
        Path(n).stem: [row[:5] for row in split.targets[i].tolist() if row[5:] in ([], [0.0])]
        for split in data.splits.values()
        for i, n in enumerate(split.names)
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
    objects = [Object("cat", (1, 1, 1, 5)), Object("cat", (0, 0, 2, 2)), Object("cow", (0, 0, 1, 1))]
    boxes, empty = to_boxes(objects, ["cat"])
    assert (boxes.tolist(), empty) == ([[0.0, 0.0, 2.0, 2.0, 0.0]], 1)
    text = (voc / "Annotations/d.xml").read_text()
    (voc / "Annotations/d.xml").write_text(text.replace("<xmin>10<", "<xmin>30<"))
    (voc / "Annotations/a.xml").write_text((voc / "Annotations/a.xml").read_text().replace("<xmax>36<", "<xmax>99<"))
    with caplog.at_level(logging.WARNING):
        data = build("voc", voc)
    assert "left out: 1 boxes without area" in caplog.text
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


def phone(root: Path, turn: int, declared: tuple[int, int], source: str = "coco") -> Path:
    """Photos whose pixels lie as the sensor had them, with a white object at 2 to 8 by 4 to 16 of what is seen."""
    seen = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    seen[4:16, 2:8] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    # What turns the stored pixels back to what is seen is undone here: numbers 6 and 8 undo one another.
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[turn]
    for number in range(4):
        whole = Image.fromarray(np.maximum(seen, number))
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        stored = whole if undo is None else whole.transpose(undo)
        stored.save(root / f"JPEGImages/{number}.png", exif=exif)
    height, width = declared
    if source == "coco":
        images = [{"id": n, "file_name": f"JPEGImages/{n}.png", "width": width, "height": height} for n in range(4)]
        boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 4, 6, 12]} for n in range(4)]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
        (root / "all.json").write_text(json.dumps(content))
        return root
    (root / "Annotations").mkdir()
    for number in range(4):
        (root / f"Annotations/{number}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>cup</name><bndbox>"
            "<xmin>2</xmin><ymin>4</ymin><xmax>8</xmax><ymax>16</ymax></bndbox></object></annotation>"
        )
    return root


def read(root: Path, source: str, **fields: Any) -> Data:
    options = {
        "fit": "stretch",
        **({"annotations": "all.json"} if source == "coco" else {}),
        **fields.pop("options", {}),
    }
    config = DataConfig(name=source, root=str(root), options=options, **fields)
    return build_data(config, preprocessing=Preprocessing(crop=40, resize=40), seed=0)


@pytest.mark.parametrize("source", ["coco", "voc"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_boxes_lie_on_the_photo_that_is_seen(source: str, turn: int, tmp_path: Path) -> None:
    data = read(phone(tmp_path, turn, (HEIGHT, WIDTH), source), source)
    split = data.splits["train"]
    image, boxes, _ = split[SampleKey(0, 0)]
    x0, y0, x1, y1 = map(int, boxes[0, :4].tolist())
    inside = image[:, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
    assert inside.min() > image.mean() + 1
    assert split.raw(0).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("source", ["coco", "voc"])
def test_a_declared_size_that_is_not_the_photos_is_an_error(source: str, tmp_path: Path) -> None:
    root = phone(tmp_path, 6, (WIDTH, HEIGHT), source)  # boxes drawn by a tool that does not turn
    with pytest.raises(DataError, match=r"0\.png: its annotation says 20x40 but it is 40x20 .*orientation=stored"):
        read(root, source)
    stored = read(root, source, orientation="stored").splits["train"]
    assert stored.raw(0).shape == (3, WIDTH, HEIGHT)
    other = phone(tmp_path / "other", 1, (300, 400), source)
    with pytest.raises(DataError, match=r"its annotation says 400x300 but it is 40x20; its boxes belong to another"):
        read(other, source)
    unsaid = read(phone(tmp_path / "unsaid", 1, (0, 0), source), source)  # some tools write 0
    assert len(unsaid.splits["train"]) == 3


def objects_of(data: Data) -> dict[str, int]:
    return {name: len(split.targets[row]) for split in data.splits.values() for row, name in enumerate(split.names)}


def coco_of(root: Path, **changes: Any) -> Path:
    phone(root, 1, (HEIGHT, WIDTH))
    content = json.loads((root / "all.json").read_text())
    for key, change in changes.items():
        change(content[key])
    (root / "all.json").write_text(json.dumps(content), encoding="utf-16")
    return root


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", 99, r"annotation 2: image_id 99 is the id of no image"),
        ("category_id", "cup", r"annotation 2: category_id 'cup' is the id of no category"),
        ("bbox", None, r"annotation 2: bbox is no list of four numbers but None"),
        ("bbox", [1, 2, 3], r"annotation 2: bbox is no list of four numbers but \[1, 2, 3\]"),
        ("bbox", [1, 2, 3, float("inf")], r"annotation 2: a bbox of"),
    ],
)
def test_an_annotation_that_fits_nothing_is_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    root = coco_of(tmp_path, annotations=lambda entries: entries[2].update({key: value}))
    with pytest.raises(DataError, match=message):
        read(root, "coco")


def test_ids_groups_and_names_of_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def further(categories: list[Any]) -> None:
        categories[0]["supercategory"] = "things"
        categories += [{"id": 0, "name": "things"}, {"id": 2, "name": "dish"}, {"id": "3", "name": "cup "}]

    def as_text(entries: list[Any]) -> None:
        for entry in entries:
            entry["image_id"] = str(entry["image_id"])

    data = read(coco_of(tmp_path, categories=further, annotations=as_text), "coco")
    assert data.classes == ("cup", "dish")  # a class without an object may have some in another file
    assert "only group others are no classes: ['things']" in caplog.text
    assert "categories of one name are one class" in caplog.text
    again = coco_of(tmp_path / "again", images=lambda images: images.append({**images[0], "id": 7}))
    with pytest.raises(DataError, match=r"pictures listed more than once \(1\): JPEGImages/0\.png"):
        read(again, "coco")


def test_what_voc_marks_and_lists(voc: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = voc / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("a\nb.png\n")
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    (lists / "test.txt").write_text("d\n")
    (lists / "cat_trainval.txt").write_text("a 1\n")
    path = voc / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<object>", "<object><difficult>1</difficult>", 1))
    save(voc / "JPEGImages/e.png", picture([]))
    with caplog.at_level(logging.INFO):
        ignored = read(voc, "voc")
    assert sum(map(len, ignored.splits.values())) == 3
    assert ignored.passed == {"in no list of ImageSets": 1, "without an annotation": 1}
    assert "1 objects marked as difficult are neither right nor wrong" in caplog.text
    kept, left = (read(voc, "voc", options={"difficult": way}) for way in ("keep", "leave_out"))
    assert [objects_of(data)["JPEGImages/a.png"] for data in (ignored, kept, left)] == [2, 2, 1]
    marked, plain = ([boxes for split in data.splits.values() for boxes in split.targets] for data in (ignored, kept))
    assert sorted(row[5] for boxes in marked for row in boxes.tolist()) == [0.0, 0.0, 0.0, 1.0]
    assert {boxes.shape[1] for boxes in plain} == {5}
    assert "left out: 1 difficult objects" in caplog.text
    assert len({data.fingerprint.digest for data in (ignored, kept, left)}) == 3
    with pytest.raises(DataError, match=r"data\.options\.difficult: must be one of ignore, keep, leave_out"):
        read(voc, "voc", options={"difficult": "maybe"})


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_a_name_is_found_however_its_letters_are_composed(voc: Path) -> None:
    (voc / "JPEGImages/a.png").rename(voc / f"JPEGImages/{DECOMPOSED}.png")
    (voc / "Annotations/a.xml").rename(voc / f"Annotations/{COMPOSED}.xml")
    (voc / "ImageSets/Main/train.txt").write_text(f"{DECOMPOSED}\nb\n")
    data = read(voc, "voc")
    assert sorted(data.splits["train"].names) == ["JPEGImages/b.png", f"JPEGImages/{DECOMPOSED}.png"]


def test_a_name_in_a_list_of_voc_may_hold_spaces(voc: Path) -> None:
    for folder, ending in (("JPEGImages", "png"), ("Annotations", "xml")):
        (voc / folder / f"a.{ending}").rename(voc / folder / f"my photo 1.{ending}")
    (voc / "ImageSets/Main/train.txt").write_text("my photo 1\nb  1\n")
    assert sorted(read(voc, "voc").splits["train"].names) == ["JPEGImages/b.png", "JPEGImages/my photo 1.png"]


def test_pictures_of_coco_are_found_as_those_of_a_table(coco: Path) -> None:
    file = coco / "train/_annotations.coco.json"
    content = json.loads(file.read_text())
    (coco / "train/a.png").rename(coco / f"train/{COMPOSED}.png")
    content["images"][0]["file_name"] = f"{DECOMPOSED}.png"
    content["images"][1]["file_name"] = "b"
    file.write_text(json.dumps(content))
    save(coco / "train/c.png", picture([]))
    data = build("coco", coco)
    assert sorted(data.splits["train"].names) == ["train/b.png", f"train/{COMPOSED}.png"]
    assert data.passed == {"not in the table": 1}
