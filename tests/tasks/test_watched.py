"""Metrics that decide about a run: which way is better, and that they exist, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.every_task import EVERY
from tests.toy import toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.run.fit import fit
from tlresearch.run.shared import Shared
from tlresearch.tasks.watched import directed

QUIET = {"tracking.figures": False, "tracking.model": False, "tracking.system_metrics": False, "freeze.epochs": 1}


@pytest.mark.parametrize(
    ("trainer", "mode"),
    [
        ("{monitor: val/loss}", "min"),
        ("{monitor: val/macro_f1}", "max"),
        ("{monitor: val/loss, mode: max}", "max"),
        ("{monitor: val/nobody_knows}", "max"),  # it decides about nothing
    ],
)
def test_what_is_watched_goes_the_way_the_task_says(trainer: str, mode: str) -> None:
    assert directed(load_text(toy_text(trainer=trainer)).config).trainer.mode == mode


def test_early_stopping_and_phases_follow_the_task_too() -> None:
    phases = "[{unfreeze_depth: 0, epochs: 2, until: {metric: val/accuracy}}, {unfreeze_depth: all, epochs: 1}]"
    config = load_text(
        toy_text(
            trainer="{early_stopping: {metric: val/auroc}}",
            freeze=f"{{schedule: phases, epochs: 3, phases: {phases}}}",
        )
    ).config
    filled = directed(config)
    assert filled.trainer.early_stopping is not None
    assert filled.freeze.phases[0].until is not None
    assert (filled.trainer.early_stopping.mode, filled.freeze.phases[0].until.mode) == ("max", "max")
    assert config.freeze.phases[0].until is not None
    assert config.freeze.phases[0].until.mode is None  # what was loaded stays as it is


def test_a_metric_that_decides_must_have_a_direction() -> None:
    trainer = "{monitor: val/mine, select: best, early_stopping: {metric: val/other}}"
    with pytest.raises(ConfigError) as error:
        directed(load_text(toy_text(trainer=trainer)).config)
    assert "trainer.mode: classification does not say which way val/mine is better" in str(error.value)
    assert "trainer.early_stopping.mode: " in str(error.value)


def test_a_misspelt_metric_without_a_direction_is_said_to_be_misspelt() -> None:
    with pytest.raises(ConfigError, match=r"val/acuracy is better \(did you mean 'val/accuracy'\?\); set min or max"):
        directed(load_text(toy_text(trainer="{early_stopping: {metric: val/acuracy}}")).config)


@pytest.mark.parametrize(
    ("trainer", "key", "near"),
    [
        ("{monitor: val/acuracy}", "trainer.monitor", "val/accuracy"),
        ("{monitor: train/auroc}", "trainer.monitor", "train/accuracy"),  # of training it is not measured
        ("{early_stopping: {metric: val/auroc_of_one, mode: max}}", "trainer.early_stopping.metric", "val/auroc"),
    ],
)
def test_a_metric_that_the_task_does_not_give_is_refused_before_training(trainer: str, key: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        fit(load_text(toy_text(trainer=trainer)), QUIET)
    assert f"{key}: " in str(error.value)
    assert f"(did you mean '{near}'?)" in str(error.value)
    assert "val/balanced_accuracy" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_every_task_is_known_by_the_names_that_its_metrics_have_then(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[tuple[str, ...]] = []
    original = Shared.metric_names

    def kept(self: Shared, *arguments: Any) -> tuple[str, ...]:
        named.append(original(self, *arguments))
        return named[-1]

    monkeypatch.setattr(Shared, "metric_names", kept)
    result = fit(load_text(EVERY[kind](tmp_path)), QUIET)
    assert set(named[0]) == set(result.history[0])
