"""A run is found by id, beginning or name, in the store that a command is told."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.base.errors import TrackingError
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import Store, StoreAwayError, connect


def runs(store: Store, *states: str, name: str = "probe") -> list[str]:
    """Ids of runs of one name that ended so."""
    ids = []
    for state in states:
        run = store.client.create_run(store.experiment_id("e"), run_name=name)
        store.client.set_terminated(run.info.run_id, state)
        ids.append(run.info.run_id)
    return ids


def test_the_only_one_of_a_name_that_has_finished_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    store = connect()
    _, finished, _ = runs(store, "FAILED", "FINISHED", "KILLED")
    assert Runs(store).find("probe").run_id == finished
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("'probe' is 3 runs: ")
    assert f"{finished[:8]} (probe, finished)" in said
    assert said.endswith("the one that has finished is meant")


@pytest.mark.parametrize("states", [("FINISHED", "FINISHED", "FAILED"), ("FAILED", "KILLED")])
def test_several_that_have_finished_are_told_apart_by_their_state(states: tuple[str, ...]) -> None:
    store = connect()
    runs(store, *states)
    with pytest.raises(
        TrackingError, match=rf"'probe' is {len(states)} runs: .*\(probe, failed\).*beginning of one id"
    ):
        Runs(store).find("probe")


def test_a_run_that_is_not_there_names_the_store_and_how_to_name_another() -> None:
    store = connect()
    for text in ("nothing", "0" * 32):
        with pytest.raises(TrackingError, match=r"there is no run .* in the MLflow store sqlite:.*--tracking-uri"):
            Runs(store).find(text)


def test_a_store_that_is_away_is_not_a_run_that_is_missing() -> None:
    store = connect("http://127.0.0.1:9", check=False)
    with pytest.raises(StoreAwayError, match="does not answer"):
        Runs(store).find("0" * 32)


def test_commands_find_a_run_in_the_store_of_its_config(
    empty_database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_database, tmp_path / "lab.db")
    uri = f"sqlite:///{tmp_path}/lab.db"
    tracking = f"{{uri: '{uri}', figures: false, model: false, system_metrics: false}}"
    result = fit(load_text(toy_text(name="lab", freeze="{schedule: linear_probe, epochs: 1}", tracking=tracking)))
    out = str(tmp_path / "page.html")
    for command in (["verify", "lab"], ["report", "lab", "--out", out], ["inspect", "lab"], ["reproduce", "lab"],
                    ["compare", "lab", "lab"]):  # fmt: skip
        assert main(command) == 2
        assert "--tracking-uri" in capsys.readouterr().err
        assert main([*command, "--tracking-uri", uri]) == 0, command
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert main(["inspect", "lab", f"tracking.uri={uri}"]) == 0
    assert main(["predict", result.run_id[:8], "x.png", "--tracking-uri", uri]) == 2
    assert "no run" not in capsys.readouterr().err
