"""Numbers that are not finite, memory that does not suffice, loader processes that die: of one trial among others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.chaos.outcome import Outcome, expect
from tests.chaos.project import Project, audit
from tests.chaos.surroundings import Surroundings
from tests.hungry import hungry_yaml

FITS = 20  # samples of a batch, where memory is short


def not_finite(around: Surroundings, moments: int) -> Outcome:
    """A rate with which the loss is NaN: this trial fails with step, batch and rate, the others run."""
    found = Outcome()
    for _ in range(moments):
        project = around.project()
        found += _one_fails(project, {"optimizer.lr": 1e30}, "NonFiniteLossError: the training loss is", "batch 1")
        ended = project.run("run", "toy.yaml", "optimizer.lr=1e30")
        found += _one_line(ended.code, ended.output, "the training loss is nan in step 1")
        found += Outcome(running=sum(run.status == "RUNNING" for run in project.runs()))
    return found


def out_of_memory(around: Surroundings, moments: int) -> Outcome:
    """A batch for which there is no memory: this trial fails, the others run; with `halve` it runs too."""
    found = Outcome()
    for _ in range(moments):
        project = around.project(backbone=hungry_yaml(fits=FITS))
        too_large = {"data.batch_size": 32}
        found += _one_fails(project, too_large, "OutOfMemoryError: out of memory with data.batch_size=32", "lower it")
        ended = project.run("run", "toy.yaml", "data.batch_size=32")
        found += _one_line(ended.code, ended.output, "out of memory with data.batch_size=32")
        ended = project.run("run", "toy.yaml", "data.batch_size=32", "trainer.on_oom=halve")
        found += expect(ended.code == 0, f"halve: exit code {ended.code}: {ended.output[-500:]}")
        lowered = [run for run in project.runs() if run.tags.get("resolved.data.batch_size") == "16"]
        found += expect([run.status for run in lowered] == ["FINISHED"], "halve: no run with half the batch")
        found += Outcome(running=sum(run.status == "RUNNING" for run in project.runs()))
    return found


def loader_killed(around: Surroundings, moments: int) -> Outcome:
    """SIGKILL of a loader process: the run ends with one line, and does not hang."""
    found = Outcome()
    sections = {
        "backbone": hungry_yaml(kill_loader=True),
        "cache": "{enabled: false}",
        "data": "{name: digits, classes: ['0', '1'], labels_per_class: 24, batch_size: 16, workers: 2}",
    }
    for _ in range(moments):
        project = around.project(**sections)
        ended = project.run("run", "toy.yaml")
        found += Outcome(injected=1) + _one_line(ended.code, ended.output, "a data loader process died")
        (run,) = project.runs()
        found += expect(run.status == "FAILED", f"its run is {run.status}") + Outcome(running=run.status == "RUNNING")
        ended = project.run("run", "toy.yaml", "data.workers=0")
        found += expect(ended.code == 0, "what it proposes does not help")
    return found


def _one_fails(project: Project, bad: Mapping[str, Any], *said: str) -> Outcome:
    """A sweep of three trials, the second of which must fail, and no other."""
    good = {"optimizer.lr": 0.05, "data.batch_size": 16}
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e31, "log": True}, "data.batch_size": {"choices": [16, 32]}}
    last = {**good, "optimizer.lr": 0.01}
    project.sweep(trials=3, space=space, enqueue=[good, {**good, "optimizer.lr": 0.02, **bad}, last])
    ended = project.run("sweep", "s.yaml", "overrides.data.eval_batch_size=16")
    trials = project.trials("s")
    states = [trial.state.name for trial in trials]
    found = Outcome(injected=1) + expect(ended.code == 0, f"the sweep ended with {ended.code}: {ended.output[-500:]}")
    found += expect(states == ["COMPLETE", "FAIL", "COMPLETE"], f"trials: {', '.join(states)}")
    reason = trials[1].user_attrs.get("failure", "")
    found += expect(all(text in reason for text in said), f"reason: {reason}")
    return found + audit(trials, project.runs(), 3)


def _one_line(code: int, output: str, text: str) -> Outcome:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    clear = code == 2 and len(lines) == 1 and text in lines[0] and "Traceback" not in output
    return expect(clear, f"no clear line, exit code {code}: {output[-1000:]}")
