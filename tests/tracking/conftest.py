from __future__ import annotations

import shutil
from pathlib import Path

import pytest

THIRD_PARTY = (
    # SQLAlchemy 2.1 deprecates an option that MLflow 3.17 still uses.
    "ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning",
    # MLflow warns about its own classes when mlflow.pyfunc is imported.
    "ignore:.*type hint is inferred as AnyType:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for rule in THIRD_PARTY:
            item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "mlflow.db")
