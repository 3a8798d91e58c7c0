"""A home that was moved or copied: its runs have their artifacts, and nothing is written where it was."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.tracking.outages import artifact, kill, start
from tlresearch.cli import main
from tlresearch.tracking.journal import journals
from tlresearch.tracking.run import JournalRun
from tlresearch.tracking.store import connect


def move(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "elsewhere") -> Path:
    """Moves the home, as between two processes."""
    there = folder.parent / name
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, there)
    monkeypatch.setenv("TLRESEARCH_HOME", str(there))
    return there


def recorded_run() -> JournalRun:
    """A run that has ended and has an artifact."""
    with start() as run:
        run.log_text("old", "old.txt")
    return run


def test_runs_of_a_moved_home_have_their_artifacts_and_new_ones_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = recorded_run()
    there = move(tmp_path / "home", monkeypatch, "a folder/of mine")
    with caplog.at_level(logging.WARNING):
        store = connect()
        connect()
    said = [line for line in caplog.messages if "moved" in line]
    assert said == [
        f"the MLflow store was moved: its artifacts lie in {there}/artifacts now, no longer in "
        f"{tmp_path}/home/artifacts"
    ]
    assert Path(store.client.get_run(run.run_id).info.artifact_uri).is_relative_to(there)
    assert artifact(run, "old.txt").read_text() == "old"
    with start(name="new") as new:
        new.log_text("new", "new.txt")
    assert (there / "artifacts" / "outage" / new.run_id / "artifacts" / "new.txt").exists()
    assert not (tmp_path / "home").exists()


def test_a_home_that_was_moved_twice_in_between_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded_run()
    for name in ("second", "third"):
        there = move(tmp_path / "home" if name == "second" else tmp_path / "second", monkeypatch, name)
    assert Path(connect().client.get_run(run.run_id).info.artifact_uri).is_relative_to(there)


def test_a_copy_is_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_run()
    before = sorted((tmp_path / "home" / "artifacts").rglob("*"))
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "copy"))
    with start(name="new") as new:
        new.log_text("new", "new.txt")
    assert (tmp_path / "copy" / "artifacts" / "outage" / new.run_id / "artifacts" / "new.txt").exists()
    assert sorted((tmp_path / "home" / "artifacts").rglob("*")) == before


def test_an_experiment_that_was_renamed_since_moves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded_run()
    client = connect().client
    client.rename_experiment(client.get_run(run.run_id).info.experiment_id, "by another name")
    there = move(tmp_path / "home", monkeypatch)
    assert Path(connect().client.get_run(run.run_id).info.artifact_uri).is_relative_to(there)


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect().client
    own = tmp_path / "large disk" / "artifacts" / "outage"
    own.mkdir(parents=True)
    client.create_experiment("outage", artifact_location=str(own))
    client.create_experiment("bucket", artifact_location="s3://bucket/artifacts/bucket")
    move(tmp_path / "home", monkeypatch)
    locations = {found.name: found.artifact_location for found in connect().client.search_experiments()}
    assert (locations["outage"], locations["bucket"]) == (str(own), "s3://bucket/artifacts/bucket")
    assert not caplog.messages


def test_a_home_behind_a_link_has_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded_run()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "link"))
    connect()
    assert not caplog.messages


def test_what_a_killed_process_left_in_its_journal_is_delivered_from_the_new_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = start(name="killed")
    killed.log_text("kept", "kept.txt")
    kill(killed)
    move(tmp_path / "home", monkeypatch)
    start(name="next").close()
    assert not journals()
    assert connect().client.get_run(killed.run_id).info.status == "KILLED"
    assert artifact(killed, "kept.txt").read_text() == "kept"


@pytest.mark.slow
def test_every_command_about_a_run_works_in_a_moved_home(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "moved home"
    shutil.copytree(recorded.folder / "home", there)
    monkeypatch.setenv("TLRESEARCH_HOME", str(there))
    lines = (
        ["predict", recorded.run, str(recorded.image)],
        ["verify", recorded.run],
        ["report", recorded.run, "--out", str(tmp_path / "report.html")],
    )
    for line in lines:
        assert main(line) == 0, capsys.readouterr().err
    assert "missing" not in capsys.readouterr().out
