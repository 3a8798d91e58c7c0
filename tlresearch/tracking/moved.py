"""A local store whose folder was moved or copied: the places of artifacts in its database follow it.

MLflow keeps absolute paths. Without this, runs of a moved store would have no artifacts, and new runs would fill the
folder that the store has left.
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
"""Tables and columns of MLflow that hold places of artifacts."""


def folder_of(experiment: str) -> str:
    """The folder of an experiment's artifacts, within the folder of all artifacts."""
    return re.sub(r"[^\w ./-]|\.\.", "_", experiment).strip("/")


def follow(connection: sqlite3.Connection, artifacts: Path) -> None:
    """Puts the folder that holds the artifacts now in place of the one that the database remembers, and says so.

    Args:
        connection: A connection to the store's database, with its tables.
        artifacts: Folder of the artifacts beside the database.
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
    """Folders that experiments name as that of all artifacts, and that the store has left.

    It has left one that is gone, and one whose content lies beside the database too: a copy is a store of its own.
    """
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        for part in re.finditer("/artifacts(?=/)", location if location.startswith("/") else ""):
            former, own = location[: part.end()], location[part.end() + 1 :]
            here, there = artifacts / own, Path(former)
            if former == str(artifacts) or (there.exists() and artifacts.exists() and there.samefile(artifacts)):
                continue
            if here.is_dir() or (own == folder_of(name) and not there.exists()):
                yield former
