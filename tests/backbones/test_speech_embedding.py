"""The speech embedding: what its file describes, window by window, at every cut and every hop; and spectrograms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.log_mel import LOUDEST, LogMel
from tlresearch.backbones.speech_embedding import FRAME, SEEN, described_layers
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.config.schema import BackboneConfig
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import stack, unstack

NAME = "speech-embedding"
CLIPS = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16_000, 1281, 100, 1280)]
BATCH = stack([{"audio": clip, "mask": torch.ones(len(clip), dtype=torch.bool)} for clip in CLIPS])


def make(end: Any = "sequence", weights: str | None = NAME, **given: Any) -> Any:
    return build_backbone(BackboneConfig(name="speech_embedding", weights=weights, **given), end).eval()


class Described:
    """The network as its folder describes it, layer by layer."""

    def __init__(self, folder: Path) -> None:
        self.layers = json.loads((folder / "config.json").read_text())["layers"]
        self.weights = load_file(folder / "model.safetensors")

    def frames(self, audio: Tensor) -> Tensor:
        """Log-mel frames ``(1, frames, bands)`` of 16-bit samples."""
        parts = [
            functional.conv1d(audio[None, None], self.weights[f"frontend.stft_{part}.weight"], stride=160)
            for part in ("real", "imag")
        ]
        power = (parts[0] ** 2 + parts[1] ** 2).transpose(1, 2) @ self.weights["frontend.mel.weight"]
        decibels = 10 * power.clamp(min=1e-10).log10()
        return decibels.maximum(decibels.max() - 80) / 10 + 2

    def __call__(self, x: Tensor) -> Tensor:
        """The 96 values of frames ``(1, 76, bands)``."""
        x = x[:, None]
        for layer in self.layers:
            if layer["op"] == "conv2d":
                bias = self.weights.get(f"{layer['name']}.bias")
                x = functional.conv2d(x, self.weights[f"{layer['name']}.weight"], bias, padding=layer["padding"])
            elif layer["op"] == "leaky_relu":
                x = functional.leaky_relu(x, layer["negative_slope"])
            elif layer["op"] == "max_with_constant":
                x = x.clamp(min=layer["value"])
            else:
                x = functional.max_pool2d(x, layer["kernel"], layer["stride"])
        return x.flatten()


@pytest.mark.parametrize("hop", [8, 2])
def test_outputs_are_those_of_the_described_network(hop: int, weights_dir: Path) -> None:
    described = Described(weights_dir / NAME)
    backbone = make(options={"hop": hop})
    with torch.no_grad():
        rows = unstack(backbone(BATCH))
        for clip, row in zip(CLIPS, rows, strict=True):
            assert len(row["hidden"]) == -(-len(clip) // (hop * FRAME))
            # Centred: as far beyond both ends of the clip as it takes, there is silence.
            frames = described.frames(LOUDEST * functional.pad(clip, (38 * FRAME, 42 * FRAME)))
            for number in {0, len(row["hidden"]) // 2, len(row["hidden"]) - 1}:
                wanted = described(frames[:, number * hop : number * hop + SEEN])
                torch.testing.assert_close(row["hidden"][number], wanted, rtol=1e-4, atol=2e-4)


def test_padding_and_cuts_change_nothing(weights_dir: Path) -> None:
    for granularity, stages in (("stage", 7), ("block", 21)):
        backbone = make(granularity=granularity)
        assert len(backbone.stages) == stages
        with torch.no_grad():
            whole = unstack(backbone(BATCH))
            value = BATCH
            for number in range(stages):
                value = backbone(stack(unstack(value)), start=number, stop=number + 1)
            for clip, row, cut in zip(CLIPS, whole, unstack(value), strict=True):
                torch.testing.assert_close(row["hidden"], cut["hidden"])
                torch.testing.assert_close(row["hidden"], backbone(clip[None])["hidden"][0], rtol=1e-4, atol=1e-4)
            pooled = make("pooled", granularity=granularity, options={"hop": 2})(BATCH)
            torch.testing.assert_close(
                pooled, torch.stack([row["hidden"].mean(0) for row in whole]), rtol=1e-4, atol=1e-4
            )


def test_weights_are_recorded_and_others_refused(weights_dir: Path, tmp_path: Path) -> None:
    folder = weights_dir / NAME
    record = make().weights
    assert (record.source, record.random_stages) == (NAME, ())
    assert make(weights=None).weights.random_stages == ("block1", "block2", "block3", "block4", "block5", "block6")
    assert described_layers() == json.loads((folder / "config.json").read_text())["layers"]
    with pytest.raises(WeightsError, match=r"config.json does not exist"):
        make(weights=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"layers": described_layers()[1:]}))
    save_file({"conv0.weight": torch.zeros(24, 1, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="are not those of the speech embedding"):
        make(weights=str(tmp_path))
    with pytest.raises(WeightsError, match="no address to load the speech embedding from"):
        make(weights="default")
    with pytest.raises(WeightsError, match="SHA-256"):
        make(weights_sha256="0" * 64)


def test_options() -> None:
    for options, message in (({"hop": 3}, "must be 1, 2, 4 or 8"), ({"hops": 2}, "has no option 'hops'")):
        with pytest.raises(UserError, match=message):
            make(weights=None, options=options)


def test_a_random_one_keeps_the_spread_of_its_values() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        spread = make(weights=None)(BATCH)["hidden"].std()
    assert 0.05 < float(spread) < 20


def test_a_spectrogram_in_front_of_an_image_backbone(tmp_path: Path) -> None:
    options = {"in_channels": 3, "log_mel": {"mels": 32, "seconds": 0.5}}
    backbone = build_backbone(BackboneConfig(name="log_mel/small_cnn", weights=None, options=options))
    assert backbone.stage_names == ("log_mel", "block1", "block2", "block3", "block4")
    assert backbone.preprocessing == AudioPreprocessing(16_000, seconds=0.5, shortest=512)
    tone = torch.sin(torch.arange(8000) * 2 * torch.pi * 1000 / 16_000)
    image = backbone(torch.stack([tone, 0.01 * tone]), stop=1)
    assert image.shape == (2, 3, 32, 47)
    torch.testing.assert_close(image[0], image[1], rtol=1e-3, atol=1e-3)  # loudness is taken out
    assert abs(float(image.mean())) < 1e-5
    assert abs(float(image.std(correction=0)) - 1) < 1e-3
    loudest = 31 - int(image[0, 0].mean(1).argmax())
    centres = LogMel(mels=32).filters.argmax(0) * 16_000 / 512
    assert abs(float(centres[loudest]) - 1000) < 120
    assert backbone(torch.stack([tone, tone])).shape == (2, 64)
    square = build_backbone(
        BackboneConfig(name="log_mel/torchvision/squeezenet1_1", weights=None, options={"log_mel": {"side": 96}})
    )
    assert square(tone[None], stop=1).shape == (1, 3, 96, 96)
    with pytest.raises(UserError, match=r"options.log_mel: .*'mel'.*it takes seconds, rate, mels"):
        build_backbone(BackboneConfig(name="log_mel/small_cnn", weights=None, options={"log_mel": {"mel": 3}}))
    with pytest.raises(UserError, match="in front of an image backbone"):
        build_backbone(BackboneConfig(name="log_mel/speech_embedding", weights=None))
