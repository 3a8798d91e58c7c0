"""Several worker processes: the total is met exactly, also when one of them is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.toy import toy_text
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tracking.store import connect


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("experiments", "sweeps"):
        (tmp_path / folder).mkdir()
    (tmp_path / "experiments" / "base.yaml").write_text(toy_text(freeze="{schedule: full, epochs: 2}"))
    sweep = {
        "experiment": "base",
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        "trials": 4,
        "workers": 2,
    }
    (tmp_path / "sweeps" / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trial_runs(run_id: str) -> list[Any]:
    client = connect().client
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [
        run
        for run in client.search_runs(ids)
        if run.data.tags.get("mlflow.parentRunId") == run_id and "tlresearch.trial" in run.data.tags
    ]


@pytest.mark.slow
def test_two_workers_run_the_total_and_a_killed_one_loses_no_trial(project: Path, home: Path) -> None:
    killed: list[int] = []
    done = threading.Event()

    def kill_one() -> None:
        while not done.is_set():
            # The first trial that has a checkpoint: its process is killed in the middle.
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                    if "tlresearch.studies.launch.worker" in child.cmdline() and list(
                        home.glob("unfinished/*/last.ckpt")
                    ):
                        os.kill(child.pid, signal.SIGKILL)
                        killed.append(child.pid)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        result = run_sweep("s", ["overrides.freeze.epochs=20"])
    finally:
        done.set()
        thread.join()
    assert killed
    states = [trial.state.name for trial in result.trials]
    assert states.count("COMPLETE") == 4
    assert states.count("FAIL") <= 1  # the interrupted try, which does not count; none if it was between two trials
    ends = sorted(run.info.status for run in trial_runs(result.run_id))
    # The second try is the same run, unless the first was killed before it had trained.
    assert ends in (["FINISHED"] * 4, ["FINISHED"] * 4 + ["KILLED"])


def test_a_users_mistake_reaches_the_sweep_as_its_one_line(project: Path) -> None:
    """What a worker process does, in this one."""
    from tlresearch.config.load import load_experiment, load_sweep
    from tlresearch.studies.launch.brief import Brief
    from tlresearch.studies.launch.worker import run_trials
    from tlresearch.studies.sweeps.experiment import Experiment

    sweep = load_sweep("s", ["objective.metric=val/nonsense"]).config
    brief = Brief(sweep, Experiment(load_experiment("base")), sweep.space, "0" * 32)
    assert "'val/nonsense' is not recorded" in run_trials(brief)
    study = studies.open_study(sweep, sweep.space)
    assert not studies.ended(study)  # the trial was not at fault


@pytest.mark.slow
def test_two_workers_of_a_machine_fill_the_cache_once(project: Path) -> None:
    result = run_sweep("s", ["trials=2", "workers=2", "overrides.freeze.schedule=linear_probe"])
    runs = trial_runs(result.run_id)
    assert len(runs) == 2
    assert sum(int(run.data.tags["tlresearch.prefix_passes"]) for run in runs) == 2  # train and val, once each
