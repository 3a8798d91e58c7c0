"""Google's speech embedding (Lin et al. 2020, arXiv 2002.01322): twenty convolutions over log-mel frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import End, StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.log_mel import LogMel, waveform
from tlresearch.backbones.sequences import mask_of, mean_of
from tlresearch.backbones.weights import check_hash, load_stages
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.base.paths import find_weights
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import Value

RATE = 16_000
FRAME = 160  # samples from one log-mel frame to the next
SEEN = 76  # frames that one output sees
WIDTH = 96

WIDTHS = (24, 48, 72, 96, 96)
POOLS = ((2, 2), (1, 2), (2, 2), (1, 2), (2, 2))  # frames x bands
SLOPE, LEAST = 0.2, -0.4000000059604645


@dataclass(frozen=True)
class Layer:
    """A convolution with its activation, or a pooling.

    Attributes:
        name: Name of a convolution in the weights file; empty for a pooling.
        channels: Channels in and out of a convolution.
        kernel: Frames x bands.
        padding: Zeros at both ends of the bands; none is ever put beside the frames.
        bias: Whether a convolution has a bias, and an activation behind it; the last one has neither.
    """

    name: str = ""
    channels: tuple[int, int] = (0, 0)
    kernel: tuple[int, int] = (1, 1)
    padding: int = 0
    bias: bool = True


def layers() -> list[list[Layer]]:
    """The layers in order, block by block."""
    found: list[list[Layer]] = []
    number, before = 0, 1
    for block, (width, pool) in enumerate(zip(WIDTHS, POOLS, strict=True)):
        kernels = [(3, 3), (1, 3), (3, 1)] if block == 0 else [(1, 3), (3, 1), (1, 3), (3, 1)]
        members = []
        for kernel in kernels:
            members.append(Layer(f"conv{number}", (before, width), kernel, padding=kernel[1] // 2))
            number, before = number + 1, width
        found.append([*members, Layer(kernel=pool)])
    return [*found, [Layer(f"conv{number}", (WIDTH, WIDTH), (3, 1), bias=False)]]


class LogMelFrames(nn.Module):
    """The front end: every clip between silences so long that its outputs look as far beyond both ends as within."""

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.mel = LogMel(RATE, mels=32, low=60.0, high=3800.0)
        self.hop = hop

    def extra_repr(self) -> str:
        """What the frames depend on; so do stored activations."""
        return f"hop {self.hop}"

    def forward(self, value: Value) -> dict[str, Tensor]:
        """Turns waveforms into ``map`` ``(batch, frames, 1, bands)``; the mask leaves what a clip's outputs see."""
        audio, lengths = waveform(value)
        before = SEEN // 2 * FRAME
        # Three frames more behind than in front: the last output of a clip must have all that it sees.
        frames = self.mel(functional.pad(audio, (before, before + 3 * FRAME))) / 10 + 2
        outputs = torch.div(lengths - 1, self.hop * FRAME, rounding_mode="floor") + 1
        seen = (outputs - 1) * self.hop + SEEN
        # Of a clip as long as the batch: known without a look at the values, so that the graph can be exported.
        longest = (audio.shape[1] - 1) // (self.hop * FRAME) * self.hop + SEEN
        mask = mask_of(seen, longest)
        return {"map": frames[:, : mask.shape[1], None], "mask": mask}


class Convolutions(nn.Module):
    """Some of the layers. No frame depends on what lies behind the frames it sees, so that padding changes nothing.

    Args:
        members: The layers.
        hop: Frames from one output to the next, in the end: 1, 2, 4 or 8.
        stride: Frames from one position to the next in front of these layers.
        dilation: How many positions the kernel takes its next value after: more than 1 once strides are left out.
        end: What comes out of the last of them: hidden states or their mean; ``None`` in front of it, where maps do.
    """

    def __init__(self, members: Sequence[Layer], hop: int, stride: int, dilation: int, end: End | None) -> None:
        super().__init__()
        self.end = end
        self.steps: list[tuple[Layer, int, int]] = []
        """Each layer with its stride and dilation along the frames."""
        for layer in members:
            step = 1
            if layer.name:
                self.add_module(layer.name, _convolution(layer, dilation))
            elif stride * layer.kernel[0] <= hop:
                step = layer.kernel[0]
            self.steps.append((layer, step, dilation))
            stride *= step
            if not layer.name and step == 1:
                # A trous: where outputs are to lie closer, the stride is left out and all that follows is dilated.
                dilation *= layer.kernel[0]
        self.stride, self.dilation = stride, dilation

    def extra_repr(self) -> str:
        """The layers with their strides; stored activations depend on them."""
        return f"{self.steps}, end={self.end}"

    def forward(self, value: dict[str, Tensor]) -> Value:
        """Runs the layers over the maps of a batch, ``(batch, frames, channels, bands)``."""
        x, lengths = value["map"].transpose(1, 2), value["mask"].sum(dim=1)
        for layer, step, dilation in self.steps:
            if layer.name:
                x = self.get_submodule(layer.name)(x)
                if layer.bias:
                    x = functional.leaky_relu(x, SLOPE).clamp(min=LEAST)
            else:
                x = functional.max_pool2d(x, layer.kernel, (step, layer.kernel[1]), dilation=(dilation, 1))
            lengths = torch.div(lengths - dilation * (layer.kernel[0] - 1) - 1, step, rounding_mode="floor") + 1
        mask, x = mask_of(lengths, x.shape[2]), x.transpose(1, 2)
        if self.end is None:
            return {"map": x, "mask": mask}
        return mean_of(x.flatten(2), mask) if self.end == "pooled" else {"hidden": x.flatten(2), "mask": mask}


def _convolution(layer: Layer, dilation: int) -> nn.Conv2d:
    conv = nn.Conv2d(
        *layer.channels,
        layer.kernel,
        padding=(0, layer.padding),
        dilation=(dilation if layer.kernel[0] > 1 else 1, 1),
        bias=layer.bias,
    )
    # Of the size that keeps the spread of the values through all layers: a fair start without pretrained weights.
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def build_speech_embedding(
    model: str = "speech_embedding",
    *,
    weights: str | None = None,
    weights_sha256: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
    end: End = "pooled",
) -> StagedBackbone:
    """Builds the speech embedding: 96 values, every 80 ms, for the 0.77 s around.

    Args:
        model: Its name; there is only one.
        weights: ``None`` for random weights, or a folder with ``config.json`` and ``model.safetensors``.
        weights_sha256: SHA-256 of ``model.safetensors``.
        granularity: Stages that end in a pooling, or single convolutions.
        options: ``hop``, frames of 10 ms from one output to the next: 1, 2, 4 or 8 (8, but 2 for a sequence). Below 8
            the same outputs are computed at more positions.
        end: Mean over a clip, or the sequence.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If an option is unknown or out of range.
    """
    given = dict(options or {})
    hop = given.pop("hop", 8 if end == "pooled" else 2)
    if given:
        raise UserError(f"backbone.options: {model} has no option '{next(iter(given))}'; it has hop")
    if hop not in (1, 2, 4, 8):
        raise UserError(f"backbone.options.hop must be 1, 2, 4 or 8 frames but got {hop!r}")
    stages: dict[str, nn.Module] = {"log_mel": LogMelFrames(hop)}
    blocks = layers() if granularity == "stage" else _single(layers())
    stride = dilation = 1
    for number, members in enumerate(blocks):
        stage = Convolutions(members, hop, stride, dilation, end if number == len(blocks) - 1 else None)
        stride, dilation = stage.stride, stage.dilation
        stages[f"block{number + 1}" if granularity == "stage" else members[0].name] = stage
    record = WeightsRecord(random_stages=tuple(stages)[1:])
    if weights is not None:
        record = _load(stages, weights, weights_sha256)
    return StagedBackbone(stages, out_features=WIDTH, preprocessing=AudioPreprocessing(RATE), weights=record)


def _single(blocks: Sequence[Sequence[Layer]]) -> list[list[Layer]]:
    """Single convolutions, each with the pooling behind it."""
    found: list[list[Layer]] = []
    for layer in (layer for members in blocks for layer in members):
        if layer.name:
            found.append([])
        found[-1].append(layer)
    return found


def _load(stages: Mapping[str, nn.Module], weights: str, expected: str | None) -> WeightsRecord:
    if weights == "default":
        raise WeightsError(
            "backbone.weights: there is no address to load the speech embedding from; give the folder that holds its "
            "config.json and model.safetensors, or null"
        )
    folder = find_weights(weights)
    description, file = folder / "config.json", folder / "model.safetensors"
    for path in (description, file):
        if not path.is_file():
            raise WeightsError(
                f"backbone.weights: {path} does not exist; the speech embedding is a folder with that file"
            )
    try:
        described = json.loads(description.read_text(encoding="utf-8"))["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"backbone.weights: {description} does not list the layers of a network ({error})") from None
    if described != described_layers():
        raise WeightsError(f"backbone.weights: the layers in {description} are not those of the speech embedding")
    record = load_stages(stages, check_hash(file, expected), ignore=("frontend",))
    return replace(record, source=weights)


def described_layers() -> list[dict[str, Any]]:
    """The layers as ``config.json`` lists them."""
    found: list[dict[str, Any]] = []
    for layer in (layer for members in layers() for layer in members):
        if not layer.name:
            found.append({"op": "max_pool2d", "kernel": [*layer.kernel], "stride": [*layer.kernel]})
            continue
        before, after = layer.channels
        convolution = {"op": "conv2d", "name": layer.name, "in_channels": before, "out_channels": after}
        place = {"kernel": [*layer.kernel], "stride": [1, 1], "padding": [0, layer.padding], "bias": layer.bias}
        found.append({**convolution, **place})
        if layer.bias:
            found.append({"op": "leaky_relu", "negative_slope": SLOPE})
            found.append({"op": "max_with_constant", "value": LEAST})
    return found
