"""Sources of objects: images with boxes, or a mask of each object, from COCO, Pascal VOC or instance masks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tlresearch.base.errors import DataError, nearest
from tlresearch.config.schema import DataConfig
from tlresearch.data.annotations import Annotations, read_coco, read_instance_masks, read_voc, to_boxes
from tlresearch.data.files import FileImages
from tlresearch.data.instances import Instances, InstanceTargets
from tlresearch.data.plane import BoxTargets
from tlresearch.data.table import Checked, PlaneTargets, Size, Table, refuse
from tlresearch.data.volumes import Reading, read_reading

logger = logging.getLogger(__name__)

READERS: Mapping[str, Callable[..., Annotations]] = {
    "coco": read_coco,
    "voc": read_voc,
    "instance_masks": read_instance_masks,
}
FITS = ("letterbox", "stretch")
TARGETS = ("boxes", "masks")
OPTIONS = ("targets", "fit", "window")
"""Options of every reader, beside its own."""


class _AnnotatedImages(FileImages):
    """Images whose annotation may be what cannot be read.

    Args:
        root: Folder the names are relative to.
        read: What the annotations say.
        reading: How files become pictures.
        instances: Masks of the objects, if they are read.
    """

    def __init__(self, root: Path, read: Annotations, reading: Reading, instances: Instances | None) -> None:
        super().__init__(root, read.names, reading)
        self._read = read
        self._instances = instances

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes and decodes every image, and its masks if they are read."""
        checked = super().check(indices)
        return [self._with_annotation(index, image) for index, image in zip(indices, checked, strict=True)]

    def _with_annotation(self, index: int, image: Checked) -> Checked:
        problem = image.problem or self._read.problems.get(self.names[index])
        if problem is None and self._read.declared:
            problem = self._contradiction(self._read.declared[index], (image.height, image.width))
        if problem is not None or self._instances is None:
            return image._replace(problem=problem)
        try:
            sizes = {tuple(plane.shape) for _, plane, _ in self._instances.planes(index)}
        except ValueError as error:
            return image._replace(problem=str(error))
        for height, width in sizes - {(image.height, image.width)}:
            return image._replace(problem=f"it is {image.width}x{image.height} but its mask is {width}x{height}")
        whole = hashlib.sha256(f"{image.digest} {self._instances.digest(index)}".encode()).hexdigest()
        return image._replace(digest=whole)

    def _contradiction(self, declared: Size, seen: Size) -> str | None:
        """Why boxes drawn on a picture of the declared size do not lie where they should."""
        if declared == seen or not all(declared):
            return None
        said = f"its annotation says {declared[1]}x{declared[0]} but it is {seen[1]}x{seen[0]}"
        if declared != seen[::-1]:
            return f"{said}; its boxes belong to another size of it"
        if self.reading.orientation == "exif":
            return (
                f"{said} (turned by its EXIF orientation?); data.orientation=stored takes pictures as they are stored"
            )
        return f"{said} as it is stored; data.orientation=exif turns pictures as viewers do"


def read_boxes(root: Path, config: DataConfig) -> Table:
    """Reads images with boxes, or with a mask of each object.

    Options (``data.options``) are those of the reader (`read_coco`, `read_voc`, `read_instance_masks`), ``targets``
    (boxes, or masks), ``fit`` (letterbox, or stretch; see `Preprocessing.fit`) and ``window`` (see `read_reading`).
    Boxes lie in the frame of the picture that is seen; they are clipped to it. Those without area are left out, and
    their number is said. Images without a box stay.

    Args:
        root: The root folder.
        config: The `data` section.

    Raises:
        DataError: If anything about the data is wrong; the text names the place and the cure.
    """
    options = {name: value for name, value in config.options.items() if name not in OPTIONS}
    for name, value in options.items():
        if not isinstance(value, str) and config.name != "coco":
            raise DataError(f"data.options.{name}: must be a text, but got {value!r}")
    fit, kind = config.options.get("fit", "letterbox"), config.options.get("targets", "boxes")
    if fit not in FITS:
        raise DataError(f"data.options.fit: unknown '{fit}'; choose from {', '.join(FITS)}")
    if kind not in TARGETS:
        raise DataError(f"data.options.targets: unknown '{kind}'; choose from {', '.join(TARGETS)}")
    reading = read_reading(config.options, config.orientation)
    read = READERS[config.name](root, **options)
    instances = read.instances if kind == "masks" else None
    if kind == "masks" and instances is None:
        raise DataError(f"data.options.targets: {config.name} has boxes only; masks need coco or instance_masks")
    classes = _kept_classes(root.name, read.classes, config.classes)
    marked = any(each.mark for objects in read.objects for each in objects)
    boxes = [to_boxes(objects, classes, marked=marked) for objects in read.objects]
    left_out = read.left_out.copy()
    left_out["boxes without area"] += sum(count for _, count in boxes)

    def plane(sizes: Mapping[int, Size]) -> PlaneTargets:
        clipped = {row: _clip(boxes[row][0], *size) for row, size in sizes.items()}
        _say_left_out(root.name, boxes, clipped, left_out)
        if instances is not None:
            return InstanceTargets(instances, classes, sizes)
        return BoxTargets([clipped[row][0] if row in clipped else own for row, (own, _) in enumerate(boxes)])

    return Table(
        name=root.name,
        classes=classes,
        labels=torch.zeros(len(read.names), dtype=torch.int64),
        names=read.names,
        images=_AnnotatedImages(root, read, reading, instances),
        splits=read.splits,
        targets=[own for own, _ in boxes],
        kind="boxes" if instances is None else "instances",
        samples=f"images with {kind}",
        plane=plane,
        fit=fit,
        windows=reading.windows,
        passed={why: count for why, count in read.passed.items() if count},
    )


def _say_left_out(
    name: str,
    boxes: Sequence[tuple[Tensor, int]],
    clipped: Mapping[int, tuple[Tensor, int]],
    before: Mapping[str, int],
) -> None:
    """Says what is left out, and that boxes are cut where so many reach out of their picture that it is no chance."""
    outside = sum(count for _, count in clipped.values())
    parts = [f"{count} {what}" for what, count in before.items() if count]
    parts += [f"{outside} boxes outside their picture"] if outside else []
    if parts:
        logger.warning("%s: left out: %s", name, ", ".join(parts))
    total = sum(len(boxes[row][0]) for row in clipped)
    cut = outside + sum(_is_cut(boxes[row][0], own) for row, (own, _) in clipped.items())
    if cut > max(3, total // 4):
        logger.warning(
            "%s: %d of %d boxes reach out of their picture: are they given as x, y, width, height?", name, cut, total
        )


def _is_cut(boxes: Tensor, inside: Tensor) -> int:
    """How many boxes of a picture lost a part when they were clipped."""
    return int((boxes[:, 2:4].sum() > inside[:, 2:4].sum() + 2).item()) if len(boxes) == len(inside) else 0


def _kept_classes(source: str, known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    refuse(
        [f"'{name}'{nearest(name, known)}" for name in wanted if name not in known],
        what=f"data.classes: unknown to {source}",
        cure=f"Its classes are: {', '.join(known[:50])}",
    )
    if not known:
        raise DataError(f"{source} has no object in any image; check its annotations")
    return tuple(wanted or known)


def _clip(boxes: Tensor, height: int, width: int) -> tuple[Tensor, int]:
    """Clips boxes to their image; returns what has area, and how many have not."""
    corners = boxes[:, :4].clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    inside = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    return torch.cat([corners, boxes[:, 4:]], dim=1)[inside], int((~inside).sum())
