"""A trained classifier as files that predict from raw images, without the data or the run it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import Data, Preprocessing, TargetKind
from tlresearch.data.decoding import to_channels
from tlresearch.data.transforms import Evaluation
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask

WEIGHTS = "weights.safetensors"
DESCRIPTION = "predictor.json"


class Predictor:
    """Predicts from raw images.

    Attributes:
        classes: Class names in the order of the probabilities.
        kind: What the targets are; several labels have independent probabilities.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, classes: Sequence[str], kind: TargetKind
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.evaluation = Evaluation(preprocessing)
        self.classes = tuple(classes)
        self.kind = kind

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Predicts images of any sizes, one by one preprocessed and together run.

        Args:
            images: uint8 tensors ``(C, H, W)``; grey, RGB or RGBA.

        Returns:
            The likeliest class ``(images,)`` and the probabilities ``(images, classes)``.
        """
        channels = self.preprocessing.channels
        batch = torch.stack([self.evaluation(to_channels(image, channels)) for image in images])
        outputs = self.network(batch)
        probabilities = outputs.sigmoid() if self.kind == "multilabel" else outputs.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities


def servable(task: Task, data: Data) -> bool:
    """Whether `load_predictor` can rebuild the network: images, and a head that is the linear one."""
    head = isinstance(task, ClassificationTask) and set(task.head.state_dict()) == {"1.weight", "1.bias"}
    return head and isinstance(data.preprocessing or task.backbone.preprocessing, Preprocessing)


def save_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors and JSON."""
    description = {
        "backbone": {
            "name": config.backbone.name,
            "granularity": config.backbone.granularity,
            "in_channels": config.backbone.in_channels,
        },
        "options": dict(config.backbone.options),
        "classes": list(data.classes),
        "kind": data.kind,
        "preprocessing": asdict(data.preprocessing or task.backbone.preprocessing),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def load_predictor(folder: Path) -> Predictor:
    """Reads what `save_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = json.loads((folder / DESCRIPTION).read_text())
    config = BackboneConfig(**description["backbone"], weights=None, options=description["options"])
    backbone = build_backbone(config)
    tensors = load_file(folder / WEIGHTS)
    width, classes = backbone.out_features, len(description["classes"])
    network = nn.Module()
    network.backbone = backbone
    network.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, classes))
    network.load_state_dict(tensors)
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in description["preprocessing"].items()
    }
    return Predictor(
        nn.Sequential(backbone, network.head),
        Preprocessing(**fields),
        description["classes"],
        description["kind"],
    )
