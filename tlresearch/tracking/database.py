"""Databases under MLflow and Optuna: whether a server answers, asked in seconds."""

from __future__ import annotations

from typing import Any

SECONDS = 8
"""How long a database may take to accept a connection."""


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
