"""Runs that another process writes: the same record, kept also when the training is killed."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking import sender
from tlresearch.tracking.calls import new_local_id, resolve
from tlresearch.tracking.deliver import Desk
from tlresearch.tracking.manifest import damaged, read_manifest, read_text
from tlresearch.tracking.remote import RemoteTracker
from tlresearch.tracking.run import TrackedRun, open_run
from tlresearch.tracking.store import connect

PATIENCE = 60.0  # seconds; a busy machine
ABOUT = {"experiment": "remote", "params": {"optimizer.lr": 0.1}, "tags": {"a": "b"}}


def record(run: TrackedRun) -> None:
    with run:
        for epoch in range(3):
            run.log_metrics({"val/accuracy": epoch / 3}, epoch)
        run.log_text("text", "folder/file.txt")
        run.log_at_end("text", "folder/last.txt")
        run.set_tags({"c": "d"})


def test_the_record_is_that_of_a_run_written_here() -> None:
    config = TrackingConfig(system_metrics=False)
    here = open_run(config, name="here", **ABOUT)  # type: ignore[arg-type]
    record(here)
    with RemoteTracker() as tracker:
        there = tracker.open_run(config, name="there", **ABOUT)
        record(there)
        run_id, url = there.run_id, there.url
    client = connect().client
    one, other = (client.get_run(each) for each in (here.run_id, run_id))
    assert one.data.metrics == other.data.metrics
    assert one.data.params == other.data.params
    assert one.info.status == other.info.status == "FINISHED"
    assert {"a": "b", "c": "d"}.items() <= other.data.tags.items()
    history = [(p.step, p.value) for p in client.get_metric_history(run_id, "val/accuracy")]
    assert history == [(epoch, epoch / 3) for epoch in range(3)]
    for one in (here.run_id, run_id):
        assert [item.path for item in client.list_artifacts(one, "folder")] == ["folder/file.txt", "folder/last.txt"]
        assert not damaged(connect(), client.get_run(one), read_manifest(connect(), one))  # type: ignore[arg-type]
    assert run_id in url


def test_a_run_is_made_when_it_is_trained_and_begins_when_it_was_opened() -> None:
    here, there = Pipe()
    desk = Desk(there)
    config, local = TrackingConfig(system_metrics=False), new_local_id()
    about = {**ABOUT, "name": "put off", "local_id": local, "began": 1234.5}
    desk.take(1, "open", (config,), about, False)
    desk.take(1, "log_text", ("text", "file.txt"), {}, False)
    assert not here.poll()  # its set-up goes on
    assert resolve(connect(), local) is None
    desk.take(1, "log_metrics", ({"val/accuracy": 0.5}, 0), {}, False)
    (_, number), opened = here.recv()
    assert (number, resolve(connect(), local)) == (1, opened.run_id)
    desk.take(1, "close", ("FINISHED", {}), {}, False)
    desk.leave()
    found = connect().client.get_run(opened.run_id)
    assert (found.info.start_time, found.info.status) == (1_234_500, "FINISHED")
    assert (found.data.params, found.data.metrics) == ({"optimizer.lr": "0.1"}, {"val/accuracy": 0.5})
    assert read_text(connect(), opened.run_id, "file.txt") == "text"


def test_the_first_metrics_have_a_run_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PACE", 3600.0)
    with RemoteTracker() as tracker:
        run = tracker.open_run(TrackingConfig(system_metrics=False), name="trained", **ABOUT)
        with run:
            tracker.ask(0, "last_step", "val/accuracy")  # the pause has begun
            second = tracker.open_run(TrackingConfig(system_metrics=False), name="second", **ABOUT)
            second.log_metrics({"val/accuracy": 0.5}, 0)
            deadline = time.monotonic() + PATIENCE
            while resolve(connect(), second.reference) is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            second.close()


def test_a_run_goes_on_by_what_was_known_of_it_before_it_was_made(capfd: pytest.CaptureFixture[str]) -> None:
    config = TrackingConfig(system_metrics=False)
    with RemoteTracker() as tracker:
        run = tracker.open_run(config, name="killed", **ABOUT)
        reference = run.reference
        run.log_metrics({"val/accuracy": 0.25}, 0)
        run.close("KILLED")
        again = tracker.open_run(config, name="killed", run_id=reference, **ABOUT)
        with again:
            again.log_metrics({"val/accuracy": 0.5}, 1)
            assert again.run_id == run.run_id
    assert [p.value for p in connect().client.get_metric_history(run.run_id, "val/accuracy")] == [0.25, 0.5]
    assert "still being written" not in capfd.readouterr().err  # its end was not waited for in vain


def test_a_run_that_was_killed_before_it_was_made_begins() -> None:
    config, local = TrackingConfig(system_metrics=False), new_local_id()
    with RemoteTracker() as tracker:
        with tracker.open_run(config, name="begins", run_id=local, **ABOUT) as run:
            run.log_metrics({"val/accuracy": 0.25}, 0)
        assert resolve(connect(), local) == run.run_id != local
    assert connect().client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_that_goes_on_is_seen_with_all_that_it_has_recorded() -> None:
    with RemoteTracker() as tracker, tracker.open_run(TrackingConfig(system_metrics=False), name="on", **ABOUT) as run:
        run.log_text("text", "folder/file.txt")
        run.log_metrics({"val/accuracy": 0.5}, 0)
        store, run_id = connect(), run.run_id
        deadline = time.monotonic() + PATIENCE
        # Nobody asks and nothing more is said: the writer does it by itself.
        while read_text(store, run_id, "folder/file.txt") is None or not store.client.get_run(run_id).data.params:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert store.client.get_run(run_id).info.status == "RUNNING"


def test_a_failed_run_is_recorded_as_failed() -> None:
    with RemoteTracker() as tracker:
        run = tracker.open_run(TrackingConfig(system_metrics=False), name="fails", **ABOUT)
        with pytest.raises(ValueError, match="broken"), run:
            raise ValueError("broken")
        run_id = run.run_id
    found = connect().client.get_run(run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["tlresearch.failure"] == "ValueError: broken"


def test_a_close_that_was_begun_is_the_one_that_counts() -> None:
    with RemoteTracker() as tracker:
        with tracker.open_run(TrackingConfig(system_metrics=False), name="ends", **ABOUT) as run:
            run.log_metrics({"val/accuracy": 0.5}, 0)
            run.begin_close()
            run.begin_close("FAILED")  # it has ended already
            run_id = run.run_id
        assert run.status == "FINISHED"
    found = connect().client.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"val/accuracy": 0.5})


def test_a_run_that_has_ended_outlives_its_writer_though_the_store_has_not_answered(tmp_path: Path) -> None:
    tracker = RemoteTracker()
    run = tracker.open_run(TrackingConfig(system_metrics=False), name="ends", **ABOUT)
    run_id = run.run_id
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")  # nobody else reads or writes
        run.log_metrics({"val/accuracy": 0.5}, 0)
        run.set_tags({"c": "d"})
        run.log_text("text", "early.txt")
        run.log_at_end("text", "last.txt")
        run.close()
        for child in psutil.Process().children():
            child.kill()
        with pytest.raises(TrackingError, match="has died"):
            tracker.finish()
    client = connect().client
    assert client.get_run(run_id).info.status == "RUNNING"
    with open_run(TrackingConfig(system_metrics=False), name="next", **ABOUT):  # type: ignore[arg-type]
        found = client.get_run(run_id)
    assert (found.info.status, found.data.metrics, found.data.tags["c"]) == ("FINISHED", {"val/accuracy": 0.5}, "d")
    assert [read_text(connect(), run_id, path) for path in ("early.txt", "last.txt")] == ["text", "text"]
    assert not list((tmp_path / "home" / "undelivered").iterdir())


def test_a_disk_that_takes_nothing_has_the_end_wait_for_the_store(tmp_path: Path) -> None:
    (tmp_path / "home" / "undelivered").write_text("in the way")
    with RemoteTracker() as tracker:
        run = tracker.open_run(TrackingConfig(system_metrics=False), name="ends", **ABOUT)
        record(run)
        found = connect().client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"val/accuracy": 2 / 3}


def test_a_process_that_was_started_for_nothing_is_gone_again() -> None:
    before = set(psutil.Process().children())
    with RemoteTracker(warm=True):
        (child,) = set(psutil.Process().children()) - before
    assert not child.is_running()


def test_what_the_store_refuses_is_raised() -> None:
    tracker = RemoteTracker()
    run = tracker.open_run(TrackingConfig(system_metrics=False), name="x", run_id="no-such-run", **ABOUT)
    with pytest.raises(TrackingError, match="no-such-run"):
        _ = run.run_id
    with pytest.raises(TrackingError, match="no-such-run"):
        tracker.__exit__(None, None, None)


def test_a_run_that_was_refused_something_can_still_be_closed() -> None:
    tracker = RemoteTracker()
    run = tracker.open_run(TrackingConfig(system_metrics=False), name="x", **ABOUT)
    with pytest.raises(TrackingError):
        run.download("nothing/of/that/name.txt")
    with pytest.raises(TrackingError):
        run.close()  # nobody answers any more for this run
    with pytest.raises(TrackingError):
        tracker.finish()


def test_two_processes_may_record_the_same_data_at_once() -> None:
    runs = [open_run(TrackingConfig(system_metrics=False), name=name, **ABOUT) for name in "ab"]  # type: ignore[arg-type]
    together = threading.Barrier(2)

    def record_all(run: TrackedRun) -> None:
        for number in range(30):
            together.wait()
            run.log_dataset("set", f"{number:036d}", source="somewhere", context="train")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(record_all, runs)) == [None, None]
    for run in runs:
        run.close()
        assert len(connect().client.get_run(run.run_id).inputs.dataset_inputs) == 30


def test_what_was_flushed_outlives_a_killed_training() -> None:
    code = """
import time
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.remote import RemoteTracker
tracker = RemoteTracker()
run = tracker.open_run(TrackingConfig(system_metrics=False), name="killed", experiment="remote", params={}, tags={})
for epoch in range(200):
    run.log_metrics({"val/accuracy": epoch / 200}, epoch)
run.flush()
print(run.run_id, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    client = connect().client
    deadline = time.monotonic() + 30
    while client.get_run(run_id).info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.get_run(run_id).info.status == "KILLED"
    assert len(client.get_metric_history(run_id, "val/accuracy")) == 200
