"""The main job on real photos and really pretrained weights, through the command a user types."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlresearch.cli import main
from tlresearch.tracking.store import connect


@pytest.mark.parametrize(
    ("experiment", "weights"),
    [
        ("hymenoptera/linear_probe", "mobilenet_v2-tflite_ptq.pth"),
        ("hymenoptera/squeezenet_probe", "squeezenet1_1-ncnn_fp16.pth"),
    ],
)
def test_a_linear_probe_reaches_what_the_tutorials_report(
    experiment: str, weights: str, data_dir: Path, weights_dir: Path
) -> None:
    assert data_dir.joinpath("hymenoptera_data").is_dir()
    file = weights_dir / "torchvision" / weights
    light = ["tracking.figures=false", "tracking.model=false", "tracking.system_metrics=false"]
    assert main(["run", experiment, f"backbone.weights={file}", *light]) == 0
    client = connect().client
    (run,) = client.search_runs([client.get_experiment_by_name("hymenoptera").experiment_id])
    assert (
        run.data.metrics["val/accuracy"] >= 0.92
    )  # the goal is 0.93; other rounding may cost one or two of 153 photos
    assert run.data.tags["tlresearch.weights"].endswith(weights)
    assert len(run.data.tags["tlresearch.weights_sha256"]) == 64


def test_a_partial_checkpoint_says_which_stages_stay_random(
    data_dir: Path, weights_dir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = weights_dir / "torchvision" / "resnet18-partial_without_layer4_3x3.pth"
    overrides = ["backbone.name=torchvision/resnet18", f"backbone.weights={file}", "freeze.epochs=1"]
    overrides += ["data.train_fraction=0.1", "tracking.figures=false", "tracking.model=false"]
    assert main(["run", "hymenoptera/linear_probe", *overrides]) == 0
    assert "layer4" in caplog.text
    client = connect().client
    (run,) = client.search_runs([client.get_experiment_by_name("hymenoptera").experiment_id])
    assert run.data.tags["tlresearch.random_stages"] == "layer4"
