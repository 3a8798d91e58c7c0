"""Comparing recorded runs: what differs, what is best, and what pruned and failed runs look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tlresearch.compare import Comparison, compare_runs, compare_sweep, guess_direction, render
from tlresearch.config.schema import TrackingConfig
from tlresearch.errors import TrackingError
from tlresearch.tracking.run import open_run

pytestmark = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning")
CONFIG = TrackingConfig(system_metrics=False)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def record(name: str, lr: float, accuracies: list[float], ending: str = "", parent: str | None = None) -> str:
    params = {"optimizer.lr": lr, "seed": 0}
    run = open_run(CONFIG, experiment="e", name=name, params=params, tags={}, parent=parent)
    for epoch, accuracy in enumerate(accuracies):
        run.log_metrics({"val/accuracy": accuracy, "val/loss": 1 - accuracy, "system/x": 1.0}, epoch)
    if ending == "pruned":
        run.mark_pruned("too slow")
    run.close("FAILED" if ending == "failed" else "FINISHED")
    return run.run_id


def text(comparison: Comparison) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(comparison))
    console.file.close()
    return console.export_text()


def test_runs_are_compared_by_id_prefix_and_name() -> None:
    first = record("first", 1e-3, [0.5, 0.9, 0.8])
    second = record("second", 1e-2, [0.5, 0.85])
    record("again", 1e-2, [0.1])
    record("again", 1e-2, [0.1])
    found = compare_runs([first[:10], "second"])
    assert [row.run_id for row in found.rows] == [first, second]
    assert found.differing == {"optimizer.lr": ("0.001", "0.01")}
    assert found.metrics == ("val/accuracy", "val/loss")
    value = found.rows[0].metrics["val/accuracy"]
    assert (value.last, value.best, value.best_step) == (0.8, 0.9, 1)
    assert found.best == {"val/accuracy": second, "val/loss": second}
    shown = text(found)
    assert "★ 0.85" in shown
    assert "0.8 (0.9 @ 1)" in shown
    assert found.url.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")
    with pytest.raises(TrackingError, match="'again' is 2 runs"):
        compare_runs(["again"])
    with pytest.raises(TrackingError, match="did you mean 'second'"):
        compare_runs(["secnd"])


def test_a_sweep_is_sorted_by_its_objective_with_pruned_and_failed_last() -> None:
    tags = {"tlresearch.study": "rates", "tlresearch.metric": "val/loss", "tlresearch.direction": "minimize"}
    parent = open_run(CONFIG, experiment="e", name="rates", params={}, tags=tags)
    record("t0", 1e-1, [0.99], "pruned", parent.run_id)
    record("t1", 1e-2, [0.5], "", parent.run_id)
    record("t2", 1e-3, [0.9], "", parent.run_id)
    record("t3", 1e-4, [], "failed", parent.run_id)
    record("t4", 1e-5, [0.7], "", parent.run_id)
    parent.close()
    found = compare_sweep("rates")
    assert [row.name for row in found.rows] == ["t2", "t4", "t1", "t0", "t3"]
    assert [row.state for row in found.rows[3:]] == ["pruned", "failed"]
    assert found.metrics[0] == "val/loss"
    assert found.best["val/loss"] == found.rows[0].run_id
    shown = text(found)
    assert "pruned" in shown
    assert "failed" in shown
    short = compare_sweep("rates", top=2)
    assert (len(short.rows), short.left_out) == (2, 3)
    assert "3 more trials" in text(short)
    with pytest.raises(TrackingError, match="no sweep 'other'"):
        compare_sweep("other")


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("val/loss", "minimize"), ("val/accuracy", "maximize"), ("test/error", "minimize")],
)
def test_the_direction_follows_the_name(metric: str, direction: str) -> None:
    assert guess_direction(metric) == direction
