"""Provenance: what it says of a repository, its cost, and that it holds no secrets."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.tracking.outages import artifact
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking import provenance
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.run import open_run


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "a.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    monkeypatch.chdir(folder)
    provenance._code.cache_clear()
    return folder


def test_a_clean_repository_is_its_commit(repository: Path) -> None:
    code = collect(["tlresearch"]).code
    assert code is not None
    assert code.commit == git(repository, "rev-parse", "HEAD")
    assert (code.branch, code.dirty, code.diff) == ("main", False, "")


def test_a_changed_repository_is_recorded_with_its_diff_and_no_secrets(repository: Path) -> None:
    (repository / "a.py").write_text("x = 2\nuri = 'http://u:hunter2@host'\npassword = 'hunter2'\n")
    (repository / "new.py").write_text("")
    record = collect(["/somewhere/bin/tlresearch", "run", "--token", "hunter2"])
    config = TrackingConfig(system_metrics=False)
    with open_run(config, experiment="e", name="r", params={}, tags={}) as run:
        record.log(run)
    diff = artifact(run, "provenance/diff.patch").read_text()
    assert "+x = 2" in diff
    assert "hunter2" not in diff
    environment = json.loads(artifact(run, "provenance/environment.json").read_text())
    assert environment["command"] == "tlresearch run --token ***"
    assert environment["code"]["untracked"] == ["new.py"]
    assert environment["packages"]["mlflow"]
    tags = run.store.client.get_run(run.run_id).data.tags
    assert tags["tlresearch.code"] == "changed"
    assert tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD")


def test_a_folder_outside_any_repository_has_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert collect([]).code is None


def test_the_second_time_costs_nothing(repository: Path) -> None:
    collect([])
    started = time.perf_counter()
    for _ in range(100):
        collect([])
    assert time.perf_counter() - started < 0.5
