"""Many processes that write to the same databases at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter

from tests.chaos.outcome import Outcome, expect
from tests.chaos.surroundings import Surroundings
from tests.nursery import Ended

WORKERS = 10
POINTS = 5

_WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
import optuna
from tlresearch.config.load import load_sweep
from tlresearch.config.schema import TrackingConfig
from tlresearch.config.sweep_schema import SpaceConfig
from tlresearch.studies.sweeps.study import open_study
from tlresearch.tracking.run import open_run
worker, trials = int(sys.argv[1]), int(sys.argv[2])
config = load_sweep("s.yaml").config
study = open_study(config, config.space, worker=worker)

def objective(trial):
    rate = trial.suggest_float("optimizer.lr", 1e-3, 1e-1, log=True)
    about = {"experiment": "many", "name": f"{trial.number}", "params": {"optimizer.lr": rate}}
    with open_run(TrackingConfig(system_metrics=False), tags={"tlresearch.trial": str(trial.number)}, **about) as run:
        for step in range(POINTS):
            run.log_metrics({"val/accuracy": rate + step}, step)
            run.flush()
            trial.report(rate + step, step)
    return rate

study.optimize(objective, n_trials=trials)
"""


def ten_writers(around: Surroundings, moments: int) -> Outcome:
    """Ten processes write trials to one SQLite file of Optuna and one of MLflow: no write is lost, none is double."""
    project = around.project()
    project.sweep(trials=WORKERS * moments)
    environment = {**os.environ, "TLRESEARCH_HOME": str(project.home), "OMP_NUM_THREADS": "1"}
    code = _WORKER.replace("POINTS", str(POINTS))
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(number), str(moments)],
            cwd=project.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(WORKERS)
    ]
    ends = [Ended(process.returncode, output) for process in processes for output in [process.communicate()[0]]]
    seconds = time.monotonic() - began
    found = Outcome(injected=WORKERS * moments)
    for end in ends:
        found += expect(end.code == 0, f"a process ended with {end.code}: {end.output[-300:]}")
    trials, runs = project.trials("s"), project.runs()
    wanted = WORKERS * moments
    found += Outcome(lost=max(0, wanted - len(trials)), duplicated=max(0, len(trials) - wanted))
    owners = Counter(run.tags["tlresearch.trial"] for run in runs)
    for trial in trials:
        own = [run for run in runs if run.tags["tlresearch.trial"] == str(trial.number)]
        whole = [(step, trial.params["optimizer.lr"] + step) for step in range(POINTS)]
        right = len(own) == 1 and own[0].points.get("val/accuracy") == whole and own[0].status == "FINISHED"
        right = right and trial.state.name == "COMPLETE" and len(trial.intermediate_values) == POINTS
        found += expect(right, f"trial {trial.number} is not whole: {trial.state.name}, {len(own)} runs")
    found += Outcome(duplicated=sum(count - 1 for count in owners.values()))
    found += Outcome(running=sum(run.status == "RUNNING" for run in runs))
    print(f"          {wanted} trials of {WORKERS} processes in {seconds:.0f} s, their start included", flush=True)
    return found
