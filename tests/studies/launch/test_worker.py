"""Workers without a coordinator on real servers: exactly one study, exactly the total, whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.exceptions import UpdateFinishedTrialError

from tests.conftest import REPOSITORY
from tests.servers import mlflow_server, postgres
from tests.toy import toy_text
from tlresearch.base.exclusive import exclusive
from tlresearch.base.liveness import Identity
from tlresearch.cli import main
from tlresearch.config.load import load_sweep
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tracking.store import connect

SPACE = {"optimizer.lr": SpaceConfig(low=1e-4, high=1e-1, log=True)}
PATIENCE = 400.0  # seconds; a busy machine


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("bin", "experiments", "sweeps"):
        (tmp_path / folder).mkdir()
    program = tmp_path / "bin" / "tlresearch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore -m tlresearch "$@"\n')
    program.chmod(0o755)
    (tmp_path / "experiments" / "base.yaml").write_text(toy_text(freeze="{schedule: full, epochs: 8}"))
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}}
    sweep = {"experiment": "base", "space": space, "enqueue": [{"optimizer.lr": 0.05}], "trials": 5}
    (tmp_path / "sweeps" / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_by_status() -> tuple[list[Any], Counter[str]]:
    """The studies' own runs, and how those of trials have ended."""
    client = connect().client
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    trials = Counter(run.info.status for run in found if "tlresearch.trial" in run.data.tags)
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags], trials


def machine(project: Path, name: str, storage: str) -> subprocess.Popen[str]:
    """What Slurm runs, with a home that no other machine sees."""
    return subprocess.Popen(
        ["sh", str(REPOSITORY / "docs" / "examples" / "worker.sbatch")],
        env=os.environ
        | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "SWEEP": "s", "OPTUNA_STORAGE": storage, "ARGS": ""}
        | {"TLRESEARCH_HOME": str(project / name), "SLURM_CPUS_PER_TASK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_workers_of_a_job_array_share_a_fresh_server_and_a_lost_one_costs_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres())
        storage = database.database("optuna")
        server = stack.enter_context(mlflow_server(project / "server", backend=database.database("mlflow")))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        workers = [stack.enter_context(machine(project, name, storage)) for name in ("one", "two")]
        for worker in workers:
            stack.callback(worker.kill)
        deadline = time.monotonic() + PATIENCE
        while not list(project.glob("one/unfinished/*/last.ckpt")):
            assert workers[0].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(workers[0].pid, signal.SIGKILL)  # the process that ships its runs to MLflow too
        workers[0].communicate()
        output = workers[1].communicate(timeout=PATIENCE)[0]
        assert workers[1].returncode == 0, output
        assert "all 5 have ended" in output

        sweep = load_sweep("s", [f"storage={storage}"])
        study = studies.open_study(sweep.config, sweep.config.space)
        ended = studies.ended(study)
        assert [trial.state.name for trial in ended] == ["COMPLETE"] * 5
        assert len([trial for trial in ended if trial.params == {"optimizer.lr": 0.05}]) == 1
        parents, trials = runs_by_status()
        assert [run.info.status for run in parents] == ["SCHEDULED"]  # the trials are done; the end work is not
        # Nothing seems to run that was lost. MLflow knows of it if it was shipped before the machine was lost.
        known = (Counter(FINISHED=5), Counter(FINISHED=5, KILLED=1))
        assert trials in known

        result = run_sweep(sweep)  # by another machine: it shares no folder with the workers
        parents, trials = runs_by_status()
        assert [run.info.status for run in parents] == ["FINISHED"]
        assert parents[0].info.run_id == result.run_id
        assert trials in known
        assert result.best_value == max(trial.value or 0.0 for trial in ended)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed:UserWarning")
def test_silence_gives_a_trial_of_another_machine_back_and_a_late_end_does_not_count() -> None:
    with postgres() as database:
        sweep = SweepConfig(name="s", storage=database.database("optuna"), lost_after=6, trials=1)
        study = studies.open_study(sweep, SPACE)
        own = Identity.own()
        late = study.ask()
        assert studies.claim(study, late, 1, replace(own, host="another machine"))
        study._storage.record_heartbeat(late._trial_id)  # type: ignore[attr-defined]
        assert studies.give_back(study, own) == 0  # it may be computing
        time.sleep(7.5)
        assert studies.give_back(study, own) == 1
        again = study.ask()
        assert again.user_attrs[studies.RETRY_OF] == late.number
        assert studies.claim(study, again, 1, own)
        study.tell(again, 0.5)
        with pytest.raises(UpdateFinishedTrialError):
            late.set_user_attr("run_id", "late")
        assert [trial.value for trial in studies.ended(study)] == [0.5]

        url = sweep.storage or ""
        with exclusive(url, "x") as first, exclusive(url, "x", wait=False) as second, exclusive(url, "y") as other:
            assert (first, second, other) == (True, False, True)
        with exclusive(url, "x", wait=False) as free:
            assert free


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with exclusive(url, "x") as first, exclusive(url, "x", wait=False) as second, exclusive(url, "y") as other:
        assert (first, second, other) == (True, False, True)
    with exclusive(url, "x", wait=False) as free:
        assert free


def test_a_worker_runs_the_trials_and_the_sweep_does_the_rest(
    project: Path, tables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["trials=2", "overrides.freeze.epochs=1"]
    assert main(["worker", "s", *quick]) == 0
    printed = capsys.readouterr().out
    assert "this worker ran 2 trials; all 2 have ended" in printed
    assert printed.count("  trial ") == 2
    parents, trials = runs_by_status()
    assert [run.info.status for run in parents] == ["SCHEDULED"]
    assert trials == Counter(FINISHED=2)
    with studies.study_lock(load_sweep("s", quick).config, "sweep"):
        assert main(["sweep", "s", *quick]) == 2  # another one does the end work
        assert "already running" in capsys.readouterr().err
    result = run_sweep("s", quick)
    assert [trial.state.name for trial in result.trials] == ["COMPLETE"] * 2
    assert [run.info.status for run in runs_by_status()[0]] == ["FINISHED"]
    assert main(["worker", "s", *quick, "overrides.data.batch_size=8"]) == 2
    assert "give the new sweep another name" in capsys.readouterr().err
