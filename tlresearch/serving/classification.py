"""A trained classifier as files that predict from raw images, without the data or the run it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import Data, Preprocessing, TargetKind
from tlresearch.data.decoding import to_channels
from tlresearch.data.transforms import Evaluation
from tlresearch.data.values import Value
from tlresearch.serving.base import ClassPredictor, linear_head, read_description, save_predictor_files, with_weights
from tlresearch.serving.raw import RawImages
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask


class Predictor(ClassPredictor):
    """Predicts from raw images of any sizes, one by one preprocessed and together run.

    Args:
        network: See `ClassPredictor`.
        preprocessing: What is done to an image.
        classes: See `ClassPredictor`.
        kind: See `ClassPredictor`.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, classes: Sequence[str], kind: TargetKind
    ) -> None:
        super().__init__(
            network, RawImages(preprocessing.channels, preprocessing.windows, preprocessing.orientation), classes, kind
        )
        self.preprocessing = preprocessing
        self.evaluation = Evaluation(preprocessing)

    def inputs(self, samples: Sequence[Tensor]) -> list[Value]:
        """Preprocesses uint8 images ``(C, H, W)``."""
        return [self.evaluation(to_channels(image, self.preprocessing.channels)) for image in samples]


def servable(task: Task, data: Data) -> bool:
    """Whether `load_predictor` can rebuild the network: images, and a head that is the linear one."""
    head = isinstance(task, ClassificationTask) and set(task.head.state_dict()) == {"1.weight", "1.bias"}
    return head and isinstance(data.preprocessing or task.backbone.preprocessing, Preprocessing)


def save_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors and JSON."""
    preprocessing = data.preprocessing or task.backbone.preprocessing
    description = {
        "backbone": {
            "name": config.backbone.name,
            "granularity": config.backbone.granularity,
            "in_channels": preprocessing.channels,  # a run that went on from another may have taken over its channels
        },
        "options": dict(config.backbone.options),
        "classes": list(data.classes),
        "kind": data.kind,
        "preprocessing": asdict(preprocessing),
    }
    save_predictor_files(folder, task, description)


def load_predictor(folder: Path) -> Predictor:
    """Reads what `save_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = read_description(folder)
    classes = description["classes"]
    backbone = build_backbone(BackboneConfig(**description["backbone"], weights=None, options=description["options"]))
    network = with_weights(folder, backbone, linear_head(backbone.out_features, len(classes)))
    return Predictor(network, Preprocessing.from_fields(description["preprocessing"]), classes, description["kind"])
