"""A store that goes away in the middle: everything is kept on disk, delivered in order, and nothing twice."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tracking.outages import artifact, broken, content, kill, record, start, wait_until
from tlresearch.base.errors import TrackingError
from tlresearch.cli import main
from tlresearch.tracking import courier as couriers
from tlresearch.tracking.calls import Call
from tlresearch.tracking.courier import deliver
from tlresearch.tracking.journal import Writer, folder, journals
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(couriers, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(couriers, "_LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(couriers, "_couriers", {})
    return tmp_path / "home" / "mlflow.db"


@contextlib.contextmanager
def between(database: Path, first: int, last: int) -> Iterator[Callable[[int], None]]:
    """A store that is away from one epoch to another."""
    with contextlib.ExitStack() as outage:

        def disturb(epoch: int) -> None:
            if epoch == first:
                wait_until(lambda: not any(journal.waiting() for journal in journals()))
                outage.enter_context(broken(database))
            if epoch == last:
                wait_until(lambda: couriers.outage(connect().label) is not None)
                outage.close()

        yield disturb


def test_an_outage_leaves_the_record_of_an_undisturbed_run(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = start()
    record(quiet, tmp_path)
    run = start()
    with between(database, 1, 4) as disturb:
        record(run, tmp_path, disturb)
    store = connect()
    assert content(store, run.run_id) == content(store, quiet.run_id)
    assert not journals()
    said = [line.getMessage() for line in caplog.records]
    assert sum("training goes on" in line for line in said) == 1
    assert sum("is back:" in line for line in said) == 1


def test_what_is_not_delivered_is_told_and_delivered_once(
    database: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet = start(name="alone")
    record(quiet, tmp_path, model=False)
    monkeypatch.setattr(couriers, "_FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(couriers, "_LONGEST_PAUSE", 1000.0)
    run = start(name="alone")
    with between(database, 2, 99) as disturb:
        record(run, tmp_path, disturb, model=False)
        # Points of two epochs and two metrics; texts of two epochs, the long param, the folder.
        assert "4 metric values, 4 files and the end of 1 run (alone)" in caplog.text
        assert "tlresearch sync" in caplog.text
        assert connect().label in caplog.text
        with pytest.raises(TrackingError, match="no such table: runs"):
            deliver(connect().uri)
    # Two at once, as two people would: what one delivers the other leaves alone.
    done: list[object] = []
    both = [threading.Thread(target=lambda: done.extend(deliver(connect().uri))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert content(connect(), run.run_id) == content(connect(), quiet.run_id)
    assert main(["sync"]) == 0
    assert "nothing waits" in capsys.readouterr().out


def test_a_nested_run_opened_meanwhile_gets_its_id_later(database: Path, tmp_path: Path) -> None:
    quiet = start(name="child", parent="0" * 32)
    record(quiet, tmp_path, model=False)
    parent = start(name="parent")
    with broken(database):
        group = start(name="group", parent=parent.run_id)
        child = start(name="child", parent=group.run_id)
        first = child.run_id
        assert first.startswith("local0")
        record(child, tmp_path, model=False)
        parent.set_tags({"best": first})
        group.close()
    parent.close()
    store = connect()
    assert first != child.run_id
    assert content(store, child.run_id) == content(store, quiet.run_id)
    assert Runs(store).find(first).run_id == child.run_id
    stored = store.client.get_run(child.run_id)
    assert stored.data.tags["mlflow.parentRunId"] == group.run_id
    assert store.client.get_run(group.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert store.client.get_run(parent.run_id).data.tags["best"] == child.run_id


def test_a_nested_run_goes_on_meanwhile_by_the_id_it_had_before_it_was_made(database: Path) -> None:
    with start(name="parent") as parent:
        child = start(name="child", parent=parent.run_id)
        child.log_metrics({"loss": 0.5}, 0)
        child.close("KILLED")
        with broken(database):
            again = start(name="child", parent=parent.run_id, run_id=child.reference)
            again.log_metrics({"loss": 0.1}, 0)  # the one that is stored counts
            again.log_metrics({"loss": 0.25}, 1)
            again.close()
    store = connect()
    assert again.run_id == child.run_id == Runs(store).find(child.reference).run_id
    assert store.client.get_run(child.run_id).info.status == "FINISHED"
    assert [point.value for point in store.client.get_metric_history(child.run_id, "loss")] == [0.5, 0.25]


def test_a_run_goes_on_behind_what_waits_of_it(database: Path) -> None:
    with start(name="parent") as parent:
        child = start(name="child", parent=parent.run_id)
        with broken(database):
            child.log_metrics({"loss": 0.5}, 0)
            kill(child)
            again = start(name="child", parent=parent.run_id, run_id=child.reference)
            assert again.last_step("loss") == 0
            again.log_metrics({"loss": 0.25}, 1)
        again.close()
    store = connect()
    assert again.run_id == child.run_id
    assert store.client.get_run(child.run_id).info.status == "FINISHED"
    assert [point.value for point in store.client.get_metric_history(child.run_id, "loss")] == [0.5, 0.25]
    assert not journals()


SCRIPT = """
import os, sys
from pathlib import Path
from tests.tracking.outages import artifact, broken, start
run = start(name="killed")
with run, broken(Path(sys.argv[1])):
    child = start(name="child", parent=run.run_id)
    for one in (run, child):
        for epoch in range(3):
            one.log_metrics({"loss": float(epoch)}, epoch)
        one.log_text("text", "a.txt")
        assert one.flush()
    print(run.reference, child.reference, flush=True)
    import sqlite3, signal
    # The outage ends with the process, as it would if the power came back.
    sqlite3.connect(sys.argv[1]).execute("ALTER TABLE away RENAME TO runs")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_kept_goes_on_with_the_run(database: Path) -> None:
    repository = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(database)],
        env=os.environ | {"PYTHONPATH": repository},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    parent, child = done.stdout.split()
    assert {journal.path.name for journal in journals()} == {parent, child}
    # A line that the process was writing when it was killed.
    with (folder() / parent / "calls.jsonl").open("a") as file:
        file.write('{"what": "batch", "about": {"ta')
    with start(name="killed", run_id=parent) as run, start(name="child", parent=parent, run_id=child) as again:
        for one in (run, again):
            assert one.last_step("loss") == 2
            for epoch in range(2, 5):
                one.log_metrics({"loss": float(epoch)}, epoch)
    client = connect().client
    assert again.run_id != child
    for one in (run, again):
        assert client.get_run(one.run_id).info.status == "FINISHED"
        points = [(point.step, point.value) for point in client.get_metric_history(one.run_id, "loss")]
        assert points == [(epoch, float(epoch)) for epoch in range(5)]
        assert artifact(one, "a.txt").read_text() == "text"
    assert not journals()


def test_a_journal_goes_on_behind_a_line_that_was_never_finished(database: Path) -> None:
    writer = Writer("local")
    writer.append(Call("batch", {"tags": {"ä": "1"}}))
    writer.release()
    with (folder() / "local" / "calls.jsonl").open("a") as file:
        file.write('{"what": "batch", "abo')
    left = Writer("local")
    left.append(Call("batch", {"tags": {"b": "2"}}))
    (again,) = journals()
    assert [call.arguments["tags"] for call in again.waiting()] == [{"ä": "1"}, {"b": "2"}]


def test_a_run_that_was_deleted_meanwhile_keeps_what_it_recorded(
    database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(couriers, "_FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(couriers, "_LONGEST_PAUSE", 1000.0)
    run = start(name="deleted")
    with broken(database):
        run.set_tags({"a": "c"})
        run.close()
    connect().client.delete_run(run.run_id)
    capsys.readouterr()
    assert main(["sync"]) == 1
    assert "must be in the 'active' state" in capsys.readouterr().out.replace("\n", " ")
    assert (folder() / run.reference / "calls.jsonl").exists()
    start().close()  # others are not in its way


def test_a_run_of_its_own_needs_the_store_at_its_start(database: Path) -> None:
    connect()
    with broken(database), pytest.raises(TrackingError, match="MLflow store"):
        start()
    assert not journals()


def test_a_disk_that_takes_nothing_is_a_clear_error(database: Path) -> None:
    run = start()
    folder().rename(folder().with_name("elsewhere"))
    folder().write_text("a file where the folder would be")
    with pytest.raises(TrackingError, match="cannot be kept"):
        run.set_tags({"a": "c"})
    assert not run.flush()
    with pytest.raises(TrackingError, match="cannot be kept"):
        run.close()
    folder().unlink()
