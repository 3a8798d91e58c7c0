"""What a sweep is checked for before its first trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toy import toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_sweep
from tlresearch.studies.sweeps.joining import Plan, check


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiments").mkdir()
    freeze = "{schedule: depth, unfreeze_depth: 1, epochs: 1}"
    (tmp_path / "experiments" / "toy.yaml").write_text(toy_text(freeze=freeze))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(project: Path, **sweep: Any) -> Plan:
    (project / "s.yaml").write_text(yaml.safe_dump({"experiment": "toy", "trials": 7, **sweep}))
    return check(load_sweep(project / "s.yaml"))


GRID = {"optimizer.lr": {"choices": [0.001, 0.01]}, "freeze.unfreeze_depth": {"choices": [0, 1]}}


def test_a_grid_ends_with_its_last_point(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert plan(project, space=GRID, sampler={"name": "grid"}).config.trials == 4
    assert "the grid has 4 points: the sweep ends after them, not after 7 trials" in caplog.text
    enqueued = [{"optimizer.lr": 0.01, "freeze.unfreeze_depth": 0}]
    assert plan(project, space=GRID, sampler={"name": "grid"}, enqueue=enqueued).config.trials == 5
    assert plan(project, space=GRID, sampler={"name": "grid"}, trials=3).config.trials == 3
    assert plan(project, space=GRID, sampler={"name": "tpe"}).config.trials == 7


@pytest.mark.parametrize(
    ("first", "condition"),
    [
        ({"optimizer.name": {"choices": ["sgd", "adamw"]}}, "optimizer.name > 0"),
        ({"freeze.unfreeze_depth": {"choices": [0, "all"]}}, "freeze.unfreeze_depth > many"),
        ({"trainer.deterministic": {"choices": [True, False]}}, "trainer.deterministic > 0"),
    ],
)
def test_a_condition_that_orders_what_is_no_number_is_refused(
    first: dict[str, Any], condition: str, project: Path
) -> None:
    space = {**first, "optimizer.weight_decay": {"low": 0.0, "high": 0.1, "when": condition}}
    with pytest.raises(ConfigError, match=r"space\[optimizer.weight_decay\].when: '>' compares numbers, but"):
        plan(project, space=space)


def test_all_is_the_number_of_stages_wherever_it_stands(project: Path) -> None:
    decay = {"low": 0.3, "high": 1.0, "when": "freeze.unfreeze_depth > 0"}
    space = {"freeze.unfreeze_depth": {"choices": [0, "all"]}, "optimizer.layer_lr_decay": decay}
    ready = plan(project, space=space, enqueue=[{"freeze.unfreeze_depth": "all", "optimizer.layer_lr_decay": 0.5}])
    assert ready.space["freeze.unfreeze_depth"].choices == [0, 4]
    assert ready.config.enqueue == [{"freeze.unfreeze_depth": 4, "optimizer.layer_lr_decay": 0.5}]
