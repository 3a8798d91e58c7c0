"""When SQLite files are synced: rarely by the recording process, and always before something else counts on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import pytest

from tests.tracking.outages import start
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.deliver import Desk
from tlresearch.tracking.journal import Journal
from tlresearch.tracking.remote import RemoteTracker

PAGE = 4096 + 24
"""Bytes of a page in SQLite's log."""

OPENED = """
import sys
from sqlalchemy import create_engine
from tlresearch.tracking.database import sync_files_late

sync_files_late()
with create_engine(f"sqlite:///{sys.argv[1]}").connect() as connection:
    for name in ("journal_mode", "synchronous", "wal_autocheckpoint"):
        print(connection.exec_driver_sql(f"PRAGMA {name}").scalar())
"""


class PowerCuts:
    """What the disk would hold of MLflow's database if the power were cut now: all up to the last sync we made."""

    def __init__(self, file: Path, image: Path) -> None:
        self.file, self.image, self.synced = file, image, 0

    def sync(self, descriptor: int) -> None:
        """Stands in for `os.fsync`."""
        if os.readlink(f"/proc/self/fd/{descriptor}") != f"{self.file}-wal":
            return
        self.synced += 1
        for name in (self.file.name, f"{self.file.name}-wal"):
            shutil.copy(self.file.with_name(name), self.image.with_name(name))

    def found(self, run_id: str) -> tuple[str, int] | None:
        """Status of a run, and how many points it has, after the power was cut."""
        if not self.synced:
            return None
        with sqlite3.connect(self.image) as connection:
            (points,) = connection.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (run_id,)).fetchone()
            status = connection.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        connection.close()
        return (status[0], points) if status else None


@pytest.fixture
def power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowerCuts:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file is synced")
    (tmp_path / "image").mkdir()
    cuts = PowerCuts(tmp_path / "home" / "mlflow.db", tmp_path / "image" / "mlflow.db")
    monkeypatch.setattr(os, "fsync", cuts.sync)
    return cuts


def test_a_journal_goes_when_no_power_cut_takes_the_run_any_more(
    power: PowerCuts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = start(name="sweep")
    run = start(name="trial", parent=parent.run_id)
    run.outbox.keep_back()
    for epoch in range(3):
        run.log_metrics({"val/accuracy": epoch / 3}, epoch)
    deliver = run.close_by_disk("FINISHED", {})
    seen = []
    remove = Journal.remove
    monkeypatch.setattr(Journal, "remove", lambda journal: (seen.append(power.found(run.run_id)), remove(journal)))
    deliver()
    assert seen == [("FINISHED", 3)]
    parent.close()


def test_a_checkpoint_and_an_end_wait_for_the_disk(power: PowerCuts) -> None:
    run = start()
    run.log_metrics({"val/accuracy": 0.5}, 0)
    assert run.flush()
    assert power.found(run.run_id) == ("RUNNING", 1)
    run.log_metrics({"val/accuracy": 0.6}, 1)
    run.close()
    assert power.found(run.run_id) == ("FINISHED", 2)


def test_a_run_whose_id_is_given_out_is_there_after_a_power_cut(power: PowerCuts) -> None:
    here, there = Pipe()
    about = {"experiment": "power", "name": "trial", "params": {}, "tags": {}}
    desk = Desk(there)
    desk.take(1, "open", (TrackingConfig(system_metrics=False),), about, False)
    desk.take(1, "opened", (), {}, False)
    _, opened = here.recv()
    assert power.found(opened.run_id) == ("RUNNING", 0)


@pytest.mark.parametrize(("mode", "expected"), [("wal", ["wal", "1", "4000"]), ("delete", ["delete", "2", "1000"])])
def test_only_a_file_that_is_written_ahead_is_synced_late(tmp_path: Path, mode: str, expected: list[str]) -> None:
    file = tmp_path / "some.db"
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE some (column)")
    connection.close()
    done = subprocess.run([sys.executable, "-c", OPENED, file], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_the_recording_process_lets_the_log_grow(tmp_path: Path) -> None:
    config = TrackingConfig(system_metrics=False)
    file = tmp_path / "home" / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as reader:  # as long as there is one, the log stays
        reader.execute("SELECT count(*) FROM runs").fetchone()
        with RemoteTracker() as tracker:
            for number in range(12):
                run = tracker.open_run(config, experiment="growing", name=f"{number}", params={}, tags={})
                with run:
                    run.log_metrics({f"metric/{key}": 0.5 for key in range(700)}, 0)
        assert Path(f"{file}-wal").stat().st_size > 1500 * PAGE  # SQLite alone begins anew at 1000
