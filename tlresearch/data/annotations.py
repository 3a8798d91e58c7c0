"""Boxes around objects, read from COCO's JSON, from Pascal VOC's XML, or from masks with one number per object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.ops import masks_to_boxes

from tlresearch.base.errors import DataError, one_line
from tlresearch.data.base import SplitName
from tlresearch.data.instances import CocoShapes, InstanceFiles, Instances
from tlresearch.data.table import SPLIT_ALIASES

Object = tuple[str, tuple[float, float, float, float]]
"""Class name, and x0, y0, x1, y1 in pixels."""


@dataclass
class Annotations:
    """What a source says of its images.

    Attributes:
        classes: Class names in the order of their numbers.
        names: Paths of the images relative to the root.
        objects: Objects of each image.
        splits: Split of each image where the source gives one.
        problems: Why an image's annotation cannot be read, by name.
        crowds: Number of regions of many objects, which are left out.
        instances: Masks of the objects where the source has them.
    """

    classes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    objects: list[list[Object]] = field(default_factory=list)
    splits: list[SplitName] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    crowds: int = 0
    instances: Instances | None = None


def to_boxes(objects: Sequence[Object], classes: Sequence[str]) -> tuple[Tensor, int]:
    """Turns objects into boxes, float32 ``(n, 5)`` with the class number last; those of other classes are left out.

    Returns:
        The boxes, and how many were left out because they have no area.
    """
    number = {name: position for position, name in enumerate(classes)}
    wanted = [(*box, number[name]) for name, box in objects if name in number]
    kept = [box for box in wanted if box[2] > box[0] and box[3] > box[1]]
    return torch.tensor(kept, dtype=torch.float32).reshape(-1, 5), len(wanted) - len(kept)


def read_voc(root: Path, images: str = "JPEGImages", annotations: str = "Annotations") -> Annotations:
    """Reads ``Annotations/*.xml`` with the images of the same name.

    Splits come from ``ImageSets/Main/{train,val,test}.txt``; where there are such lists, images in none of them are
    left out. Coordinates are taken as they stand.

    Raises:
        DataError: If folders are missing, or lists name what is not there.
    """
    files = {path.stem: path for path in sorted(_folder(root, annotations, "annotations").glob("*.xml"))}
    pictures = _pictures(_folder(root, images, "images"))
    if not files:
        raise DataError(f"{root / annotations} holds no XML files")
    split_of = _voc_splits(root / "ImageSets" / "Main")
    stems = [stem for stem in files if not split_of or stem in split_of]
    unknown = sorted(set(split_of) - set(files))
    if unknown:
        raise DataError(f"{root}: ImageSets names {len(unknown)} images without an annotation, such as {unknown[0]}")
    found = Annotations(splits=[split_of[stem] for stem in stems] if split_of else None)
    for stem in stems:
        name = pictures.get(stem, Path(images, f"{stem}.jpg").as_posix())
        objects: list[Object] = []
        try:
            for element in ElementTree.parse(files[stem]).getroot().iter("object"):
                box = [float(element.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
                label = element.findtext("name", "").strip()
                if not label or not all(map(math.isfinite, box)):
                    raise ValueError("an object without a name or without numbers as its box")
                objects.append((label, (box[0], box[1], box[2], box[3])))
        except (ElementTree.ParseError, ValueError, OSError) as error:
            found.problems[name] = f"its annotation {files[stem].name} cannot be read: {one_line(error, 200)}"
        found.names.append(name)
        found.objects.append(objects)
    found.classes = sorted({label for objects in found.objects for label, _ in objects})
    return found


def read_coco(root: Path, annotations: object = None, images: object = None) -> Annotations:
    """Reads COCO's JSON: one file, or one per split.

    Args:
        root: The root folder.
        annotations: A file, or files by split, relative to the root; ``None`` looks for
            ``{train,val,test}/_annotations.coco.json``.
        images: The folder of the images, or folders by split; ``None`` takes the folder of the JSON file.

    Raises:
        DataError: If a file is missing or not in COCO's format, or the files differ in their categories.
    """
    files = _coco_files(root, annotations)
    found = Annotations(splits=[] if None not in files else None)
    shapes: list[tuple[int, int, list[tuple[str, Any]]]] = []
    for split, file in files.items():
        try:
            content = json.loads((root / file).read_text(encoding="utf-8"))
            categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
            by_image: dict[Any, list[Object]] = {entry["id"]: [] for entry in content["images"]}
            drawn: dict[Any, list[tuple[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
            for entry in content["annotations"]:
                if entry.get("iscrowd"):
                    found.crowds += 1
                    continue
                x, y, width, height = map(float, entry["bbox"])
                if not all(map(math.isfinite, (x, y, width, height))):
                    raise ValueError(f"a box of {entry['bbox']}")
                label = categories[entry["category_id"]]
                by_image[entry["image_id"]].append((label, (x, y, x + width, y + height)))
                drawn[entry["image_id"]].append((label, entry.get("segmentation")))
            folder = images.get(split) if isinstance(images, Mapping) else images
            place = Path(str(folder)) if folder is not None else Path(file).parent
            for entry in content["images"]:
                found.names.append((place / entry["file_name"]).as_posix())
                found.objects.append(by_image[entry["id"]])
                shapes.append((int(entry.get("height", 0)), int(entry.get("width", 0)), drawn[entry["id"]]))
                if found.splits is not None and split is not None:
                    found.splits.append(split)
            # Categories without an object stay: numbers must be the same in all files.
            known = [name for _, name in sorted(categories.items())]
        except FileNotFoundError:
            raise DataError(f"data.options.annotations: {root / file} does not exist") from None
        except Exception as error:  # whatever a value of another kind, anywhere in it, leads to
            raise DataError(f"{root / file} is not in COCO's format: {type(error).__name__} {error}") from None
        if found.classes and found.classes != known:
            raise DataError(f"{root}: {file} has other categories than the files before it")
        found.classes = known
    found.instances = CocoShapes(shapes)
    return found


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
    pictures = _pictures(_folder(root, images, "images"))
    found_masks = _pictures(_folder(root, masks, "masks"))
    own = {picture: found_masks.get(stem + mask_suffix) for stem, picture in pictures.items()}
    instances = InstanceFiles(root, list(own.values()), name)
    found = Annotations(classes=[name], instances=instances)
    for number, (stem, picture) in enumerate(pictures.items()):
        objects: list[Object] = []
        try:
            if own[picture] is None:
                raise ValueError(f"there is no mask {stem}{mask_suffix} in '{masks}'")
            planes = [plane for _, plane in instances.planes(number)]
            # The last pixel belongs to the object, so the box ends behind it.
            boxes = masks_to_boxes(torch.stack(planes)) + torch.tensor([0, 0, 1, 1]) if planes else torch.zeros(0, 4)
            objects = [(name, (b[0], b[1], b[2], b[3])) for b in boxes.tolist()]
        except ValueError as error:
            found.problems[picture] = str(error)
        found.names.append(picture)
        found.objects.append(objects)
    if not found.names:
        raise DataError(f"{root / images} holds no images")
    return found


def _voc_splits(folder: Path) -> dict[str, SplitName]:
    found: dict[str, SplitName] = {}
    for name, split in SPLIT_ALIASES.items():
        file = folder / f"{name}.txt"
        if file.is_file():
            for line in file.read_text(encoding="utf-8").split("\n"):
                if line.split():
                    found[line.split()[0]] = split
    return found


def _coco_files(root: Path, annotations: object) -> dict[SplitName | None, str]:
    if isinstance(annotations, str):
        return {None: annotations}
    if isinstance(annotations, Mapping):
        wrong = [str(name) for name in annotations if name not in SPLIT_ALIASES]
        if wrong or not annotations:
            raise DataError(f"data.options.annotations: '{''.join(wrong[:1])}' is no split; give train, val and test")
        return {SPLIT_ALIASES[name]: str(file) for name, file in annotations.items()}
    names = [name for name in SPLIT_ALIASES if (root / name / "_annotations.coco.json").is_file()]
    if not names:
        raise DataError(f"data.options.annotations: name COCO's JSON files below {root}: {{train: ..., val: ...}}")
    return {SPLIT_ALIASES[name]: f"{name}/_annotations.coco.json" for name in names}


def _folder(root: Path, name: str, key: str) -> Path:
    if not (root / name).is_dir():
        raise DataError(f"{root} has no folder '{name}'; name it by data.options.{key}")
    return root / name


def _pictures(folder: Path) -> dict[str, str]:
    """Images of a folder by stem, as paths relative to the folder above it."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    return {path.stem: path.relative_to(folder.parent).as_posix() for path in files}
