"""What more workers bring, what launching costs, and what the databases carry; written into docs/scaling.md.

    python -m benchmarks.scaling --write
    python -m benchmarks.scaling --parts databases --trials 200

Three parts:

* workers: trials per hour of one sweep with 1, 2 and 4 worker processes. Trials are compute-bound (`small_cnn` on
  digits, trained by one thread each), so that a second core can double them.
* launchers: the same few trivial trials through each launcher: time to the first trial, and after the last one.
* databases: synthetic trials through PostgreSQL. Everything is the product's (worker loop, claims, heartbeats, study,
  delivery to MLflow) but the training: `experiment.fit` is replaced by a formula, since fits would hide the databases
  behind hours of work. The server's fsync is off, as in the tests; MLflow's tables are in the same server.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contest import ROOT, arguments, surroundings

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- begin: written by `python -m benchmarks.scaling --write` -->", "<!-- end -->"
EXPERIMENT = """
data: {name: digits, test_fraction: 0.2, batch_size: 32}
backbone: {name: small_cnn, weights: null, options: {in_channels: 1, width: WIDTH}}
freeze: {schedule: full, epochs: EPOCHS}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
trainer: {precision: 32-true, memory_format: contiguous, threads: 1}
tracking: {figures: false, model: false, weights: false, system_metrics: false}
"""
EPOCHS_OF_SYNTHETIC, METRICS_OF_SYNTHETIC = 5, 10


def main() -> None:
    """Measures the parts that are asked for, and writes their tables."""
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=["workers", "launchers", "databases"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="worker processes that are compared")
    parser.add_argument("--epochs", type=int, default=60, help="length of a compute-bound trial; about 0.4 s each")
    parser.add_argument("--runs", type=int, default=12, help="compute-bound trials of each sweep")
    parser.add_argument("--trials", type=int, default=10_000, help="synthetic trials")
    parser.add_argument("--writers", type=int, default=4, help="processes that write the synthetic trials")
    parser.add_argument("--synthetic", help="the role of a process that this script starts")
    options = parser.parse_args()
    if options.synthetic:
        _synthetic_worker(json.loads(options.synthetic))
        return
    measure = {
        "workers": lambda: workers(options.workers, options.epochs, options.runs),
        "launchers": launchers,
        "databases": lambda: databases(options.trials, options.writers),
    }
    text = "\n".join(measure[part]() for part in options.parts) + f"\n{surroundings()}\n"
    print(text)
    if options.write:
        pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
        PAGE.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{text}{END}", PAGE.read_text(), count=1, flags=re.DOTALL))


def workers(counts: list[int], epochs: int, runs: int) -> str:
    """Trials per hour of a compute-bound sweep with each number of workers."""
    rates: dict[int, float] = {}
    rows = []
    for count in counts:
        with _project(width=24, epochs=epochs):
            began = time.time()
            result = _sweep([f"trials={runs}", f"workers={count}"])
            started, ended = _span(result)
            rates[count] = 3600 * runs / (ended - started)
            whole = 3600 * runs / (time.time() - began)
            rows.append(f"| {count} | {rates[count]:.0f} | {rates[count] / rates[counts[0]]:.2f} | {whole:.0f} |")
            print(rows[-1], flush=True)
    return "\n".join(
        [
            f"Trials per hour, {runs} compute-bound trials of one thread each on {os.cpu_count()} hardware threads; "
            "from the start of the first to the end of the last, and of the whole command with its final run:\n",
            "| workers | trials per hour | times one worker | whole command |",
            "| ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )


def launchers() -> str:
    """What starting and ending the workers costs, beside trivial trials."""
    rows = []
    with _project(width=4, epochs=1):
        _sweep(["trials=1"])  # loads the libraries, so that the first row is not charged with them
    with _ray_cluster() as address:
        ways = {"in the sweep's process": [], "local, 2 workers": ["workers=2"]}
        if address:
            ways["Ray, 2 workers"] = ["workers=2", "launcher=ray", f"ray.address={address}"]
        for name, overrides in ways.items():
            with _project(width=4, epochs=1):
                began = time.time()
                result = _sweep(["trials=8", *overrides])
                started, ended = _span(result)
                rows.append(f"| {name} | {started - began:.1f} | {(ended - started) / 8:.2f} |")
                print(rows[-1], flush=True)
    return "\n".join(
        [
            "Eight trivial trials through each launcher, from a process that has its libraries loaded:\n",
            "| launcher | seconds until the first trial | seconds per trial |",
            "| --- | ---: | ---: |",
            *rows,
            "",
        ]
    )


def databases(trials: int, writers: int) -> str:
    """Throughput of the databases without training, and how long looking at the result takes."""
    from tests.servers import mlflow_server, postgres

    with postgres() as server, _project(width=4, epochs=1) as folder:
        storage, tracking = server.database("optuna"), server.database("mlflow")
        os.environ["MLFLOW_TRACKING_URI"] = tracking
        role = json.dumps({"storage": storage, "trials": trials})
        command = [sys.executable, "-m", "benchmarks.scaling", "--synthetic", role]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        began = time.time()
        processes = [subprocess.Popen(command, cwd=folder, env=environment) for _ in range(writers)]
        if sum(process.wait() != 0 for process in processes):
            raise SystemExit("a writer failed")
        seconds = time.time() - began
        _compare()  # once before: what is timed is not the loading of libraries
        opening, (first, last, count) = _timed(lambda: _open(storage, trials))
        comparing, _ = _timed(_compare)
        with mlflow_server(folder / "ui", backend=tracking) as ui:
            asking, found = _timed(lambda: _first_page(ui.uri))
    rate = count / (last - first)
    rows = [
        ("trials, exactly", f"{count} of {trials}"),
        ("trials per second, with their runs in MLflow", f"{rate:.1f}"),
        ("the whole of it, with starting the processes", f"{seconds:.0f} s"),
        ("opening the study and reading all its trials", f"{opening:.2f} s"),
        ("`compare --sweep`", f"{comparing:.2f} s"),
        (f"the UI's query for its first page ({found} runs), by the server", f"{asking:.2f} s"),
    ]
    return "\n".join(
        [
            f"{trials} synthetic trials by {writers} processes, each with {EPOCHS_OF_SYNTHETIC} epochs of "
            f"{METRICS_OF_SYNTHETIC} metrics, through PostgreSQL (fsync off) for Optuna and MLflow; no training:\n",
            "| what | measured |",
            "| --- | ---: |",
            *[f"| {what} | {value} |" for what, value in rows],
            "",
        ]
    )


def _synthetic_worker(role: dict[str, Any]) -> None:
    """One process of the databases part: the product's worker, with a formula in the place of training."""
    from tlresearch.base.liveness import Identity
    from tlresearch.config.load import load_experiment, load_sweep, revise
    from tlresearch.studies.sweeps import study as studies
    from tlresearch.studies.sweeps.experiment import Experiment
    from tlresearch.studies.sweeps.joining import check, join
    from tlresearch.studies.sweeps.progress import SweepProgress
    from tlresearch.studies.sweeps.subject import Turn
    from tlresearch.studies.sweeps.trials import Worker
    from tlresearch.tracking.courier import beside
    from tlresearch.tracking.run import open_run
    from tlresearch.tracking.store import resolve_uri

    class Synthetic(Experiment):
        def run(self, turn: Turn) -> float:
            experiment = revise(self.base, turn.point)
            run = open_run(
                experiment.config.tracking,
                experiment=turn.study,
                name=turn.name,
                params=experiment.flat(),
                tags=turn.tags,
                parent=turn.parent,
                deferred=True,
            )
            value = 1 - abs(math.log10(turn.point["optimizer.lr"]) + 2) / 10
            for epoch in range(EPOCHS_OF_SYNTHETIC):
                names = ["val/accuracy", *(f"val/metric_{number}" for number in range(METRICS_OF_SYNTHETIC - 1))]
                run.log_metrics(dict.fromkeys(names, value * (epoch + 1) / EPOCHS_OF_SYNTHETIC), epoch)
            run.close()
            turn.ended(run.run_id, 0)
            return value

    overrides = [f"storage={role['storage']}", f"trials={role['trials']}", "sampler.name=random"]
    plan = check(load_sweep("scaling", overrides))
    study, parent = join(plan, worker=os.getpid())
    progress = SweepProgress(None, study, plan.config, 0, others=False)
    with beside(resolve_uri()):
        subject = Synthetic(load_experiment(plan.config.experiment))
        Worker(plan.config, subject, plan.space, study, parent, progress, Identity.own()).run_all()
    assert len(studies.ended(study)) == role["trials"]


def _open(storage: str, trials: int) -> tuple[float, float, int]:
    """Opens the study as the next worker does; returns when its trials began and ended, and how many count."""
    from tlresearch.config.load import load_sweep
    from tlresearch.studies.sweeps import study as studies

    config = load_sweep("scaling", [f"storage={storage}", f"trials={trials}", "sampler.name=random"]).config
    ended = studies.ended(studies.open_study(config, config.space))
    starts, ends = zip(*[(t.datetime_start.timestamp(), t.datetime_complete.timestamp()) for t in ended], strict=True)
    return min(starts), max(ends), len(ended)


def _compare() -> None:
    from tlresearch.understand.comparison.compare import compare

    compare(sweep="scaling")


def _first_page(address: str) -> int:
    """What the UI asks for when the experiment is opened."""
    from tlresearch.tracking.store import connect

    found = connect(address).client.search_experiments(filter_string="name = 'scaling'")
    body = {
        "experiment_ids": [found[0].experiment_id],
        "max_results": 100,
        "order_by": ["metrics.`val/accuracy` DESC"],
        "run_view_type": "ACTIVE_ONLY",
    }
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/runs/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return len(json.load(answer)["runs"])


@contextlib.contextmanager
def _project(*, width: int, epochs: int) -> Iterator[Path]:
    """A folder with one experiment, one sweep and a home of its own."""
    before, settings = Path.cwd(), {name: os.environ.get(name) for name in ("TLRESEARCH_HOME", "MLFLOW_TRACKING_URI")}
    with tempfile.TemporaryDirectory(prefix="tlresearch-scaling-") as name:
        folder = Path(name)
        for kind in ("experiments", "sweeps"):
            (folder / kind).mkdir()
        text = EXPERIMENT.replace("WIDTH", str(width)).replace("EPOCHS", str(epochs))
        (folder / "experiments" / "scaling.yaml").write_text(text)
        (folder / "sweeps" / "scaling.yaml").write_text(
            "experiment: scaling\nspace: {optimizer.lr: {low: 1.0e-3, high: 1.0e-1, log: true}}\n"
        )
        os.environ["TLRESEARCH_HOME"] = str(folder / "home")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)
            for variable, value in settings.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


@contextlib.contextmanager
def _ray_cluster() -> Iterator[str]:
    """A node on this machine; empty where Ray is not installed."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        yield ""
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def _sweep(overrides: list[str]) -> Any:
    from tlresearch.studies.sweeps.run import run as run_sweep

    return run_sweep("scaling", overrides)


def _span(result: Any) -> tuple[float, float]:
    """When the first trial began and the last one ended."""
    done = [trial for trial in result.trials if trial.state.name == "COMPLETE"]
    return min(t.datetime_start.timestamp() for t in done), max(t.datetime_complete.timestamp() for t in done)


def _timed(work: Any) -> tuple[float, Any]:
    began = time.monotonic()
    found = work()
    return time.monotonic() - began, found


if __name__ == "__main__":
    main()
