"""Parts that a researcher brings along, named in YAML: each from a library that is not ours, or from a module."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.torch_course import TorchCourse
from tlresearch.run.fit import RunResult, fit

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


def run(**sections: str) -> RunResult:
    return fit(load_text(toy_text(**sections)))


OPTIMIZERS = {
    "torch": "{name: torch.optim.NAdam, lr: 0.01, momentum_decay: 0.005}",
    "timm": "{name: timm.optim.Lamb, lr: 0.01, weight_decay: 0.01}",
    "timm with nested arguments": "{name: timm.optim.Lion, lr: 0.001, betas: [0.9, 0.98]}",
    "own": "{name: tests.config.parts_of_mine.Needy, lr: 0.01, rank: 3}",
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimizer_trains_under_a_freeze_schedule(optimizer: str) -> None:
    result = run(optimizer=OPTIMIZERS[optimizer], freeze="{schedule: lp_ft, epochs: 6}")
    assert result.status == "finished"
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]


def test_a_single_group_optimizer_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: torch\.optim\.LBFGS cannot be made .* per-parameter options"):
        run(optimizer="{name: torch.optim.LBFGS, lr: 0.01}")


def test_an_optimizer_that_lacks_parameters_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"would never be trained"):
        run(optimizer="{name: tests.config.parts_of_mine.half, lr: 0.01}")


def test_an_optimizer_without_weight_decay_says_so() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay: torch\.optim\.Rprop has none; set it to 0"):
        run(optimizer="{name: torch.optim.Rprop, lr: 0.01, weight_decay: 0.1}")


def rates(scheduler: str, epochs: int = 4, batches: int = 1, lr: float = 0.1) -> list[float]:
    text = toy_text(
        scheduler=scheduler,
        freeze=f"{{schedule: full, epochs: {epochs}}}",
        optimizer=f"{{lr: {lr}, layer_lr_decay: 0.5}}",
    )
    schedule = build_schedule(load_text(text).config, ("first", "second"))
    assert isinstance(schedule.course, TorchCourse)
    course = schedule.course.of(batches)
    return [course.factor(step / batches, epochs) * lr for step in range(epochs * batches)]


def test_a_scheduler_of_torch_gives_the_rates_that_it_gives_in_a_loop_of_torchs() -> None:
    assert rates("{name: torch.optim.lr_scheduler.MultiStepLR, milestones: [1, 3], gamma: 0.5}") == pytest.approx(
        [0.1, 0.05, 0.05, 0.025]
    )
    cosine = rates("{name: torch.optim.lr_scheduler.CosineAnnealingLR, eta_min: 0.02}")  # T_max is the phase's length
    assert cosine == pytest.approx([0.02 + 0.08 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)])
    joined = rates(
        "{name: torch.optim.lr_scheduler.SequentialLR, milestones: [2], schedulers: "
        "[{name: torch.optim.lr_scheduler.ConstantLR, factor: 0.5, total_iters: 9}, "
        "{name: torch.optim.lr_scheduler.ExponentialLR, gamma: 0.1}]}"
    )
    assert joined == pytest.approx([0.05, 0.05, 0.1, 0.01])


def test_one_cycle_of_torch_steps_with_each_batch() -> None:
    found = rates("{name: torch.optim.lr_scheduler.OneCycleLR, interval: batch, max_lr: 0.4, pct_start: 0.25}", 4, 5)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, pct_start=0.25, total_steps=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "scheduler", ["{name: torch.optim.lr_scheduler.OneCycleLR, interval: batch}", "{name: one_cycle, rise: 0.5}"]
)
def test_a_run_has_its_schedulers_rates_in_each_phase(scheduler: str) -> None:
    result = run(
        scheduler=scheduler, freeze="{schedule: lp_ft, epochs: 4}", optimizer="{lr: 0.05, layer_lr_decay: 0.5}"
    )
    assert result.status == "finished"


BAD_SCHEDULERS: dict[str, tuple[str, str]] = {
    "follows a metric": ("{name: torch.optim.lr_scheduler.ReduceLROnPlateau}", "follows a metric; end a phase"),
    "no scheduler": ("{name: tests.config.parts_of_mine.no_scheduler}", "must give a scheduler of torch, but gave int"),
    "wrong argument": (
        "{name: torch.optim.lr_scheduler.StepLR, step: 3}",
        "scheduler.step: torch.optim.lr_scheduler.StepLR has no such argument (did you mean 'step_size'?)",
    ),
}


@pytest.mark.parametrize("case", BAD_SCHEDULERS)
def test_a_wrong_scheduler_is_one_line(case: str) -> None:
    scheduler, expected = BAD_SCHEDULERS[case]
    with pytest.raises(ConfigError) as caught:
        run(scheduler=scheduler)
    assert expected in str(caught.value)


def test_a_preset_of_ones_own_returns_phases() -> None:
    text = toy_text(freeze="{schedule: tests.config.parts_of_mine.inside_out, epochs: 4, first: 1}")
    schedule = build_schedule(load_text(text).config, ("a", "b", "c"))
    assert [(phase.stages, phase.epochs) for phase in schedule.phases] == [((1,), 1), ((0, 1, 2), 3)]


BAD_PRESETS: dict[str, tuple[str, str]] = {
    "no phases": ("tests.config.parts_of_mine.no_phases", "must return a list of PhaseConfig, but returned 3"),
    "a wrong phase": (
        "tests.config.parts_of_mine.wrong_phase",
        "freeze.schedule[0]: give exactly one of unfreeze_depth",
    ),
}


@pytest.mark.parametrize("case", BAD_PRESETS)
def test_a_preset_that_returns_something_else_is_one_line(case: str) -> None:
    preset, expected = BAD_PRESETS[case]
    config: Any = load_text(toy_text(freeze=f"{{schedule: {preset}, epochs: 4}}")).config
    with pytest.raises(ConfigError) as caught:
        build_schedule(config, ("a", "b", "c"))
    assert expected in str(caught.value)


LOSSES: dict[str, str] = {
    "of torch": "{name: torch.nn.MultiMarginLoss, margin: 0.5}",
    "of torch, smoothed": "{name: torch.nn.CrossEntropyLoss, label_smoothing: 0.1}",
    "own class": "{name: tests.config.parts_of_mine.Margin, margin: 0.5}",
    "own function": "{name: tests.config.parts_of_mine.sharpened, by: 2.0}",
    "short name": "{name: focal, gamma: 1}",
    "name alone": "torch.nn.CrossEntropyLoss",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_trains_a_classifier(loss: str) -> None:
    result = run(task=f"{{loss: {LOSSES[loss]}}}")
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]


def test_a_loss_by_name_is_the_tasks_own_where_it_says_the_same() -> None:
    own, named = run(), run(task="{loss: torch.nn.CrossEntropyLoss}")
    assert own.history == [pytest.approx(epoch) for epoch in named.history]
    assert run(task="{loss: cross_entropy}").history == own.history


def test_class_weights_reach_a_loss_that_takes_them() -> None:
    plain = run(task="{loss: torch.nn.CrossEntropyLoss}")
    weighed = run(task="{loss: torch.nn.CrossEntropyLoss, class_weights: balanced}", data=UNEQUAL)
    assert weighed.history != plain.history
    with pytest.raises(ConfigError, match=r"task\.class_weights: .*sharpened takes no weights; set it to none"):
        run(task="{loss: {name: tests.config.parts_of_mine.sharpened, by: 1.0}, class_weights: balanced}")


UNEQUAL = "{name: digits, classes: ['0', '1', '2'], train_fraction: 0.2, test_fraction: 0.2, batch_size: 16}"

BAD_TASKS: dict[str, tuple[str, str]] = {
    "refuses the batch": (
        "{loss: torch.nn.BCELoss}",
        "task.loss: torch.nn.BCELoss does not take outputs float32 (16, 2) and targets int64 (16,): ValueError",
    ),
    "gives a vector": (
        "{loss: {name: torch.nn.CrossEntropyLoss, reduction: none}}",
        "task.loss: torch.nn.CrossEntropyLoss must give one number, the mean of a batch, but gave float32 (16,)",
    ),
    "has weights": ("{loss: tests.config.parts_of_mine.Learnt}", "criterion.inner.scale would never be trained"),
    "of another task": ("{loss: dice}", "task.loss: dice is for segmentation, but task.name is classification"),
    "smoothing twice": (
        "{loss: torch.nn.CrossEntropyLoss, label_smoothing: 0.1}",
        "task.label_smoothing: is read by the task's own loss only",
    ),
    "metric of no torchmetrics": (
        "{metrics: [torch.nn.Linear]}",
        "task.metrics[0].in_features: is needed by torch.nn.Linear",
    ),
    "metric with a wrong argument": (
        "{metrics: [{name: torchmetrics.classification.MulticlassCohenKappa, weights: 3}]}",
        "MulticlassCohenKappa cannot be made with these arguments: ValueError",
    ),
    "metric of one's name": (
        "{metrics: [torchmetrics.classification.MulticlassAccuracy]}",
        "task.metrics[0].label: there is a metric 'accuracy' already",
    ),
    "metric of each class": (
        "{metrics: [{name: torchmetrics.classification.MulticlassSpecificity, average: none}]}",
        "task.metrics: specificity must give one number",
    ),
    "metric of other inputs": (
        "{metrics: [torchmetrics.text.CharErrorRate]}",
        "task.metrics: char_error_rate does not take predictions float32",
    ),
    "no direction": (
        "{metrics: [{name: tests.config.parts_of_mine.Undirected}]}\ntrainer: "
        "{monitor: val/undirected, select: best, precision: 32-true}",
        "trainer.mode: classification does not say which way val/undirected is better",
    ),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_wrong_loss_or_metric_is_one_line(case: str) -> None:
    task, expected = BAD_TASKS[case]
    sections = {"task": task.partition("\n")[0]}
    if "\n" in task:
        sections["trainer"] = task.partition("\ntrainer: ")[2]
    with pytest.raises(ConfigError) as caught:
        run(**sections)
    assert expected in str(caught.value)


def test_metrics_of_torchmetrics_stand_beside_ours() -> None:
    metrics = (
        "[torchmetrics.classification.MulticlassMatthewsCorrCoef, "
        "{name: torchmetrics.classification.MulticlassFBetaScore, beta: 2.0, label: f2}]"
    )
    result = run(
        task=f"{{metrics: {metrics}}}",
        trainer="{monitor: val/matthews_corr_coef, select: best, precision: 32-true, memory_format: contiguous}",
    )
    assert {"val/f2", "test/f2", "val/matthews_corr_coef", "val/accuracy"} <= result.metrics.keys()
    best = max(range(3), key=lambda epoch: result.history[epoch]["val/matthews_corr_coef"])
    assert result.epoch == best


def test_callbacks_and_loggers_of_lightning_see_every_epoch(tmp_path: Path) -> None:
    result = run(
        freeze="{schedule: lp_ft, epochs: 8}",
        trainer=f"""
  precision: 32-true
  callbacks:
    - {{name: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 2, min_delta: 10.0}}
    - {{name: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: epoch}}
    - {{name: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: {tmp_path / "kept"}, monitor: val/loss}}
    - {{name: tests.config.parts_of_mine.Counter, file: {tmp_path / "epochs"}}}
  loggers:
    - {{name: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path}, options: {{name: mine}}}}
""",
    )
    assert len(result.history) == 3  # the first is the best: nothing improves by as much as is wanted
    assert (tmp_path / "epochs").read_text() == "0\n1\n2\n"
    assert list((tmp_path / "kept").glob("*.ckpt"))
    with (tmp_path / "mine" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert logged[:3] == pytest.approx([epoch["val/loss"] for epoch in result.history])
    assert {"train/loss", "test/accuracy", "lr-SGD/head"} <= rows[0].keys()
    assert "optimizer.lr" in (tmp_path / "mine" / "version_0" / "hparams.yaml").read_text()


BAD_CALLBACKS: dict[str, tuple[str, str]] = {
    "freezes too": (
        "callbacks: [{name: lightning.pytorch.callbacks.BackboneFinetuning}]",
        "trainer.callbacks: BackboneFinetuning: it freezes and unfreezes too",
    ),
    "no callback": (
        "callbacks: [tests.toy.toy_data]",
        "trainer.callbacks[0].name: tests.toy.toy_data must give a lightning.pytorch.callbacks.Callback, but gave Data",
    ),
    "needs a logger": (
        "callbacks: [lightning.pytorch.callbacks.LearningRateMonitor]",
        "trainer.callbacks: Cannot use `LearningRateMonitor` callback with `Trainer` that has no logger",
    ),
    "an unknown metric": (
        "callbacks: [{name: lightning.pytorch.callbacks.EarlyStopping, monitor: val/lost}]",
        "trainer.callbacks: Early stopping conditioned on metric `val/lost` which is not available",
    ),
    "no logger": ("loggers: [tests.toy.toy_data]", "must give a lightning.pytorch.loggers.Logger"),
    "a short name": ("loggers: [csv]", "trainer.loggers[0].name: 'csv' is unknown; known: "),
}


@pytest.mark.parametrize("case", BAD_CALLBACKS)
def test_a_wrong_callback_or_logger_is_one_line(case: str) -> None:
    trainer, expected = BAD_CALLBACKS[case]
    with pytest.raises(ConfigError) as caught:
        run(trainer=f"{{precision: 32-true, memory_format: contiguous, {trainer}}}")
    assert expected in str(caught.value)
