"""Semantic segmentation: a class for every pixel, over feature maps of any image backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.pyramid import PyramidBackbone
from tlresearch.base.errors import ConfigError, nearest
from tlresearch.config.schema import TaskConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.data.framing import IGNORE
from tlresearch.tasks.base import Mixer, OptimizerFactory, Penalty, Task
from tlresearch.tasks.counts import ClassCounts, Counts
from tlresearch.tasks.decoders import DECODERS, SegmentationHead
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.segmentation_figures import overlay_figure
from tlresearch.tasks.segmentation_losses import COMBINATIONS, SegmentationLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("train", "val", "test")
SHOWN = 6
"""Samples of a split whose predictions are drawn."""


class PixelMeters(nn.Module):
    """Loss and metrics of one split, over all of its pixels; as a module, so that they follow the task to its device.

    Args:
        classes: Class names.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.loss = MeanMetric(nan_strategy=math.nan)  # a loss that is NaN is not left out
        self.counts = ClassCounts(len(classes), ignored=IGNORE)

    def update(self, predicted: Tensor, masks: Tensor, loss: Tensor) -> None:
        """Takes a batch of class numbers ``(batch, H, W)``."""
        self.loss.update(loss, weight=len(masks))
        self.counts.update(predicted, masks)

    def finish(self) -> dict[str, float]:
        """Returns every value and resets; see `overlap_metrics`."""
        values = {"loss": float(self.loss.compute()), **overlap_metrics(self.counts.compute(), self.classes)}
        self.loss.reset()
        self.counts.reset()
        return values


class SegmentationTask(Task):
    """A decoder over feature maps, with a loss over pixels.

    Args:
        backbone: A backbone that ends in feature maps.
        head: Takes them and gives scores ``(batch, classes, H, W)`` at the input size.
        classes: Class names.
        criterion: The loss.
        optimizer: Makes the optimizer from backbone and head.
        changing: See `Task`.
        mixer: See `Task`.
        penalty: See `Task`.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        head: nn.Module,
        *,
        classes: tuple[str, ...],
        criterion: SegmentationLoss,
        optimizer: OptimizerFactory,
        changing: frozenset[int],
        mixer: Mixer | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__(backbone, head, optimizer=optimizer, changing=changing, mixer=mixer, penalty=penalty)
        self.criterion = criterion
        self.served_columns = ("mask", *(f"share({name})" for name in classes))
        self.meters = nn.ModuleDict({f"{split}_meters": PixelMeters(classes) for split in SPLITS})
        self.predictions: dict[str, dict[int, Tensor]] = {"val": {}, "test": {}}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss over all pixels of a batch; `targets` are class numbers ``(batch, H, W)``."""
        return self.criterion(outputs, targets)

    def update_metrics(self, split: str, outputs: Tensor, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the first predictions of evaluation for figures."""
        predicted = outputs.argmax(dim=1)
        self._meters(split).update(predicted, batch.targets, loss)
        if split in self.predictions:
            for index, mask in zip(batch.indices.tolist(), predicted, strict=True):
                if index < SHOWN:
                    self.predictions[split][index] = mask.to("cpu", torch.uint8)

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and metrics of a split and resets them."""
        return self._meters(split).finish()

    def figures(self, data: Data) -> dict[str, Figure]:
        """Draws the first samples of the test split, else of validation, with true and predicted masks."""
        split: SplitName = "test" if self.predictions["test"] else "val"
        predictions = self.predictions[split]
        return {"overlays.png": overlay_figure(data, split, predictions)} if predictions else {}

    def _meters(self, split: str) -> PixelMeters:
        return cast(PixelMeters, self.meters[f"{split}_meters"])


def overlap_metrics(counts: Counts, classes: tuple[str, ...]) -> dict[str, float]:
    """Overlap of prediction and truth, from the counts of pixels.

    Args:
        counts: Right, predicted and true pixels of each class.
        classes: Class names.

    Returns:
        ``accuracy`` (share of right pixels), ``iou`` and ``dice`` (means over the classes, the background one of
        them), and both by class, such as ``dice_cell``. A class that is neither there nor predicted has no value
        (NaN), and is left out of the means.
    """
    right, true, predicted = counts.right.double(), counts.true.double(), counts.predicted.double()
    iou = right / (true + predicted - right)
    overlap = 2 * right / (true + predicted)
    names = metric_names(classes).values()
    return {
        "accuracy": float(right.sum() / true.sum()),
        "iou": float(iou.nanmean()),
        "dice": float(overlap.nanmean()),
        **{f"iou_{name}": float(value) for name, value in zip(names, iou, strict=True)},
        **{f"dice_{name}": float(value) for name, value in zip(names, overlap, strict=True)},
    }


def balanced_pixel_weights(masks: Any, classes: int) -> Tensor:
    """Returns class weights inversely proportional to the number of pixels, as `balanced_weights` does for samples."""
    counts = torch.zeros(classes + 1)
    for mask in masks:
        counts += torch.bincount(mask.long().clamp(max=classes).flatten(), minlength=classes + 1)
    counts = counts[:classes].clamp(min=1)
    return counts.sum() / (classes * counts)


DEFAULTS: Mapping[str, Any] = {"decoder": None, "width": None, "loss": "cross_entropy", "gamma": 2.0}
"""Options of the task."""


def segmentation_head(
    config: TaskConfig, backbone: StagedBackbone, classes: int, side: int, source: str
) -> SegmentationHead:
    """Builds the head that a config asks for: a decoder, or the one the backbone's own network has.

    Args:
        config: The `task` section.
        backbone: A backbone that ends in feature maps.
        classes: Number of classes.
        side: Side of the input in pixels.
        source: What the config is called in errors.

    Raises:
        ConfigError: If an option is unknown.
    """
    assert isinstance(backbone, PyramidBackbone)
    options = read_options(config, DEFAULTS, source)
    if not backbone.spatial:
        raise ConfigError(["task.name: this backbone has no feature maps: it is for `detection`"], source)
    name = options["decoder"] or ("native" if backbone.native_head else "unet")
    if name == "native" and backbone.native_head is not None:
        return SegmentationHead(backbone.native_head(classes), (side, side))
    if name not in DECODERS:
        known = [*DECODERS, *(["native"] if backbone.native_head else [])]
        raise ConfigError(
            [f"task.options.decoder: unknown '{name}'{nearest(name, known)}; choose from {', '.join(known)}"], source
        )
    width = {} if options["width"] is None else {"width": options["width"]}
    decoder = DECODERS[name](backbone.maps, classes, dropout=config.dropout, **width)
    return SegmentationHead(decoder, (side, side))


def segmentation_loss(config: TaskConfig, data: Data, source: str) -> SegmentationLoss:
    """Builds the loss that a config asks for.

    Raises:
        ConfigError: If there is none of its name.
    """
    options = read_options(config, DEFAULTS, source)
    name = options["loss"]
    if name not in COMBINATIONS:
        raise ConfigError(
            [
                f"task.options.loss: unknown '{name}'{nearest(str(name), list(COMBINATIONS))}; "
                f"choose from {', '.join(COMBINATIONS)}"
            ],
            source,
        )
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_pixel_weights(data.splits["train"].targets, len(data.classes))
    return SegmentationLoss(COMBINATIONS[name], gamma=float(options["gamma"]), class_weights=weights)


def read_options(config: TaskConfig, defaults: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns a task's options over their defaults.

    Raises:
        ConfigError: If one is unknown.
    """
    unknown = [name for name in config.options if name not in defaults]
    if unknown:
        raise ConfigError(
            [
                f"task.options: {config.name} has no option '{name}'{nearest(name, list(defaults))}; "
                f"it has {', '.join(defaults)}"
                for name in unknown
            ],
            source,
        )
    return {**defaults, **config.options}
