"""A trained classifier of sounds as files that predict from sound files, without the data or the run it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.transformers_stage import ModelStage
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.audio_decoding import AudioPreprocessing
from tlresearch.data.base import Data, TargetKind
from tlresearch.data.values import Value
from tlresearch.serving.base import ClassPredictor, linear_head, read_description, save_predictor_files, with_weights
from tlresearch.serving.raw import RawSounds
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask

MODEL = "backbone"
"""Folder of the config of a model of transformers."""


class AudioPredictor(ClassPredictor):
    """Predicts from sounds.

    Args:
        network: See `ClassPredictor`.
        preprocessing: What is done to a sound.
        classes: See `ClassPredictor`.
        kind: See `ClassPredictor`.
    """

    def __init__(
        self, network: nn.Module, preprocessing: AudioPreprocessing, classes: Sequence[str], kind: TargetKind
    ) -> None:
        super().__init__(network, RawSounds(preprocessing.sample_rate), classes, kind)
        self.preprocessing = preprocessing

    def inputs(self, samples: Sequence[Tensor]) -> list[Value]:
        """Preprocesses waveforms ``(samples,)``."""
        return [self.preprocessing(clip) for clip in samples]


def audio_servable(task: Task, data: Data) -> bool:
    """Whether `load_audio_predictor` can rebuild the network: sounds, one vector of each, and a linear head."""
    head = isinstance(task, ClassificationTask) and set(task.head.state_dict()) == {"1.weight", "1.bias"}
    return head and isinstance(data.preprocessing, AudioPreprocessing)


def save_audio_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors and JSON."""
    name, options = config.backbone.name, dict(config.backbone.options)
    first = task.backbone.stages[0]
    if isinstance(first, ModelStage):
        # Everything is in the model's own config; its folder or the hub may be out of reach where it is served.
        name, options = "hf/", {}
        (folder / MODEL).mkdir()
        first.config.to_json_file(folder / MODEL / "config.json", use_diff=False)
    description = {
        "backbone": {"name": name, "granularity": config.backbone.granularity, "options": options},
        "classes": list(data.classes),
        "kind": data.kind,
        "preprocessing": asdict(data.preprocessing),
    }
    save_predictor_files(folder, task, description)


def load_audio_predictor(folder: Path) -> AudioPredictor:
    """Reads what `save_audio_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = read_description(folder)
    backbone, classes = audio_backbone(folder, description), description["classes"]
    network = with_weights(folder, backbone, linear_head(backbone.out_features, len(classes)))
    preprocessing = AudioPreprocessing(**description["preprocessing"])
    return AudioPredictor(network, preprocessing, classes, description["kind"])


def audio_backbone(folder: Path, description: dict[str, Any], end: End = "pooled") -> StagedBackbone:
    """Builds the backbone that a description names, with random weights."""
    config = BackboneConfig(**description["backbone"], weights=None)
    if config.name == "hf/":
        config.name = f"hf/{folder / MODEL}"
    return build_backbone(config, end)
