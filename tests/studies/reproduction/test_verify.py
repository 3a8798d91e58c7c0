"""A recorded run is checked without training: each kind of damage fails its own check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recorded import Recorded, scale
from tests.studies.reproduction.test_repeat import all_runs, altered
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.activations import splits
from tlresearch.cli import main
from tlresearch.show.terminal import plain_text
from tlresearch.studies.reproduction import verify as verifying
from tlresearch.studies.reproduction.verify import Verification, verify
from tlresearch.tracking.manifest import model_address
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
CHECKS = ["end of the run", "artifacts", "weights", "data", "predictions", "trained weights", "model"]


def failed(verification: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in verification.checks if check.state == "failed"}


@contextlib.contextmanager
def moved(path: Path) -> Iterator[None]:
    """Takes a file or folder away for a while."""
    elsewhere = path.with_name(f"{path.name}.away")
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


def test_a_sound_run_passes_every_check_and_nothing_is_written(recorded: Recorded) -> None:
    runs = all_runs()
    found = verify(recorded.run[:8])
    assert [(check.name, check.state) for check in found.checks] == [(name, "ok") for name in CHECKS]
    assert found.exit_code == 0
    assert all_runs() == runs
    shown = plain_text(found.page, 100)
    assert "5 metrics of 8 samples" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_run_whose_frozen_stages_ran_in_bfloat16_is_measured_in_its_own_way(
    tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"freeze.schedule": "linear_probe", "freeze.unfreeze_depth": None, "freeze.epochs": 3}
    overrides |= {"backbone.checkpoint": None, "backbone.weights": None, "data.test_fraction": 0.0}
    result = fit("digits/transfer", {**overrides, "cache.precision": "bf16-mixed"})
    logged = result.metrics["val/loss"]
    found = verify(result.run_id)
    assert failed(found) == {}
    details = {check.name: check.detail for check in found.checks}
    assert f"val/loss {logged:.4f}, logged {logged:.4f}" in details["trained weights"]
    # Nothing but the precision is at work: float32 comes to something else, and the model answers in it.
    monkeypatch.setattr(verifying, "TOLERANCE", 1e-7)
    assert "trained weights" not in failed(verify(result.run_id))
    monkeypatch.setattr(splits, "AheadSplit", lambda split, forward, boundary: split)
    assert "trained weights" in failed(verify(result.run_id))


def test_a_trial_has_no_model_to_check(recorded: Recorded) -> None:
    found = verify(recorded.trial)
    states = {check.name: check.state for check in found.checks}
    assert states["model"] == states["trained weights"] == states["predictions"] == "not recorded"
    assert {states[name] for name in ("artifacts", "weights", "data")} == {"ok"}
    assert found.exit_code == 0


def test_a_damaged_or_lost_artifact_is_named(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    with altered(recorded.artifact("weights/trained.safetensors")) as file, moved(recorded.artifact("config.yaml")):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        assert main(["verify", recorded.run]) == 2  # without its config nothing more can be said
    assert "has no config.yaml" in capsys.readouterr().err
    with altered(recorded.artifact("weights/trained.safetensors")) as file, moved(recorded.artifact("data/files.json")):
        scale(file, -1.0)
        assert main(["verify", recorded.run]) == 1
        found = failed(verify(recorded.run))
    assert found.keys() == {"artifacts", "trained weights"}
    assert found["artifacts"] == "data/files.json is missing; weights/trained.safetensors has changed"
    assert "logged" in found["trained weights"]
    assert "has changed" in capsys.readouterr().out


def test_an_older_run_without_hashes_is_not_called_damaged(recorded: Recorded) -> None:
    with moved(recorded.artifact("artifacts.json")):
        found = verify(recorded.run)
    assert next(check.state for check in found.checks if check.name == "artifacts") == "not recorded"
    assert found.exit_code == 0


def test_changed_or_missing_data_and_weights_are_named(recorded: Recorded) -> None:
    other = recorded.image.with_name("4.png").read_bytes()
    with altered(recorded.image), altered(recorded.weights):
        recorded.image.write_bytes(other)
        scale(recorded.weights, 2.0)
        found = failed(verify(recorded.run))
    assert found["data"] == "1 sample (train/dark/3.png) changed"
    assert found["weights"].startswith("'weights.safetensors': SHA-256 ")
    assert "model" not in found  # the test images are what they were, and so is the model
    with moved(recorded.folder / "images"):
        found = failed(verify(recorded.run))
    assert str(recorded.folder / "images") in found["data"]
    assert found.keys() == {"data"}
    with moved(recorded.weights):
        assert str(recorded.weights) in failed(verify(recorded.run))["weights"]


def test_a_model_that_says_something_else_than_was_logged_fails(recorded: Recorded) -> None:
    model = Runs().get(recorded.run).model_id
    with altered(Path(model_address(connect(), model)) / "artifacts/model/weights.safetensors") as file:
        scale(file, -1.0)
        found = failed(verify(recorded.run))
        assert "logged" in found["model"]
        assert found["artifacts"] == "model/artifacts/model/weights.safetensors has changed"
        file.write_bytes(b"nothing")
        assert failed(verify(recorded.run))["model"].startswith("cannot be used: ")


def test_predictions_that_do_not_come_to_the_logged_accuracy_fail(recorded: Recorded) -> None:
    with altered(recorded.artifact("predictions/test.csv")) as file:
        lines = file.read_text().splitlines()
        assert lines[0] == "name,target,prediction,score"
        name, target, prediction, score = lines[1].split(",")
        lines[1] = f"{name},{target},{'light' if prediction == 'dark' else 'dark'},{score}"
        file.write_text("\n".join(lines))
        assert failed(verify(recorded.run)).keys() == {"artifacts", "predictions"}
