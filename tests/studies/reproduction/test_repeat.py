"""A recorded run is repeated bit for bit; what has changed since is named, before training where it can be."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.recorded import Recorded, scale
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import UserError
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.show.terminal import plain_text
from tlresearch.studies.reproduction.repeat import Repetition, repeat_run
from tlresearch.tracking.manifest import read_manifest
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.comparison.agreement import agreements, overall

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


@contextlib.contextmanager
def altered(file: Path) -> Iterator[Path]:
    """Puts a file back afterwards."""
    before = file.read_bytes()
    try:
        yield file
    finally:
        file.write_bytes(before)


def run_of(run_id: str) -> Any:
    return connect().client.get_run(run_id)


def all_runs() -> set[str]:
    client = connect().client
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_id for run in client.search_runs(ids)}


def texts(repetition: Repetition, kind: str) -> str:
    return "; ".join(difference.text for difference in repetition.differences if difference.kind == kind)


def test_a_run_is_repeated_bit_for_bit_from_its_record_alone(recorded: Recorded) -> None:
    before = run_of(recorded.run)
    console = Console(file=io.StringIO(), width=100, record=True)
    found = repeat_run(recorded.run[:10], console=console)
    assert (found.verdict, found.exit_code) == ("identical", 0)
    assert {"train/loss", "val/auroc", "test/accuracy", "lr/head"} <= {metric.name for metric in found.metrics}
    assert next(metric for metric in found.metrics if metric.name == "val/loss").points == 3
    assert found.differences == ()
    assert found.not_recorded == ()
    assert "from its record alone" in console.export_text()
    shown = plain_text(found.page, 100)
    assert "base  identical" in shown
    assert "every epoch, bit for bit" in shown

    old, new = run_of(recorded.run), run_of(found.new)
    assert new.data.tags["tlresearch.reproduces"] == recorded.run
    assert new.data.tags["tlresearch.reproduction"] == "identical"
    assert found.new in old.data.tags["tlresearch.reproduced_by"]
    assert (old.info.status, old.info.end_time) == (before.info.status, before.info.end_time)
    stored = json.loads(recorded.artifact("reproduction.json", found.new).read_text())
    assert stored["verdict"] == "identical"
    assert "| val/loss | 3 | identical |" in recorded.artifact("reproduction.md", found.new).read_text()
    manifest = read_manifest(connect(), found.new)
    assert manifest is not None
    assert {"reproduction.json", "config.yaml", "predictions/test.csv"} <= set(manifest.files)


def test_an_altered_image_is_named_before_anything_trains(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = all_runs()
    with altered(recorded.image):
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(recorded.image)
        assert main(["reproduce", recorded.run]) == 2
        assert "data: 1 sample (train/dark/3.png) changed" in capsys.readouterr().err
        assert all_runs() == runs
        found = repeat_run(recorded.run, anyway=True)
    assert texts(found, "data") == "1 sample (train/dark/3.png) changed"
    assert (found.verdict, found.exit_code) == ("differs", 1)
    worst = next(metric for metric in found.metrics if metric.name == "train/loss")
    assert worst.verdict == "differs"
    assert worst.old != worst.new


def test_a_missing_image_is_named(recorded: Recorded) -> None:
    with altered(recorded.image):
        recorded.image.unlink()
        with pytest.raises(UserError, match=r"1 sample \(train/dark/3.png\) missing"):
            repeat_run(recorded.run)


def test_an_altered_weights_file_is_named(recorded: Recorded) -> None:
    with altered(recorded.weights):
        scale(recorded.weights, 1.5)
        with pytest.raises(UserError, match=r"weights: 'weights.safetensors': SHA-256 \w+ -> \w+"):
            repeat_run(recorded.run)
        found = repeat_run(recorded.run, anyway=True)
    assert "'weights.safetensors': SHA-256" in texts(found, "weights")
    assert texts(found, "data") == ""
    assert found.exit_code == 1


def test_weights_that_are_gone_are_named(recorded: Recorded) -> None:
    with altered(recorded.weights):
        recorded.weights.unlink()
        with pytest.raises(UserError, match=r"weights.safetensors"):
            repeat_run(recorded.run, anyway=True)


def test_a_changed_package_or_commit_is_named_though_the_numbers_are_the_same(recorded: Recorded) -> None:
    with (
        altered(recorded.artifact("provenance/environment.json")) as file,
        altered(recorded.artifact("provenance/computation.json")) as computation,
    ):
        content = json.loads(file.read_text())
        content["packages"]["torch"] = "1.0.0"
        content["hardware"]["processor"] = "Abacus"
        content["code"] = {"commit": "0" * 40, "branch": "main", "dirty": False, "untracked": []}
        file.write_text(json.dumps(content))
        computation.write_text(computation.read_text().replace('"device": "cpu"', '"device": "cuda"'))
        found = repeat_run(recorded.run)
    assert texts(found, "packages").startswith("torch 1.0.0 -> ")
    assert texts(found, "hardware").startswith("processor Abacus -> ")
    assert texts(found, "code").startswith("commit 000000000000 -> ")
    assert texts(found, "computation") == "device cuda -> cpu"
    assert found.verdict == "identical"


def test_a_number_that_is_not_reproduced_is_shown_with_its_epoch(recorded: Recorded) -> None:
    database = recorded.folder / "home" / "mlflow.db"
    change = "UPDATE metrics SET value = value + ? WHERE run_uuid = ? AND key = 'val/loss' AND step = 1"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(change, (0.5, recorded.run))
    try:
        found = repeat_run(recorded.run)
    finally:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(change, (-0.5, recorded.run))
    (worst,) = [metric for metric in found.metrics if metric.verdict != "identical"]
    assert (worst.name, worst.verdict, worst.step) == ("val/loss", "differs", 1)
    assert found.exit_code == 1


def test_a_pruned_trial_is_repeated_to_where_it_was_pruned_and_without_the_test_split(recorded: Recorded) -> None:
    found = repeat_run(recorded.trial)
    assert found.verdict == "identical"
    assert next(metric for metric in found.metrics if metric.name == "val/loss").points == 2
    new = run_of(found.new)
    assert not any(name.startswith("test/") for name in new.data.metrics)
    assert new.data.tags["tlresearch.state"] == "pruned"
    assert "tlresearch.study" not in new.data.tags


def test_what_was_chosen_for_the_machine_is_what_the_repetition_takes(recorded: Recorded) -> None:
    run = Runs().get(recorded.run)
    assert run.origin.computation is not None
    run.tags.update({"resolved.trainer.precision": "bf16-mixed", "resolved.cache.memory_format": "channels_last"})
    auto = {
        "trainer.precision": "auto",
        "cache.memory_format": "auto",
        "tracking.tags": {"mine": "1", "tlresearch.x": "2"},
    }
    run.loaded = load_text(recorded.text(), auto)
    config = run.as_it_was().config
    assert (config.trainer.precision, config.cache.memory_format) == ("bf16-mixed", "channels_last")
    assert config.trainer.threads == run.origin.computation["threads"]
    assert config.tracking.tags == {"mine": "1"}


def test_a_run_that_recorded_no_config_cannot_be_repeated(recorded: Recorded) -> None:
    client = connect().client
    run = client.create_run(client.search_experiments()[0].experiment_id, run_name="bare").info.run_id
    with pytest.raises(UserError, match="has not ended"):
        repeat_run(run)
    client.set_terminated(run)
    with pytest.raises(UserError, match=r"has no config.yaml: of a sweep or a group of seeds name one of its runs"):
        repeat_run(run)
    with pytest.raises(UserError, match="there is no run"):
        repeat_run("0123456789")


def test_agreement_of_two_histories() -> None:
    nan = float("nan")
    old = {"a": {0: 1.0, 1: 2.0}, "b": {0: nan}, "c": {0: 1.0}, "d": {0: 1.0, 1: 1.0}, "e": {0: 1.0}}
    new = {
        "a": {0: 1.0, 1: 2.0001},
        "b": {0: nan},
        "c": {0: 1.1},
        "d": {0: 1.0},
        "e": {0: 1.0, 1: 1.0},
        "new": {0: 1.0},
    }
    found = {part.name: part for part in agreements(old, new)}
    assert {name: part.verdict for name, part in found.items()} == {
        "a": "within tolerance",
        "b": "identical",
        "c": "differs",
        "d": "differs",
        "e": "differs",
    }
    assert (found["a"].step, found["d"].step, found["d"].new) == (1, 1, None)
    # A run that was killed has no more epochs to compare.
    assert {part.name: part.verdict for part in agreements({"e": old["e"]}, new, whole=False)} == {"e": "identical"}
    assert overall([found["a"], found["b"]]) == "within tolerance"
    assert overall([]) == "differs"
