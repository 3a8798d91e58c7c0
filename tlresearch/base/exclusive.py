"""A lock among all processes that share a database, on one machine or on many."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from tlresearch.base.errors import MissingExtraError
from tlresearch.base.files import locked
from tlresearch.base.paths import home

CONNECT_SECONDS = 8  # after which a server that does not answer is an error


@contextlib.contextmanager
def exclusive(url: str, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock while the context lasts; the lock ends with the process that holds it.

    For PostgreSQL it is an advisory lock of the server, which needs no table and covers every machine that uses the
    database. It belongs to a transaction, not to a session, so it also works through a connection pooler. For SQLite
    the lock is a file next to the database, for other servers a file in our home: these cover one machine.

    Args:
        url: The database, as for SQLAlchemy.
        name: Name of the lock.
        wait: Whether to wait for another holder.

    Yields:
        Whether we hold the lock: always, if we waited.

    Raises:
        MissingExtraError: If the driver for PostgreSQL is not installed.
        sqlalchemy.exc.OperationalError: If the server cannot be reached.
        FileNotFoundError: If the folder of the lock file does not exist.
    """
    if url.startswith("postgresql"):
        with _advisory(url, f"tlresearch {name}", wait=wait) as held:
            yield held
        return
    if url.startswith("sqlite:///") and ":memory:" not in url:
        database = Path(url.removeprefix("sqlite:///").partition("?")[0])
        folder, label = database.parent, f".{database.name}"
        if not folder.is_dir():  # taking the lock would create the folder, and so hide that the address is wrong
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    else:
        folder, label = home(), ".database"
    file = folder / f"{label}.{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock"
    with locked(file, -1 if wait else 0) as held:
        yield held


@contextlib.contextmanager
def _advisory(url: str, name: str, *, wait: bool) -> Iterator[bool]:
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    try:
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "psycopg", "postgres") from None
    connection = engine.connect()
    try:
        verb = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
        answer = connection.scalar(sqlalchemy.text(f"SELECT {verb}(hashtextextended(:name, 0))"), {"name": name})
        yield wait or bool(answer)
    finally:
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # a server that is gone holds no lock
            connection.close()
