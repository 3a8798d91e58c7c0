"""Surroundings of every test: an empty home, a quiet MLflow, and the real data and weights where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a test writes goes to its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TLRESEARCH_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
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


def _real(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} does not name the folder with the real {what}")
    return Path(folder)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks gain nothing from more threads, and processes that share two cores lose much."""
    import torch

    torch.set_num_threads(1)
