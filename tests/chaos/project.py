"""A user's folder with a short experiment and a sweep over it, and what its databases hold afterwards."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.outcome import Outcome
from tests.nursery import Command, Ended, Nursery
from tests.toy import toy_text
from tlresearch.tracking.records import COMPUTATION, CONFIG, DATA_FILES, ENVIRONMENT

EPOCHS = 3
METRIC = "val/accuracy"
LINEAGE_TAGS = ("tlresearch.data", "tlresearch.weights", "tlresearch.version", "resolved.trainer.precision")
LINEAGE_FILES = (CONFIG, DATA_FILES, ENVIRONMENT, COMPUTATION)
SETTLED = "{precision: 32-true, memory_format: contiguous}"  # nothing is timed: results agree to the bit


@dataclass(frozen=True)
class Recorded:
    """A run as MLflow has it.

    Attributes:
        run_id: Its id; `status`: its status; `name`: its name; `parent`: the run it is nested in.
        tags: Its tags; `params`: its params.
        points: Every stored value of each metric as ``(step, value)``.
        files: Paths of its artifacts.
    """

    run_id: str
    name: str
    status: str
    parent: str
    tags: dict[str, str]
    params: dict[str, str]
    points: dict[str, list[tuple[int, float]]]
    files: frozenset[str] = frozenset()

    def lacks(self) -> list[str]:
        """What every run that has ended well records of where it comes from, and this one does not."""
        return sorted({*LINEAGE_TAGS} - {*self.tags}) + sorted({*LINEAGE_FILES} - self.files)


class Project:
    """A folder with ``toy.yaml`` and ``s.yaml``, and a home of its own beside it.

    Args:
        folder: Where; it must not exist.
        tables: An MLflow database without runs, which is copied.
        nursery: Where commands are started.
        database: The SQLite file of MLflow's store, where it is not the home's; `artifacts`: the folder of its files.
        storage: Where Optuna's study is, if not in the home.
        environment: Variables of its commands.
        sections: Sections of the experiment that are replaced.
    """

    def __init__(
        self,
        folder: Path,
        tables: Path,
        nursery: Nursery,
        *,
        database: Path | None = None,
        artifacts: Path | None = None,
        storage: str = "",
        environment: Mapping[str, str] | None = None,
        **sections: str,
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.nursery = nursery
        self.home.mkdir(parents=True)
        self.database = database or self.home / "mlflow.db"
        self.artifacts = artifacts or self.home / "artifacts"
        self.storage = storage or f"sqlite:///{self.home / 'optuna.db'}"
        self.environment = dict(environment or {})
        shutil.copy(tables, self.home / "mlflow.db")
        defaults = {"freeze": f"{{schedule: full, epochs: {EPOCHS}}}", "cache": SETTLED}
        (folder / "toy.yaml").write_text(toy_text(**{**defaults, **sections}))
        self.sweep()

    def sweep(self, **options: Any) -> None:
        """Writes ``s.yaml``."""
        content = {
            "experiment": "toy.yaml",
            "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}},
            "trials": 6,
            "sampler": {"name": "random"},
            **options,
        }
        (self.folder / "s.yaml").write_text(yaml.safe_dump(content))

    def start(self, *arguments: str) -> Command:
        """Starts a command."""
        return self.nursery.start(arguments, self.folder, self.home, **self.environment)

    def run(self, *arguments: str) -> Ended:
        """Runs a command to its end."""
        return self.nursery.run(arguments, self.folder, self.home, **self.environment)

    def runs(self) -> list[Recorded]:
        """All runs, read from the database itself."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=60)) as database:
            found = database.execute("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'")
            return [
                Recorded(
                    run_id,
                    name,
                    status,
                    tags.get("mlflow.parentRunId", ""),
                    tags,
                    dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,))),
                    _points(database, run_id),
                    self._artifacts(run_id),
                )
                for run_id, name, status in found.fetchall()
                for tags in [dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))]
            ]

    def _artifacts(self, run_id: str) -> frozenset[str]:
        for folder in self.artifacts.glob(f"*/{run_id}/artifacts"):
            return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return frozenset()

    def trials(self, study: str) -> list[Any]:
        """The trials of a study as Optuna has them."""
        import optuna
        from optuna.storages import RDBStorage

        if not self._has(study):
            return []
        storage = RDBStorage(self.storage)
        try:
            return list(optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=True))
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def _has(self, study: str) -> bool:
        """Whether the study is there; asked without Optuna, which would make the tables that a sweep is about to."""
        if not self.storage.startswith("sqlite"):
            return True
        path = self.home / "optuna.db"
        if not path.exists():
            return False
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            try:
                made = database.execute("SELECT count(*) FROM alembic_version").fetchone()[0]
                return bool(
                    made and database.execute("SELECT 1 FROM studies WHERE study_name = ?", (study,)).fetchone()
                )
            except sqlite3.OperationalError:
                return False

    def files(self, pattern: str) -> list[Path]:
        """Files of the home, the last written first."""
        return sorted(self.home.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)


def _points(database: sqlite3.Connection, run_id: str) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
    for key, step, value in database.execute(query, (run_id,)):
        found.setdefault(key, []).append((step, value))
    return found


def finished(trials: Sequence[Any]) -> dict[int, tuple[str, float | None, str]]:
    """Trials that have ended and count, by number: state, value and parameters."""
    from tlresearch.studies.sweeps.study import is_counted

    return {
        trial.number: (trial.state.name, trial.value, json.dumps(trial.params, sort_keys=True))
        for trial in trials
        if trial.state.is_finished() and is_counted(trial)
    }


def still_there(before: dict[int, tuple[str, float | None, str]], trials: Sequence[Any]) -> Outcome:
    """Whether every trial that had finished is still there, as it was."""
    now = finished(trials)
    gone = [number for number, content in before.items() if now.get(number) != content]
    return Outcome(lost=len(gone), notes=tuple(f"trial {number} is not what it was" for number in gone))


def audit(trials: Sequence[Any], runs: Sequence[Recorded], total: int, *, epochs: int = EPOCHS) -> Outcome:
    """Compares a study that has ended with its runs: the total is met, and both databases say the same of each trial.

    Args:
        trials: All trials of the study.
        runs: All runs of its store.
        total: Trials that were asked for.
        epochs: Points that each metric of a complete trial has.
    """
    counted = finished(trials)
    notes = []
    lost, duplicated = max(0, total - len(counted)), max(0, len(counted) - total)
    if len(counted) != total:
        notes.append(f"{len(counted)} trials count, but {total} were asked for")
    points = Counter(content[2] for content in counted.values())
    twice = sum(count - 1 for count in points.values())  # random points never agree: it is one trial counted twice
    duplicated += twice
    notes += [f"{twice} points were counted twice"] if twice else []
    mine = [run for run in runs if "tlresearch.trial" in run.tags]
    for number, (state, value, _) in counted.items():
        own = [run for run in mine if run.tags["tlresearch.trial"] == str(number)]
        wrong = _differences(trials[number], own, state, value, epochs)
        lost += bool(wrong)
        notes += [f"trial {number}: {text}" for text in wrong]
    extra = [
        run
        for run in mine
        if run.status == "FINISHED" and counted.get(int(run.tags["tlresearch.trial"]), ("FAIL",))[0] == "FAIL"
    ]
    duplicated += len(extra)
    notes += [f"MLflow has finished trial {run.tags['tlresearch.trial']}, Optuna has not" for run in extra]
    left = [run for run in runs if run.status == "RUNNING"]
    notes += [f"run {run.name} is left RUNNING" for run in left]
    left_trials = [trial for trial in trials if trial.state.name in ("RUNNING", "WAITING")]
    notes += [f"trial {trial.number} is left {trial.state.name}" for trial in left_trials]
    series = [[step for step, _ in points] for run in mine for points in run.points.values()]
    doubled = sum(len(steps) - len(set(steps)) for steps in series)
    notes += [f"{doubled} metric points are stored twice"] if doubled else []
    return Outcome(lost=lost, duplicated=duplicated + doubled, running=len(left) + len(left_trials), notes=tuple(notes))


def _differences(trial: Any, own: list[Recorded], state: str, value: float | None, epochs: int) -> list[str]:
    """What MLflow says otherwise than Optuna of a trial that counts."""
    if len(own) != 1:
        return [f"has {len(own)} runs: {', '.join(run.status for run in own)}"]
    run = own[0]
    wanted = "FAILED" if state == "FAIL" else "FINISHED"
    wrong = [] if run.status == wanted else [f"is {state}, but its run {run.status}"]
    for key, given in trial.params.items():
        recorded = run.params.get(key)
        if recorded is None or (str(given) != recorded and float(recorded) != given):
            wrong.append(f"{key} is {given}, but {recorded} in MLflow")
    if state == "COMPLETE":
        wrong += [f"has no record of {what}" for what in run.lacks()]
        curve = run.points.get(METRIC, [])
        if [step for step, _ in curve] != list(range(epochs)):
            wrong.append(f"has points of epochs {[step for step, _ in curve]}")
        elif curve[-1][1] != value:
            wrong.append(f"came to {value}, but {curve[-1][1]} in MLflow")
    return wrong
