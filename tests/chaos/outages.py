"""Servers that go away in the middle of a sweep: MLflow's in five ways, and the PostgreSQL that holds the study."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import get_args

from tests.chaos.outcome import Outcome, expect
from tests.chaos.processes import accounts, alive, lives_for, until
from tests.chaos.project import Project
from tests.chaos.surroundings import Surroundings
from tests.servers import Mode, mlflow_server, postgres, relay

TRIALS = 6
WAYS = tuple(mode for mode in get_args(Mode) if mode != "normal")


def tracking_away(around: Surroundings, moments: int) -> Outcome:
    """MLflow's server is refused, hangs, answers 500, is slow or loses its answers, for seconds, again and again."""
    found, ways = Outcome(), cycle(WAYS)
    folder = around.folder / "server"
    with mlflow_server(folder, template=around.tables) as server, relay(server.port) as between:
        settings = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{between.port}", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
        while found.injected < moments:
            project = around.project(database=folder / "server.db", artifacts=folder / "served", environment=settings)
            name = f"s{found.injected}"  # one server, one study after another
            project.sweep(trials=TRIALS, name=name)
            command = project.start("sweep", "s.yaml")
            until(partial(_has_begun, project, name), command)
            while found.injected < moments and alive(command):
                between.mode = next(ways)
                lives_for(command, around.random.uniform(1.0, 6.0))
                between.mode = "normal"
                found += Outcome(injected=1)
                lives_for(command, around.random.uniform(0.5, 2.0))
            ended = command.wait()
            delivered = project.run("sync")
            found += expect(delivered.code == 0, f"sync: exit code {delivered.code}")
            found += accounts(project, ended, {}, TRIALS, study=name)
    return found


def study_away(around: Surroundings, moments: int) -> Outcome:
    """PostgreSQL, which holds the study, crashes and is started again, again and again."""
    found = Outcome()
    with postgres() as server:
        while found.injected < moments:
            address = server.database(f"study{found.injected}")
            project = around.project(storage=address)
            project.sweep(trials=TRIALS, storage=address)
            command = project.start("sweep", "s.yaml")
            until(partial(_has_begun, project, "s"), command)
            while found.injected < moments and lives_for(command, around.random.uniform(0.2, 3.0)):
                server.stop()
                lives_for(command, around.random.uniform(0.5, 3.0))
                server.start()
                found += Outcome(injected=1)
            found += accounts(project, command.wait(), {}, TRIALS)
    return found


def _has_begun(project: Project, study: str) -> bool:
    """Whether the first trial runs: a server that is away before that is a mistake, which a line names."""
    return any(run.tags.get("tlresearch.study") == study and "tlresearch.trial" in run.tags for run in project.runs())
