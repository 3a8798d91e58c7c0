"""A trained classifier of sounds as files that predict from sound files, without the data or the run it came from."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.speech import SpeechStage
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.audio_decoding import AudioPreprocessing, decode
from tlresearch.data.base import Data, TargetKind
from tlresearch.data.values import stack
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask

WEIGHTS = "weights.safetensors"
DESCRIPTION = "predictor.json"
MODEL = "backbone"
"""Folder of the config of a model of transformers."""
BATCH = 32
LONGEST_PATH = 1000  # longer text is a whole file


class AudioPredictor:
    """Predicts from sounds.

    Attributes:
        classes: Class names in the order of the probabilities.
        kind: What the targets are.
    """

    def __init__(
        self, network: nn.Module, preprocessing: AudioPreprocessing, classes: Sequence[str], kind: TargetKind
    ) -> None:
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.kind = kind

    def read(self, model_input: Any) -> list[Tensor]:
        """Takes a data frame with the column ``audio``, a list, or one sound, and returns waveforms.

        A sound is a path, the bytes of a file (or these as base64 text, as a server hands them over), or an array
        ``(samples,)`` in -1 to 1 at the network's rate.

        Raises:
            ValueError: If it is anything else, or a file cannot be decoded.
        """
        if hasattr(model_input, "columns"):
            if "audio" not in model_input.columns:
                known = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs a column 'audio' but has: {known}")
            model_input = list(model_input["audio"])
        one = isinstance(model_input, (str, bytes, bytearray, Path))
        if isinstance(model_input, (np.ndarray, Tensor)) and model_input.ndim == 1:
            one = isinstance(model_input, Tensor) or model_input.dtype.kind in "fiu"
        return [self._waveform(sound) for sound in ([model_input] if one else model_input)]

    @torch.inference_mode()
    def predict(self, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the likeliest class ``(clips,)`` and the probabilities ``(clips, classes)`` of waveforms."""
        outputs = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(clips), BATCH):
            batch = stack([self.preprocessing(clip) for clip in clips[start : start + BATCH]])
            outputs.append(self.network(batch).float())
        logits = torch.cat(outputs)
        probabilities = logits.sigmoid() if self.kind == "multilabel" else logits.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities

    def _waveform(self, sound: Any) -> Tensor:
        if isinstance(sound, (str, Path)):
            if len(str(sound)) <= LONGEST_PATH and Path(sound).is_file():
                sound = Path(sound).read_bytes()
            else:
                try:
                    sound = base64.b64decode(str(sound), validate=True)
                except ValueError:
                    raise FileNotFoundError(f"there is no sound file {str(sound)[:200]}") from None
        if isinstance(sound, (bytes, bytearray)):
            return decode(bytes(sound), self.preprocessing.sample_rate)[0]
        clip = torch.as_tensor(sound, dtype=torch.float32)
        if clip.ndim != 1 or not len(clip):
            raise ValueError(f"a sound must be an array (samples,) but got {tuple(clip.shape)}")
        return clip


def audio_servable(task: Task, data: Data) -> bool:
    """Whether `load_audio_predictor` can rebuild the network: sounds, one vector of each, and a linear head."""
    head = isinstance(task, ClassificationTask) and set(task.head.state_dict()) == {"1.weight", "1.bias"}
    return head and isinstance(data.preprocessing, AudioPreprocessing)


def save_audio_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors and JSON."""
    name, options = config.backbone.name, dict(config.backbone.options)
    first = task.backbone.stages[0]
    if isinstance(first, SpeechStage):
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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def load_audio_predictor(folder: Path) -> AudioPredictor:
    """Reads what `save_audio_predictor` wrote; nothing is unpickled and nothing downloaded."""
    description = json.loads((folder / DESCRIPTION).read_text())
    config = BackboneConfig(**description["backbone"], weights=None)
    if config.name == "hf/":
        config.name = f"hf/{folder / MODEL}"
    backbone, classes = build_backbone(config), description["classes"]
    network = nn.Module()
    network.backbone = backbone
    network.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(backbone.out_features, len(classes)))
    network.load_state_dict(load_file(folder / WEIGHTS))
    preprocessing = AudioPreprocessing(**description["preprocessing"])
    return AudioPredictor(nn.Sequential(backbone, network.head), preprocessing, classes, description["kind"])
