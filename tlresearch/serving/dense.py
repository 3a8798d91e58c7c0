"""A trained segmentation or detection network as files that predict from raw images, without data or run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.pyramid import PyramidBackbone
from tlresearch.backbones.text import FOLDER, Recipe
from tlresearch.config.schema import BackboneConfig, ExperimentConfig, TaskConfig
from tlresearch.data.base import Data, Preprocessing
from tlresearch.data.decoding import to_channels
from tlresearch.data.framing import inner_size
from tlresearch.data.transforms import Evaluation
from tlresearch.serving.base import DESCRIPTION, FILES, WEIGHTS, RawPredictor, Shown
from tlresearch.serving.drawing import box_pictures, mask_pictures, shown_boxes, shown_shares
from tlresearch.serving.raw import RawImages
from tlresearch.tasks.base import Task
from tlresearch.tasks.detection import DetectionTask, detection_head
from tlresearch.tasks.detectors import DetectionHead
from tlresearch.tasks.segmentation import SegmentationTask, segmentation_head


class DensePredictor(RawPredictor):
    """Predicts masks or boxes from raw images.

    Args:
        backbone: A backbone that ends in feature maps.
        head: The head of a segmentation or detection task.
        preprocessing: What is done to an image.
        classes: Class names in the order of their numbers.
    """

    def __init__(
        self, backbone: StagedBackbone, head: nn.Module, preprocessing: Preprocessing, classes: Sequence[str]
    ) -> None:
        super().__init__(RawImages(preprocessing.channels, preprocessing.windows, preprocessing.orientation))
        self.backbone = backbone.eval()
        self.head = head.eval()
        self.evaluation = Evaluation(preprocessing)
        self.classes = tuple(classes)

    def table(self, images: Sequence[Tensor]) -> dict[str, list[Any]]:
        """Predicts images of any sizes, one after another.

        Args:
            images: uint8 tensors ``(C, H, W)``.

        Returns:
            Columns with one entry per image. Of segmentation: ``mask``, class numbers as a list of rows, of the
            image's size (of the input's, where `Preprocessing.fit` is ``crop``), and each class's share of the pixels
            as ``share(<class>)``. Of detection: ``boxes`` ``[x0, y0, x1, y1]`` in pixels of the image, ``classes`` and
            ``scores``, surest first; with masks of objects also ``mask``: for each pixel of the image the number of
            its object in that order, from 1, and 0 where there is none.
        """
        rows = [self.boxes(image) if isinstance(self.head, DetectionHead) else self.mask(image) for image in images]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns what covers the image, or how many boxes of each class were found."""
        return shown_boxes(row) if "boxes" in row else shown_shares(row, self.classes)

    def pictures(self, sample: Tensor, row: Mapping[str, Any]) -> dict[str, Image]:
        """Draws mask or boxes; see `mask_pictures` and `box_pictures`."""
        if "boxes" in row:
            return box_pictures(sample, row, self.classes)
        return mask_pictures(sample, row["mask"], self.classes)

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """Returns the scores ``(1, classes, H, W)`` of one image of a segmentation, of the size of its mask."""
        scores: Tensor = self.head(self.backbone(self._input(image)))
        if self.evaluation.preprocessing.fit == "crop":
            return scores
        size = (image.shape[-2], image.shape[-1])
        height, width = inner_size(self.evaluation.preprocessing, *size)
        inner = scores[..., :height, :width]
        return functional.interpolate(inner, size, mode="bilinear", align_corners=False)

    def mask(self, image: Tensor) -> dict[str, Any]:
        """Returns the row of one image of a segmentation; see `table`."""
        numbers = self.scores(image).argmax(dim=1)[0]
        shares = torch.bincount(numbers.flatten(), minlength=len(self.classes)) / numbers.numel()
        named = zip(self.classes, shares.tolist(), strict=True)
        return {"mask": numbers.tolist(), **{f"share({name})": share for name, share in named}}

    @torch.inference_mode()
    def boxes(self, image: Tensor) -> dict[str, Any]:
        """Returns the row of one image of a detection; see `table`."""
        assert isinstance(self.head, DetectionHead)
        (found,) = self.head.detections(self.head(self.backbone(self._input(image))))
        height, width = inner_size(self.evaluation.preprocessing, image.shape[-2], image.shape[-1])
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

    def _input(self, image: Tensor) -> Tensor:
        return self.evaluation(to_channels(image, self.evaluation.preprocessing.channels))[None]


def dense_servable(task: Task, data: Data) -> bool:
    """Whether `load_dense_predictor` can rebuild the network: one of our two tasks, over images."""
    return isinstance(task, (SegmentationTask, DetectionTask)) and isinstance(data.preprocessing, Preprocessing)


def save_dense_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors and JSON."""
    backbone = config.backbone
    recipe = Recipe(name=backbone.name, options=dict(backbone.options))
    if isinstance(task.backbone, PyramidBackbone) and task.backbone.save_files:
        (folder / FILES).mkdir()
        recipe = task.backbone.save_files(folder / FILES)
    description = {
        "backbone": {**recipe, "granularity": backbone.granularity, "in_channels": data.preprocessing.channels},
        "task": {"name": config.task.name, "dropout": config.task.dropout, "options": dict(config.task.options)},
        "classes": list(data.classes),
        "preprocessing": asdict(data.preprocessing),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def load_dense_predictor(folder: Path) -> DensePredictor:
    """Reads what `save_dense_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = json.loads((folder / DESCRIPTION).read_text())
    task, classes = TaskConfig(**description["task"]), description["classes"]
    preprocessing = Preprocessing.from_fields(description["preprocessing"])
    assert preprocessing.crop is not None
    network = nn.Module()
    recipe = description["backbone"]
    config = BackboneConfig(**{**recipe, "name": recipe["name"].replace(FOLDER, str(folder / FILES))}, weights=None)
    network.backbone = backbone = build_backbone(config, "maps")
    build = detection_head if task.name in ("detection", "instances") else segmentation_head
    network.head = head = build(task, backbone, len(classes), preprocessing.crop, task.name)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return DensePredictor(backbone, head, preprocessing, classes)
