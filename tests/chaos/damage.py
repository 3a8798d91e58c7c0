"""Files that are not what was written: a byte of a checkpoint, of an entry of the cache, of what a run left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.chaos.outcome import Outcome, expect
from tests.chaos.processes import alive, until
from tests.chaos.project import Project, Recorded
from tests.chaos.surroundings import Surroundings

LONG = "{schedule: lp_ft, probe_epochs: 6, epochs: 12}"


def checkpoint(around: Surroundings, moments: int) -> Outcome:
    """One byte of the checkpoint of a killed run: the run says so and begins anew, and comes to the same."""
    found = Outcome()
    expected = _unbroken(around)
    for _ in range(moments):
        project = around.project(freeze=LONG)
        _kill_with_checkpoint(project)
        for path in project.files("unfinished/*/last.ckpt"):
            _flip(path, around.random)
            found += Outcome(injected=1)
        ended = project.run("run", "toy.yaml")
        found += expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-500:]}")
        said = ended.output.count("is damaged")
        found += expect(said == 1, f"said {said} times that the checkpoint is damaged")
        found += _same(project.runs(), expected)
    return found


def run_folder(around: Surroundings, moments: int) -> Outcome:
    """One byte of the description of an unfinished run: another run is begun, and none is left RUNNING."""
    found = Outcome()
    expected = _unbroken(around)
    for _ in range(moments):
        project = around.project(freeze=LONG)
        _kill_with_checkpoint(project)
        for path in project.files("unfinished/*/run.json"):
            path.write_bytes(path.read_bytes()[: around.random.randrange(10)])
            found += Outcome(injected=1)
        ended = project.run("run", "toy.yaml")
        found += expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-500:]}")
        found += _same([run for run in project.runs() if run.status == "FINISHED"], expected)
        running = [run for run in project.runs() if run.status == "RUNNING"]
        found += Outcome(running=len(running), notes=("the run of the damaged folder is left RUNNING",) * len(running))
    return found


def cache(around: Surroundings, moments: int) -> Outcome:
    """One byte of any file of the cache's entries: found by its checksum and computed again, to the same result."""
    found = Outcome()
    expected = _unbroken(around)
    project = around.project(freeze=LONG)
    first = project.run("run", "toy.yaml")
    found += expect(first.code == 0, first.output[-500:])
    for number in range(moments):
        files = sorted(path for path in project.home.glob("cache/activations/[!.]*/*"))
        _flip(around.random.choice(files), around.random)
        found += Outcome(injected=1)
        name = f"again{number}"
        ended = project.run("run", "toy.yaml", f"name={name}")
        found += expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-500:]}")
        found += expect("is damaged" in ended.output, "nothing is said of the damage")
        found += _same([run for run in project.runs() if run.name == name], expected)
    return found


def _unbroken(around: Surroundings) -> Recorded:
    project = around.project(freeze=LONG)
    project.run("run", "toy.yaml")
    (run,) = project.runs()
    return run


def _kill_with_checkpoint(project: Project) -> None:
    command = project.start("run", "toy.yaml")
    until(lambda: project.files("unfinished/*/last.ckpt"), command)
    if not alive(command):
        raise RuntimeError(f"the run ended before it could be killed: {command.output()[-500:]}")
    command.kill_all()
    command.wait()


def _flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _same(runs: Sequence[Recorded], expected: Recorded) -> Outcome:
    """Whether there is one run, which came to what the unbroken one did, each point once."""
    if [run.status for run in runs] != ["FINISHED"]:
        states = [run.status for run in runs]
        return Outcome(
            lost=int("FINISHED" not in states),
            duplicated=max(0, states.count("FINISHED") - 1),
            running=states.count("RUNNING"),
            notes=(f"runs: {', '.join(states)}",),
        )
    keys = [key for key in expected.points if key.startswith(("train/", "val/"))]
    other = [key for key in keys if runs[0].points.get(key) != expected.points[key]]
    return expect(not other, f"another result than the unbroken run: {', '.join(other)}")
