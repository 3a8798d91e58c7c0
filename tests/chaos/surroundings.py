"""What every fault needs: a fresh project, and the processes that commands run in."""

from __future__ import annotations

import itertools
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.project import Project
from tests.nursery import Nursery


@dataclass(frozen=True)
class Surroundings:
    """Where faults happen.

    Attributes:
        folder: Folder of all projects.
        tables: An MLflow database without runs.
        nursery: Where commands are started.
        random: What is random in the faults.
    """

    folder: Path
    tables: Path
    nursery: Nursery
    random: Random
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def project(self, **options: Any) -> Project:
        """A project of its own; the options are those of `Project`."""
        return Project(self.folder / f"project{next(self._numbers)}", self.tables, self.nursery, **options)


def empty_tables(path: Path) -> Path:
    """Makes an MLflow database without runs."""
    from tlresearch.tracking.store import connect

    connect(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path
