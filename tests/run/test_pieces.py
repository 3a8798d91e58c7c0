"""`tlresearch.fit` with what a program has: values, data sets, loaders, a DataModule, networks."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassCohenKappa

import tlresearch as tl
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.data.datasets import data_of
from tlresearch.finetuning.callback import EpochReport
from tlresearch.run.fit import Role
from tlresearch.tracking.store import connect

QUICK: dict[str, Any] = {
    "freeze": {"schedule": "lp_ft", "epochs": 2},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "trainer": {"precision": "32-true", "memory_format": "contiguous", "checkpoint_seconds": 0},
    "tracking": {"figures": False, "system_metrics": False},
}
pytestmark = [*(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY), pytest.mark.usefixtures("tables")]


def points(samples: int, seed: int) -> TensorDataset:
    """Bright on the left or on the right."""
    inputs, targets = (
        torch.rand(samples, 1, 4, 4, generator=torch.Generator().manual_seed(seed)),
        torch.arange(samples) % 2,
    )
    inputs[targets == 0, :, :, :2] += 0.5
    return TensorDataset(inputs, targets)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers)


SETS = (points(48, 0), points(16, 1), points(16, 2))


class Module(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.sets = SETS

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets[0], 16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets[1], 16)


def test_a_network_and_data_sets_are_fitted_and_left_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    own = network()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = tl.fit(backbone=own, data=SETS, **QUICK)
    assert {"val/accuracy", "test/accuracy"} <= first.metrics.keys()
    assert "backbone (torch.nn.modules.container.Sequential)" in caplog.text
    assert "so the record alone cannot build them again" in caplog.text
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1], state[2]) == (random.getstate(), np.random.get_state()[1].tolist())
    assert tl.fit(backbone=own, data=SETS, **QUICK).history == first.history
    run = connect().client.get_run(first.run_id)
    assert run.data.tags["tlresearch.handed_over"] == "data, backbone"
    with pytest.raises(UserError, match=r"was handed over as an object, which no record holds"):
        tl.fit(yaml.safe_load(first.config))


@pytest.mark.parametrize(
    "data",
    [
        {"train": SETS[0], "val": SETS[1]},
        (DataLoader(SETS[0], 16, shuffle=True), DataLoader(SETS[1], 16)),
        Module(),
    ],
    ids=["datasets", "loaders", "module"],
)
def test_data_come_in_several_forms(data: Any) -> None:
    result = tl.fit(backbone=network(), data=data, **{**QUICK, "freeze": {"schedule": "full", "epochs": 1}})
    assert "val/accuracy" in result.metrics
    size = yaml.safe_load(result.config)["data"]["batch_size"]
    assert size == (32 if isinstance(data, dict) else 16)


class Shaken(Dataset[Any]):
    """Random in numpy, Python and torch, as augmentations are."""

    def __len__(self) -> int:
        return len(SETS[0])

    def __getitem__(self, index: int) -> Any:
        image, target = SETS[0][index]
        return (image + 0.1 * float(np.random.rand()) + 0.1 * random.random() + 0.1 * torch.rand(1)).numpy(), int(
            target
        )


def test_a_run_over_random_data_that_fails_goes_on_and_ends_as_the_unbroken_one() -> None:
    pieces = {**QUICK, "backbone": network(), "data": (Shaken(), SETS[1]), "freeze": {"schedule": "full", "epochs": 3}}
    unbroken = tl.fit(**pieces)
    epochs = []

    def fail(report: EpochReport) -> None:
        epochs.append(report.epoch)
        if epochs == [0, 1]:
            raise RuntimeError("as a kill would leave it")

    role = Role("experiment", test=True, listener=fail)
    with pytest.raises(RuntimeError):
        tl.fit(role=role, **pieces)
    resumed = tl.fit(role=role, **pieces)
    assert epochs == [0, 1, 1, 2]
    assert resumed.history == unbroken.history


def test_a_transform_is_applied_and_numbers_are_regressed() -> None:
    sets = [[(np.full((4, 4), index / 8, dtype=np.float32), index / 8) for index in range(16)] for _ in range(2)]
    result = tl.fit(
        backbone=network(), data=sets, transform=lambda image: torch.from_numpy(image)[None],
        **{**QUICK, "freeze": {"schedule": "full", "epochs": 1}},
    )  # fmt: skip
    assert yaml.safe_load(result.config)["task"]["name"] == "regression"


def test_a_dict_or_typed_values_take_the_place_of_a_file() -> None:
    values = {
        "data": {"name": "digits", "classes": ["0", "1"]},
        "backbone": {"name": "small_cnn", "weights": None, "options": {"in_channels": 1, "width": 4}},
        **QUICK,
    }
    result = tl.fit(values, {"freeze.epochs": 3})
    assert len(result.history) == 3
    typed = tl.Experiment()
    typed.data.name, typed.data.classes = "digits", ["0", "1"]
    typed.backbone.name, typed.backbone.weights, typed.backbone.options = (
        "small_cnn",
        None,
        {"in_channels": 1, "width": 4},
    )
    assert len(tl.fit(typed, ["freeze.epochs=1", "tracking.model=false"]).history) == 1


class Count(L.Callback):
    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs += 1


def distance(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(outputs.softmax(1), nn.functional.one_hot(targets, 2).float())


def test_every_piece_of_training_may_be_an_object(tmp_path: Path) -> None:
    count, logger = Count(), CSVLogger(tmp_path)
    result = tl.fit(
        backbone=network(),
        data=SETS,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        metrics=[MulticlassCohenKappa(num_classes=2)],
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.5),
        scheduler=partial(StepLR, step_size=1, gamma=0.1),
        callbacks=[count],
        loggers=[logger],
        freeze=QUICK["freeze"],
        trainer=QUICK["trainer"],
        tracking=QUICK["tracking"],
    )
    config = yaml.safe_load(result.config)
    assert count.epochs == 2
    assert Path(logger.log_dir, "metrics.csv").read_text()
    assert "val/multiclass_cohen_kappa" in result.metrics or "val/cohen_kappa" in result.metrics, result.metrics
    assert config["optimizer"]["name"] == "torch.optim.sgd.SGD"
    assert (config["optimizer"]["lr"], config["optimizer"]["options"]["momentum"]) == (0.05, 0.5)
    tags = connect().client.get_run(result.run_id).data.tags["tlresearch.handed_over"].split(", ")
    assert tags == ["data", "backbone", "task.loss", "task.metrics[0]", "trainer.callbacks[0]", "trainer.loggers[0]"]


@pytest.mark.parametrize(
    "loss", [distance, lambda outputs, targets: distance(outputs, targets)], ids=["named", "lambda"]
)
def test_a_loss_may_be_a_function(loss: Any) -> None:
    optimizer = torch.optim.AdamW(network().parameters(), lr=0.01, betas=(0.8, 0.9))
    result = tl.fit(backbone=network(), data=SETS, loss=loss, **{**QUICK, "optimizer": optimizer})
    config = yaml.safe_load(result.config)
    named = config["task"]["loss"]["name"]
    assert named == (f"{__name__}.distance" if loss is distance else f"object.{__name__}.<lambda>")
    assert config["optimizer"]["lr"] == 0.01
    assert config["optimizer"]["options"]["betas"] == [0.8, 0.9]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from SETS[0]


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ({"data": SETS[:1]}, "data: needs train and val, and may have test, but got train"),
        ({"data": (Stream(), SETS[1])}, "data: train is a Stream; a data set needs __len__ and __getitem__"),
        ({"data": ([], SETS[1])}, "data: train is empty"),
        ({"data": ([1], SETS[1])}, "data: train[0] is a int; it must be a pair (input, target)"),
        ({"data": ([("a", 0)], SETS[1])}, "data: the input of train[0] is a str; it must be a tensor"),
        ({"data": ([(torch.ones(1), "a")], SETS[1])}, "data: the target of train[0] is a str; it must be a class"),
        ({"data": ([(torch.ones(1), 0), (torch.ones(2), 0)], SETS[1])}, "data: train[1] has the shape (2,), but"),
        ({"data": (SETS[0], [(torch.ones(1), 0)])}, "data: inputs have the shapes"),
        ({"data": (SETS[0], Shaken())}, "data: val gives other inputs each time; evaluate on fixed ones"),
        ({"data": SETS, "transform": lambda image: "text"}, "transform: gives a str; it must be a tensor"),
        ({"data": SETS, "transform": lambda image: image.nothing}, "transform: fails for train[0], a Tensor: Attr"),
        ({"backbone": network()}, "backbone: a network needs data= as data sets too"),
        ({"data": SETS, "backbon": network()}, "backbon: is no section of an experiment, nor a piece of one"),
        ({"transform": lambda image: image}, "transform: goes with data sets that are handed over as data="),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_records_nothing(pieces: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        tl.fit(**{"backbone": None, **pieces})
    text = caught.value.problems[0] if isinstance(caught.value, ConfigError) else str(caught.value)
    assert text.startswith(line)
    assert not connect().client.search_runs([e.experiment_id for e in connect().client.search_experiments()])


def test_classes_and_kinds_follow_from_the_targets() -> None:
    assert (data_of(SETS).kind, data_of(SETS).classes) == ("binary", ("0", "1"))
    inputs = torch.zeros(3, 2)
    several = data_of([TensorDataset(inputs, torch.arange(3))] * 2)
    assert (several.kind, several.classes) == ("multiclass", ("0", "1", "2"))
    labels = data_of([TensorDataset(inputs, torch.tensor([[0, 1], [1, 1], [0, 0]]))] * 2)
    assert (labels.kind, labels.splits["train"].targets.dtype) == ("multilabel", torch.float32)  # type: ignore[union-attr]
    numbers = data_of([TensorDataset(inputs, torch.rand(3, 2, dtype=torch.float64))] * 2)
    assert (numbers.kind, numbers.classes) == ("numbers", ("0", "1"))
