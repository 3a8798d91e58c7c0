"""Processes that are killed or told to stop: a whole sweep, one of its workers, a single run, a machine."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import psutil

from tests.chaos.outcome import Outcome, expect
from tests.chaos.project import Project, audit, finished, still_there
from tests.chaos.surroundings import Surroundings
from tests.nursery import Command, Ended, lives

TRIALS = 8
WORKER = "tlresearch.studies.launch.worker"
Damage = Callable[[Project, Random], None]
PATIENCE = 300.0  # seconds for what happens soon on any machine


def kill_everything(around: Surroundings, moments: int) -> Outcome:
    """SIGKILL of the sweep and all it has started, at random moments of its life, until it has survived them all."""
    return _kill_again_and_again(around, moments, workers=1, damage=None)


def kill_everything_of_two_workers(around: Surroundings, moments: int) -> Outcome:
    """The same with two worker processes."""
    return _kill_again_and_again(around, moments, workers=2, damage=None)


def lose_power(around: Surroundings, moments: int) -> Outcome:
    """Everything is killed, and the end of each file that was not on disk yet is cut off."""
    return _kill_again_and_again(around, moments, workers=1, damage=_cut_unsynced)


def _kill_again_and_again(around: Surroundings, moments: int, *, workers: int, damage: Damage | None) -> Outcome:
    found, life = Outcome(), 3.0
    while found.injected < moments:
        project = around.project()
        # As many trials as there are kills: on the way to each of them something is killed.
        total = min(40, max(TRIALS, moments - found.injected))
        project.sweep(trials=total, workers=workers)
        before, ended = finished([]), None
        while ended is None and found.injected < moments:
            command = project.start("sweep", "s.yaml")
            if not lives_for(command, around.random.uniform(0.0, 2 * life)):
                ended = command.wait()  # it was faster than we were
                break
            command.kill_all()
            found += Outcome(injected=1) + no_traceback(command.wait())
            if damage is not None:
                damage(project, around.random)
            trials = project.trials("s")
            found += still_there(before, trials)
            progressed = len(finished(trials)) > len(before)
            before = finished(trials)
            life = max(2.0, life * (0.8 if progressed else 1.4))
        ended = ended or project.run("sweep", "s.yaml")
        found += accounts(project, ended, before, total)
    return found


def accounts(
    project: Project,
    ended: Ended,
    before: dict[int, tuple[str, float | None, str]],
    total: int,
    *,
    study: str = "s",
) -> Outcome:
    """What a sweep that should have ended well left behind; `before` are the trials that had finished earlier."""
    trials = project.trials(study)
    runs = [run for run in project.runs() if run.tags.get("tlresearch.study", study) == study]
    found = expect(ended.code == 0, f"the sweep ended with {ended.code}: {_last(ended)}") + no_traceback(ended)
    found += still_there(before, trials)
    return found + audit(trials, runs, total) + _clean(project)


def no_traceback(ended: Ended) -> Outcome:
    """A mistake of ours is harm, also where the next start goes on."""
    return expect("Traceback" not in ended.output, f"a traceback: {ended.output[-3000:]}")


def _clean(project: Project) -> Outcome:
    """Nothing half done lies about: neither unfinished runs nor what was being written."""
    left = [*project.home.glob("unfinished/*"), *project.home.glob("journals/*/calls.jsonl")]
    return expect(not left, f"left behind: {', '.join(path.name for path in left)}")


def _cut_unsynced(project: Project, random: Random) -> None:
    """Cuts the files that were written last and are not told to be on disk: a checkpoint, an entry of the cache."""
    for pattern in ("unfinished/*/last.ckpt", "cache/activations/[!.]*/*.bin", "cache/timings/*.json"):
        for path in project.files(pattern)[:1]:
            _cut(path, random)


def _cut(path: Path, random: Random) -> None:
    size = path.stat().st_size
    if size:
        with path.open("r+b") as file:
            file.truncate(random.randrange(size))


def kill_between_databases(around: Surroundings, moments: int) -> Outcome:
    """Everything is killed just when a trial has ended: Optuna has been told, MLflow perhaps not yet."""
    found = Outcome()
    while found.injected < moments:
        project = around.project()
        project.sweep(trials=TRIALS)
        before, ended = finished([]), None
        while ended is None and found.injected < moments:
            command = project.start("sweep", "s.yaml")
            until(partial(_more_than, project, len(before)), command, pause=0.005)
            if not lives_for(command, around.random.uniform(0.0, 0.1)):
                ended = command.wait()
                break
            command.kill_all()
            found += Outcome(injected=1) + no_traceback(command.wait()) + still_there(before, project.trials("s"))
            before = finished(project.trials("s"))
        ended = ended or project.run("sweep", "s.yaml")
        found += accounts(project, ended, before, TRIALS)
    return found


def kill_a_worker(around: Surroundings, moments: int) -> Outcome:
    """SIGKILL of one of two worker processes, at random moments; the sweep goes on by itself."""
    found = Outcome()
    while found.injected < moments:
        project = around.project()
        total = TRIALS + 2 * min(moments, 10)
        project.sweep(trials=total, workers=2)
        command = project.start("sweep", "s.yaml")
        kills = 0
        while found.injected < moments and kills < 10 and psutil.pid_exists(command.pid):
            done = len(finished(project.trials("s")))
            victims = until(partial(_workers, command), command)
            if not victims or not lives_for(command, around.random.uniform(0.5, 4.0)):
                break
            around.random.choice(victims).kill()
            found += Outcome(injected=1)
            kills += 1
            # Three deaths without a finished trial between them end a sweep, as they should.
            until(partial(_more_than, project, done), command)
        found += accounts(project, command.wait(), {}, total)
    return found


def interrupt(around: Surroundings, moments: int) -> Outcome:
    """SIGINT (Ctrl-C): an orderly end, with nothing left running even before the next start."""
    return _stop(around, moments, signal.SIGINT, 130)


def terminate(around: Surroundings, moments: int) -> Outcome:
    """SIGTERM (a scheduler, `kill`): the same."""
    return _stop(around, moments, signal.SIGTERM, 143)


def _stop(around: Surroundings, moments: int, number: signal.Signals, code: int) -> Outcome:
    found = Outcome()
    while found.injected < moments:
        project = around.project()
        project.sweep(trials=TRIALS)
        before, ended = finished([]), None
        while found.injected < moments:
            command = project.start("sweep", "s.yaml")
            until(partial(running, project), command)
            if not lives_for(command, around.random.uniform(0.0, 3.0)):
                ended = command.wait()
                break
            command.signal(number)
            stopped = command.wait()
            if stopped.code == 0:  # it had ended just before
                ended = stopped
                break
            found += Outcome(injected=1) + expect(stopped.code == code, f"exit code {stopped.code}: {_last(stopped)}")
            found += no_traceback(stopped)
            notes = tuple(f"{name} is RUNNING after {number.name}" for name in running(project))
            found += Outcome(running=len(notes), notes=notes)
            found += still_there(before, project.trials("s"))
            before = finished(project.trials("s"))
        found += accounts(project, ended or project.run("sweep", "s.yaml"), before, TRIALS)
    return found


def kill_a_run(around: Surroundings, moments: int) -> Outcome:
    """SIGKILL of a single run at random moments, also before it has begun to train: the same command ends it."""
    found = Outcome()
    whole = around.project(freeze="{schedule: lp_ft, probe_epochs: 6, epochs: 12}")
    done = whole.run("run", "toy.yaml")
    (expected,) = whole.runs()
    found += expect(done.code == 0, _last(done))
    while found.injected < moments:
        project = around.project(freeze="{schedule: lp_ft, probe_epochs: 6, epochs: 12}")
        for _ in range(min(5, moments - found.injected)):
            command = project.start("run", "toy.yaml")
            if not lives_for(command, around.random.uniform(0.0, 2.5)):
                command.wait()
                break
            command.kill_all()
            found += Outcome(injected=1) + no_traceback(command.wait())
        ended = project.run("run", "toy.yaml")
        found += expect(ended.code == 0, f"the run ended with {ended.code}: {_last(ended)}")
        runs = project.runs()
        complete = [run for run in runs if run.status == "FINISHED"]
        notes = tuple(f"{name} is left RUNNING" for name in running(project))
        found += Outcome(running=len(notes), notes=notes)
        for run in complete[-1:]:
            same = all(run.points.get(key) == value for key, value in expected.points.items() if "val/" in key)
            found += expect(same, "the run came to something else than the unbroken one")
            found += expect(not run.lacks(), f"no record of {', '.join(run.lacks())}")
        found += expect(bool(complete), "no run has finished") + _clean(project)
    return found


def running(project: Project) -> list[str]:
    """Names of the runs that MLflow takes for running."""
    return [run.name for run in project.runs() if run.status == "RUNNING"]


def _more_than(project: Project, done: int) -> bool:
    return len(finished(project.trials("s"))) > done


def _workers(command: Command) -> list[psutil.Process]:
    found = []
    for process in command.processes():
        try:
            if WORKER in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition: Callable[[], object], command: Command, pause: float = 0.1) -> object:
    """Waits until a condition holds or the command has ended; returns what it said last."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()) and alive(command) and time.monotonic() < deadline:
        time.sleep(pause)
    return answer


def lives_for(command: Command, seconds: float) -> bool:
    """Lets a command live for so long; says whether it still does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive(command):
            return False
        time.sleep(0.01)
    return alive(command)


def alive(command: Command) -> bool:
    """Whether a command has not ended."""
    try:
        return lives(psutil.Process(command.pid))
    except psutil.NoSuchProcess:
        return False


def _last(ended: Ended) -> str:
    lines = [line for line in ended.output.splitlines() if line.strip()]
    return lines[-1] if lines else "(no output)"
