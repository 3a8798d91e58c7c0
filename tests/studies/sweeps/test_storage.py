"""A study whose database goes away: the trial waits for it, and none is lost or counted twice."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import create_engine, inspect, text

from tests.servers import PASSWORD, Postgres, Relay, postgres, relay
from tests.toy import toy_text
from tests.tracking.outages import content, record, start
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.cli import main
from tlresearch.studies.sweeps import storage
from tlresearch.studies.sweeps.storage import PatientStorage
from tlresearch.tracking import courier as couriers
from tlresearch.tracking.store import connect

pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning")


@contextlib.contextmanager
def study_at(url: str) -> Iterator[optuna.Study]:
    kept = PatientStorage(url)
    try:
        yield optuna.create_study(study_name="away", storage=kept, load_if_exists=True)
    finally:
        kept.remove_session()
        kept.disconnect()


@contextlib.contextmanager
def contended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[optuna.Study, sqlite3.Connection]]:
    """A study that does not wait for a lock by itself, and a connection of somebody else to its file."""
    monkeypatch.setattr(storage, "connect_arguments", lambda url: {"timeout": 0.05})
    with (
        study_at(f"sqlite:///{folder}/s.db") as study,
        contextlib.closing(sqlite3.connect(folder / "s.db", isolation_level=None, check_same_thread=False)) as other,
    ):
        yield study, other


def test_a_locked_database_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contended(tmp_path, monkeypatch) as (study, other):

        def objective(trial: optuna.Trial) -> float:
            trial.suggest_float("x", 0, 1)
            if trial.number == 1:
                other.execute("BEGIN EXCLUSIVE")
                threading.Timer(0.8, other.execute, ["COMMIT"]).start()
            trial.set_user_attr("attribute", trial.number)
            return float(trial.number)

        study.optimize(objective, n_trials=3)
        assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0]
        said = [line.getMessage() for line in caplog.records]
        assert sum("does not answer (database is locked)" in line for line in said) == 1
        assert sum("is back after" in line for line in said) == 1
        monkeypatch.setattr(storage, "PATIENCE", 0.2)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="the same command continues"):
            study.set_user_attr("a", 1)
        other.execute("COMMIT")
        study.set_user_attr("a", 1)
        assert study.user_attrs == {"a": 1}


def test_a_file_is_written_with_few_syncs_and_one_in_use_works_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "connect_arguments", lambda url: {"timeout": 0.05})
    url = f"sqlite:///{tmp_path}/s.db"
    older = optuna.storages.RDBStorage(url)  # as another program makes it
    optuna.create_study(study_name="away", storage=older)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM studies").fetchall()
        with study_at(url) as study:
            other.execute("COMMIT")
            assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        with study_at(url) as study:
            assert other.execute("SELECT COUNT(*) FROM trials").fetchone() == (2,)
            assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            assert len(optuna.load_study(study_name="away", storage=older).trials) == 3
    older.remove_session()
    older.engine.dispose()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def proxy(cluster: Postgres) -> Iterator[Relay]:
    with relay(cluster.port) as between:
        yield between


ASKS_NO_DATABASE = {
    "get_heartbeat_interval",
    "get_heartbeat_stale_trial_callback",
    "get_failed_trial_callback",
    "check_trial_is_updatable",
    "remove_session",
}


def calls(kept: PatientStorage) -> dict[str, Callable[[], Any]]:
    """Every call of a storage, on a study with a trial that has ended and one that runs."""
    study, extra = kept.get_study_id_from_name("away"), kept.create_new_study([StudyDirection.MINIMIZE], "extra")
    done, running = (trial._trial_id for trial in kept.get_all_trials(study))
    uniform = FloatDistribution(0, 1)
    return {
        "create_new_study": lambda: kept.create_new_study([StudyDirection.MINIMIZE], "another"),
        "set_study_user_attr": lambda: kept.set_study_user_attr(study, "a", 1),
        "set_study_system_attr": lambda: kept.set_study_system_attr(study, "a", 1),
        "get_study_id_from_name": lambda: kept.get_study_id_from_name("away") == study,
        "get_study_name_from_id": lambda: kept.get_study_name_from_id(study) == "away",
        "get_study_directions": lambda: kept.get_study_directions(study) == [StudyDirection.MINIMIZE],
        "get_study_user_attrs": lambda: kept.get_study_user_attrs(study) == {"a": 1},
        "get_study_system_attrs": lambda: kept.get_study_system_attrs(study) == {"a": 1},
        "get_all_studies": lambda: len(kept.get_all_studies()) == 3,
        "create_new_trial": lambda: kept.create_new_trial(study),
        "set_trial_param": lambda: kept.set_trial_param(running, "y", 0.5, uniform),
        "get_trial_param": lambda: kept.get_trial_param(running, "y") == 0.5,
        "get_trial_params": lambda: kept.get_trial_params(running) == {"y": 0.5},
        "set_trial_intermediate_value": lambda: kept.set_trial_intermediate_value(running, 0, 1.0),
        "set_trial_user_attr": lambda: kept.set_trial_user_attr(running, "a", 1),
        "set_trial_system_attr": lambda: kept.set_trial_system_attr(running, "a", 1),
        "get_trial_user_attrs": lambda: kept.get_trial_user_attrs(running) == {"a": 1},
        "get_trial_system_attrs": lambda: kept.get_trial_system_attrs(running) == {"a": 1},
        "get_trial_id_from_study_id_trial_number": lambda: (
            kept.get_trial_id_from_study_id_trial_number(study, 0) == done
        ),
        "get_trial_number_from_id": lambda: kept.get_trial_number_from_id(running) == 1,
        "get_trial": lambda: kept.get_trial(running).intermediate_values == {0: 1.0},
        "get_all_trials": lambda: len(kept.get_all_trials(study)) == 3,
        "get_n_trials": lambda: kept.get_n_trials(study) == 3,
        "get_best_trial": lambda: kept.get_best_trial(study).number == 0,
        "set_trial_state_values": lambda: kept.set_trial_state_values(running, TrialState.COMPLETE, [2.0]),
        "record_heartbeat": lambda: kept.record_heartbeat(done),
        "delete_study": lambda: kept.delete_study(extra),
    }


def test_every_call_waits_for_a_database_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 0.05)
    file, away = tmp_path / "s.db", tmp_path / "away.db"
    with study_at(f"sqlite:///{file}") as study:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        study.ask()
        kept = study._storage
        assert isinstance(kept, PatientStorage)
        made = calls(kept)
        public = {name for name in dir(kept) if not name.startswith("_")} & {*dir(BaseStorage), *dir(BaseHeartbeat)}
        assert made.keys() == public - ASKS_NO_DATABASE
        waited = []
        for name, call in made.items():
            caplog.clear()
            kept.remove_session()
            kept.disconnect()
            file.rename(away)
            file.mkdir()  # "unable to open database file"

            def come_back() -> None:
                file.rmdir()
                away.rename(file)

            timer = threading.Timer(0.2, come_back)
            timer.start()
            assert call() in (None, True) or name.startswith("create_new"), name
            timer.join()
            if "is back after" in caplog.text:
                waited.append(name)
        cached = {"get_study_name_from_id", "get_study_directions", "get_trial_id_from_study_id_trial_number"}
        # Optuna itself tries to make a trial for up to 10 s; of heartbeats the next one comes in seconds.
        assert set(waited) == made.keys() - cached - {"create_new_trial", "record_heartbeat"}
    with study_at(f"sqlite:///{file}") as study:
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
        assert study.trials[1].params == {"y": 0.5}


@pytest.mark.slow
def test_a_trial_asked_for_and_a_value_suggested_wait_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contended(tmp_path, monkeypatch) as (study, other):

        def locked(call: Callable[[], Any], seconds: float) -> Any:
            other.execute("BEGIN IMMEDIATE")
            timer = threading.Timer(seconds, other.execute, ["COMMIT"])
            timer.start()
            result = call()
            timer.join()
            return result

        trial = locked(study.ask, 12.0)  # Optuna itself tries for up to 10 s
        value = locked(lambda: trial.suggest_float("x", 0, 1), 1.0)
        study.tell(trial, value)
        assert [(one.state, one.value) for one in study.trials] == [(TrialState.COMPLETE, value)]
    assert caplog.text.count("is back after") == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["restart", "refuse", "hang", "lost"])
def test_no_trial_is_lost_or_counted_twice(
    how: str, cluster: Postgres, proxy: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "connect_arguments", lambda url: {"connect_timeout": 2})
    cluster.database(how)
    run = []

    def go() -> None:
        time.sleep(2)
        if how == "restart":
            cluster.start()
        else:
            proxy.mode = "normal"

    with study_at(cluster.uri(how, proxy.port)) as study:

        def objective(trial: optuna.Trial) -> float:
            if trial.number == 5:
                if how == "restart":
                    cluster.stop()
                else:
                    proxy.mode = how  # type: ignore[assignment]
                back.start()
            run.append(trial.suggest_float("x", 0, 1))
            trial.report(1.0, 0)
            return run[-1]

        back = threading.Thread(target=go)
        study.optimize(objective, n_trials=12)
        back.join()
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        assert [trial.value for trial in complete] == run
        assert len(run) == 12
        assert caplog.text.count("does not answer") >= 1
        assert PASSWORD not in caplog.text


@pytest.mark.slow
def test_a_sweep_that_has_lost_its_database_says_so_and_goes_on_later(
    cluster: Postgres,
    proxy: Relay,
    tmp_path: Path,
    tables: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cluster.database("sweep")
    monkeypatch.setattr(storage, "PATIENCE", 1.5)
    (tmp_path / "toy.yaml").write_text(toy_text())
    (tmp_path / "sweep.yaml").write_text(
        f"experiment: {tmp_path}/toy.yaml\nname: away\nspace: {{optimizer.lr: {{low: 0.01, high: 0.1}}}}\ntrials: 6\n"
        f"storage: {cluster.uri('sweep', proxy.port)}\n"
        "lost_after: 15\n"  # this process is alive, so that its trial is waited for so long
    )
    proxy.mode = "refuse"
    began = time.monotonic()
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    assert time.monotonic() - began < 60
    proxy.mode = "normal"
    ended = threading.Event()

    def cut() -> None:
        while not ended.is_set() and _finished(cluster.uri("sweep")) < 2:
            time.sleep(0.1)
        proxy.mode = "refuse"

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    ended.set()
    cutting.join()
    proxy.mode = "normal"
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 0
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2, said.err
    assert "the same command continues" in errors[1]
    assert "Traceback" not in said.err
    assert PASSWORD not in said.out + said.err
    assert _finished(cluster.uri("sweep")) == 6
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file


def _finished(url: str) -> int:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("trials"):
                return 0
            found = connection.execute(text("SELECT count(*) FROM trials WHERE state = 'COMPLETE'"))
            return int(found.scalar_one())
    finally:
        engine.dispose()


@pytest.mark.slow
def test_an_mlflow_store_in_a_database_that_goes_away(
    cluster: Postgres, proxy: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(couriers, "_FIRST_PAUSE", 0.2)
    cluster.database("mlflow")
    direct, between = cluster.uri("mlflow"), cluster.uri("mlflow", proxy.port)
    proxy.mode = "refuse"
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"Connection refused|connection failed") as error:
        connect(between)
    assert time.monotonic() - began < 30
    proxy.mode = "normal"
    quiet = start(direct)
    record(quiet, tmp_path, model=False)
    run = start(between)

    def disturb(epoch: int) -> None:
        proxy.mode = "refuse" if 1 <= epoch < 4 else "normal"

    record(run, tmp_path, disturb, model=False)
    store = connect(direct)
    assert content(store, run.run_id) == content(store, quiet.run_id)
    assert PASSWORD not in caplog.text + str(error.value)
