"""Sources of objects: images with boxes, or a mask of each object, from COCO, Pascal VOC or instance masks."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tlresearch.base.errors import DataError, nearest
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.annotations import Annotations, read_coco, read_instance_masks, read_voc, to_boxes
from tlresearch.data.base import Data, TargetKind
from tlresearch.data.dense_split import BoxTargets, DenseSplit, PlaneTargets, build_joint
from tlresearch.data.files import FileImages
from tlresearch.data.instances import Instances, InstanceTargets
from tlresearch.data.prepared import prepare
from tlresearch.data.segmentation import check_channels, check_image_backbone, check_options, one_size
from tlresearch.data.table import Checked, Table, refuse
from tlresearch.modality.image import Evaluation, Preprocessing

logger = logging.getLogger(__name__)

READERS: Mapping[str, Callable[..., Annotations]] = {
    "coco": read_coco,
    "voc": read_voc,
    "instance_masks": read_instance_masks,
}
FITS = ("letterbox", "stretch")
TARGETS = ("boxes", "masks")


class _AnnotatedImages(FileImages):
    """Images whose annotation may be what cannot be read.

    Args:
        root: Folder the names are relative to.
        names: Paths relative to the root.
        problems: Why an image's annotation cannot be read, by name.
        instances: Masks of the objects, if they are read.
    """

    def __init__(
        self, root: Path, names: Sequence[str], problems: Mapping[str, str], instances: Instances | None = None
    ) -> None:
        super().__init__(root, names)
        self._problems = problems
        self._instances = instances

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes and decodes every image, and its masks if they are read."""
        checked = super().check(indices)
        return [self._with_annotation(index, one) for index, one in zip(indices, checked, strict=True)]

    def _with_annotation(self, index: int, image: Checked) -> Checked:
        problem = image.problem or self._problems.get(self.names[index])
        if problem is not None or self._instances is None:
            return image._replace(problem=problem)
        try:
            sizes = {tuple(plane.shape) for _, plane in self._instances.planes(index)}
        except ValueError as error:
            return image._replace(problem=str(error))
        for height, width in sizes - {(image.height, image.width)}:
            return image._replace(problem=f"it is {image.width}x{image.height} but its mask is {width}x{height}")
        whole = hashlib.sha256(f"{image.digest} {self._instances.digest(index)}".encode()).hexdigest()
        return image._replace(digest=whole)


def build_boxes(config: DataConfig, *, preprocessing: Preprocessing, seed: int) -> Data:
    """Reads, checks and splits images with boxes, or with a mask of each object.

    Options (``data.options``) are those of the reader (`read_coco`, `read_voc`, `read_instance_masks`), ``targets``
    (boxes, or masks) and ``fit`` (letterbox, or stretch; see `Preprocessing.fit`). Boxes are clipped to their image;
    those without area are left out, and their number is said. Images without a box stay.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size.
        seed: Seed of the augmentation.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    reader = READERS[config.name]
    known = {name: about.annotation for name, about in inspect.signature(reader).parameters.items() if name != "root"}
    check_options(config, [*known, "targets", "fit"])
    for name, value in config.options.items():
        if known.get(name) == "str" and not isinstance(value, str):
            raise DataError(f"data.options.{name}: must be a text, but got {value!r}")
    preprocessing = check_image_backbone(config, preprocessing)
    options = dict(config.options)
    fit, wanted_targets = options.pop("fit", "letterbox"), options.pop("targets", "boxes")
    if fit not in FITS:
        raise DataError(f"data.options.fit: unknown '{fit}'; choose from {', '.join(FITS)}")
    if wanted_targets not in TARGETS:
        raise DataError(f"data.options.targets: unknown '{wanted_targets}'; choose from {', '.join(TARGETS)}")
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder of images and annotations")
    root = find_data(config.root)
    found = reader(root, **options)
    instances = found.instances if wanted_targets == "masks" else None
    if wanted_targets == "masks" and instances is None:
        raise DataError(f"data.options.targets: {config.name} has boxes only; masks need coco or instance_masks")
    kind: TargetKind = "boxes" if instances is None else "instances"
    classes = _kept_classes(root.name, found.classes, config.classes)
    read = [to_boxes(objects, classes) for objects in found.objects]
    images = _AnnotatedImages(root, found.names, found.problems, instances)
    table = Table(
        name=root.name,
        classes=classes,
        labels=torch.zeros(len(found.names), dtype=torch.int64),
        names=found.names,
        images=images,
        splits=found.splits,
        targets=[boxes for boxes, _ in read],
        kind=kind,
        samples=f"images with {wanted_targets}",
    )
    prepared = prepare(table, replace(config, classes=[]))
    sizes = {row: (checked.height, checked.width) for row, checked in prepared.checked.items()}
    clipped = {row: _clip(read[row][0], *size) for row, size in sizes.items()}
    empty = sum(count for _, count in read) + sum(count for _, count in clipped.values())
    if empty or found.crowds:
        logger.warning("%s: %d boxes without area and %d crowd regions are left out", root.name, empty, found.crowds)
    targets: PlaneTargets
    if instances is None:
        targets = BoxTargets([clipped[row][0] if row in clipped else boxes for row, (boxes, _) in enumerate(read)])
    else:
        targets = InstanceTargets(instances, classes, sizes)
    wanted = preprocessing.sized(config.image_size)
    if wanted.crop is None:
        side = one_size(sizes.values())
        wanted = replace(wanted, crop=side, resize=side)
    wanted = replace(wanted, fit=fit)
    assert wanted.crop is not None
    check_channels(images, found.names, wanted.channels)
    evaluation = Evaluation(wanted)
    augmentation = build_joint(config.augment, evaluation, wanted.crop)
    return Data(
        name=table.name,
        splits={
            split: DenseSplit(
                images,
                targets,
                rows,
                names=[found.names[row] for row in rows],
                sizes=[sizes[row] for row in rows],
                evaluation=evaluation,
                augmentation=augmentation if split == "train" else None,
                seed=seed,
            )
            for split, rows in prepared.splits.items()
        },
        classes=classes,
        kind=kind,
        fingerprint=prepared.fingerprint,
        preprocessing=wanted,
        skipped=prepared.skipped,
    )


def _kept_classes(name: str, known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    refuse(
        [f"'{one}'{nearest(one, known)}" for one in wanted if one not in known],
        what=f"data.classes: unknown to {name}",
        cure=f"Its classes are: {', '.join(known[:50])}",
    )
    if not known:
        raise DataError(f"{name} has no object in any image; check its annotations")
    return tuple(wanted or known)


def _clip(boxes: Tensor, height: int, width: int) -> tuple[Tensor, int]:
    """Clips boxes to their image; returns what has area, and how many have not."""
    corners = boxes[:, :4].clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    inside = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    return torch.cat([corners, boxes[:, 4:]], dim=1)[inside], int((~inside).sum())
