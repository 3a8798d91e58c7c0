"""The best configurations of a sweep are run again with fresh seeds, and it is their mean that chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.statistics import summary
from tlresearch.config.sweep_schema import ObjectiveConfig
from tlresearch.show.elements import Table
from tlresearch.studies.reproduction.repeat import repeat_run
from tlresearch.studies.sweeps.confirm import Confirmed, best_first, fresh_seeds
from tlresearch.studies.sweeps.result import SweepResult
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.studies.sweeps.subject import FinalRun
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.comparison.compare import compare

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("experiments", "sweeps"):
        (tmp_path / folder / "toy").mkdir(parents=True)
    base = toy_text(
        freeze="{schedule: full, epochs: 1}",
        trainer="{precision: 32-true, memory_format: contiguous}",
        cache="{memory_format: contiguous}",
    )
    (tmp_path / "experiments/toy/base.yaml").write_text(base)
    sweep = {
        "experiment": "toy/base",
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        "enqueue": [{"optimizer.lr": rate} for rate in (0.05, 0.01, 0.01)],
        "trials": 3,
        "confirm": {"top": 2, "seeds": 2},
    }
    (tmp_path / "sweeps/toy/s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tags(run: Any) -> dict[str, str]:
    return dict(run.data.tags)


def test_the_best_configurations_are_confirmed_with_seeds_no_trial_had(project: Path) -> None:
    result = run_sweep("toy/s")
    assert len(result.confirmed) == 2  # two of the three trials had the same values
    assert {one.seeds for one in result.confirmed} == {(1, 2)}
    assert result.best == result.confirmed[0].trial.params
    means = [one.metrics["val/accuracy"].mean for one in result.confirmed]
    assert means == sorted(means, reverse=True)

    store = connect()
    nested = {run.run_id: run.stored for run in Runs(store).get(result.run_id).members}
    for one in result.confirmed:
        seeds = [run.stored for run in Runs(store).get(one.run_id).members]
        assert one.run_id in nested
        assert sorted(run.data.params["seed"] for run in seeds) == ["1", "2"]
        assert {tags(run)["tlresearch.test_evaluations"] for run in seeds} == {"1"}
        accuracies = [run.data.metrics["selected/val/accuracy"] for run in seeds]
        assert one.metrics["val/accuracy"].mean == pytest.approx(sum(accuracies) / 2)
    trials = [run for run in nested.values() if "tlresearch.trial" in tags(run)]
    assert len(trials) == 3
    assert not any("tlresearch.test_evaluations" in tags(run) for run in trials)
    again = repeat_run(trials[0].info.run_id)
    assert again.verdict == "identical"
    assert not any(name.startswith("test/") for name in store.client.get_run(again.new).data.metrics)
    parent = store.client.get_run(result.run_id)
    assert parent.data.metrics["study/confirmed_mean"] == pytest.approx(means[0])
    assert tags(parent)["tlresearch.best_trial"] == str(result.confirmed[0].trial.number)

    assert "2 fresh seeds" in str(result)
    rows = compare(sweep="toy/s").rows
    assert [bool(row.members) for row in rows[:3]] == [True, True, False]

    continued = run_sweep("toy/s")
    assert [one.run_id for one in continued.confirmed] == [one.run_id for one in result.confirmed]
    assert len(Runs(store).get(result.run_id).members) == len(nested)


def test_the_mean_chooses_whatever_the_trials_had_reached() -> None:
    values = {0: ([0.9, 0.1], 0.99), 1: ([0.6, 0.6], 0.5)}
    found = [
        Confirmed(optuna.trial.create_trial(value=value), "", (1, 2), {"val/accuracy": summary(seeds)})
        for seeds, value in values.values()
    ]
    assert [one.trial.value for one in best_first(found, ObjectiveConfig("val/accuracy"))] == [0.5, 0.99]
    loss = ObjectiveConfig("val/accuracy", "minimize")
    assert [one.trial.value for one in best_first(found, loss)] == [0.99, 0.5]


def test_fresh_seeds_are_those_of_no_trial() -> None:
    assert fresh_seeds([0, 4, 2], 3) == [5, 6, 7]


def test_the_table_shows_the_test_value_of_whatever_was_optimised() -> None:
    metrics = {"val/f1": 0.5, "test/f1": 0.4321, "test/accuracy": 0.9876}
    trial = optuna.trial.create_trial(value=0.5)
    confirmed = Confirmed(trial, "", (1, 2), {"val/f1": summary([0.5, 0.5]), "test/f1": summary([0.25, 0.25])})
    result = SweepResult(
        name="s",
        run_id="",
        url="",
        objective="val/f1",
        best={},
        best_value=0.5,
        best_yaml=Path(),
        confirmed=(confirmed,),
        final=(FinalRun("best", "", metrics),),
        figures={},
        trials=(trial,),
    )
    (table,) = (element for element in result.page.elements if isinstance(element, Table))
    assert [column.title for column in table.columns] == ["", "val/f1", "test/f1", "trials"]
    test = [table.text(row, 2) for row in range(len(table.rows))]
    assert test == ["", "0.2500 ± 0.0000", "0.4321"]
