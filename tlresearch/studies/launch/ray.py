"""Runs the trials of a study on a Ray cluster: each worker is a task that reserves its cores and GPUs on a node."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.base.redact import protect_output, redact
from tlresearch.config.sweep_schema import RayConfig
from tlresearch.studies.launch.brief import Brief
from tlresearch.studies.launch.local import DEATHS, LOOK_SECONDS, keep_dying
from tlresearch.studies.launch.worker import run_trials as run_trials_here
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.trials import Worker
from tlresearch.tracking.store import resolve_uri

CONNECT_SECONDS = 5.0
_SENT = ("TLRESEARCH_", "MLFLOW_")  # prefixes of variables that are sent to nodes; a value set on the node wins
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without GPUs hides none: silences a warning
}


@dataclass(frozen=True)
class Surroundings:
    """The environment of this process that a worker takes over on its node.

    Attributes:
        folder: The current folder; ``None`` if Ray sends the working directory.
        modules: Folders with the user's modules.
        variables: Environment variables; a value set on the node wins.
        threads: Threads per trial.
    """

    folder: str | None
    modules: tuple[str, ...]
    variables: Mapping[str, str]
    threads: int

    @classmethod
    def here(cls, config: RayConfig) -> Surroundings:
        """Returns the surroundings of this process."""
        path = os.environ.get("PYTHONPATH", "")
        return cls(
            folder=None if config.working_dir else os.getcwd(),
            modules=tuple(entry for entry in path.split(os.pathsep) if entry),
            variables={name: value for name, value in os.environ.items() if name.startswith(_SENT)},
            threads=max(1, int(config.cpus_per_trial)),
        )

    def apply(self) -> None:
        """Applies them to this process, on a node."""
        for name, value in self.variables.items():
            os.environ.setdefault(name, value)
        if self.folder is not None and Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path[:0] = [os.getcwd(), *self.modules]
        protect_output()


def run_trials(worker: Worker) -> None:
    """Runs trials until the study has its total, in tasks of a Ray cluster.

    Trials of a lost node are tried again elsewhere, as soon as Ray reports that the node is gone.

    Raises:
        UserError: If there is no such cluster or no room on it, its nodes cannot share the databases, a mistake in
            the config prevents a trial, or workers keep dying.
    """
    if not worker.standing().open:
        worker.run_all()
        return
    with _cluster(worker.config.ray) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1:
            _check_shared(worker, len(nodes))
        count = worker.config.workers or _room(worker.config.ray, nodes)
        while (now := worker.standing()).open or now.running:
            if now.open:
                _run(ray, worker, min(count, now.open))
            else:  # wait for trials that `tlresearch worker` runs elsewhere
                time.sleep(LOOK_SECONDS)
            worker.progress.catch_up()


def _run(ray: Any, worker: Worker, count: int) -> None:
    """Starts workers, shows the trials that they finish, and replaces workers that die while trials are open."""
    config = worker.config
    brief = Brief(config, worker.subject, worker.space, worker.parent.run_id)
    task = ray.remote(num_cpus=config.ray.cpus_per_trial, num_gpus=config.ray.gpus_per_trial, max_retries=0)(_work)
    surroundings = ray.put(Surroundings.here(config.ray))

    def start(number: int) -> Any:
        post = f"ray {config.name} {number}"
        return task.remote(replace(brief, worker=number, post=post), surroundings)

    tasks = {start(number): number for number in range(count)}
    deaths, alive = 0, _alive(ray)
    while tasks:
        ready, _ = ray.wait(list(tasks), timeout=LOOK_SECONDS)
        if worker.progress.catch_up():
            deaths = 0
        died = []
        for done in ready:
            number = tasks.pop(done)
            try:
                mistake = ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                died.append(number)
                continue
            if mistake:
                raise UserError(mistake)
        if not died:
            continue
        # The dead process may be on another machine, where we cannot see it. With its post this process counts as
        # started in its place, so its trial is given back at once, and not after `lost_after` seconds.
        for number in died:
            identity = replace(worker.identity, post=f"ray {config.name} {number}")
            studies.give_back(worker.study, identity)
        previous, alive = alive, _alive(ray)
        if alive == previous:  # after the loss of a node, a death says nothing about the trial
            deaths += 1
        if deaths >= DEATHS:
            raise keep_dying(config.name, deaths)
        worker.progress.note(f"{len(died)} workers died; their trials are run again")
        for number in died[: worker.standing().open]:
            tasks[start(number)] = number


def _work(brief: Brief, surroundings: Surroundings) -> str:
    """Runs trials on a node; returns the text of the user error with which it ended, or an empty text."""
    surroundings.apply()
    import torch

    torch.set_num_threads(surroundings.threads)
    return run_trials_here(brief)


@contextmanager
def _cluster(config: RayConfig) -> Iterator[Any]:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingExtraError("ray", "ray") from None
    address = os.environ.get("RAY_ADDRESS", "auto") if config.address == "auto" else config.address
    _check_listening(address)
    if not ray.is_initialized():
        environment = {"working_dir": config.working_dir} if config.working_dir else {}
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
            raise UserError(
                f"ray.address: the cluster '{address}' cannot be used: {reason}; start one by `ray start --head`, run "
                "the sweep on one of its nodes, and set the same RAY_AUTH_MODE everywhere"
            ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Makes sure that something answers at the address: Ray itself would try for minutes."""
    if address == "auto":  # the cluster that was started last on this machine; it may not exist any more
        place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        latest = Path(place, "ray", "ray_current_cluster")
        if not latest.is_file():
            return
        address = latest.read_text().strip()
    host, _, port = address.rpartition(":")
    if not host:
        raise UserError(f"ray.address: '{address}' is neither auto nor host:port, such as 10.0.0.1:6379")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"ray.address: nothing answers at {address} ({error}); start the cluster by `ray start --head`"
        ) from None


def _check_shared(worker: Worker, nodes: int) -> None:
    """Refuses SQLite databases, which only one machine can use, on a cluster of several nodes."""
    stores = {
        "storage": studies.storage_url(worker.config),
        "overrides.tracking.uri": resolve_uri(worker.subject.tracking.uri),
    }
    for key, url in stores.items():
        if url.startswith("sqlite"):
            raise UserError(
                f"{key}: {redact(url)} is a file of one machine, but the Ray cluster has {nodes} nodes; give a server: "
                "storage=postgresql://… for Optuna, overrides.tracking.uri=http://… for MLflow"
            )


def _room(config: RayConfig, nodes: list[dict[str, Any]]) -> int:
    """Returns how many trials fit on the cluster at the same time."""
    per_trial = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    room = sum(
        min(int(node["Resources"].get(kind, 0) // amount) for kind, amount in per_trial.items() if amount)
        for node in nodes
    )
    if not room:
        raise UserError(
            f"ray: no node has {config.cpus_per_trial:g} cores and {config.gpus_per_trial:g} GPUs for one trial; "
            "lower ray.cpus_per_trial or ray.gpus_per_trial"
        )
    return room


def _alive(ray: Any) -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
