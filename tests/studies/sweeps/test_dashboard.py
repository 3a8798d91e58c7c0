"""Optuna's dashboard over our studies: it answers with the newest study, and errors are one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest

from tests.servers import free_port
from tlresearch.cli import main


@pytest.fixture
def studies(home: Path) -> None:
    home.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in ("old", "new"):
        optuna.create_study(storage=f"sqlite:///{home / 'optuna.db'}", study_name=name)


def test_the_dashboard_answers_at_the_newest_study_and_ends_quietly(studies: None) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tlresearch", "ui", "--study", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    assert b'"new"' in answer.read()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert output.splitlines()[1:] == [f"  http://127.0.0.1:{port}/dashboard/studies/2"]
    assert "Study new:" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--study", "newer"], "there is no study 'newer' (did you mean 'new'?); there are old, new"),
        (["--study", "--storage", "postgresql+psycopg://nobody@127.0.0.1:9/none"], "cannot be opened"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    studies: None, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
    assert main(["ui", *arguments]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


def test_without_its_package_the_extra_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["ui", "--study"]) == 2
    assert "pip install 'tlresearch[dashboard]'" in capsys.readouterr().err
