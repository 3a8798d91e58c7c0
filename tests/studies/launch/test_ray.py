"""The same sweep on a Ray cluster of two nodes gives the same trials, also when one of them is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from tests.servers import free_port, mlflow_server, postgres
from tests.toy import toy_text
from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.config.sweep_schema import RayConfig, SweepConfig
from tlresearch.studies.launch import ray as launcher
from tlresearch.studies.launch.ray import Surroundings
from tlresearch.studies.sweeps.run import run as run_sweep

RATES = (0.001, 0.01, 0.05, 0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two raylets on the loopback interface, each with one core."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20, include_dashboard=False)
        yield nodes
    finally:
        nodes.shutdown()


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("experiments", "sweeps"):
        (tmp_path / folder).mkdir()
    base = toy_text(freeze="{schedule: full, epochs: 20}", trainer="{precision: 32-true, checkpoint_seconds: 0}")
    (tmp_path / "experiments" / "base.yaml").write_text(base)
    sweep = {
        "experiment": "base",
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}},
        "enqueue": [{"optimizer.lr": rate} for rate in RATES],
        "objective": {"metric": "val/loss", "direction": "minimize"},
        "trials": len(RATES),
    }
    (tmp_path / "sweeps" / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_nodes_find_what_one_machine_finds_though_one_is_lost(
    project: Path, home: Path, cluster: Any, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objectives(result: Any) -> dict[float, float]:
        done = [trial for trial in result.trials if trial.state.name == "COMPLETE"]
        assert len(done) == len(RATES)
        return {trial.params["optimizer.lr"]: trial.value for trial in done}

    with pytest.raises(UserError, match=r"storage: .* is a file of one machine, but the Ray cluster has 2 nodes"):
        run_sweep("s", ["name=refused", "launcher=ray", f"ray.address={cluster.address}"])
    here = run_sweep("s")
    lost: list[int] = []
    (node,) = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    def lose_a_node() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not lost:
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if any("unfinished" in Path(file.path).parts for file in process.open_files()):  # it runs a trial
                        cluster.remove_node(node, allow_graceful=False)
                        lost.append(process.pid)
                        return
            time.sleep(0.02)

    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(postgres()).database("optuna")
        server = stack.enter_context(mlflow_server(project / "server", template=empty_database))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        thread = threading.Thread(target=lose_a_node)
        thread.start()
        there = run_sweep("s", ["launcher=ray", f"ray.address={cluster.address}", f"storage={storage}"])
        thread.join()
        assert lost
        assert objectives(there) == pytest.approx(objectives(here), abs=1e-6)
        assert there.best == here.best
        states = [trial.state.name for trial in there.trials]
        assert states.count("FAIL") == 1  # given back, and run on the node that was left
        hosts = {trial.user_attrs["worker"]["post"] for trial in there.trials}
        assert hosts == {"ray s 0", "ray s 1"}


def test_ray_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"tlresearch\[ray\]"), launcher._cluster(RayConfig()):
        pass


def test_a_cluster_that_does_not_answer_is_one_line_within_seconds() -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    began = time.monotonic()
    for address, text in (
        (f"127.0.0.1:{free_port()}", "nothing answers at 127"),
        ("head", "neither auto nor host:port"),
        ("127.0.0.1:port", "nothing answers"),
    ):
        with pytest.raises(UserError, match=text), launcher._cluster(RayConfig(address=address)):
            pass
    assert time.monotonic() - began < 30


def test_a_cluster_that_is_long_gone_is_one_line_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    port = free_port()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"nothing answers at 127.0.0.1:{port}"), launcher._cluster(RayConfig()):
        pass


def test_room_counts_cores_and_gpus_node_by_node() -> None:
    nodes = [{"Resources": {"CPU": 5.0, "GPU": 1.0}}, {"Resources": {"CPU": 3.0}}]
    assert launcher._room(RayConfig(cpus_per_trial=2), nodes) == 3
    assert launcher._room(RayConfig(cpus_per_trial=1, gpus_per_trial=0.5), nodes) == 2
    with pytest.raises(UserError, match="no node has 8 cores"):
        launcher._room(RayConfig(cpus_per_trial=8), nodes)


def test_databases_of_several_nodes_are_servers() -> None:
    subject = SimpleNamespace(tracking=SimpleNamespace(uri=None))
    for storage, named in ((None, "storage"), ("postgresql://me:s3cret@host/x", "overrides.tracking.uri")):
        worker: Any = SimpleNamespace(config=SweepConfig(storage=storage), subject=subject)
        with pytest.raises(UserError, match=f"^{named}: ") as caught:
            launcher._check_shared(worker, 2)
        assert "s3cret" not in str(caught.value)


def test_a_node_takes_what_it_has_not_set_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["old"])
    monkeypatch.setenv("TLRESEARCH_DATA", "/mine")
    variables = {"TLRESEARCH_DATA": "/theirs", "MLFLOW_SOMETHING": "1"}
    Surroundings(str(tmp_path), ("/modules",), variables, threads=1).apply()
    import os
    import sys

    assert (Path.cwd(), sys.path[:2]) == (tmp_path, [str(tmp_path), "/modules"])
    assert (os.environ["TLRESEARCH_DATA"], os.environ.pop("MLFLOW_SOMETHING")) == ("/mine", "1")
