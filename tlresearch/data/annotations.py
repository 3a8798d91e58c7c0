"""Boxes around objects, read from COCO's JSON, from Pascal VOC's XML, or from masks with one number per object."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from tlresearch.base.errors import DataError, one_line
from tlresearch.data.base import SplitName
from tlresearch.data.files import PICTURES
from tlresearch.data.folders import composed, find_listed, list_files, stem_of
from tlresearch.data.instances import CocoShapes, InstanceFiles, Instances, Shape
from tlresearch.data.plane import CROWD, DIFFICULT
from tlresearch.data.rows import clean, read_text
from tlresearch.data.table import SPLITS, refuse, split_of, splits_among

logger = logging.getLogger(__name__)

_NO = ("0", "0.0", "False", "false", "no")
"""What tools write of an object that is no crowd."""
DIFFICULT_WAYS = ("ignore", "keep", "leave_out")


class Object(NamedTuple):
    """An object of an image.

    Attributes:
        label: Class name.
        box: x0, y0, x1, y1 in pixels.
        mark: 0, or `DIFFICULT` or `CROWD`: see there.
    """

    label: str
    box: tuple[float, float, float, float]
    mark: int = 0


@dataclass
class Annotations:
    """What a source says of its images.

    Attributes:
        classes: Class names in the order of their numbers.
        names: Paths of the images relative to the root.
        objects: Objects of each image.
        declared: Height and width of each image as its annotation says; 0 where it says nothing.
        splits: Split of each image where the source gives one.
        problems: Why an image's annotation cannot be read, by name.
        left_out: Number of objects that are no boxes, by what they are.
        passed: Number of files that are no samples, by why.
        groups: Names of groups of classes.
        instances: Masks of the objects where the source has them.
    """

    classes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    objects: list[list[Object]] = field(default_factory=list)
    declared: list[tuple[int, int]] = field(default_factory=list)
    splits: list[SplitName] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    groups: set[str] = field(default_factory=set)
    instances: Instances | None = None


def to_boxes(objects: Sequence[Object], classes: Sequence[str], *, marked: bool = False) -> tuple[Tensor, int]:
    """Turns objects into boxes as `BoxTargets` has them; those of other classes are left out.

    Args:
        objects: The objects of an image.
        classes: Class names in the order of their numbers.
        marked: Whether the boxes have a column of marks.

    Returns:
        The boxes, and how many were left out because they have no area.
    """
    number = {name: position for position, name in enumerate(classes)}
    boxes = [(*box, number[name], *([mark] if marked else [])) for name, box, mark in objects if name in number]
    kept = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]
    return torch.tensor(kept, dtype=torch.float32).reshape(-1, 6 if marked else 5), len(boxes) - len(kept)


def read_voc(
    root: Path,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    difficult: str = "ignore",
) -> Annotations:
    """Reads ``Annotations/*.xml`` with the images of the same name.

    Splits come from ``ImageSets/Main/{train,val,trainval,test}.txt``; where there are such lists, images in none of
    them are left out, and counted. Coordinates are taken as they stand.

    Args:
        root: The root folder.
        images: Folder of the images.
        annotations: Folder of the annotations.
        difficult: What objects are that are marked as difficult: ``ignore`` counts them neither for nor against a
            detector, as VOC's protocol does, ``keep`` makes them objects like any other, ``leave_out`` none.

    Raises:
        DataError: If folders are missing, or lists name what is not there.
    """
    if difficult not in DIFFICULT_WAYS:
        raise DataError(f"data.options.difficult: must be one of {', '.join(DIFFICULT_WAYS)}, but got '{difficult}'")
    listed = list_files(root, (".xml",), below=_folder(root, annotations, "annotations"), deep=False)
    files = {composed(Path(name).stem): root / name for name in sorted(listed.names)}
    pictures, beside = _pictures(root, _folder(root, images, "images"))
    if not files:
        raise DataError(f"{root / annotations} holds no XML files")
    by_stem = _voc_splits(root / "ImageSets" / "Main", files)
    stems = [stem for stem in files if not by_stem or stem in by_stem]
    unknown = sorted(set(by_stem) - set(files))
    if unknown:
        raise DataError(f"{root}: ImageSets names {len(unknown)} images without an annotation, such as {unknown[0]}")
    read = Annotations(splits=[by_stem[stem] for stem in stems] if by_stem else None, passed=listed.passed + beside)
    read.passed["in no list of ImageSets"] = len(files) - len(stems)
    read.passed["without an annotation"] = len(set(pictures) - set(files))
    for stem in stems:
        name = pictures.get(stem, Path(images, f"{stem}.jpg").as_posix())
        objects: list[Object] = []
        size = (0, 0)
        try:
            whole = ElementTree.parse(files[stem]).getroot()
            size = _declared(whole.findtext("size/height"), whole.findtext("size/width"))
            objects = [_voc_object(element) for element in whole.iter("object")]
        except (ElementTree.ParseError, ValueError, OSError) as error:
            read.problems[name] = f"its annotation {files[stem].name} cannot be read: {one_line(error, 200)}"
        read.names.append(name)
        read.objects.append(objects)
        read.declared.append(size)
    marked = sum(bool(each.mark) for objects in read.objects for each in objects)
    if difficult == "leave_out":
        read.left_out["difficult objects"] = marked
        read.objects = [[each for each in objects if not each.mark] for objects in read.objects]
    if difficult == "keep":
        read.objects = [[each._replace(mark=0) for each in objects] for objects in read.objects]
    elif difficult == "ignore" and marked:
        logger.info("%s: %d objects marked as difficult are neither right nor wrong", root.name, marked)
    read.classes = sorted({each.label for objects in read.objects for each in objects})
    return read


def _voc_object(element: ElementTree.Element) -> Object:
    box = [float(element.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
    label = clean(element.findtext("name", ""))
    if not label or not all(map(math.isfinite, box)):
        raise ValueError("an object without a name or without numbers as its box")
    mark = DIFFICULT if element.findtext("difficult", "0").strip() == "1" else 0
    return Object(label, (box[0], box[1], box[2], box[3]), mark)


def _declared(height: Any, width: Any) -> tuple[int, int]:
    """Height and width as an annotation says them; 0 where it says nothing, as some tools do."""
    try:
        return int(float(height or 0)), int(float(width or 0))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a size of {width!r} x {height!r}") from None


def read_coco(root: Path, annotations: object = None, images: object = None) -> Annotations:
    """Reads COCO's JSON: one file, or one per split.

    Crowd regions, which are many objects in one, are marked. A category without an object that others name as their
    supercategory is a group, and no class. Ids may be numbers or text.

    Args:
        root: The root folder.
        annotations: A file, or files by split, relative to the root; ``None`` looks for
            ``{train,val,test}/_annotations.coco.json``.
        images: The folder of the images, or folders by split; ``None`` takes the folder of the JSON file.

    Raises:
        DataError: If a file is missing or not in COCO's format, or the files differ in their categories.
    """
    files = _coco_files(root, annotations)
    read = Annotations(splits=[] if None not in files else None)
    shapes: list[tuple[int, int, list[Shape]]] = []
    for split, file in files.items():
        folder = images.get(split) if isinstance(images, Mapping) else images
        place = Path(str(folder)) if folder is not None else Path(file).parent
        if not (root / file).is_file():
            raise DataError(f"data.options.annotations: {root / file} does not exist")
        try:
            classes = _read_coco_file(read, shapes, json.loads(read_text(root / file)), place, str(root / file))
        except DataError:
            raise
        except Exception as error:  # whatever a value of another kind, anywhere in it, leads to
            raise DataError(f"{root / file} is not in COCO's format: {type(error).__name__} {error}") from None
        if read.splits is not None and split is not None:
            read.splits += [split] * (len(read.names) - len(read.splits))
        if read.classes and read.classes != classes:
            raise DataError(f"{root}: {file} has other categories than the files before it")
        read.classes = classes
    repeated = [name for name, count in Counter(read.names).items() if count > 1]
    refuse(repeated, what=f"{root}: pictures listed more than once", cure="Give every picture one entry in `images`")
    pictures = find_listed(root, read.names, PICTURES, str(root))
    read.names, read.passed = pictures.names, pictures.passed
    read.classes = _without_groups(read, root.name)
    read.declared = [(height, width) for height, width, _ in shapes]
    read.instances = CocoShapes(shapes)
    return read


def _read_coco_file(
    read: Annotations, shapes: list[tuple[int, int, list[Shape]]], content: Any, place: Path, where: str
) -> list[str]:
    """Adds what a file says; returns the names of its categories in the order of their ids."""
    # Ids as text: one tool writes 7, and another "7".
    categories = {str(entry["id"]): clean(str(entry["name"])) for entry in content["categories"]}
    read.groups |= {clean(str(entry.get("supercategory"))) for entry in content["categories"]}
    objects: dict[str, list[Object]] = {str(entry["id"]): [] for entry in content["images"]}
    drawn: dict[str, list[Shape]] = {image: [] for image in objects}
    if len(objects) < len(content["images"]):
        raise ValueError("two images with one id")
    strange = []
    for number, entry in enumerate(content["annotations"]):
        named = f"annotation {entry.get('id', f'at place {number}')}"
        image, category = str(entry.get("image_id")), str(entry.get("category_id"))
        if image not in objects:
            strange.append(f"{named}: image_id {entry.get('image_id')!r} is the id of no image")
        elif category not in categories:
            strange.append(f"{named}: category_id {entry.get('category_id')!r} is the id of no category")
        else:
            try:
                x, y, width, height = map(float, entry["bbox"])
            except (KeyError, TypeError, ValueError, OverflowError):
                strange.append(f"{named}: bbox is no list of four numbers but {entry.get('bbox')!r}"[:200])
                continue
            if not all(map(math.isfinite, (x, y, width, height))):
                strange.append(f"{named}: a bbox of {entry['bbox']}"[:200])
                continue
            label, mark = categories[category], CROWD if str(entry.get("iscrowd") or 0) not in _NO else 0
            objects[image].append(Object(label, (x, y, x + width, y + height), mark))
            drawn[image].append((label, entry.get("segmentation"), mark))
    refuse(strange, what=f"{where}: annotations that fit nothing", cure="Correct them, or remove them from the file")
    for entry in content["images"]:
        read.names.append((place / entry["file_name"]).as_posix())
        read.objects.append(objects[str(entry["id"])])
        size = _declared(entry.get("height"), entry.get("width"))
        shapes.append((*size, drawn[str(entry["id"])]))
    ordered = sorted(content["categories"], key=lambda entry: _by_number(entry["id"]))
    names = [categories[str(entry["id"])] for entry in ordered]
    if len(set(names)) < len(names):
        logger.warning("%s: categories of one name are one class: %s", where, ", ".join(names))
    return list(dict.fromkeys(names))


def _by_number(given: Any) -> tuple[float, str]:
    """Order of ids: by value where they are numbers, whether they are written so or as text."""
    try:
        return float(given), str(given)
    except (TypeError, ValueError, OverflowError):
        return math.inf, str(given)


def _without_groups(read: Annotations, name: str) -> list[str]:
    """Classes without those that only group others; others without an object stay, for they may have some elsewhere."""
    used = {each.label for objects in read.objects for each in objects}
    groups = [label for label in read.classes if label not in used and label in read.groups]
    if groups:
        logger.warning("%s: categories that have no object and only group others are no classes: %s", name, groups)
    return [label for label in read.classes if label not in groups]


def read_instance_masks(
    root: Path, images: str = "PNGImages", masks: str = "PedMasks", mask_suffix: str = "_mask", name: str = "object"
) -> Annotations:
    """Reads masks as of Penn-Fudan: 0 is background, and every other number is one object.

    Args:
        root: The root folder.
        images: Folder of the images.
        masks: Folder of the masks.
        mask_suffix: What a mask's name has behind its image's.
        name: Name of the only class.

    Raises:
        DataError: If folders are missing or empty.
    """
    pictures, beside = _pictures(root, _folder(root, images, "images"))
    drawn, further = _pictures(root, _folder(root, masks, "masks"))
    own = {picture: drawn.get(composed(stem + mask_suffix)) for stem, picture in pictures.items()}
    instances = InstanceFiles(root, list(own.values()), name)
    read = Annotations(classes=[name], instances=instances, passed=beside + further)
    read.passed["masks without an image"] = len(set(drawn.values()) - set(own.values()))
    for number, (stem, picture) in enumerate(pictures.items()):
        objects: list[Object] = []
        try:
            if own[picture] is None:
                raise ValueError(f"there is no mask {stem}{mask_suffix} in '{masks}'")
            planes = [plane for _, plane, _ in instances.planes(number)]
            # The last pixel belongs to the object, so the box ends behind it.
            boxes = masks_to_boxes(torch.stack(planes)) + torch.tensor([0, 0, 1, 1]) if planes else torch.zeros(0, 4)
            objects = [Object(name, (b[0], b[1], b[2], b[3])) for b in boxes.tolist()]
        except ValueError as error:
            read.problems[picture] = str(error)
        read.names.append(picture)
        read.objects.append(objects)
        read.declared.append((0, 0))
    if not read.names:
        raise DataError(f"{root / images} holds no images")
    return read


def _voc_splits(folder: Path, known: Collection[str]) -> dict[str, SplitName]:
    """Split of each image by the lists of VOC; ``trainval`` counts where there is no ``train``.

    A line is a name, or a name and a mark; names that hold spaces are `known`.
    """
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    by_stem: dict[str, SplitName] = {}
    meant = splits_among(lists, str(folder))
    for name in sorted(meant, key=lambda name: SPLITS.index(meant[name])):
        for line in read_text(lists[name]).split("\n"):
            if line.split():
                whole, first = (composed(stem_of(part, PICTURES)) for part in (line.strip(), line.split()[0]))
                by_stem[whole if whole in known else first] = meant[name]
    return by_stem


def _coco_files(root: Path, annotations: object) -> dict[SplitName | None, str]:
    if isinstance(annotations, str):
        return {None: annotations}
    if isinstance(annotations, Mapping):
        wrong = [str(name) for name in annotations if split_of(str(name)) is None]
        if wrong or not annotations:
            raise DataError(f"data.options.annotations: '{''.join(wrong[:1])}' is no split; give train, val and test")
        meant = splits_among(map(str, annotations), "data.options.annotations")
        return {meant[name]: str(annotations[name]) for name in meant}
    folders = sorted(path.parent.name for path in root.glob("*/_annotations.coco.json"))
    meant = splits_among(folders, str(root))
    if not meant:
        raise DataError(f"data.options.annotations: name COCO's JSON files below {root}: {{train: ..., val: ...}}")
    order = sorted(meant, key=lambda name: SPLITS.index(meant[name]))
    return {meant[name]: f"{name}/_annotations.coco.json" for name in order}


def _folder(root: Path, name: str, key: str) -> str:
    if not (root / name).is_dir():
        raise DataError(f"{root} has no folder '{name}'; name it by data.options.{key}")
    return name


def _pictures(root: Path, folder: str) -> tuple[dict[str, str], Counter[str]]:
    """Images of a folder by stem, as paths relative to the root, and what lies beside them."""
    files = list_files(root, PICTURES, below=folder, deep=False)
    by_stem = {composed(stem_of(Path(name).name, PICTURES)): name for name in sorted(files.names)}
    files.passed["of a name that another picture has"] = len(files.names) - len(by_stem)
    return by_stem, files.passed
