"""Samplers and pruners by name, and what a storage that cannot be opened says."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning

from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config import checks
from tlresearch.config.sweep_schema import ComponentConfig, SpaceConfig, SweepConfig
from tlresearch.studies.sweeps import study as studies

SPACE = {"optimizer.lr": SpaceConfig(low=1e-4, high=1e-1, log=True)}
OPTIONS = {
    "percentile": {"percentile": 25.0},
    "threshold": {"lower": 0.1},
    "patient": {"wrapped_pruner": None, "patience": 2},
}


def test_the_config_knows_every_name() -> None:
    assert set(checks.SAMPLERS) == set(studies.SAMPLERS)
    assert set(checks.PRUNERS) == set(studies.PRUNERS)


@pytest.mark.parametrize("name", [name for name in checks.SAMPLERS if name not in ("grid", "cmaes")])
def test_samplers(name: str) -> None:
    assert studies.open_study(SweepConfig(name=name, sampler=ComponentConfig(name)), SPACE).study_name == name


@pytest.mark.parametrize("name", checks.PRUNERS)
def test_pruners(name: str) -> None:
    sweep = SweepConfig(name=name, pruner=ComponentConfig(name, options=OPTIONS.get(name, {})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        assert studies.open_study(sweep, SPACE).study_name == name


def test_a_grid_needs_choices() -> None:
    with pytest.raises(ConfigError, match="the grid sampler needs choices"):
        studies.open_study(SweepConfig(name="g", sampler=ComponentConfig("grid")), SPACE)
    space = {"optimizer.lr": SpaceConfig(choices=[0.1, 0.2])}
    assert studies.open_study(SweepConfig(name="g", sampler=ComponentConfig("grid")), space).study_name == "g"


def test_no_start_and_no_worker_draws_the_points_of_another() -> None:
    sweep = SweepConfig(name="streams", sampler=ComponentConfig("random"))

    def draw(worker: int = 0) -> float:
        study = studies.open_study(sweep, SPACE, worker=worker)
        value: float = study.sampler.sample_independent(
            study, study.ask(), "x", optuna.distributions.FloatDistribution(0, 1)
        )
        return value

    first, second, third = draw(), draw(), draw(worker=1)
    assert len({first, second, third}) == 3
    again = SweepConfig(name="again", sampler=ComponentConfig("random"))
    study = studies.open_study(again, SPACE)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    assert study.sampler.sample_independent(study, study.ask(), "x", distribution) == first  # a fresh study repeats


def test_options_a_sampler_does_not_take_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.options: tpe refuses them"):
        studies.open_study(SweepConfig(name="s", sampler=ComponentConfig("tpe", options={"colour": 1})), SPACE)


def test_a_storage_that_cannot_be_opened_names_it_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened") as caught:
        studies.open_study(SweepConfig(name="s", storage=f"sqlite:///{tmp_path}/no/such/folder/x.db"), SPACE)
    assert "sqlite" in str(caught.value)
    with pytest.raises(UserError) as caught:
        studies.open_study(SweepConfig(name="s", storage="postgresql://me:s3cret@127.0.0.1:1/x"), SPACE)
    assert "s3cret" not in str(caught.value)


def test_another_direction_needs_another_name() -> None:
    studies.open_study(SweepConfig(name="s"), SPACE)
    sweep = SweepConfig(name="s")
    sweep.objective.direction = "minimize"
    with pytest.raises(ConfigError, match="give the sweep another name"):
        studies.open_study(sweep, SPACE)
