"""`tlresearch.sweep` over a function: recorded, pruned, tried again and compared as the trials of an experiment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import pytest
import torch
from mlflow.entities import Run
from optuna.trial import TrialState

import tlresearch as tl
from tests.finetuning.foreign import QUIET, STAGES, Photos, loaders, make_trainer
from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.load import load_sweep, load_text
from tlresearch.studies.sweeps.run import run
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.comparison.compare import compare

SPACE = {"lr": tl.log(1e-3, 1e-1), "unfreeze_depth": tl.depths(3)}
pytestmark = [
    *(pytest.mark.filterwarnings(rule) for rule in (*QUIET, *THIRD_PARTY)),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("tables"),
]


def square(trial: tl.Trial) -> float:
    """Reports three steps, and is pruned where it is asked to be."""
    for step in range(3):
        trial.report(trial["x"] ** 2 + 2 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(trial["x"] ** 2)


def runs_of(study: tl.SweepResult) -> list[Run]:
    return sorted(
        [run.stored for run in Runs(connect()).get(study.run_id).members],
        key=lambda run: int(run.data.tags["tlresearch.trial"]),
    )


def points(run: Run, metric: str) -> list[tuple[int, float]]:
    history = connect().client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def photos(trial: tl.Trial) -> float:
    depth, lr = trial["unfreeze_depth"], trial["lr"]
    plan = tl.FreezeSchedule("depth", unfreeze_depth=depth, stages=STAGES, head="classifier", lr=lr)
    trainer = make_trainer(None, [plan, tl.Track("photos", tags={"who": "me"}, weights=False)], max_epochs=2)
    trainer.fit(Photos(), *loaders())
    return float(trainer.callback_metrics["val_loss"])


def test_a_track_in_a_function_is_the_trials_run(capfd: pytest.CaptureFixture[str]) -> None:
    tried = [{"lr": 0.01, "unfreeze_depth": 3}, {"lr": 0.02, "unfreeze_depth": 1}]
    study = tl.sweep(photos, SPACE, trials=2, metric="val_loss", enqueue=tried)
    runs = runs_of(study)
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert runs[0].data.params["lr"] == "0.01"
    assert runs[0].data.params["freeze.unfreeze_depth"] == runs[0].data.params["unfreeze_depth"] == "3"
    assert runs[0].data.tags["who"] == "me"
    assert runs[0].data.tags["tlresearch.stages"] == ", ".join(STAGES)
    assert [step for step, _ in points(runs[0], "val_loss")] == [0, 1]
    assert [run.data.metrics["val_loss"] for run in runs] == [trial.value for trial in study.trials]
    assert points(runs[0], "lr/head") == [(0, 0.01), (1, 0.01)]
    client = connect().client
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 3
    compared = compare(sweep=study.name)
    assert compared.metrics[0] == "val_loss"
    assert {"lr", "unfreeze_depth"} <= compared.differing.keys()
    assert compared.rows[0].metrics["val_loss"].last == study.best_value == min(t.value or 9 for t in study.trials)
    assert "best trial" in str(study)
    source = client.download_artifacts(study.run_id, "objective.py")
    assert "def photos(trial" in Path(source).read_text()


THRESHOLD = {"name": "threshold", "options": {"upper": 2.5}}


def test_what_is_reported_prunes() -> None:
    space = {"x": tl.uniform(0, 4)}
    study = tl.sweep(square, space, trials=2, pruner=THRESHOLD, enqueue=[{"x": 0.5}, {"x": 3.0}])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    kept, pruned = runs_of(study)
    assert points(kept, "objective") == [(0, 2.25), (1, 1.25), (2, 0.25)]
    assert (pruned.info.status, pruned.info.run_name[:1]) == ("FINISHED", "✂")
    assert points(pruned, "objective") == [(0, 11.0)]


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_track_prunes_by_itself(scheduled: bool) -> None:
    def objective(trial: tl.Trial) -> float:
        plan = [tl.FreezeSchedule("full", stages=STAGES, head="classifier")] if scheduled else []
        trainer = make_trainer(None, [*plan, tl.Track("photos", weights=False)], max_epochs=2)
        trainer.fit(Photos(lambda module: torch.optim.SGD(module.parameters(), lr=trial["lr"])), *loaders())
        return float(trainer.callback_metrics["val_loss"])

    pruner = {"name": "threshold", "options": {"upper": 10.0}}
    points = [{"lr": 1e-3}, {"lr": 1e3}]
    study = tl.sweep(objective, {"lr": tl.log(1e-3, 1e3)}, trials=2, metric="val_loss", pruner=pruner, enqueue=points)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    kept, pruned = runs_of(study)
    assert (kept.info.status, pruned.info.status, pruned.info.run_name[:1]) == ("FINISHED", "FINISHED", "✂")


def test_a_fit_in_a_function_is_nested_in_the_trial_and_leaves_the_test_alone() -> None:
    loaded = load_text(toy_text(freeze="{schedule: full, epochs: 2}"))

    def objective(trial: tl.Trial) -> float:
        return tl.fit(loaded, {"optimizer.lr": trial["lr"]}).metrics["val/loss"]

    pruner = {"name": "threshold", "options": {"upper": 1e9}}
    study = tl.sweep(objective, {"lr": tl.log(1e-3, 1e-2)}, trials=1, metric="val/loss", pruner=pruner)
    (trial,) = runs_of(study)
    (inner,) = [run.stored for run in Runs(connect()).get(trial.info.run_id).members]
    assert inner.data.params["optimizer.lr"] == trial.data.params["lr"]
    assert not [name for name in inner.data.metrics if name.startswith("test/")]
    assert len(study.trials[0].intermediate_values) == 2


def test_a_trial_that_raises_has_failed_and_the_sweep_goes_on() -> None:
    def objective(trial: tl.Trial) -> float:
        if trial.number == 0:
            raise RuntimeError("too warm")
        return 1.0

    study = tl.sweep(objective, {"x": tl.uniform(0, 1)}, trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    failed = runs_of(study)[0]
    assert failed.info.status == "FAILED"
    text = Path(connect().client.download_artifacts(failed.info.run_id, "failure.txt")).read_text()
    assert "RuntimeError: too warm" in text


def test_an_interruption_stays_one_and_the_same_call_goes_on() -> None:
    class Stop(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if stops:
                stops.pop()
                raise KeyboardInterrupt

    def objective(trial: tl.Trial) -> float:
        trainer = make_trainer(None, [Stop(), tl.Track("photos", weights=False)], max_epochs=1)
        trainer.fit(Photos(), *loaders())
        return float(trainer.callback_metrics["val_loss"])

    stops = [True]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tl.sweep(objective, {"x": tl.uniform(0, 1)}, trials=1)
    assert signal.getsignal(signal.SIGINT) is before
    study = tl.sweep(objective, {"x": tl.uniform(0, 1)}, trials=1)
    (run,) = runs_of(study)  # the interrupted one went on
    assert run.info.status == "FINISHED"


def test_a_function_that_changed_is_another_study_and_not_one_of_the_same_name() -> None:
    space = {"x": tl.uniform(0, 1)}
    first = tl.sweep(lambda trial: 1.0, space, trials=1)
    assert tl.sweep(lambda trial: 2.0, space, trials=1).run_id != first.run_id
    tl.sweep(lambda trial: 1.0, space, trials=1, name="mine")
    with pytest.raises(UserError, match="has changed since its first trial; give the new sweep another name"):
        tl.sweep(lambda trial: 2.0, space, trials=1, name="mine")


@pytest.mark.parametrize(
    ("objective", "space", "options", "line"),
    [
        (square, {"x": tl.depths()}, {}, "space[x]: a function has no backbone to count stages of"),
        (square, {"x": tl.log(0, 1)}, {}, "space[x].low: must be above 0 on a logarithmic scale, but got 0"),
        (square, {}, {}, "space: is empty"),
        (square, {"x": tl.uniform(0, 1)}, {"sampler": "tpee"}, "sampler.name: 'tpee' is unknown (did you mean 'tpe'?)"),
        (square, {"x": tl.uniform(0, 1)}, {"trails": 3}, "trails: unknown key"),
        (lambda trial: None, {"x": tl.uniform(0, 1)}, {}, "test_function.<lambda>: must return the number"),
    ],
)
def test_bad_input_is_one_line(objective: Any, space: Any, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tl.sweep(objective, space, **{"trials": 1, **options})
    assert line in caught.value.problems[0]


def test_a_file_can_name_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = {"metric": "objective", "direction": "minimize"}
    values = {"name": "named", "function": f"{__name__}.square", "space": {"x": {"low": 0, "high": 1}}, "trials": 2}
    result = run(load_sweep({**values, "objective": objective}))
    assert len(result.trials) == 2
    with pytest.raises(ConfigError, match=r"function: 'no\.such' cannot be imported"):
        run(load_sweep({**values, "function": "no.such", "objective": objective}))
    with pytest.raises(ConfigError, match=r"objective\.metric: is needed"):
        load_sweep(values)


@pytest.mark.slow
def test_several_workers_call_a_function_of_a_script(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(
        "import os, tlresearch as tl\n"
        "def objective(trial):\n"
        "    return trial['x'] + 0 * os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    study = tl.sweep(objective, {'x': tl.uniform(0, 1)}, trials=4, workers=2)\n"
        "    print(len(study.trials), study.best_value == study.best['x'])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "True"]


KILLED = """
import json, os, signal, sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import tlresearch as tl
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.finetuning.foreign import Photos, STAGES, digest, loaders, make_trainer

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

def objective(trial):
    plan = tl.FreezeSchedule("lp_ft", stages=STAGES, head="classifier", lr=trial["lr"])
    keep = ModelCheckpoint(trial.folder, save_last=True)
    module = Photos()
    trainer = make_trainer(None, [plan, tl.Track("photos"), keep, Kill()], max_epochs=4)
    trainer.fit(module, *loaders(), ckpt_path="last", weights_only=True)
    print(json.dumps([trial["lr"], digest(module)]))
    return float(trainer.callback_metrics["val_loss"])

study = tl.sweep(objective, {"lr": tl.log(1e-3, 1e-1)}, metric="val_loss", trials=1)
print(study.run_id)
"""


def test_a_trial_that_was_killed_goes_on_in_its_run_and_ends_as_the_unbroken_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "search.py"
    script.write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))

    def call(step: int) -> tuple[int, list[str]]:
        done = subprocess.run([sys.executable, str(script), str(step)], capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode, done.stdout.split("\n")

    assert call(15)[0] == -signal.SIGKILL
    _, (resumed, study, _) = call(-1)
    (run,) = [run.stored for run in Runs(connect()).get(study).members]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(run, "val_loss")] == [0, 1, 2, 3]
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "other"))
    _, (unbroken, _, _) = call(-1)
    assert json.loads(resumed) == json.loads(unbroken)
