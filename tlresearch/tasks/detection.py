"""Object detection: boxes with classes, or masks of single objects, over feature maps of any image backbone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.detection import MeanAveragePrecision

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.pyramid import PyramidBackbone
from tlresearch.base.errors import ConfigError, MissingExtraError, nearest
from tlresearch.config.schema import TaskConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.data.seeding import seeded
from tlresearch.tasks.base import Mixer, OptimizerFactory, Penalty, Task
from tlresearch.tasks.detection_figures import detections_figure
from tlresearch.tasks.detectors import (
    DETECTORS,
    INSTANCE_DETECTORS,
    DetectionHead,
    Detections,
    InstanceHead,
    Maps,
    native,
    native_instances,
)
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.segmentation import read_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAPS = ("50", "75")
"""Overlaps in percent that have a mean average precision of their own, as COCO's: ``map_50`` and ``map_75``."""
SHOWN = 6
"""Samples of a split whose detections are drawn."""


class BoxMeters(nn.Module):
    """Loss and mean average precision of one split; as a module, so that they follow the task to its device.

    Args:
        classes: Class names.
        masks: Whether overlaps of masks are counted too, beside those of boxes.

    Raises:
        MissingExtraError: If pycocotools is not installed, which counts average precision.
    """

    def __init__(self, classes: tuple[str, ...], *, masks: bool = False) -> None:
        super().__init__()
        if find_spec("pycocotools") is None:
            raise MissingExtraError("pycocotools", "detection")
        self.classes = classes
        self.loss = MeanMetric(nan_strategy=math.nan)  # a loss that is NaN is not left out
        # Ours and torchmetrics' names of what is measured.
        self.kinds = {"": "bbox_", "mask_": "segm_"} if masks else {"": ""}
        self.map = MeanAveragePrecision(iou_type=("bbox", "segm") if masks else "bbox", class_metrics=True)
        self.map.warn_on_many_detections = False

    def update(self, detections: Detections, targets: Sequence[Mapping[str, Tensor]], loss: Tensor) -> None:
        """Takes a batch; for targets see `DetectionHead.as_given`."""
        self.loss.update(loss, weight=len(targets))
        self.map.update(detections, [dict(target) for target in targets])

    def finish(self) -> dict[str, float]:
        """Returns every value and resets.

        Mean average precision is COCO's: ``map`` over the overlaps 0.5 to 0.95, ``map_50`` and ``map_75`` at one,
        ``recall`` with at most 100 boxes per image, and by class, such as ``map_car``; ``mask_map`` and so on count
        masks. What has no value, such as that of a class without a box in the split, is NaN.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(non-tuple sequence|__array__).*")
            found = self.map.compute()
        values = {"loss": float(self.loss.compute())}
        for ours, theirs in self.kinds.items():
            numbers, by_class = found["classes"].reshape(-1), found[f"{theirs}map_per_class"].reshape(-1)
            each = dict(zip(numbers.tolist(), by_class.tolist(), strict=True))
            for name, key in (("map", "map"), ("map_50", "map_50"), ("map_75", "map_75"), ("recall", "mar_100")):
                values[f"{ours}{name}"] = float(found[f"{theirs}{key}"])
            for number, part in enumerate(metric_names(self.classes, reserved=OVERLAPS).values()):
                values[f"{ours}map_{part}"] = float(each.get(number, -1.0))
        self.loss.reset()
        self.map.reset()
        # pycocotools says -1 where there is nothing to measure.
        return {name: value if value >= 0 or name == "loss" else float("nan") for name, value in values.items()}


class DetectionTask(Task):
    """A detector over feature maps, of boxes or, with an `InstanceHead`, of boxes and masks.

    Training has its losses alone; boxes are looked for, and compared, in evaluation.

    Args:
        backbone: A backbone that ends in feature maps.
        head: The neck and the detector.
        classes: Class names.
        optimizer: Makes the optimizer from backbone and head.
        changing: See `Task`.
        mixer: See `Task`.
        penalty: See `Task`.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        head: DetectionHead,
        *,
        classes: tuple[str, ...],
        optimizer: OptimizerFactory,
        changing: frozenset[int],
        mixer: Mixer | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__(backbone, head, optimizer=optimizer, changing=changing, mixer=mixer, penalty=penalty)
        self.meters = nn.ModuleDict({"train_meters": MeanMetric(nan_strategy=math.nan)})
        masks = isinstance(head, InstanceHead)
        self.meters.update({f"{split}_meters": BoxMeters(classes, masks=masks) for split in ("val", "test")})
        self.served_columns = ("boxes", "classes", "scores", *(["mask"] if masks else []))
        self.predictions: dict[str, dict[int, dict[str, Tensor]]] = {"val": {}, "test": {}}

    @property
    def detector(self) -> DetectionHead:
        """The head."""
        return cast(DetectionHead, self.head)

    def loss(self, outputs: Maps, targets: Sequence[Tensor]) -> Tensor:
        """The sum of the detector's losses; for `targets` see `BoxTargets` and `InstanceTargets`."""
        if self.training:
            return torch.stack(list(self.detector.losses(outputs, targets).values())).sum()
        # A detector samples the boxes that it learns from; an evaluation must not move the random numbers of training.
        with seeded("evaluation"):
            return torch.stack(list(self.detector.losses(outputs, targets).values())).sum()

    def update_metrics(self, split: str, outputs: Maps, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the first detections of evaluation for figures."""
        meters: Any = self.meters[f"{split}_meters"]
        if split == "train":
            meters.update(loss, weight=len(batch.targets))
            return
        detections = self.detector.detections(outputs)
        meters.update(detections, [self.detector.as_given(target) for target in batch.targets], loss)
        for index, found in zip(batch.indices.tolist(), detections, strict=True):
            if index < SHOWN:
                self.predictions[split][index] = {name: leaf.cpu() for name, leaf in found.items()}

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and metrics of a split and resets them."""
        meters: Any = self.meters[f"{split}_meters"]
        if split != "train":
            return cast(BoxMeters, meters).finish()
        loss = float(meters.compute())
        meters.reset()
        return {"loss": loss}

    def figures(self, data: Data) -> dict[str, Figure]:
        """Draws the first samples of the test split, else of validation, with true and detected boxes."""
        split: SplitName = "test" if self.predictions["test"] else "val"
        predictions = self.predictions[split]
        if not predictions:
            return {}
        targets = {index: self.detector.as_given(data.splits[split].targets[index]) for index in predictions}
        return {"detections.png": detections_figure(data, split, targets, predictions)}


DEFAULTS: Mapping[str, Any] = {"detector": None, "width": 128, "anchor_scale": 1.0}
"""Options of the task."""


def detection_head(config: TaskConfig, backbone: StagedBackbone, classes: int, side: int, source: str) -> DetectionHead:
    """Builds the head that a config asks for: a detector, or the one the backbone's own network has.

    Args:
        config: The `task` section; `instances` wants masks of objects.
        backbone: A backbone that ends in feature maps.
        classes: Number of classes.
        side: Side of the input in pixels.
        source: What the config is called in errors.

    Raises:
        ConfigError: If an option is unknown.
    """
    assert isinstance(backbone, PyramidBackbone)
    options = read_options(config, DEFAULTS, source)
    masks = config.name == "instances"
    detectors = INSTANCE_DETECTORS if masks else DETECTORS
    own = backbone.native_head(classes, masks=masks) if backbone.native_head else None
    if masks and own is not None and getattr(getattr(own, "roi_heads", None), "mask_head", None) is None:
        own = None  # a detector without masks
    if not backbone.spatial and (masks or options["detector"] not in (None, "native")):
        raise ConfigError(
            ["task: this backbone has a detector of its own alone: take `detection`, without options.detector"], source
        )
    name = options["detector"] or ("native" if own is not None else next(iter(detectors)))
    if name == "native" and own is not None:
        return native_instances(own, side) if masks else native(own, side)
    if name not in detectors:
        known = [*detectors, *(["native"] if own is not None else [])]
        raise ConfigError(
            [f"task.options.detector: unknown '{name}'{nearest(str(name), known)}; choose from {', '.join(known)}"],
            source,
        )
    if name == "fcos" and int(options["width"]) % 32:
        raise ConfigError(["task.options.width: fcos normalises in 32 groups: take a multiple of 32"], source)
    settings = {"width": int(options["width"]), "anchor_scale": float(options["anchor_scale"])}
    return detectors[name](backbone.maps, classes, side, **settings)
