"""Updates the paths of artifacts in the database of a local store after its folder was moved or copied.

MLflow stores absolute paths. Without the update, runs of a moved store would have no artifacts, and new runs would
write to the old folder.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow that hold paths of artifacts."""


def folder_of(experiment: str) -> str:
    """Returns the folder of an experiment's artifacts, relative to the folder of all artifacts."""
    return re.sub(r"[^\w ./-]|\.\.", "_", experiment).strip("/")


def follow(connection: sqlite3.Connection, artifacts: Path) -> None:
    """Replaces a former folder of all artifacts by the present one, and logs it.

    Args:
        connection: A connection to the store's database, with its tables.
        artifacts: The present folder of all artifacts, next to the database.
    """
    for former in set(_former(connection, artifacts)):
        start = len(former) + 1
        with connection:
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (str(artifacts), start, start, f"{former}/"),
                )
        _log.warning("the MLflow store was moved: its artifacts lie in %s now, no longer in %s", artifacts, former)


def _former(connection: sqlite3.Connection, artifacts: Path) -> Iterator[str]:
    """Yields former folders of all artifacts, from the locations of experiments.

    A folder is a former one if it does not exist any more, or if its content also lies next to the database, because
    the store was copied: each copy uses its own artifacts.
    """
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        for part in re.finditer("/artifacts(?=/)", location if location.startswith("/") else ""):
            former, own = location[: part.end()], location[part.end() + 1 :]
            here, there = artifacts / own, Path(former)
            if former == str(artifacts) or (there.exists() and artifacts.exists() and there.samefile(artifacts)):
                continue
            if here.is_dir() or (own == folder_of(name) and not there.exists()):
                yield former
