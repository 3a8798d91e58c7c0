from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torchvision import models

from tlresearch.backbones import vision
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.base.files import sha256
from tlresearch.modality.image import Preprocessing

REAL = os.environ.get("TLRESEARCH_WEIGHTS")
needs_weights = pytest.mark.skipif(REAL is None, reason="TLRESEARCH_WEIGHTS does not name the folder with real weights")


def test_random_weights() -> None:
    torch.manual_seed(0)
    backbone = build_torchvision("resnet18", weights=None)
    assert backbone.weights.source == "random"
    assert backbone.weights.sha256 == ""
    assert backbone.weights.random_stages == backbone.stage_names
    assert backbone.preprocessing == Preprocessing(crop=224, resize=256)
    torch.manual_seed(0)
    again = build_torchvision("resnet18", weights=None)
    assert all(
        torch.equal(value, again.original_state_dict()[key]) for key, value in backbone.original_state_dict().items()
    )


def test_preprocessing_is_that_of_the_published_weights() -> None:
    assert build_torchvision("inception_v3", weights=None).preprocessing.crop == 299
    b1 = build_torchvision("efficientnet_b1", weights=None).preprocessing
    assert (b1.crop, b1.resize, b1.interpolation) == (240, 255, "bilinear")


def test_options_reach_the_constructor() -> None:
    backbone = build_torchvision("vit_b_32", weights=None, options={"image_size": 64})
    assert backbone.preprocessing.crop == 64
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, 768)


def test_wrong_options_and_names_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"backbone.options: torchvision/resnet18 cannot be built: .*colour"):
        build_torchvision("resnet18", weights=None, options={"colour": 1})
    with pytest.raises(UserError, match=r"no model 'resnet19' \(did you mean 'resnet1"):
        build_torchvision("resnet19", weights=None)
    with pytest.raises(WeightsError, match=r"'IMAGENET1K_V3' is no file .*it has IMAGENET1K_V1, IMAGENET1K_V2"):
        build_torchvision("resnet50", weights="IMAGENET1K_V3")
    with pytest.raises(UserError, match=r"'missing.pth' is neither in"):
        build_torchvision("resnet50", weights="missing.pth")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of torch that holds a file under the name of published weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_a_cached_file_with_another_hash_is_refused(cached: Path) -> None:
    with pytest.raises(WeightsError, match=f"has SHA-256 {sha256(cached)} but b8a52dc0 is expected"):
        build_torchvision("squeezenet1_1", weights="IMAGENET1K_V1")


def test_published_weights_come_from_the_cache(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "hash_in_name", lambda path: sha256(path)[:8])
    expected = torch.load(cached, weights_only=True)
    for name in ("IMAGENET1K_V1", "default", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        backbone = build_torchvision("squeezenet1_1", weights=name)
        assert backbone.weights.source == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
        assert backbone.weights.sha256 == sha256(cached)
        assert backbone.weights.random_stages == ()
        found = backbone.original_state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_published_weights_without_network_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    enum = models.get_model_weights("resnet18")
    gone = "http://127.0.0.1:9/resnet18-f37072fd.pth"
    monkeypatch.setattr(type(enum.DEFAULT), "url", gone)
    with pytest.raises(WeightsError, match=r"give the file as backbone.weights=FILE"):
        build_torchvision("resnet18", weights="default")


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_files_with_auxiliary_heads_fit(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with vision.SkipInit():
        network = models.get_model(name, weights=None, init_weights=False, aux_logits=True, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = build_torchvision(name, weights=str(tmp_path / "w.pth"))
    assert backbone.weights.random_stages == ()
    assert not caplog.records
    assert not any(key.lower().startswith("aux") for key in backbone.original_state_dict())


@needs_weights
@pytest.mark.parametrize(
    ("model", "file", "digits"),
    [
        ("mobilenet_v2", "mobilenet_v2-tflite_ptq.pth", "3a711ff1"),
        ("squeezenet1_0", "squeezenet1_0-deep_compression.pth", "f5db8337"),
        ("squeezenet1_1", "squeezenet1_1-ncnn_fp16.pth", "e6bf4d77"),
    ],
)
def test_real_weights_give_the_networks_own_features(model: str, file: str, digits: str) -> None:
    backbone = build_torchvision(model, weights=f"torchvision/{file}").eval()
    assert backbone.weights.random_stages == ()
    assert backbone.weights.source == f"torchvision/{file}"
    assert len(backbone.weights.sha256) == 64
    assert backbone.weights.sha256.startswith(digits)
    assert REAL is not None
    network = models.get_model(model, weights=None)
    network.load_state_dict(torch.load(Path(REAL) / "torchvision" / file, weights_only=True))
    network.eval()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.features(x).mean((2, 3))
        assert torch.allclose(backbone(x), expected, atol=1e-5 * float(expected.abs().max()))


@needs_weights
def test_a_real_partial_checkpoint_names_its_random_stages(caplog: pytest.LogCaptureFixture) -> None:
    file = "torchvision/resnet18-partial_without_layer4_3x3.pth"
    backbone = build_torchvision("resnet18", weights=file)
    assert backbone.weights.random_stages == ("layer4",)
    assert "stages that stay random: layer4" in caplog.text
    blocks = build_torchvision("resnet18", weights=file, granularity="block")
    assert blocks.weights.random_stages == ("layer4.0", "layer4.1")


@needs_weights
def test_a_real_file_of_another_network_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"has shape .* but .* is needed"):
        build_torchvision(
            "mobilenet_v2", weights="torchvision/mobilenet_v2-tflite_ptq.pth", options={"width_mult": 0.5}
        )
    with pytest.raises(WeightsError, match="nothing in"):
        build_torchvision("resnet18", weights="torchvision/mobilenet_v2-tflite_ptq.pth")


@pytest.mark.parametrize("name", ["r3d_18", "raft_small", "keypointrcnn_resnet50_fpn"])
def test_models_of_other_kinds_are_said_to_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"torchvision/{name} is no network for single images"):
        build_torchvision(name, weights=None)
