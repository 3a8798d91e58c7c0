"""A killed run, started again by the same command, ends as the unbroken one: same run, same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.toy import TRAINER, toy_text
from tlresearch.tracking.store import connect

DRIVER = '''
import json, os, signal, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tlresearch.config.load import load_text
from tlresearch.run.fit import fit
from tlresearch.tasks.base import Task
import lightning.pytorch, mlflow.store.tracking.sqlalchemy_store  # once, for all children

text, home, kills = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])

def child(name, kill_at):
    """Forks before torch has threads; the child runs the experiment in its own home."""
    (home / name).mkdir(exist_ok=True)
    if not (home / name / "mlflow.db").exists():
        for file in (home / "template").glob("mlflow.db*"):  # its log holds the tables, as its process just exits
            shutil.copy(file, home / name / file.name)
    process = os.fork()
    if process == 0:
        os.environ["TLRESEARCH_HOME"] = str(home / name)
        steps, plain = 0, Task.training_step
        def counted(self, batch, batch_idx):
            nonlocal steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, batch, batch_idx)
        Task.training_step = counted
        if kill_at == "end":  # trained to the last epoch, but nothing of the result is recorded yet
            from tlresearch.run import results
            results.log_outcome = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        from tlresearch.tracking.store import connect
        result = fit(load_text(text))
        store = connect()
        import hashlib
        digest = hashlib.sha256()
        for key, tensor in sorted(result.task.changing_state().items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
        points = {}
        for key in store.client.get_run(result.run_id).data.metrics:
            if not key.startswith("system/"):
                points[key] = sorted((p.step, p.value) for p in store.client.get_metric_history(result.run_id, key))
        runs = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
        out = {"weights": digest.hexdigest(), "history": result.history, "points": points, "steps": steps,
               "runs": [r.info.status for r in runs]}
        (home / f"{name}.json").write_text(json.dumps(out, sort_keys=True))
        os._exit(0)
    return os.waitpid(process, 0)[1]

os.environ["TLRESEARCH_HOME"] = str(home / "template")
import shutil
if os.fork() == 0:  # tables are made once; each child gets a copy
    from tlresearch.tracking.store import connect
    connect()
    os._exit(0)
os.wait()

assert child("unbroken", -1) == 0
for kill in kills:
    name = f"killed-{kill}"
    assert child(name, kill) == signal.SIGKILL
    assert child(name, -1) == 0
'''

SCHEDULES = {
    "two phases, augmentation, best epoch, average": {
        "freeze": "{schedule: lp_ft, probe_epochs: 2, epochs: 4}",
        "optimizer": "{name: adamw, lr: 0.01, weight_decay: 0.01}",
        "data": "{name: digits, classes: ['0', '1'], labels_per_class: 24, test_fraction: 0.2, batch_size: 16, "
        "augment: flip, mixup: 0.2, sampling: balanced}",
        "task": "{name: classification, dropout: 0.3}",
        "trainer": TRAINER.replace("}", ", select: best, accumulate: 2, gradient_clip: 1.0}"),
        "regularize": "{ema: 0.9, l2_sp: 0.01}",
    },
    "plateau with best weights restored": {
        "freeze": "{schedule: phases, phases: [{unfreeze_depth: all, epochs: 3, at_end: restore_best, "
        "until: {patience: 1, min_delta: 100}}, {unfreeze_depth: 1, epochs: 2, rate: continue}]}",
        "task": "{name: classification, dropout: 0.3}",
    },
}
KILLS = dict(zip(SCHEDULES, ([2, "end"], [4, 11, "end"]), strict=True))


@pytest.mark.parametrize("case", SCHEDULES)
def test_killed_and_resumed_equals_unbroken(case: str, tmp_path: Path) -> None:
    # Of 3 steps an epoch: in the first epoch, at the start of the second, in later phases.
    kills = KILLS[case]
    text = toy_text(**SCHEDULES[case])
    subprocess.run([sys.executable, "-c", DRIVER, text, str(tmp_path), json.dumps(kills)], check=True, timeout=300)
    unbroken = json.loads((tmp_path / "unbroken.json").read_text())
    assert unbroken["runs"] == ["FINISHED"]
    for kill in kills:
        resumed = json.loads((tmp_path / f"killed-{kill}.json").read_text())
        assert resumed["weights"] == unbroken["weights"], kill
        assert resumed["history"] == unbroken["history"], kill
        assert resumed["points"] == unbroken["points"], kill
        assert resumed["runs"] == ["FINISHED"], kill
        assert resumed["steps"] < unbroken["steps"] or kill == 2  # it went on, it did not start anew
        assert kill != "end" or resumed["steps"] == 0


SWEEP = """
import os, signal, sys
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tasks.base import Task

if sys.argv[1] == "die":
    Task.training_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run_sweep("s.yaml")
"""


@pytest.mark.usefixtures("tables")
def test_a_trial_that_was_killed_before_its_first_checkpoint_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text())
    sweep = {"experiment": "toy.yaml", "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-1}}, "trials": 2}
    (tmp_path / "s.yaml").write_text(json.dumps(sweep))
    codes = [
        subprocess.run([sys.executable, "-c", SWEEP, how], cwd=tmp_path, timeout=120, capture_output=True).returncode
        for how in ("die", "live")
    ]
    assert codes == [-signal.SIGKILL, 0]
    client = connect().client
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`tlresearch.trial` != ''")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    tags, files = [set(run.data.tags) for run in runs], [_files(run) for run in runs]
    assert tags[0] == tags[1] >= {"tlresearch.data", "tlresearch.weights", "resolved.trainer.precision"}
    assert files[0] == files[1] >= {"config.yaml", "data/files.json", "provenance/environment.json"}


def _files(run: Run, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in connect().client.list_artifacts(run.info.run_id, folder):
        found |= _files(run, item.path) if item.is_dir else {item.path}
    return found
