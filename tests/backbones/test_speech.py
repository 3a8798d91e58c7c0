"""Speech encoders of transformers as stages: the same results as the original at every cut, for every family."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.speech_models import SHORTEST, save_speech
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig
from tlresearch.finetuning import lora
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import stack, unstack

SPEECH_MODELS = ("wav2vec2", "hubert", "wavlm")
CASES = [*product(SPEECH_MODELS, ("layer", "group"), (False, True))]
CLIPS = [torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (331, 90, SHORTEST)]
BATCH = stack([{"audio": clip, "mask": torch.ones(len(clip), dtype=torch.bool)} for clip in CLIPS])


def make(
    folder: Path, family: str, norm: str = "layer", stable: bool = False, end: Any = "sequence", **options: Any
) -> Any:
    original = save_speech(folder, family, feat_extract_norm=norm, do_stable_layer_norm=stable)
    return original, build_backbone(BackboneConfig(name=f"hf/{folder}", options=options), end).eval()


@pytest.mark.parametrize(("family", "norm", "stable"), CASES)
def test_stages_equal_the_original_at_every_cut(family: str, norm: str, stable: bool, tmp_path: Path) -> None:
    original, backbone = make(tmp_path, family, norm, stable)
    assert backbone.stage_names == ("feature_encoder", "projection", "layer_0", "layer_1", "layer_2")
    with torch.no_grad():
        whole = backbone(BATCH)
        alike = torch.stack([CLIPS[0]] * 2)
        assert torch.equal(backbone(alike)["hidden"], original(alike).last_hidden_state)
        if norm == "layer":
            padded = original(BATCH["audio"], attention_mask=BATCH["mask"].long()).last_hidden_state
            assert torch.equal(whole["hidden"], padded)
        # With a group norm the original depends on how far the batch is padded: it is equalled clip by clip.
        for clip, row in zip(CLIPS, unstack(whole), strict=True):
            alone = original(clip[None]).last_hidden_state[0]
            torch.testing.assert_close(row["hidden"], alone, rtol=1e-4, atol=1e-5)
        for boundary in range(1, 5):
            first = backbone(BATCH, stop=boundary)
            assert torch.equal(backbone(first, start=boundary)["hidden"], whole["hidden"])
            # As stored activations are: without padding, and with other padding when they are read.
            again = backbone(stack(unstack(first)), start=boundary)
            for row, wanted in zip(unstack(again), unstack(whole), strict=True):
                torch.testing.assert_close(row["hidden"], wanted["hidden"], rtol=1e-4, atol=1e-5)
        assert torch.equal(copy.deepcopy(backbone)(BATCH)["hidden"], whole["hidden"])


@pytest.mark.parametrize("family", SPEECH_MODELS)
def test_weights_names_and_input(family: str, tmp_path: Path) -> None:
    original, backbone = make(tmp_path, family, end="pooled")
    state = backbone.original_state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in original.state_dict().items() if name != "masked_spec_embed"
    }
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in state.items())
    assert backbone.weights.random_stages == ()
    assert backbone.preprocessing == AudioPreprocessing(8000, shortest=SHORTEST, normalise=True)
    assert backbone(BATCH).shape == (3, 16)
    random = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None))
    assert random.weights.random_stages == random.stage_names


def test_the_mean_leaves_out_padding(tmp_path: Path) -> None:
    _, backbone = make(tmp_path, "wav2vec2", end="pooled")
    with torch.no_grad():
        together = backbone(BATCH)
        for clip, pooled in zip(CLIPS, together, strict=True):
            torch.testing.assert_close(backbone(clip[None])[0], pooled, rtol=1e-4, atol=1e-5)


def gradients(backbone: StagedBackbone) -> set[str]:
    return {name for name, p in backbone.named_parameters() if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("family", SPEECH_MODELS)
def test_every_parameter_learns(family: str, tmp_path: Path) -> None:
    _, backbone = make(tmp_path, family, stable=True, layerdrop=0.0)
    backbone.train()(BATCH)["hidden"].square().sum().backward()
    assert gradients(backbone) == {name for name, _ in backbone.named_parameters()}


def test_layers_are_dropped_in_training_alone(tmp_path: Path) -> None:
    _, backbone = make(tmp_path, "wavlm", layerdrop=1.0)
    before = backbone.train()(BATCH, stop=2)
    torch.manual_seed(0)
    after = backbone(before, start=3)  # dropout of the projection is behind it
    assert torch.equal(after["hidden"], before["hidden"])
    assert not torch.equal(backbone(before, start=2, stop=3)["hidden"], before["hidden"])  # the first never is
    assert not torch.equal(backbone.eval()(before, start=3)["hidden"], before["hidden"])


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_adapters_work_where_they_are_put(family: str, tmp_path: Path) -> None:
    _, backbone = make(tmp_path, family, layerdrop=0.0)
    with torch.no_grad():
        before = backbone(BATCH)["hidden"]
    count = lora.inject(backbone, rank=2, alpha=4.0)
    # WavLM reads the weights of its projections instead of calling them; the gate of its positions is called.
    assert count == {"hubert": 1 + 3 * 6, "wavlm": 1 + 3 * 3}[family]
    adapters = {name: p for name, p in backbone.named_parameters() if "lora_B" in name}
    with torch.no_grad():
        assert torch.equal(backbone(BATCH)["hidden"], before)
        for parameter in adapters.values():
            nn.init.normal_(parameter)
    changed: Tensor = backbone(BATCH)["hidden"]
    changed.square().sum().backward()
    assert gradients(backbone) >= set(adapters)
    lora.merge(backbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone(BATCH)["hidden"], changed, rtol=1e-4, atol=1e-4)


def test_mistakes(tmp_path: Path) -> None:
    save_speech(tmp_path, "wav2vec2", add_adapter=True)
    with pytest.raises(UserError, match="adapter behind the layers"):
        build_backbone(BackboneConfig(name=f"hf/{tmp_path}"))
    save_speech(tmp_path, "wav2vec2")
    with pytest.raises(UserError, match="pools by mean, not 'cls'"):
        build_backbone(BackboneConfig(name=f"hf/{tmp_path}", options={"pooling": "cls"}))


@pytest.mark.parametrize("family", ["data2vec-audio", "unispeech", "unispeech-sat", "sew", "wav2vec2-conformer"])
def test_no_family_is_named(family: str, tmp_path: Path) -> None:
    more = {"conv_pos_kernel_size": 5} if family == "data2vec-audio" else {}
    original = save_speech(tmp_path, family, feat_extract_norm="layer", **more)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}"), "sequence").eval()
    assert backbone.way == "structure"
    assert backbone.stage_names[:2] == ("feature_encoder", "projection")
    with torch.no_grad():
        whole = backbone(BATCH)
        padded = original(BATCH["audio"], attention_mask=BATCH["mask"].long()).last_hidden_state
        mask = whole["mask"]
        torch.testing.assert_close(whole["hidden"][mask], padded[mask])
        for boundary in range(1, 5):
            again = backbone(backbone(BATCH, stop=boundary), start=boundary)
            torch.testing.assert_close(again["hidden"][mask], padded[mask])
