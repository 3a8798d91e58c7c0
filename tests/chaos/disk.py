"""Disks that are full or cannot be written, where checkpoints, cached activations and artifacts go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.chaos.outcome import Outcome, expect
from tests.chaos.project import Project
from tests.chaos.surroundings import Surroundings
from tests.nursery import ROOT, Ended

BIG = "{name: small_cnn, weights: null, options: {in_channels: 1, width: 64}}"  # a checkpoint of megabytes
PROBE = "{schedule: linear_probe, epochs: 2}"  # whose frozen stages are cached


def full_checkpoints(around: Surroundings, moments: int) -> Outcome:
    """No space for a checkpoint: the run goes on to its end, and says once that a kill would cost its epochs."""
    found = Outcome()
    for _ in range(moments):
        project = around.project(backbone=BIG)
        ended = _on(project, "unfinished", "size=200k", "run", "toy.yaml")
        said = ended.output.count("no checkpoint can be written")
        found += Outcome(injected=1) + _finished(project, ended)
        found += expect(said == 1, f"said {said} times that there is no checkpoint")
    return found


def full_cache(around: Surroundings, moments: int) -> Outcome:
    """No space for cached activations: the run goes on without, and comes to the same."""
    return _without_cache(around, moments, "size=4k")


def read_only_cache(around: Surroundings, moments: int) -> Outcome:
    """A cache that cannot be written: the same."""
    return _without_cache(around, moments, "ro")


def _without_cache(around: Surroundings, moments: int, options: str) -> Outcome:
    found = Outcome()
    for _ in range(moments):
        project = around.project(freeze=PROBE)
        ended = _on(project, "cache", options, "run", "toy.yaml")
        found += Outcome(injected=1) + _finished(project, ended)
        found += expect("going on without" in ended.output, f"nothing is said of the cache: {ended.output}")
    return found


def full_artifacts(around: Surroundings, moments: int) -> Outcome:
    """No space for artifacts: a clear line, and the same command ends the run when there is space again."""
    return _no_artifacts(around, moments, "size=1m")


def read_only_artifacts(around: Surroundings, moments: int) -> Outcome:
    """Artifacts cannot be written: the same."""
    return _no_artifacts(around, moments, "ro")


def _no_artifacts(around: Surroundings, moments: int, options: str) -> Outcome:
    found = Outcome()
    for _ in range(moments):
        project = around.project(backbone=BIG)
        ended = _on(project, "artifacts", options, "run", "toy.yaml")
        found += Outcome(injected=1) + expect("Traceback" not in ended.output, f"a traceback: {ended.output[-2000:]}")
        named = "No space left" in ended.output or "Read-only" in ended.output
        found += expect(named, f"not said what is wrong: {ended.output[-500:]}")
        again = project.run("run", "toy.yaml")
        found += expect(again.code == 0, f"exit code {again.code}: {again.output[-500:]}")
        # A run that could not even record its beginning has failed, and the next one is another.
        *before, run = project.runs()
        states = [each.status for each in before] + [run.status]
        found += Outcome(running=states.count("RUNNING"))
        found += expect(run.status == "FINISHED" and set(states[:-1]) <= {"FAILED"}, f"runs: {', '.join(states)}")
        kept = list(project.home.glob(f"artifacts/**/{run.run_id}/artifacts/weights/trained.safetensors"))
        found += expect(len(kept) == 1, "the weights are not among the artifacts")
    return found


def read_only_home(around: Surroundings, moments: int) -> Outcome:
    """Nothing can be written for a resume: refused in one line before anything has begun."""
    found = Outcome()
    for _ in range(moments):
        project = around.project()
        ended = _on(project, "unfinished", "ro", "run", "toy.yaml")
        found += Outcome(injected=1) + expect(ended.code == 2, f"exit code {ended.code}")
        lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        clear = len(lines) == 1 and "TLRESEARCH_HOME" in lines[0] and "Read-only file system" in lines[0]
        found += expect(clear, f"no clear line: {ended.output[-500:]}")
        found += Outcome(running=sum(run.status == "RUNNING" for run in project.runs()))
    return found


def _finished(project: Project, ended: Ended) -> Outcome:
    last = ended.output.splitlines()[-1:] or ["(no output)"]
    found = expect(ended.code == 0, f"exit code {ended.code}: {last[0]}")
    states = [run.status for run in project.runs()]
    found += Outcome(running=states.count("RUNNING"))
    return found + expect(states == ["FINISHED"], f"runs: {', '.join(states)}")


def _on(project: Project, place: str, options: str, *arguments: str) -> Ended:
    """Runs a command, for which a folder of the home is a small or unwritable disk of its own."""
    folder = project.home / place
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {options} tmpfs "{folder}" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "tlresearch", *arguments]
    environment = {**os.environ, "TLRESEARCH_HOME": str(project.home), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        command,
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout)


def mountable(folder: Path) -> bool:
    """Whether file systems can be mounted here, as root or in a user's own name space."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
