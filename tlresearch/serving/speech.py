"""Trained speech recognition as files that write down what sound files say, without the data or the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlresearch.data.audio_decoding import AudioPreprocessing
from tlresearch.data.base import Data
from tlresearch.data.values import stack
from tlresearch.serving.audio import audio_backbone
from tlresearch.serving.base import BATCH, RawPredictor, Shown, read_description, with_weights
from tlresearch.serving.raw import RawSounds
from tlresearch.tasks.base import Task
from tlresearch.tasks.speech import FrameHead, SpeechRecognitionTask, greedy


class SpeechPredictor(RawPredictor):
    """Writes down what is said.

    Args:
        network: From a batch of sounds to `Frames`.
        preprocessing: What is done to a sound.
        characters: Characters in the order of the outputs behind the blank.
    """

    def __init__(self, network: nn.Module, preprocessing: AudioPreprocessing, characters: Sequence[str]) -> None:
        super().__init__(RawSounds(preprocessing.sample_rate))
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.characters = tuple(characters)

    @torch.inference_mode()
    def table(self, samples: Sequence[Tensor]) -> dict[str, list[Any]]:
        """Returns ``transcript`` and ``probability``, a geometric mean over the frames, of waveforms ``(samples,)``."""
        texts: list[str] = []
        sureness: list[float] = []
        for start in range(0, len(samples), BATCH):
            batch = stack([self.preprocessing(clip) for clip in samples[start : start + BATCH]])
            found, sure = greedy(self.network(batch), self.characters)
            texts += found
            sureness += sure
        return {"transcript": texts, "probability": sureness}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns transcript and probability."""
        return Shown(row["transcript"] or "(nothing)", row["probability"])


def speech_servable(task: Task, data: Data) -> bool:
    """Whether `load_speech_predictor` can rebuild the network: our own task over sounds."""
    return type(task) is SpeechRecognitionTask and isinstance(data.preprocessing, AudioPreprocessing)


def load_speech_predictor(folder: Path) -> SpeechPredictor:
    """Reads what `save_audio_predictor` wrote of a recognition; nothing is unpickled and nothing downloaded."""
    description = read_description(folder)
    backbone, characters = audio_backbone(folder, description, "sequence"), description["classes"]
    network = with_weights(folder, backbone, FrameHead(backbone.out_features, len(characters)))
    return SpeechPredictor(network, AudioPreprocessing(**description["preprocessing"]), characters)
