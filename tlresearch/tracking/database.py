"""Databases under MLflow and Optuna: checks within seconds that a server answers."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

from tlresearch.base.paths import home

SECONDS = 8
"""How long a database may take to accept a connection."""


def connect_arguments(uri: str) -> dict[str, Any]:
    """Returns driver arguments that limit the time of connecting; by default drivers wait for ever."""
    return {"connect_timeout": SECONDS} if uri.startswith(("postgresql", "mysql")) else {}


def check_reachable(uri: str) -> None:
    """Connects once and closes the connection.

    Raises:
        Exception: SQLAlchemy's error, if the database does not answer or refuses the login.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    create_engine(uri, poolclass=NullPool, connect_args=connect_arguments(uri)).connect().close()


def recent_runs(limit: int = 200) -> list[tuple[str, str]]:
    """Id and name of the newest runs of the local store, read off its tables without MLflow; empty without a store."""
    file = home() / "mlflow.db"
    if not file.is_file():
        return []
    query = "SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time DESC LIMIT ?"
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=0.2)) as database:
            return [(str(run_id), name or "") for run_id, name in database.execute(query, (limit,))]
    except sqlite3.Error:  # busy, or of a version of MLflow with other tables
        return []
