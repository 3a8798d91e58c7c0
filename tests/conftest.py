"""Surroundings of every test: an empty home, a quiet MLflow, and the real data and weights where they are."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.recorded import Recorded

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# Small networks gain nothing from more threads, and processes that share two cores lose much to waiting ones.
# Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a test writes goes to its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TLRESEARCH_HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that one that the test sets is gone afterwards
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(REPOSITORY)
    return folder


@pytest.fixture
def data_dir() -> Path:
    """The folder with the real data sets."""
    return _real("TLRESEARCH_DATA", "data sets")


@pytest.fixture
def weights_dir() -> Path:
    """The folder with the real pretrained weights."""
    return _real("TLRESEARCH_WEIGHTS", "pretrained weights")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: creating the tables takes seconds, copying them does not."""
    from tlresearch.tracking.store import connect

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .*noload", category=DeprecationWarning)
        connect(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture
def tables(home: Path, empty_database: Path) -> None:
    """A home whose MLflow store has its tables and no runs."""
    home.mkdir()
    shutil.copy(empty_database, home / "mlflow.db")


@pytest.fixture(scope="session")
def _recorded(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Recorded:
    from tests.recorded import record

    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TLRESEARCH_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return record(folder, empty_database)


@pytest.fixture
def recorded(_recorded: Recorded, home: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """A home with recorded runs, shared by all tests: what a test changes there it puts back."""
    monkeypatch.setenv("TLRESEARCH_HOME", str(_recorded.folder / "home"))
    return _recorded


def _real(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} does not name the folder with the real {what}")
    return Path(folder)
