"""A real MLflow server that is refused, hangs, answers 500, is slow, or loses its answers, in the middle of runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.servers import MlflowServer, Mode, Relay, mlflow_server, relay
from tests.toy import toy_text
from tests.tracking.outages import EPOCHS, content, record, start
from tlresearch.cli import main
from tlresearch.tracking import courier as couriers
from tlresearch.tracking.journal import journals
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server"), template=empty_database) as running:
        yield running


@pytest.fixture
def proxy(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setattr(couriers, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(couriers, "_LONGEST_PAUSE", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with relay(server.port) as between:
        between.delay = 0.05
        yield between


MODES: tuple[Mode, ...] = ("refuse", "hang", "500", "lost", "slow")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_recorded_as_one_that_was_not_disturbed(
    mode: Mode, server: MlflowServer, proxy: Relay, tmp_path: Path
) -> None:
    quiet = start(server.uri)
    record(quiet, tmp_path)
    run = start(f"http://127.0.0.1:{proxy.port}")

    def disturb(epoch: int) -> None:
        if epoch in (1, EPOCHS):
            proxy.mode = mode if epoch == 1 else "normal"

    record(run, tmp_path, disturb)
    store = connect(server.uri)
    assert content(store, run.run_id) == content(store, quiet.run_id)
    assert not journals()


def test_a_nested_run_whose_creation_got_no_answer_is_made_once(
    server: MlflowServer, proxy: Relay, tmp_path: Path
) -> None:
    parent = start(f"http://127.0.0.1:{proxy.port}", name="parent")
    proxy.mode = "lost"
    child = start(f"http://127.0.0.1:{proxy.port}", name="child", parent=parent.run_id)
    with child:
        child.log_metrics({"loss": 1.0}, 0)
    proxy.mode = "normal"
    parent.close()
    client = connect(server.uri).client
    made = client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert [run.info.run_id for run in made] == [child.run_id]
    assert made[0].info.status == "FINISHED"


def tlresearch(*words: str, home: Path, uri: str) -> subprocess.Popen[str]:
    settings = {
        "TLRESEARCH_HOME": str(home),
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tlresearch", *words],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


SWEEP = "experiment: {0}/toy.yaml\nname: away\nspace: {{optimizer.lr: {{low: 0.01, high: 0.1}}}}\ntrials: {1}\n"


def test_a_server_that_is_down_at_the_start_is_one_line_within_seconds(
    tmp_path: Path, home: Path, proxy: Relay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text())
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tmp_path, 2))
    shutil.rmtree(home)
    proxy.mode = "refuse"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter2@127.0.0.1:{proxy.port}")
    toy = str(tmp_path / "toy.yaml")
    for words in (["compare", "abcd"], ["run", toy], ["run", toy, "seeds=[0, 1]"], ["sweep", f"{tmp_path}/sweep.yaml"]):
        assert main(words) == 2
        said = capsys.readouterr()
        (error,) = said.err.splitlines()
        assert f"http://***@127.0.0.1:{proxy.port}: it does not answer" in error
        assert "hunter2" not in said.out + said.err
    assert not list(home.glob("journals/*/"))
    # Locks, and an empty study, which is the sweep's when the server is there.
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert {path for path in left if not path.endswith(("lock", ".courier"))} <= {
        "optuna.db",
        "optuna.db-wal",
        "optuna.db-shm",
    }


def test_a_run_ends_well_without_the_server_and_sync_delivers_it(
    server: MlflowServer,
    proxy: Relay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text(tracking="{figures: true, model: true, system_metrics: false}"))
    uri, home = f"http://127.0.0.1:{proxy.port}", tmp_path / "new"
    before = proxy.requests
    process = tlresearch("run", str(tmp_path / "toy.yaml"), home=home, uri=uri)
    while process.poll() is None and proxy.requests < before + 12:  # it has been opened
        time.sleep(0.02)
    proxy.mode = "refuse"
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "not delivered to the MLflow store" in said, said
    assert "Traceback" not in said
    assert list(home.glob("journals/*/calls.jsonl"))
    proxy.mode = "normal"
    monkeypatch.setenv("TLRESEARCH_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["sync"]) == 0
    assert "delivered to" in capsys.readouterr().out
    assert main(["sync"]) == 0
    assert "nothing waits" in capsys.readouterr().out
    store = connect(server.uri)
    (found,) = Runs(store).search("attributes.run_name = 'toy'")
    held = content(store, found.run_id)
    assert held["status"] == "FINISHED"
    assert {step for step, _ in held["points"]["val/accuracy"]} == {0, 1, 2}
    assert held["models"] == ["READY"]


def test_a_sweep_goes_on_while_the_server_is_away(server: MlflowServer, proxy: Relay, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text())
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(tmp_path, 5))
    uri, home = f"http://127.0.0.1:{proxy.port}", tmp_path / "new"
    process = tlresearch("sweep", str(tmp_path / "sweep.yaml"), home=home, uri=uri)
    store = connect(server.uri)
    trials = "tags.`tlresearch.study` = 'away' and tags.`tlresearch.trial` != ''"
    while process.poll() is None and len(Runs(store).search(trials)) < 2:
        time.sleep(0.1)
    proxy.mode = "refuse"
    while process.poll() is None and len(list(home.glob("journals/*/calls.jsonl"))) < 3:
        time.sleep(0.1)
    proxy.mode = "normal"
    said, _ = process.communicate()
    assert process.returncode == 0, said
    runs = [run.stored for run in Runs(store).search(trials)]
    assert sorted(int(run.data.tags["tlresearch.trial"]) for run in runs) == [0, 1, 2, 3, 4], said
    study = optuna.load_study(study_name="away", storage=f"sqlite:///{home}/optuna.db")
    runs.sort(key=lambda run: int(run.data.tags["tlresearch.trial"]))
    for trial, run in zip(study.trials, runs, strict=True):
        assert run.info.status == "FINISHED"
        assert len(store.client.get_metric_history(run.info.run_id, "val/accuracy")) == 3
        assert run.data.metrics["selected/val/accuracy"] == trial.value
        assert float(run.data.params["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"])
    assert not list(home.glob("journals/*/calls.jsonl"))
