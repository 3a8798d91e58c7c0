"""Backbones are ranked at every boundary by one pass each; what cannot be had is said, and MLflow holds the rest."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.build import build_backbone
from tlresearch.cli import main
from tlresearch.commands import rank as command
from tlresearch.config.schema import BackboneConfig, DataConfig
from tlresearch.data.base import Data, Fingerprint, SampleKey
from tlresearch.data.image_folder import read_image_folder
from tlresearch.data.images import ImageSplit
from tlresearch.modality.image import Evaluation
from tlresearch.tracking.manifest import read_json
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.ranking.features import FeaturePass
from tlresearch.understand.ranking.rank import SMALL, proposed_depth, rank
from tlresearch.understand.ranking.result import METHODS, Ranking
from tlresearch.understand.ranking.source_head import find_head, source_probabilities

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
NAMES = ("small_cnn", "mnist_cnn", "torchvision/resnet18")
WEIGHTS = {"small_cnn": "null", "mnist_cnn": "null", "torchvision/resnet18": "not/here.pth"}


@pytest.fixture
def experiment(tmp_path: Path, tables: None) -> str:
    file = tmp_path / "toy.yaml"
    file.write_text(toy_text(data="{name: digits, classes: ['0', '1', '2'], labels_per_class: 20, augment: flip}"))
    return str(file)


def numbers(ranking: Ranking) -> list[float]:
    return [value for one in ranking.backbones for row in one.boundaries for value in row.values()]


def test_ranks_at_every_boundary_and_reads_the_second_time(experiment: str) -> None:
    first = rank(experiment, NAMES, weights=WEIGHTS)
    assert first.passes == 4  # two backbones, two splits
    again = rank(experiment, NAMES, weights=WEIGHTS)
    assert again.passes == 0
    assert numbers(again) == numbers(first)

    best, second, missing = first.backbones
    assert {best.name, second.name} == {"small_cnn", "mnist_cnn"}
    assert best.scores["logme"] >= second.scores["logme"]
    assert len(best.boundaries) == len(best.stages) == best.depth  # random weights: all of them want training
    assert best.samples_per_second > 0
    assert again.backbones[0].samples_per_second == best.samples_per_second  # of the pass, which was not repeated
    assert (missing.name, missing.boundaries) == ("torchvision/resnet18", ())
    assert "not/here.pth" in missing.problem

    store = connect()
    runs = {run.name: run.stored for run in Runs(store).get(first.run_id).members}
    assert runs.keys() == {"small_cnn", "mnist_cnn"}
    run = runs[best.name]
    history = store.client.get_metric_history(run.info.run_id, "ranking/probe")
    assert [point.step for point in history] == list(range(1, len(best.stages) + 1))
    assert [point.value for point in history] == [row["probe"] for row in best.boundaries]
    assert any(
        item.path == "figures/boundaries.png" for item in store.client.list_artifacts(run.info.run_id, "figures")
    )
    kept = read_json(store, first.run_id, "ranking.json")
    assert kept is not None
    assert [one["name"] for one in kept["backbones"]] == [one.name for one in first.backbones]


def test_a_typed_command_shows_the_table_and_says_what_is_missing(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["--backbones", "small_cnn,torchvision/resnet18", "--weights", "small_cnn=null", "--boundaries"]
    words += ["--options", "small_cnn={in_channels: 1, width: 8}"]
    assert main(["rank", experiment, *words, "--weights", "torchvision/resnet18=not/here.pth"]) == 0
    shown = capsys.readouterr().out
    scores, costs = (re.search(rf"^ ?small_cnn .*{end} *$", shown, re.MULTILINE) for end in (r"\d of 4", r"\d"))
    assert scores is not None
    assert costs is not None
    assert "…" not in shown  # nothing is cut off
    parameters = 9 * (8 + 8 * 16 + 16 * 32 + 32 * 32) + 2 * (8 + 16 + 32 + 32)  # four convolutions, each with its norm
    assert f" {parameters / 1e6:.2f} " in shown
    assert "parameters (M)" in shown
    assert "not ranked: torchvision/resnet18" in shown
    assert "proposed unfreeze depth 4" in shown
    assert main(["rank", experiment, "--backbones", "small_cnn", "--weights", "small_cnn=nowhere.pth"]) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["no/such/folder"], "neither an experiment"),
        (["digits/transfer", "--weights", "mnist_cnn"], "has not the form NAME=FILE"),
        (["digits/transfer", "--options", "mnist_cnn"], "has not the form NAME=YAML"),
        (
            ["digits/transfer", "--backbones", "small_cnn", "--weights", "other=null"],
            "'other' is none of the backbones",
        ),
        (["digits/transfer", "--backbones", "small_cnn", "data.batch_size=0"], "data.batch_size"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *words]) == 2
    assert part in capsys.readouterr().err


def test_the_command_knows_every_score() -> None:
    assert command.ORDERS == METHODS
    assert len(SMALL) == len(set(SMALL))


def rows(*accuracies: float) -> list[dict[str, float]]:
    return [{"probe": accuracy} for accuracy in accuracies]


def test_the_proposed_depth_is_behind_the_best_features() -> None:
    assert proposed_depth(rows(0.5, 0.7, 0.9), 100) == 0
    assert proposed_depth(rows(0.5, 0.9, 0.6), 100) == 1
    assert proposed_depth(rows(0.9, 0.6, 0.6), 100) == 2
    error = math.sqrt(0.9 * 0.1 / 100)
    assert proposed_depth(rows(0.5, 0.9, 0.9 - 0.99 * error), 100) == 0  # no worse than chance would have it
    assert proposed_depth(rows(0.5, 0.9, 0.9 - 1.01 * error), 100) == 1


def test_stages_with_random_weights_are_always_trained() -> None:
    assert proposed_depth(rows(0.5, 0.7, 0.9), 100, pretrained=2) == 1
    assert proposed_depth(rows(0.5, 0.7, 0.9), 100, pretrained=0) == 3


def test_the_source_head_says_what_the_network_said(data_dir: Path, weights_dir: Path, tmp_path: Path) -> None:
    """The head in the file gives the probabilities of the whole network, which names most ImageNet photos."""
    config = BackboneConfig(name="torchvision/mobilenet_v2", weights="torchvision/mobilenet_v2-tflite_ptq.pth")
    backbone = build_backbone(config)
    assert find_head(BackboneConfig(name=config.name, weights=None), backbone) is None
    table = read_image_folder(data_dir / "imagenet_samples", DataConfig())
    order = range(len(table.names))  # sorted by class: the i-th photo is of ImageNet's class 20 i
    photos = ImageSplit(
        table.images,
        list(order),
        targets=torch.tensor(order),
        names=list(table.names),
        evaluation=Evaluation(backbone.preprocessing),
        augmentation=None,
        seed=0,
    )
    data = Data("photos", {"train": photos}, (), "multiclass", Fingerprint("f" * 64))
    runner = FeaturePass(data, ActivationStore(tmp_path, 10**9), batch_size=25, device=torch.device("cpu"))
    features = runner.run(backbone, "train")
    found = source_probabilities(config, backbone, features.pooled[len(backbone.stages)])
    assert found is not None
    assert np.allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == 20 * features.targets).mean() > 0.75
    network = models.get_model("mobilenet_v2").eval()
    network.load_state_dict(torch.load(weights_dir / str(config.weights), weights_only=True))
    with torch.no_grad():
        whole = network(torch.stack([photos[SampleKey(row, 0)][0] for row in range(4)])).softmax(dim=1)
    assert np.allclose(found[:4], whole, atol=1e-4)
