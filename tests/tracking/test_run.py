"""Statuses, metrics, params and secrets of runs in a real store."""

# ruff: noqa: PT012 - a run is opened and used inside pytest.raises, as its end is what is tested
from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tracking.outages import artifact
from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking import run as run_module
from tlresearch.tracking.run import JournalRun, open_run


class TrialPruned(Exception):  # noqa: N818 - the name Optuna gives it
    pass


def start(
    *,
    params: dict[str, object] | None = None,
    parent: str | None = None,
    run_id: str | None = None,
    system: bool = False,
) -> JournalRun:
    config = TrackingConfig(system_metrics=system)
    return open_run(
        config, experiment="topic", name="trial", params=params or {}, tags={}, parent=parent, run_id=run_id
    )


def steps(run: JournalRun, key: str) -> list[int]:
    return [metric.step for metric in run.store.client.get_metric_history(run.run_id, key)]


def test_a_run_that_ends_well_is_finished_and_holds_everything(tmp_path: Path) -> None:
    with start(params={"optimizer.lr": 1e-3, "freeze.stages": ["a", "b"], "data.root": None}) as run:
        for epoch in range(3):
            run.log_metrics({"val/accuracy": epoch / 3, "val/precision@5": math.nan, "x": math.inf}, epoch)
        run.log_dict({"a": {"b": 1}}, "config/resolved.json")
        (tmp_path / "file.txt").write_text("content")
        run.log_file(tmp_path / "file.txt", "files")
    stored = run.store.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time is not None
    assert stored.data.params == {"optimizer.lr": "0.001", "freeze.stages": '["a", "b"]', "data.root": "null"}
    assert steps(run, "val/accuracy") == [0, 1, 2]
    assert math.isnan(stored.data.metrics["val/precision_at_5"])
    assert artifact(run, "files/file.txt").read_text() == "content"
    assert not (tmp_path / "mlruns").exists(), "artifacts belong into the home, not into the current folder"


def test_many_points_are_all_stored() -> None:
    with start() as run:
        for step in range(2500):
            run.log_metrics({"loss": float(step)}, step)
    assert sorted(steps(run, "loss")) == list(range(2500))


def test_an_error_makes_the_run_failed_with_its_reason() -> None:
    with pytest.raises(ValueError, match="loss is NaN"), start() as run:
        raise ValueError("loss is NaN\nsecond line")
    stored = run.store.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags[run_module.FAILURE] == "ValueError: loss is NaN"
    assert "test_run.py" in artifact(run, "failure.txt").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_is_killed(error: type[BaseException]) -> None:
    with pytest.raises(error), start() as run:
        raise error
    assert run.store.client.get_run(run.run_id).info.status == "KILLED"


def test_a_pruned_run_is_finished_and_marked() -> None:
    parent = start()
    with pytest.raises(TrialPruned), start(parent=parent.run_id) as run:
        run.mark_pruned("below the median")
        raise TrialPruned
    parent.close()
    stored = run.store.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "✂ trial"
    assert stored.data.tags[run_module.STATE] == "pruned"
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id


SCRIPT = """
import os, signal, sys, time
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.run import open_run
how = sys.argv[1]
run = open_run(TrackingConfig(system_metrics=False), experiment="topic", name="r", params={}, tags={})
print(run.run_id, flush=True)
run.log_metrics({"loss": 1.0}, 0)
if how == "forgotten":
    sys.exit(0)
with run:
    print("ready", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [("SIGTERM", "KILLED", 143), ("SIGINT", "KILLED", -2), ("forgotten", "FAILED", 0)],
)
def test_a_process_that_is_ended_leaves_a_true_status(how: str, status: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    if how != "forgotten":
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(getattr(signal, how))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    from tlresearch.tracking.store import connect

    stored = connect().client.get_run(run_id)
    assert stored.info.status == status
    assert stored.data.metrics == {"loss": 1.0}


def test_a_continued_run_stores_no_step_twice() -> None:
    with pytest.raises(KeyboardInterrupt), start(params={"epochs": 5}) as run:
        for epoch in range(3):
            run.log_metrics({"loss": float(epoch)}, epoch)
        raise KeyboardInterrupt
    with start(run_id=run.run_id, params={"epochs": 5, "new": 1}) as again:
        assert again.store.client.get_run(run.run_id).info.status == "RUNNING"
        assert again.last_step("loss") == 2
        assert again.last_step("never") == -1
        for epoch in range(1, 5):
            again.log_metrics({"loss": float(epoch)}, epoch)
            again.log_metrics({"loss": 99.0}, epoch)
        assert again.flush()
    stored = again.store.client.get_run(run.run_id)
    assert sorted(steps(again, "loss")) == [0, 1, 2, 3, 4]
    assert stored.data.metrics["loss"] == 4.0
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"epochs": "5", "new": "1"}
    assert run_module.FAILURE not in stored.data.tags


def test_a_param_that_changed_is_kept_and_noted() -> None:
    run = start(params={"epochs": 5})
    run.close()
    with start(run_id=run.run_id, params={"epochs": 6}) as again:
        pass
    stored = again.store.client.get_run(run.run_id)
    assert stored.data.params["epochs"] == "5"
    assert stored.data.tags["tlresearch.changed"] == "epochs: 5 -> 6"


def test_continuing_an_unknown_run_is_a_clear_error() -> None:
    with pytest.raises(TrackingError, match="0123"):
        start(run_id="0123" * 8)


def test_a_long_param_survives_whole() -> None:
    text = "x" * 7000
    with start(params={"long": text, "short": "s"}) as run:
        pass
    import json

    stored = run.store.client.get_run(run.run_id).data.params
    assert stored["long"].startswith("<7000 characters, whole in config/long_params.json>")
    assert json.loads(artifact(run, "config/long_params.json").read_text()) == {"long": text}


def test_secrets_are_stored_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "environmental-secret")
    secret = "hunter2secret"
    with (
        pytest.raises(RuntimeError),
        start(
            params={
                "storage": f"postgresql://user:{secret}@host/db",
                "url": f"https://host/x?a=1&sig={secret}",
                "db.password": secret,
                "nested": {"api_key": secret, "max_tokens": 5},
                "environment": "environmental-secret",
            }
        ) as run,
    ):
        run.set_tags({"where": f"http://user:{secret}@host", "token": secret})
        run.log_text(f"see http://user:{secret}@host", "a.txt")
        run.log_dict({"list": [f"redis://:{secret}@host"], "secret": secret}, "b.yaml")
        run.log_dataset("d", "ab" * 32, source=f"https://user:{secret}@host/d", context="train")
        raise RuntimeError(f"cannot open postgresql://user:{secret}@host/db")
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
            assert b"environmental-secret" not in file.read_bytes(), file
    assert '"max_tokens": 5' in run.store.client.get_run(run.run_id).data.params["nested"]


def test_a_dataset_is_an_input_of_the_run() -> None:
    with start() as run:
        run.log_dataset("ants", "cd" * 32, source="data/ants", context="val", schema={"image": "binary"})
    (entry,) = run.store.client.get_run(run.run_id).inputs.dataset_inputs
    assert entry.dataset.name == "ants"
    assert "cd" * 32 in entry.dataset.profile
    assert entry.tags[0].value == "val"


def test_system_metrics_are_measured_in_short_runs_too() -> None:
    import time

    with start(system=True) as run:
        time.sleep(1.6)
    assert steps(run, "system/cpu_utilization_percentage") == [0]


def test_a_figure_is_stored() -> None:
    from tlresearch.tracking.figures import learning_curves

    with start() as run:
        run.log_figure(learning_curves({"val/loss": [(0, 1.0), (1, 0.5)]}), "figures/curves.png")
    assert artifact(run, "figures/curves.png").read_bytes().startswith(b"\x89PNG")


def test_tracking_needs_no_torch() -> None:
    code = textwrap.dedent("""
        import sys
        import tlresearch.tracking.run, tlresearch.tracking.provenance, tlresearch.understand.comparison.compare
        tlresearch.tracking.provenance.collect(["x"])
        from tlresearch.tracking.store import connect
        connect()
        assert "torch" not in sys.modules and "matplotlib" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True)
