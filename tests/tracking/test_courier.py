"""Runs of a sweep, which a process beside it ships: the same record, kept also when anything is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.tracking.outages import content, wait_until
from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.calls import resolve
from tlresearch.tracking.courier import courier_process, is_led, wait_until_delivered
from tlresearch.tracking.journal import journals
from tlresearch.tracking.manifest import read_text
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun, open_run
from tlresearch.tracking.store import connect, resolve_uri


def start(name: str, *, run_id: str | None = None, deferred: bool = True) -> JournalRun:
    config = TrackingConfig(system_metrics=False)
    about = {"experiment": "beside", "params": {"optimizer.lr": 0.1}, "tags": {"a": "b"}}
    return open_run(config, name=name, run_id=run_id, deferred=deferred, **about)  # type: ignore[arg-type]


def record(run: JournalRun) -> None:
    with run:
        for epoch in range(3):
            run.log_metrics({"val/accuracy": epoch / 3}, epoch)
        run.log_text("text", "folder/file.txt")
        run.set_tags({"c": "d"})


def couriers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "tlresearch.tracking.courier" in child.cmdline()]


def test_the_record_is_that_of_a_run_shipped_by_a_thread() -> None:
    here = start("run", deferred=False)
    record(here)
    with courier_process(resolve_uri()):
        there = start("run")
        record(there)
    assert content(connect(), here.run_id) == content(connect(), there.run_id)
    assert there.run_id in there.url
    assert not journals()


def test_nobody_waits_for_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with courier_process(resolve_uri()):
        start("first", deferred=False).close()
        with contextlib.closing(sqlite3.connect(tmp_path / "home" / "mlflow.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")  # nobody else reads or writes
            run = start("trial")
            record(run)
            assert run.run_id == run.reference
            assert run.url == ""
    assert content(connect(), run.run_id)["status"] == "FINISHED"
    assert run.run_id != run.reference


def test_a_run_that_goes_on_is_seen_with_all_that_it_has_recorded() -> None:
    with courier_process(resolve_uri()), start("on") as run:
        run.log_text("text", "folder/file.txt")
        run.log_metrics({"val/accuracy": 0.5}, 0)
        store = connect()
        # Nobody asks and nothing more is said: the courier does it by itself.
        wait_until(lambda: run.run_id != run.reference and read_text(store, run.run_id, "folder/file.txt") == "text")
        stored = store.client.get_run(run.run_id)
        assert (stored.info.status, stored.data.params) == ("RUNNING", {"optimizer.lr": "0.1"})


def test_a_run_goes_on_by_its_reference() -> None:
    with courier_process(resolve_uri()):
        run = start("killed")
        run.log_metrics({"val/accuracy": 0.25}, 0)
        run.close("KILLED")
        with start("killed", run_id=run.reference) as again:
            again.log_metrics({"val/accuracy": 0.5}, 1)
    assert again.run_id == run.run_id
    assert [p.value for p in connect().client.get_metric_history(run.run_id, "val/accuracy")] == [0.25, 0.5]


def test_a_failed_run_is_recorded_as_failed() -> None:
    with courier_process(resolve_uri()), pytest.raises(ValueError, match="broken"), start("fails") as run:
        raise ValueError("broken")
    stored = connect().client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["tlresearch.failure"]) == ("FAILED", "ValueError: broken")


def test_runs_outlive_the_process_that_ships_them() -> None:
    with courier_process(resolve_uri()):
        first = start("first")
        record(first)
        (courier,) = couriers()
        wait_until(lambda: is_led(connect().label))
        courier.kill()
        second = start("second")
        record(second)
    for run in (first, second):
        assert content(connect(), run.run_id)["status"] == "FINISHED"
    assert not journals()


def test_a_process_that_is_not_needed_is_gone_again() -> None:
    with courier_process(resolve_uri()):
        (child,) = couriers()
    assert not child.is_running()


def test_a_second_process_ships_only_when_the_first_has_ended() -> None:
    with courier_process(resolve_uri()):
        wait_until(lambda: is_led(resolve_uri()))
        with courier_process(resolve_uri()):
            assert len(couriers()) == 1
            record(start("inner"))
        assert Runs().find("inner").state == "finished"


def test_what_the_store_refuses_is_raised_and_kept() -> None:
    def sweep() -> None:
        with courier_process(resolve_uri()):
            record(start("refused", run_id="0123" * 8))
            record(start("taken"))

    with pytest.raises(TrackingError, match="0123"):
        sweep()
    assert Runs().find("taken").state == "finished"
    assert [journal.name for journal in journals()] == ["refused"]


def test_settling_waits_for_what_has_ended() -> None:
    with courier_process(resolve_uri()):
        runs = [start(f"{number}") for number in range(3)]
        for run in runs[:2]:
            record(run)
        wait_until_delivered(resolve_uri())
        for run in runs[:2]:
            stored = resolve(connect(), run.reference)
            assert stored is not None
            assert content(connect(), stored)["status"] == "FINISHED"
        runs[2].close()


def test_two_processes_may_record_the_same_data_at_once() -> None:
    runs = [start(name, deferred=False) for name in "ab"]
    together = threading.Barrier(2)

    def record_all(run: JournalRun) -> None:
        for number in range(30):
            together.wait()
            run.log_dataset("set", f"{number:036d}", source="somewhere", context="train")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(record_all, runs)) == [None, None]
    for run in runs:
        run.close()
        assert len(connect().client.get_run(run.run_id).inputs.dataset_inputs) == 30


KILLED = """
import os, signal, sys, time
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.courier import courier_process
from tlresearch.tracking.run import open_run
from tlresearch.tracking.store import resolve_uri
with courier_process(resolve_uri()):
    config = TrackingConfig(system_metrics=False)
    run = open_run(config, name="killed", experiment="beside", params={}, tags={}, deferred=True)
    for epoch in range(200):
        run.log_metrics({"val/accuracy": epoch / 200}, epoch)
    print(run.reference, flush=True)
    if sys.argv[1] == "all":
        os.killpg(0, signal.SIGKILL)
    time.sleep(60)
"""


@pytest.mark.parametrize("who", ["training", "all"])
def test_what_was_recorded_outlives_a_killed_training(who: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, who], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    reference = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if who == "all":
        assert resolve(connect(), reference) is None
        start("next", deferred=False).close()
    wait_until(lambda: not journals())
    stored = Runs().find(reference).stored
    assert stored.info.status == "KILLED"
    assert len(connect().client.get_metric_history(stored.info.run_id, "val/accuracy")) == 200


def test_a_password_of_the_store_is_not_on_the_command_line() -> None:
    uri = f"{resolve_uri()}?password=hunter2"
    with contextlib.suppress(TrackingError), courier_process(uri):
        wait_until(lambda: bool(couriers()))  # a process that has just begun shows no command line yet
        words = [word for child in couriers() for word in child.cmdline()]
        assert "hunter2" not in " ".join(words)
        assert "hunter2" not in " ".join(os.listdir(Path(os.environ["TLRESEARCH_HOME"])))
