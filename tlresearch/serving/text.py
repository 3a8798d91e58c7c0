"""A trained text classifier as files that predict from raw texts, without the data or the run it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.text import FOLDER, TextBackbone
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import Data, TargetKind
from tlresearch.data.text_tokenizer import TextPreprocessing, text_input
from tlresearch.data.values import stack
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask

WEIGHTS = "weights.safetensors"
DESCRIPTION = "predictor.json"
FILES = "backbone"
"""Folder of what the backbone is built from beside its weights: vocabulary and settings."""
BATCH = 64


class TextPredictor:
    """Predicts from raw texts.

    Attributes:
        classes: Class names in the order of the probabilities.
        kind: What the targets are; several labels have independent probabilities.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: TextPreprocessing,
        max_length: int,
        classes: Sequence[str],
        kind: TargetKind,
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.max_length = max_length
        self.classes = tuple(classes)
        self.kind = kind

    def read(self, model_input: Any) -> list[str]:
        """Takes a data frame with the column ``text``, a list of texts, or one text.

        Raises:
            ValueError: If it is anything else.
        """
        if hasattr(model_input, "columns"):
            if "text" not in model_input.columns:
                known = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs a column 'text' but has: {known}")
            model_input = model_input["text"]
        texts = [model_input] if isinstance(model_input, str) else list(model_input)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("the model takes texts: a list of strings, or a data frame with the column 'text'")
        return texts

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the likeliest class ``(texts,)`` and the probabilities ``(texts, classes)``."""
        encoded = self.preprocessing.tokenizer.texts(texts, self.max_length)
        outputs = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(encoded), BATCH):
            batch = stack([text_input(ids) for ids in encoded[start : start + BATCH]])
            outputs.append(self.network(batch).float())
        logits = torch.cat(outputs)
        probabilities = logits.sigmoid() if self.kind == "multilabel" else logits.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities


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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def load_text_predictor(folder: Path) -> TextPredictor:
    """Reads what `save_text_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = json.loads((folder / DESCRIPTION).read_text())
    recipe, files = description["backbone"], str(folder / FILES)
    options = {
        key: value.replace(FOLDER, files) if isinstance(value, str) else value
        for key, value in recipe["options"].items()
    }
    backbone = build_backbone(BackboneConfig(name=recipe["name"].replace(FOLDER, files), weights=None, options=options))
    classes = description["classes"]
    network = nn.Module()
    network.backbone = backbone
    network.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(backbone.out_features, len(classes)))
    network.load_state_dict(load_file(folder / WEIGHTS))
    return TextPredictor(
        nn.Sequential(backbone, network.head),
        backbone.preprocessing,
        description["max_length"],
        classes,
        description["kind"],
    )
