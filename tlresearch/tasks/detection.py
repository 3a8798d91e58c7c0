"""Object detection: boxes with classes, or masks of single objects, over feature maps of any image backbone."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.pyramid import PyramidBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError, MissingExtraError, nearest
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName, TargetKind
from tlresearch.data.plane import CROWD, DIFFICULT
from tlresearch.data.seeding import seeded
from tlresearch.modality.base import Modality
from tlresearch.modality.image import COLOURS, Evaluation, colours, inner_size, three_channels, with_palette
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.detectors import (
    DETECTORS,
    INSTANCE_DETECTORS,
    DetectionHead,
    Detections,
    Maps,
    native,
    native_instances,
)
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.predictor import Predictor, Shown
from tlresearch.tasks.segmentation import columns, images_of, side_of
from tlresearch.tracking.figures import class_legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAPS = ("50", "75")
"""Overlaps in percent that have a mean average precision of their own, as COCO's: ``map_50`` and ``map_75``."""
SHOWN = 6
"""Samples of a split whose detections are drawn."""
SURE = 0.5
"""Detections below this score are not drawn."""
_BEYOND = 1e12
"""Area in pixels beyond what pycocotools counts, which ends at 1e10."""


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
        judged = [
            judged_by_coco(target, len(found["labels"])) for target, found in zip(targets, detections, strict=True)
        ]
        self.map.update(detections, judged)

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


def judged_by_coco(target: Mapping[str, Tensor], detections: int) -> dict[str, Tensor]:
    """Turns marks into what pycocotools understands: objects that count neither for nor against a detector.

    A crowd is known there: any number of detections may lie inside of it. A difficult object is not; but one with an
    area beyond all that are counted is passed by, together with the detection that overlaps it. It stands there once
    per detection, since each may overlap it.

    Args:
        target: See `DetectionHead.as_given`.
        detections: Number of detections in the image.
    """
    marks = target.get("marks", torch.zeros_like(target["labels"]))
    difficult = marks == DIFFICULT
    rows = torch.arange(len(difficult), device=difficult.device)
    rows = rows.repeat_interleave(torch.where(difficult, max(1, detections), 1))
    judged = {name: leaf[rows] for name, leaf in target.items() if name != "marks"}
    judged["iscrowd"] = (marks == CROWD).long()[rows]
    judged["area"] = difficult[rows].float() * _BEYOND  # 0: pycocotools' own area
    return judged


class DetectionPredictor(Predictor):
    """Finds objects in raw images, one after another."""

    not_exported = "a detection answers with as many boxes as it finds, which no graph here holds"

    def table(self, samples: Sequence[Tensor]) -> dict[str, list[Any]]:
        """Predicts images of any sizes.

        Args:
            samples: uint8 tensors ``(C, H, W)``.

        Returns:
            ``boxes`` ``[x0, y0, x1, y1]`` in pixels of the image, ``classes`` and ``scores``, surest first; with masks
            of objects also ``mask``: for each pixel of the image the number of its object in that order, from 1, and 0
            where there is none.
        """
        return columns([self.boxes(image) for image in samples])

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns how many boxes of each class were found."""
        return shown_boxes(row)

    def pictures(self, sample: Tensor, row: Mapping[str, Any]) -> dict[str, Image.Image]:
        """Draws the boxes; see `box_pictures`."""
        return box_pictures(sample, row, self.classes)

    @torch.inference_mode()
    def boxes(self, image: Tensor) -> dict[str, Any]:
        """Returns the row of one image of a detection; see `table`."""
        detector = cast(DetectionHead, self.head)
        (found,) = detector.detections(self.network(stack([self.preprocessing.prepare(image)])))
        height, width = inner_size(images_of(self.preprocessing), image.shape[-2], image.shape[-1])
        scale = torch.tensor([image.shape[-1] / width, image.shape[-2] / height] * 2)
        limits = torch.tensor([image.shape[-1], image.shape[-2]] * 2, dtype=torch.float32)
        row = {
            "boxes": (found["boxes"] * scale).minimum(limits).tolist(),
            "classes": [self.classes[number] for number in found["labels"].tolist()],
            "scores": found["scores"].tolist(),
        }
        if "masks" in found:
            size = (image.shape[-2], image.shape[-1])
            inner = found["masks"][:, None, :height, :width].float()
            planes = functional.interpolate(inner, size, mode="bilinear")[:, 0] > 0.5 if len(inner) else inner[:, 0]
            numbers = torch.zeros(size, dtype=torch.int64)
            for number in reversed(range(len(planes))):  # the surest is on top
                numbers[planes[number]] = number + 1
            row["mask"] = numbers.tolist()
        return row


class DetectionTask(Task):
    """A detector over feature maps, of boxes or, with an `InstanceHead`, of boxes and masks.

    Training has its losses alone; boxes are looked for, and compared, in evaluation.

    Args:
        backbone: A backbone that ends in feature maps.
        head: The neck and the detector.
        classes: Class names.
        arguments: See `Task`.
    """

    learns: ClassVar[tuple[TargetKind, ...]] = ("boxes",)
    monitor = "map_50"
    directions: ClassVar[Directions] = dict.fromkeys(
        (f"{of}{name}" for of in ("", "mask_") for name in ("map", "map_*", "recall")), "max"
    )
    end = "maps"
    defaults: ClassVar[Mapping[str, Any]] = {"detector": None, "width": 128, "anchor_scale": 1.0}
    detectors: ClassVar[Mapping[str, Callable[..., DetectionHead]]] = DETECTORS
    masks: ClassVar[bool] = False
    """Whether objects have masks too."""
    predictor = DetectionPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        head: DetectionHead,
        *,
        classes: tuple[str, ...],
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head, **arguments)
        self.meters = nn.ModuleDict({"train_meters": MeanMetric(nan_strategy=math.nan)})
        self.meters.update({f"{split}_meters": BoxMeters(classes, masks=self.masks) for split in ("val", "test")})
        self.class_parts = metric_names(classes, reserved=OVERLAPS)
        self.served_columns = ("boxes", "classes", "scores", *(["mask"] if self.masks else []))
        self.predictions: dict[str, dict[int, dict[str, Tensor]]] = {"val": {}, "test": {}}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> DetectionTask:
        """Builds the detection task of an experiment."""
        head = cls.build_head(config.task, backbone, data.classes, data.preprocessing)
        return cls(backbone, head, classes=data.classes, **arguments)

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> DetectionHead:
        """Builds a detector, or the one that the backbone's own network has.

        Raises:
            ConfigError: If an option is wrong.
        """
        assert isinstance(backbone, PyramidBackbone)
        options = {**cls.defaults, **config.options}
        side, masks, detectors = side_of(preprocessing), cls.masks, cls.detectors
        own = backbone.native_head(len(classes), masks=masks) if backbone.native_head else None
        if masks and own is not None and getattr(getattr(own, "roi_heads", None), "mask_head", None) is None:
            own = None  # a detector without masks
        if not backbone.spatial and (masks or options["detector"] not in (None, "native")):
            raise ConfigError(
                ["task: this backbone has a detector of its own alone: take `detection`, without options.detector"],
                config.name,
            )
        name = options["detector"] or ("native" if own is not None else next(iter(detectors)))
        if name == "native" and own is not None:
            return native_instances(own, side) if masks else native(own, side)
        if name not in detectors:
            known = [*detectors, *(["native"] if own is not None else [])]
            raise ConfigError(
                [f"task.options.detector: unknown '{name}'{nearest(str(name), known)}; choose from {', '.join(known)}"],
                config.name,
            )
        if name == "fcos" and int(options["width"]) % 32:
            raise ConfigError(["task.options.width: fcos normalises in 32 groups: take a multiple of 32"], config.name)
        settings = {"width": int(options["width"]), "anchor_scale": float(options["anchor_scale"])}
        return detectors[name](backbone.maps, len(classes), side, **settings)

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

    def scored(self, outputs: Maps, batch: Batch) -> tuple[Any, Any]:
        """Returns detections and true objects, a mapping for each image as torchmetrics takes them."""
        return self.detector.detections(outputs), [self.detector.as_given(target) for target in batch.targets]

    def update_metrics(self, split: str, outputs: Maps, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the first detections of evaluation for figures."""
        meters: Any = self.meters[f"{split}_meters"]
        if split == "train":
            meters.update(loss, weight=len(batch.targets))
            return
        detections, targets = self.scored(outputs, batch)
        meters.update(detections, targets, loss)
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


class InstancesTask(DetectionTask):
    """Boxes and masks of objects."""

    learns = ("instances",)
    monitor = "mask_map"
    detectors = INSTANCE_DETECTORS
    masks = True


def shown_boxes(row: Mapping[str, Any]) -> Shown:
    """Counts the boxes with a score of at least one half by class; the probability is that of the least sure one."""
    sure = [(name, score) for name, score in zip(row["classes"], row["scores"], strict=True) if score >= SURE]
    counts = Counter(name for name, _ in sure)
    text = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return Shown(text or f"nothing (of {len(row['scores'])} boxes none has a score of {SURE})", _least(sure))


def box_pictures(image: Tensor, row: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Image.Image]:
    """Draws the boxes with a score of at least one half, with class and score, into an image ``(C, H, W)``.

    Where the answer has a mask of each object, it is laid over the image too.

    Returns:
        ``overlay``, and, with masks, ``mask``, whose pixels are the numbers of the objects.
    """
    sure = [number for number, score in enumerate(row["scores"]) if score >= SURE]
    canvas = torch.from_numpy(np.ascontiguousarray(three_channels(image).transpose(2, 0, 1)))
    if sure:
        palette = [tuple(round(255 * part) for part in colour) for colour in colours(len(classes))]
        if "mask" in row:
            planes = torch.tensor(row["mask"]) == torch.tensor(sure)[:, None, None] + 1
            own = [palette[classes.index(row["classes"][number])] for number in sure]
            canvas = draw_segmentation_masks(canvas, planes, alpha=0.4, colors=own)
        canvas = draw_bounding_boxes(
            canvas,
            torch.tensor([row["boxes"][number] for number in sure], dtype=torch.float32),
            labels=[f"{row['classes'][number]} {row['scores'][number]:.2f}" for number in sure],
            colors=[palette[classes.index(row["classes"][number])] for number in sure],
            width=max(1, min(canvas.shape[-2:]) // 200),
        )
    found = {"overlay": to_pil_image(canvas)}
    if "mask" in row:  # 255 objects at most: no detector answers with more
        several = [(0.0, 0.0, 0.0), *colours(COLOURS) * 13]
        found["mask"] = with_palette(np.array(row["mask"], dtype=np.uint8), several[:256])
    return found


def detections_figure(
    data: Data,
    split: SplitName,
    targets: Mapping[int, Mapping[str, Tensor]],
    predictions: Mapping[int, Mapping[str, Tensor]],
) -> Figure:
    """Draws one row per sample: the true boxes, and the detected ones with their scores.

    Args:
        data: The data set.
        split: The split that was evaluated.
        targets: True boxes by position in the split; see `DetectionHead.as_given`.
        predictions: Detections by position in the split; see `Detections`.
    """
    from matplotlib import colormaps

    evaluation = Evaluation(images_of(data.preprocessing))
    palette = [colormaps["tab10"](number % 10) for number in range(len(data.classes))]
    figure = new_figure(9.0, 4.3 * len(predictions) + 0.5)
    grid = figure.subplots(len(predictions), 2, squeeze=False)
    for (left, right), (index, found) in zip(grid, sorted(predictions.items()), strict=True):
        image = three_channels(evaluation.frame(data.splits[split].raw(index)))
        kept = found["scores"] >= SURE
        left.imshow(image)
        right.imshow(image)
        _draw(left, targets[index], palette)
        _draw(right, {name: leaf[kept] for name, leaf in found.items()}, palette)
        left.set_title(f"{data.splits[split].names[index][-40:]}: true", fontsize=8, loc="left")
        right.set_title(f"detected with a score of at least {SURE}", fontsize=8, loc="left")
        left.set_axis_off()
        right.set_axis_off()
    class_legend(figure, data.classes, palette)
    return figure


def _draw(axes: Any, found: Mapping[str, Tensor], palette: list[Any]) -> None:
    from matplotlib.patches import Rectangle

    scores, marks = found.get("scores"), found.get("marks", torch.zeros(len(found["labels"])))
    if "masks" in found:
        axes.imshow(_objects(found["masks"] > 0))
    for number, ((x0, y0, x1, y1), label) in enumerate(
        zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
    ):
        line = {"linewidth": 1.2, "edgecolor": palette[label], "linestyle": ":" if marks[number] else "-"}
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **line))
        if scores is not None:
            axes.text(x0, y0 - 1, f"{float(scores[number]):.2f}", fontsize=6, color=palette[label], va="bottom")


def _objects(masks: Tensor) -> Any:
    """A colour for each object, so that neighbours of one class are told apart; the first ones are on top."""
    from matplotlib import colormaps

    overlay = torch.zeros(*masks.shape[1:], 4)
    for number in reversed(range(len(masks))):
        overlay[masks[number]] = torch.tensor([*colormaps["tab20"](number % 20)[:3], 0.5], dtype=overlay.dtype)
    return overlay.numpy()


def _least(sure: Sequence[tuple[str, float]]) -> float | None:
    return min((score for _, score in sure), default=None)
