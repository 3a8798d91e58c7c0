"""Databases under MLflow and Optuna: whether a server answers, asked in seconds; when a file is synced."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

SECONDS = 8
"""How long a database may take to accept a connection."""
_LOG_PAGES = 4000
"""Pages of SQLite's log, 16 MB, after which it is copied into the file; by default 1000, those of three trials."""


def connect_arguments(uri: str) -> dict[str, Any]:
    """Arguments of the driver with which a connection is given up in time; a driver's default is to wait for ever."""
    return {"connect_timeout": SECONDS} if uri.startswith(("postgresql", "mysql")) else {}


def check_reachable(uri: str) -> None:
    """Connects once.

    Raises:
        Exception: SQLAlchemy's error, if the database does not answer or refuses us.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    create_engine(uri, poolclass=NullPool, connect_args=connect_arguments(uri)).connect().close()


def sync_files_late() -> None:
    """Has SQLite files that this process opens from now on synced when SQLite copies its log, and that more rarely.

    Only files with a log that is written ahead (WAL). Whatever is killed, nothing of them is lost; after a power cut
    they hold what was committed up to some moment, which `sync_file` makes this one. MLflow commits six times for a
    trial, and the pages of its tables lie apart: each request to the disk also interrupts who trains on the next core.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def opened(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode == "wal":
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")

    event.listen(Engine, "connect", opened)


def sync_file(path: Path) -> None:
    """Has all that was committed to an SQLite file on disk.

    Raises:
        OSError: If the disk fails.
    """
    # SQLite locks the file itself and its index, not the log: closing the log takes no lock away from SQLite.
    with contextlib.suppress(FileNotFoundError), Path(f"{path}-wal").open("rb") as log:
        os.fsync(log.fileno())
