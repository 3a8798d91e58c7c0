"""Semantic segmentation: a class for every pixel, over feature maps of any image backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.pyramid import FeatureMap, PyramidBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError, nearest
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SampleKey, SplitName
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import (
    IGNORE,
    Evaluation,
    Preprocessing,
    colours,
    framed_mask,
    inner_size,
    overlaid,
    three_channels,
    with_palette,
)
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.counts import ClassCounts, Counts
from tlresearch.tasks.losses import CrossEntropy
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.predictor import ScoresPredictor, Shown
from tlresearch.tracking.figures import class_legend, new_figure

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


class SegmentationPredictor(ScoresPredictor):
    """Predicts a class for every pixel of raw images, one after another."""

    outputs: Mapping[str, str] = {
        "probabilities": "float32 (N, classes, height, width)",
        "answer": "int64 (N, height, width), the number of each pixel's class",
    }
    inside = "network, resize to the image's size, probabilities, mask"
    most = 100  # whole maps of probabilities are compared, which take much memory

    @property
    def images(self) -> Preprocessing:
        """What is done to an image."""
        return images_of(self.preprocessing)

    def table(self, samples: Sequence[Tensor]) -> dict[str, list[Any]]:
        """Predicts images of any sizes.

        Args:
            samples: uint8 tensors ``(C, H, W)``.

        Returns:
            ``mask``, class numbers as a list of rows, of the image's size (of the input's, where `Preprocessing.fit`
            is ``crop``), and each class's share of the pixels as ``share(<class>)``.
        """
        return columns([self.mask(image) for image in samples])

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns what covers the image."""
        return shown_shares(row, self.classes)

    def pictures(self, sample: Tensor, row: Mapping[str, Any]) -> dict[str, Image.Image]:
        """Draws the mask; see `mask_pictures`."""
        return mask_pictures(sample, row["mask"], self.classes)

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """Returns the scores ``(1, classes, H, W)`` of one image of a segmentation, of the size of its mask."""
        scores: Tensor = self.network(stack([self.preprocessing.prepare(image)]))
        if self.images.fit == "crop":
            return scores
        size = (image.shape[-2], image.shape[-1])
        height, width = inner_size(self.images, *size)
        inner = scores[..., :height, :width]
        return functional.interpolate(inner, size, mode="bilinear", align_corners=False)

    def mask(self, image: Tensor) -> dict[str, Any]:
        """Returns the row of one image of a segmentation; see `table`."""
        numbers = self.scores(image).argmax(dim=1)[0]
        shares = torch.bincount(numbers.flatten(), minlength=len(self.classes)) / numbers.numel()
        named = zip(self.classes, shares.tolist(), strict=True)
        return {"mask": numbers.tolist(), **{f"share({name})": share for name, share in named}}

    def first(self, sample: Any) -> NDArray[Any]:
        """Returns the probabilities ``(1, classes, H, W)`` of a raw image."""
        found: NDArray[Any] = self.scores(sample).softmax(dim=1).numpy()
        return found

    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures masks at the size of the network's input, as training does."""
        meters, part = PixelMeters(data.classes), data.splits[split]
        for row, probabilities in zip(rows, found, strict=True):
            mask = torch.from_numpy(probabilities.argmax(axis=1)[0]).to(torch.uint8)
            if self.images.fit != "crop":
                mask = framed_mask(mask, self.images)
            meters.update(mask[None].long(), part[SampleKey(row, 0)][1][None], torch.tensor(0.0))
        return {name: value for name, value in meters.finish().items() if name != "loss"}


class SegmentationTask(Task):
    """A decoder over feature maps, with a loss over pixels.

    Args:
        backbone: A backbone that ends in feature maps.
        head: Takes them and gives scores ``(batch, classes, H, W)`` at the input size.
        classes: Class names.
        class_weights: Weight of each class in the loss.
        arguments: See `Task`.
    """

    learns = ("masks",)
    monitor = "dice"
    directions: ClassVar[Directions] = dict.fromkeys(("accuracy", "iou", "dice", "iou_*", "dice_*"), "max")
    end = "maps"
    ignored = IGNORE
    defaults: ClassVar[Mapping[str, Any]] = {"decoder": None, "width": None}
    predictor = SegmentationPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        head: nn.Module,
        *,
        classes: tuple[str, ...],
        class_weights: Tensor | None = None,
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head, **arguments)
        self.cross_entropy = CrossEntropy(class_weights, IGNORE)
        self.served_columns = ("mask", *(f"share({name})" for name in classes))
        self.class_parts = metric_names(classes)
        self.meters = nn.ModuleDict({f"{split}_meters": PixelMeters(classes) for split in SPLITS})
        self.predictions: dict[str, dict[int, Tensor]] = {"val": {}, "test": {}}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> SegmentationTask:
        """Builds the segmentation task of an experiment."""
        return cls(
            backbone,
            cls.build_head(config.task, backbone, data.classes, data.preprocessing),
            classes=data.classes,
            class_weights=cls.balanced(data) if config.task.class_weights == "balanced" else None,
            **arguments,
        )

    @classmethod
    def balanced(cls, data: Data) -> Tensor:
        """Returns weights by the number of pixels."""
        return balanced_pixel_weights(data.splits["train"].targets, len(data.classes))

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> SegmentationHead:
        """Builds a decoder, or the head that the backbone's own network has.

        Raises:
            ConfigError: If an option is wrong.
        """
        assert isinstance(backbone, PyramidBackbone)
        options = {**cls.defaults, **config.options}
        side = side_of(preprocessing)
        if not backbone.spatial:
            raise ConfigError(["task.name: this backbone has no feature maps: it is for `detection`"], config.name)
        name = options["decoder"] or ("native" if backbone.native_head else "unet")
        if name == "native" and backbone.native_head is not None:
            return SegmentationHead(backbone.native_head(len(classes)), (side, side))
        if name not in DECODERS:
            known = [*DECODERS, *(["native"] if backbone.native_head else [])]
            raise ConfigError(
                [f"task.options.decoder: unknown '{name}'{nearest(name, known)}; choose from {', '.join(known)}"],
                config.name,
            )
        width = {} if options["width"] is None else {"width": options["width"]}
        decoder = DECODERS[name](backbone.maps, len(classes), dropout=config.dropout, **width)
        return SegmentationHead(decoder, (side, side))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy over all pixels of a batch; `targets` are class numbers ``(batch, H, W)``."""
        loss: Tensor = self.cross_entropy(outputs, targets)
        return loss

    def scored(self, outputs: Tensor, batch: Batch) -> tuple[Any, Any]:
        """Returns the probabilities ``(batch, classes, H, W)`` and class numbers ``(batch, H, W)``."""
        return outputs.float().softmax(dim=1), batch.targets.long()

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


def images_of(preprocessing: Modality | None) -> Preprocessing:
    """Returns the preprocessing of a task over images.

    Raises:
        ConfigError: If the inputs are something else.
    """
    return expect(preprocessing, Preprocessing, ConfigError(["task.name: this task is for images"], "task"))


def side_of(preprocessing: Modality | None) -> int:
    """Side of the input in pixels; sources of masks and boxes always say it."""
    crop = images_of(preprocessing).crop
    assert crop is not None
    return crop


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turns rows into columns."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def shown_shares(row: Mapping[str, Any], classes: Sequence[str]) -> Shown:
    """Says how much of an image each class covers, from the columns ``share(<class>)``."""
    shares = sorted(((row[f"share({name})"], name) for name in classes), reverse=True)
    return Shown(", ".join(f"{name} {share:.1%}" for share, name in shares if share >= 0.0005), None)


def mask_pictures(image: Tensor, mask: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Image.Image]:
    """Draws a mask: by itself, and over its image where it has the image's size.

    Args:
        image: uint8 ``(C, H, W)``.
        mask: Class numbers by row.
        classes: Class names.

    Returns:
        ``mask``, whose pixels are class numbers with a palette to be looked at, and ``overlay``.
    """
    palette = colours(len(classes))
    numbers = np.array(mask, dtype=np.uint8)
    found = {"mask": with_palette(numbers, palette)}
    if numbers.shape == tuple(image.shape[-2:]):
        found["overlay"] = Image.fromarray(overlaid(three_channels(image), numbers, palette))
    return found


def overlay_figure(data: Data, split: SplitName, predictions: Mapping[int, Tensor]) -> Figure:
    """Draws one row per sample: the image, the true mask and the predicted one.

    Args:
        data: The data set.
        split: The split that was evaluated.
        predictions: Predicted class numbers ``(H, W)`` by position in the split.
    """
    from matplotlib import colormaps

    evaluation = Evaluation(images_of(data.preprocessing))
    few = len(data.classes) <= 10
    palette = [colormaps["tab10" if few else "tab20"](number % 20)[:3] for number in range(len(data.classes))]
    figure = new_figure(8.4, 2.8 * len(predictions) + 0.5)
    grid = figure.subplots(len(predictions), 3, squeeze=False)
    for row, (index, predicted) in zip(grid, sorted(predictions.items()), strict=True):
        image = three_channels(evaluation.frame(data.splits[split].raw(index)))
        target = data.splits[split].targets[index].numpy()
        row[0].imshow(image)
        row[1].imshow(overlaid(image, target, palette))
        row[2].imshow(overlaid(image, predicted.numpy(), palette))
        row[0].set_title(data.splits[split].names[index][-40:], fontsize=8, loc="left")
        row[1].set_title("true", fontsize=8, loc="left")
        right = (predicted.numpy() == target)[target != IGNORE]
        row[2].set_title(f"predicted, {right.mean() if right.size else 1:.1%} right", fontsize=8, loc="left")
        for axes in row:
            axes.set_axis_off()
    class_legend(figure, data.classes, palette)
    return figure


Maps = dict[str, Tensor]


class SegmentationHead(nn.Module):
    """A decoder, whose scores are brought to the input size.

    Args:
        decoder: Takes the maps by name and gives scores ``(batch, classes, H, W)`` of any size.
        size: Height and width of the result in pixels.
        dropout: Probability of dropping whole channels in front of the decoder's last layer; see `Unet` and `Fpn`.
    """

    def __init__(self, decoder: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.size = size

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores ``(batch, classes, height, width)``."""
        scores: Tensor = self.decoder(maps)
        if tuple(scores.shape[-2:]) == self.size:
            return scores
        return functional.interpolate(scores, self.size, mode="bilinear", align_corners=False)


class Unet(nn.Module):
    """The expanding path of a U-Net (Ronneberger et al. 2015) over the maps of any encoder.

    From the coarsest map on, the value is enlarged to the next finer map, joined with it, and goes through two
    convolutions with batch norm; nearest-neighbour enlargement, so that maps may have any sizes.

    Args:
        maps: The encoder's maps, finest first.
        classes: Number of classes.
        width: Channels at the finest map; each coarser one has twice as many, up to 16 times.
        dropout: Probability of dropping whole channels in front of the last layer.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        blocks = []
        channels = maps[-1].channels
        for level in reversed(range(len(maps) - 1)):
            wide = width * 2 ** min(level, 4)
            blocks.append(
                nn.Sequential(
                    Conv2dNormActivation(channels + maps[level].channels, wide, 3), Conv2dNormActivation(wide, wide, 3)
                )
            )
            channels = wide
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores at the size of the finest map."""
        x = maps[self.names[-1]]
        for block, name in zip(self.blocks, reversed(self.names[:-1]), strict=True):
            skip = maps[name]
            x = block(torch.cat([functional.interpolate(x, skip.shape[-2:], mode="nearest"), skip], dim=1))
        scores: Tensor = self.out(x)
        return scores


class Fpn(nn.Module):
    """A feature pyramid whose levels are enlarged to the finest and added (Kirillov et al. 2019).

    Args:
        maps: The encoder's maps, finest first.
        classes: Number of classes.
        width: Channels of every level.
        dropout: Probability of dropping whole channels in front of the last layer.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int, *, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        self.pyramid = FeaturePyramidNetwork([found.channels for found in maps], width)
        self.levels = nn.ModuleList([Conv2dNormActivation(width, width, 3) for _ in maps])
        self.out = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores at the size of the finest map."""
        pyramid = self.pyramid({name: maps[name] for name in self.names})
        size = pyramid[self.names[0]].shape[-2:]
        levels = [level(pyramid[name]) for level, name in zip(self.levels, self.names, strict=True)]
        enlarged = [functional.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels]
        scores: Tensor = self.out(torch.stack(enlarged).sum(dim=0))
        return scores


DECODERS: Mapping[str, Callable[..., nn.Module]] = {"unet": Unet, "fpn": Fpn}
