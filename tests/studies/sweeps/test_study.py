"""Samplers and pruners by name, and what a storage that cannot be opened says."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning

from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.catalogue import PRUNERS, SAMPLERS
from tlresearch.config.sweep_schema import PrunerConfig, SamplerConfig, SpaceConfig, SweepConfig
from tlresearch.studies.sweeps import study as studies

SPACE = {"optimizer.lr": SpaceConfig(low=1e-4, high=1e-1, log=True)}
OPTIONS = {
    "percentile": {"percentile": 25.0},
    "threshold": {"lower": 0.1},
    "patient": {"wrapped_pruner": None, "patience": 2},
}


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names if name not in ("grid", "cmaes")])
def test_samplers(name: str) -> None:
    assert studies.open_study(SweepConfig(name=name, sampler=SamplerConfig(name)), SPACE).study_name == name


@pytest.mark.parametrize("name", PRUNERS.names)
def test_pruners(name: str) -> None:
    sweep = SweepConfig(name=name, pruner=PrunerConfig(name, options=OPTIONS.get(name, {})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        assert studies.open_study(sweep, SPACE).study_name == name


def test_a_grid_needs_choices() -> None:
    with pytest.raises(ConfigError, match="the grid sampler needs choices"):
        studies.open_study(SweepConfig(name="g", sampler=SamplerConfig("grid")), SPACE)
    space = {"optimizer.lr": SpaceConfig(choices=[0.1, 0.2])}
    assert studies.open_study(SweepConfig(name="g", sampler=SamplerConfig("grid")), space).study_name == "g"


def test_no_start_and_no_worker_draws_the_points_of_another() -> None:
    sweep = SweepConfig(name="streams", sampler=SamplerConfig("random"))

    def draw(worker: int = 0) -> float:
        study = studies.open_study(sweep, SPACE, worker=worker)
        value: float = study.sampler.sample_independent(
            study, study.ask(), "x", optuna.distributions.FloatDistribution(0, 1)
        )
        return value

    first, second, third = draw(), draw(), draw(worker=1)
    assert len({first, second, third}) == 3
    again = SweepConfig(name="again", sampler=SamplerConfig("random"))
    study = studies.open_study(again, SPACE)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    assert study.sampler.sample_independent(study, study.ask(), "x", distribution) == first  # a fresh study repeats


def test_options_a_sampler_does_not_take_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="sampler: tpe cannot be made with these arguments"):
        studies.open_study(SweepConfig(name="s", sampler=SamplerConfig("tpe", options={"colour": 1})), SPACE)


def test_a_pruner_by_dotted_path_may_hold_another() -> None:
    options = {"patience": 2, "wrapped_pruner": {"name": "optuna.pruners.MedianPruner", "n_startup_trials": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = studies.open_study(
            SweepConfig(name="own", pruner=PrunerConfig("optuna.pruners.PatientPruner", options)), SPACE
        )
    assert isinstance(study.pruner, optuna.pruners.PatientPruner)


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
