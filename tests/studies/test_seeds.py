"""Seeds as a group: what varies, what is recorded on the parent, and what is not run twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.run import fit as experiment
from tlresearch.studies import seeds
from tlresearch.studies.seeds import fit_group
from tlresearch.tracking.records import GROUP, SEED, Record, Runs
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
TRAINER = "{precision: 32-true, memory_format: contiguous}"  # nothing to be timed first
SHORT = toy_text(freeze="{schedule: full, epochs: 1}", seeds="[0, 1]", trainer=TRAINER)


class Counted:
    """`fit` that counts its runs, and is interrupted in front of one of them."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.interrupt_at: int | None = None

    def __call__(self, loaded: Any, **arguments: Any) -> Any:
        if loaded.config.seed == self.interrupt_at:
            raise KeyboardInterrupt
        self.seeds.append(loaded.config.seed)
        return experiment.fit(loaded, **arguments)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(seeds, "fit", counted)
    return counted


def test_a_group_has_a_parent_with_summaries_and_a_run_per_seed(fits: Counted) -> None:
    result = fit_group(load_text(SHORT))
    store = connect()
    parent = store.client.get_run(result.run_id)
    nested = [run.stored for run in Runs(store).get(result.run_id).members]
    assert sorted(run.data.tags[SEED] for run in nested) == ["0", "1"]
    assert {run.info.status for run in [parent, *nested]} == {"FINISHED"}

    accuracies = [run.data.metrics["test/accuracy"] for run in nested]
    found = result.metrics["test/accuracy"]
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies, ddof=1))
    for part in ("mean", "std", "low", "high"):
        assert parent.data.metrics[f"{part}/test/accuracy"] == getattr(found, part)
    # The charts of MLflow group runs by param and count every run that has the metric: the parent must not.
    assert not set(parent.data.metrics) & set(nested[0].data.metrics)
    assert not set(parent.data.params) & set(nested[0].data.params)
    assert nested[0].data.metrics["val/loss"] != nested[1].data.metrics["val/loss"]
    # One split for all: the seed of the split is another.
    assert nested[0].data.tags["tlresearch.data"] == nested[1].data.tags["tlresearch.data"]


def test_each_run_is_what_the_same_seed_gives_alone(fits: Counted) -> None:
    result = fit_group(load_text(SHORT))
    alone = experiment.fit(load_text(SHORT, {"seed": 1, "seeds": []}))
    assert result.runs[1].metrics == {key: pytest.approx(value) for key, value in alone.metrics.items()}
    assert result.runs[1].history == alone.history


def test_the_split_varies_where_it_is_tied_to_the_seed(fits: Counted) -> None:
    text = toy_text(
        data="{name: digits, classes: ['0', '1'], labels_per_class: 8, split_seed: '${seed}'}",
        freeze="{schedule: full, epochs: 1}",
        trainer=TRAINER,
    )
    fit_group(load_text(text), [3, 4])
    data = {run.tags["tlresearch.data"] for run in Runs().search(f"tags.`{SEED}` LIKE '%'")}
    assert len(data) == 2


def test_an_interrupted_group_goes_on_and_a_finished_one_is_kept_or_run_anew(fits: Counted) -> None:
    fits.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        fit_group(load_text(SHORT))
    (before,) = (run for run in Runs().search(f"tags.`{GROUP}` LIKE '%'") if run.is_group)
    assert before.state == "killed"

    fits.interrupt_at = None
    result = fit_group(load_text(SHORT))
    assert fits.seeds == [0, 1]
    assert result.run_id == before.run_id
    assert len(Runs().get(result.run_id).members) == 2

    kept = fit_group(load_text(SHORT), again=False)
    assert (kept.run_id, kept.metrics) == (result.run_id, result.metrics)
    assert [run.run_id for run in kept.runs] == [run.run_id for run in result.runs]
    assert fits.seeds == [0, 1]

    fresh = fit_group(load_text(SHORT))
    assert fresh.run_id != result.run_id
    assert fits.seeds == [0, 1, 0, 1]


def test_a_group_stays_the_same_when_an_option_is_added_but_not_when_a_default_changes(
    fits: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing but what was chosen identifies it.
    assert seeds._chosen(load_text(SHORT).config)["freeze"] == {"schedule": "full", "epochs": 1}
    first = fit_group(load_text(SHORT), [0])
    text = Record.text

    def as_of_old(*place: Any) -> str:
        return "\n".join(line for line in str(text(*place)).splitlines() if "checkpoint_seconds" not in line)

    monkeypatch.setattr(Record, "text", as_of_old)
    assert fit_group(load_text(SHORT), [0], again=False).run_id == first.run_id
    assert fits.seeds == [0]

    def with_another_default(*place: Any) -> str:
        return str(text(*place)).replace("checkpoint_seconds: 5.0", "checkpoint_seconds: 7.0")

    monkeypatch.setattr(Record, "text", with_another_default)
    assert fit_group(load_text(SHORT), [0], again=False).run_id != first.run_id


DRIVER = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from tlresearch.studies import seeds
from tlresearch.config.load import load_text
from tlresearch.tasks.base import Task

steps, plain = [], Task.training_step

def counted(self, *batch):
    steps.append(0)
    if len(steps) == 11:  # of 6 a run: in the second epoch of the second seed
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *batch)

Task.training_step = counted
seeds.fit_group(load_text(sys.argv[1]))
"""


def test_a_killed_group_loses_and_doubles_nothing(tables: None) -> None:
    trainer = TRAINER.replace("}", ", threads: 1, checkpoint_seconds: 0}")
    text = toy_text(freeze="{schedule: full, epochs: 2}", seeds="[0, 1]", trainer=trainer)
    killed = subprocess.run([sys.executable, "-c", DRIVER, text], timeout=300)
    assert killed.returncode == -signal.SIGKILL

    result = fit_group(load_text(text))
    assert [run.state for run in Runs().search("")] == ["finished"] * 3
    whole = fit_group(load_text(text))  # the group has finished: it is run anew
    assert whole.run_id != result.run_id
    for one, other in zip(result.runs, whole.runs, strict=True):
        assert (one.tags[SEED], one.metrics, one.history) == (other.tags[SEED], other.metrics, other.history)


def test_no_two_processes_run_the_same_group(fits: Counted) -> None:
    held = seeds.fit

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(UserError, match="group 'experiment' is already running in another process"):
            fit_group(load_text(SHORT), [0])
        return held(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "fit", meanwhile)
        fit_group(load_text(SHORT), [0])
    assert fits.seeds == [0]
    assert len(Runs().search("")) == 2


def test_the_second_task_starts_from_the_run_with_the_same_seed(fits: Counted) -> None:
    source = fit_group(load_text(SHORT), name="source")
    text = toy_text(
        backbone="{name: small_cnn, checkpoint: 'latest:source', options: {in_channels: 1, width: 4}}",
        freeze="{schedule: linear_probe, epochs: 1}",
        trainer=TRAINER,
    )
    target = fit_group(load_text(text), [0, 1])
    store = connect()
    parents = [store.client.get_run(run.run_id).data.tags["tlresearch.parent_run"] for run in target.runs]
    assert parents == [run.run_id for run in source.runs]
    with pytest.raises(WeightsError, match="has no run with seed 2; it has 0, 1"):
        fit_group(load_text(text), [2])


def test_the_command_runs_the_group_and_shows_it(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    file = tmp_path / "grouped.yaml"
    file.write_text(SHORT)
    assert main(["run", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "grouped: 2 seeds (0, 1)" in shown
    assert "test/accuracy" in shown


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"seeds: must be different whole numbers from 0, but got \[0, 0\]"):
        load_text(toy_text(seeds="[0, 0]"))
