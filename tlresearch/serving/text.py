"""A trained text classifier as files that predict from raw texts, without the data or the run it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.text import FOLDER, TextBackbone
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import Data, TargetKind
from tlresearch.data.text_tokenizer import TextPreprocessing, text_input
from tlresearch.data.values import Value
from tlresearch.serving.base import (
    FILES,
    ClassPredictor,
    linear_head,
    read_description,
    save_predictor_files,
    with_weights,
)
from tlresearch.serving.raw import RawTexts
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask


class TextPredictor(ClassPredictor):
    """Predicts from raw texts.

    Args:
        network: See `ClassPredictor`.
        preprocessing: The tokenizer.
        max_length: Most tokens of a text; what is longer is cut.
        classes: See `ClassPredictor`.
        kind: See `ClassPredictor`.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: TextPreprocessing,
        max_length: int,
        classes: Sequence[str],
        kind: TargetKind,
    ) -> None:
        super().__init__(network, RawTexts(), classes, kind)
        self.preprocessing = preprocessing
        self.max_length = max_length

    def inputs(self, samples: Sequence[str]) -> list[Value]:
        """Tokenises texts."""
        return [text_input(ids) for ids in self.preprocessing.tokenizer.texts(samples, self.max_length)]


def text_servable(task: Task, data: Data) -> bool:
    """Whether `load_text_predictor` can rebuild the network: texts, one vector of each, and a linear head."""
    head = isinstance(task, ClassificationTask) and set(task.head.state_dict()) == {"1.weight", "1.bias"}
    return head and isinstance(data.preprocessing, TextPreprocessing) and isinstance(task.backbone, TextBackbone)


def save_text_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors, JSON and the vocabulary."""
    files = folder / FILES
    files.mkdir()
    preprocessing: TextPreprocessing = data.preprocessing
    assert isinstance(task.backbone, TextBackbone)
    description = {
        "backbone": task.backbone.save_files(files),
        "classes": list(data.classes),
        "kind": data.kind,
        "max_length": preprocessing.max_length,
    }
    save_predictor_files(folder, task, description)


def load_text_predictor(folder: Path) -> TextPredictor:
    """Reads what `save_text_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = read_description(folder)
    backbone, classes = text_backbone(folder, description), description["classes"]
    network = with_weights(folder, backbone, linear_head(backbone.out_features, len(classes)))
    return TextPredictor(network, backbone.preprocessing, description["max_length"], classes, description["kind"])


def text_backbone(folder: Path, description: dict[str, Any], end: End = "pooled") -> StagedBackbone:
    """Builds the backbone that a description names, with random weights."""
    recipe, files = description["backbone"], str(folder / FILES)
    options = {
        key: value.replace(FOLDER, files) if isinstance(value, str) else value
        for key, value in recipe["options"].items()
    }
    name = recipe["name"].replace(FOLDER, files)
    return build_backbone(BackboneConfig(name=name, weights=None, options=options), end)
