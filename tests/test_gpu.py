"""What is promised of a run, on a GPU: it resumes, repeats, keeps what is frozen, and its results move to the CPU.

Each test is skipped where torch sees no GPU. ``TLRESEARCH_GPU_TESTS_ON=cpu`` runs the same code on the CPU.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.dense import boxes_text, instances_text, save_boxes, save_instances
from tests.hungry import hungry_yaml
from tests.mortal import Answer, Children, Request, digest, started
from tests.toy import TRAINER, toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.gpu, *(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY)]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
TOLERANCE = 1e-5
"""Largest difference of a cached run's metrics from those of the uncached one, in float32 (docs/caching.md)."""
QUIET = {"tracking.figures": False, "tracking.model": False, "tracking.system_metrics": False}
PLAIN = {"trainer.precision": "32-true", "trainer.memory_format": "contiguous", "trainer.checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def accelerator() -> str:
    """The value of trainer.accelerator."""
    if os.environ.get("TLRESEARCH_GPU_TESTS_ON") == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU (TLRESEARCH_GPU_TESTS_ON=cpu runs this on the CPU)")
    return "gpu"


@pytest.fixture(scope="module")
def device(accelerator: str) -> str:
    """The device type on which the runs train."""
    return "cuda" if accelerator == "gpu" else "cpu"


@pytest.fixture(scope="module")
def children(accelerator: str) -> Iterator[Children]:
    """Processes that may die; asked for after `accelerator`, so that none is started where all is skipped."""
    with started() as program:
        yield program


@pytest.fixture
def new_home(tmp_path: Path, empty_database: Path) -> Callable[[str], str]:
    """Makes a home with an empty MLflow store, by its name."""

    def make(name: str) -> str:
        folder = tmp_path / "homes" / name
        folder.mkdir(parents=True)
        shutil.copy(empty_database, folder / "mlflow.db")
        return str(folder)

    return make


def small(name: str) -> Callable[[Path], str]:
    """An experiment of `tests.serving.every_task`, imported late: it needs packages that may be missing."""

    def text(folder: Path) -> str:
        for package in ("transformers", "tokenizers", "soundfile"):
            pytest.importorskip(package)
        from tests.serving.every_task import EVERY

        return EVERY[name](folder)

    return text


def faster_rcnn(folder: Path) -> str:
    pytest.importorskip("pycocotools", reason="the extra detection is not installed")
    task = "{name: detection, options: {detector: faster_rcnn, width: 32}}"
    return boxes_text(save_boxes(folder / "boxes", count=8), task=task)


def instances(folder: Path) -> str:
    pytest.importorskip("pycocotools", reason="the extra detection is not installed")
    return instances_text(save_instances(folder / "instances"))


TASKS: dict[str, Callable[[Path], str]] = {
    "images": lambda _: toy_text(),
    "texts": small("text"),
    "tokens": small("tokens"),
    "sounds": small("sounds"),
    "speech recognition": small("recognition"),
    "masks": small("masks"),
    "boxes": faster_rcnn,
    "instances": instances,
}


def training(accelerator: str, **overrides: Any) -> dict[str, Any]:
    """Overrides of a short run that records little and leaves a checkpoint after each epoch."""
    return {"trainer.accelerator": accelerator, **QUIET, **overrides}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_goes_on_after_a_kill_as_the_unbroken_run(
    name: str, accelerator: str, device: str, children: Children, new_home: Callable[[str], str], tmp_path: Path
) -> None:
    pytest.importorskip("seqeval" if name == "tokens" else "torchmetrics")
    text = TASKS[name](tmp_path)
    overrides = training(accelerator, **PLAIN, **{"freeze.epochs": 2, "data.test_fraction": 0.25})

    def run(home: str, kill_in_epoch: int | None = None) -> Answer:
        return children.ask(Request(home, text, overrides, kill_in_epoch))

    unbroken = run(new_home("unbroken"))
    assert unbroken.code == 0, unbroken.said
    home = new_home("killed")
    assert run(home, kill_in_epoch=1).code == -signal.SIGKILL
    resumed = run(home)
    assert resumed.code == 0, resumed.said
    assert (unbroken.device, resumed.device) == (device, device)
    assert (unbroken.epochs, resumed.epochs) == ([0, 1], [1])
    assert math.isfinite(resumed.metrics["test/loss"])
    assert resumed.history == unbroken.history
    assert resumed.weights == unbroken.weights


@pytest.mark.parametrize("first", ["accelerator", "CPU"])
def test_a_checkpoint_moves_between_devices(
    first: str, device: str, children: Children, new_home: Callable[[str], str]
) -> None:
    home = new_home("killed")
    surroundings = [{}, NO_GPU] if first == "accelerator" else [NO_GPU, {}]
    overrides = training("auto", **PLAIN)
    killed = children.ask(Request(home, toy_text(), overrides, kill_in_epoch=1, environment=surroundings[0]))
    assert killed.code == -signal.SIGKILL
    resumed = children.ask(Request(home, toy_text(), overrides, environment=surroundings[1]))
    assert resumed.code == 0, resumed.said
    assert resumed.device == ("cpu" if first == "accelerator" else device)
    assert resumed.epochs == [1, 2]
    assert len(resumed.history) == 3


@pytest.mark.usefixtures("tables")
def test_frozen_stages_stay_and_weights_move_between_devices(accelerator: str) -> None:
    source = fit(load_text(toy_text(), training("cpu", **{"freeze.epochs": 1})))
    tuned = {"freeze.schedule": "depth", "freeze.unfreeze_depth": 1, "cache.enabled": False}
    on_gpu = fit(load_text(toy_text(), training(accelerator, **tuned, **{"backbone.checkpoint": source.run_id})))
    on_cpu = fit(load_text(toy_text(), training("cpu", **tuned, **{"backbone.checkpoint": on_gpu.run_id})))
    for earlier, later in ((source, on_gpu), (on_gpu, on_cpu)):
        before, after = (_stages(result.task.backbone) for result in (earlier, later))
        assert [_equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * (len(before) - 1) + [False]


def _stages(backbone: Any) -> list[dict[str, Tensor]]:
    return [{name: tensor.cpu() for name, tensor in stage.state_dict().items()} for stage in backbone.stages]


def _equal(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.usefixtures("tables")
def test_a_cached_run_equals_the_uncached_one(accelerator: str) -> None:
    schedule = {"freeze.schedule": "lp_ft", "freeze.probe_epochs": 2, "freeze.epochs": 3}
    runs = [
        fit(load_text(toy_text(), training(accelerator, **schedule, **{"cache.enabled": cached})))
        for cached in (True, False)
    ]
    for cached, plain in zip(runs[0].history, runs[1].history, strict=True):
        assert cached == pytest.approx(plain, abs=TOLERANCE)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_runs_with_one_seed_are_equal(
    precision: str, accelerator: str, new_home: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "{name: digits, classes: ['0', '1'], labels_per_class: 24, batch_size: 16, augment: flip, mixup: 0.2}"
    text = toy_text(data=data, task="{name: classification, dropout: 0.3}", regularize="{ema: 0.9}")
    results = []
    for name in ("first", "second"):
        monkeypatch.setenv("TLRESEARCH_HOME", new_home(name))
        results.append(fit(load_text(text, training(accelerator, **{"trainer.precision": precision}))))
    assert results[0].history == results[1].history
    assert digest(results[0].task) == digest(results[1].task)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "auto"])
def test_every_precision_learns(precision: str, accelerator: str) -> None:
    if precision == "16-mixed" and accelerator == "cpu":
        pytest.skip("Lightning has no 16-mixed on the CPU")
    chosen = {"trainer.precision": precision, "trainer.memory_format": "auto", "freeze.epochs": 5}
    result = fit(load_text(toy_text(), training(accelerator, **chosen)))
    losses = [epoch["val/loss"] for epoch in result.history]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    resolved = connect().client.get_run(result.run_id).data.tags.get("resolved.trainer.precision", precision)
    assert resolved in ({"32-true", "bf16-mixed"} if precision == "auto" else {precision})


@pytest.mark.usefixtures("tables")
def test_what_was_trained_predicts_and_is_exported_without_a_gpu(
    accelerator: str, children: Children, home: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for level, name in ((0, "dark"), (60, "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(level, level + 190, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    text = toy_text(
        data=f"{{name: image_folder, root: '{tmp_path}/images', batch_size: 8, image_size: 16, resize: 19}}",
        backbone="{name: small_cnn, weights: null, options: {in_channels: 3, width: 4}}",
    )
    result = fit(load_text(text, training(accelerator, **{"tracking.model": True, "tracking.figures": True})))
    answers = tmp_path / "answers.csv"
    words = ["predict", result.run_id, str(tmp_path / "images/test"), "--out", str(answers)]
    assert children.ask(Request(str(home), arguments=words, environment=NO_GPU)).code == 0
    uri = connect().client.get_run(result.run_id).info.artifact_uri
    recorded = _rows(Path(str(uri).removeprefix("file://")) / "predictions/test.csv")
    trained = {row["name"]: row["prediction"] for row in recorded}
    predicted = {Path(row["input"]).relative_to(tmp_path / "images").as_posix(): row["class"] for row in _rows(answers)}
    assert predicted == trained
    words = ["export", result.run_id, "--to", "safetensors", "pt2", "--out", str(tmp_path / "exported")]
    exported = children.ask(Request(str(home), arguments=words, environment=NO_GPU))
    assert exported.code == 0, exported.said  # a form that answers otherwise than the run is refused


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.usefixtures("tables")
def test_out_of_memory_goes_on_with_half_the_batch(accelerator: str) -> None:
    text = toy_text(backbone=hungry_yaml(fits=5), trainer=TRAINER.replace("}", ", on_oom: halve}"))
    result = fit(load_text(text, training(accelerator, **{"data.eval_batch_size": 4})))
    tags = connect().client.get_run(result.run_id).data.tags
    assert tags["resolved.data.batch_size"] == tags["resolved.trainer.accumulate"] == "4"
    small = {"data.batch_size": 4, "data.eval_batch_size": 4, "trainer.accumulate": 4}
    assert fit(load_text(text, training(accelerator, **small))).history == result.history


@pytest.mark.usefixtures("tables")
def test_adapters_change_what_they_adapt_and_nothing_else(accelerator: str, tmp_path: Path) -> None:
    text = TASKS["texts"](tmp_path)
    adapters = {"freeze.schedule": "lora", "freeze.lora.rank": 2, "freeze.lora.targets": ["*query", "*value"]}
    result = fit(load_text(text, training(accelerator, **adapters)))
    before = build_backbone(BackboneConfig(name=f"hf/{tmp_path}/bert")).original_state_dict()
    after = result.task.backbone.original_state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor.cpu(), before[name])}
    assert changed
    assert all(name.endswith(("query.weight", "value.weight")) for name in changed)
