"""A lock that all processes which share a database take there: of one machine, or of many."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from tlresearch.base.errors import MissingExtraError
from tlresearch.base.files import locked
from tlresearch.base.paths import home

CONNECT_SECONDS = 8  # until a server that does not answer is an error


@contextlib.contextmanager
def exclusive(url: str, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock while the context lasts; it goes with the process that holds it.

    For PostgreSQL it is an advisory lock of the server, so it covers every machine that uses the database, and it needs
    no table; it lasts as long as its transaction, so it works through a connection pooler too. For SQLite it is a file
    beside the database, for other servers one in our home: that covers one machine.

    Args:
        url: The database, as for SQLAlchemy.
        name: What is locked; other names are other locks.
        wait: Whether to wait for who holds it.

    Yields:
        Whether we hold it: always, if we waited.

    Raises:
        MissingExtraError: If the driver for PostgreSQL is not installed.
        sqlalchemy.exc.OperationalError: If the server cannot be reached.
    """
    if url.startswith("postgresql"):
        with _advisory(url, f"tlresearch {name}", wait=wait) as held:
            yield held
        return
    if url.startswith("sqlite:///") and ":memory:" not in url:
        database = Path(url.removeprefix("sqlite:///").partition("?")[0])
        folder, label = database.parent, f".{database.name}"
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
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # a server that went away has let go of it
            connection.close()
