"""What docs/extending.md promises: data, backbone and task of a user's own by dotted path, from outside the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig

EXAMPLES = REPOSITORY / "docs" / "examples"
MODULES = tuple(sorted(path.stem for path in EXAMPLES.glob("*.py")))
RUNS = tuple(sorted(path.name for path in EXAMPLES.glob("*.yaml") if path.with_suffix(".py").exists()))
pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
LEARNT = {"counting.yaml": ("test/exact", 0.6)}
"""Metric and what it has to reach, where it is not an accuracy of 0.8."""
QUICK = {"tracking.figures": False, "tracking.model": False, "tracking.system_metrics": False}


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all: making a store takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def outside(tmp_path: Path, one_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples in a folder of the user's own, importable as the guide says."""
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return folder


def test_every_example_is_tried() -> None:
    assert RUNS == ("counting.yaml", "focal.yaml", "pulses.yaml", "shapes.yaml", "two_conv.yaml")


@pytest.mark.parametrize("name", RUNS)
def test_an_example_learns(name: str, outside: Path) -> None:
    result = fit(name, QUICK)
    assert result.status == "finished"
    metric, bound = LEARNT.get(name, ("test/accuracy", 0.8))
    assert result.metrics[metric] > bound, result.metrics[metric]
    assert Path(sys.modules[Path(name).stem].__file__ or "").parent == outside


def test_an_experiment_of_parts_of_other_libraries_runs_as_the_page_shows_it(outside: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    block = page.partition("## What other libraries have")[2].partition("```yaml\n")[2].partition("```")[0]
    (outside / "page.yaml").write_text(block)
    result = fit("page.yaml", QUICK)
    assert "test/matthews_corr_coef" in result.metrics
    assert list(outside.glob("csv/**/metrics.csv"))


def test_all_three_together_on_the_command_line(outside: Path, tmp_path: Path) -> None:
    # From another folder: only PYTHONPATH leads to the modules.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = [
        "backbone.options={}",  # those of the backbone that is replaced
        "backbone={name: two_conv.two_conv, weights: null, options: {width: 4}}",
        "task={name: focal.Focal, options: {gamma: 1.0}}",
        "freeze.epochs=1",
        *(f"{key}={str(value).lower()}" for key, value in QUICK.items()),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tlresearch", "run", str(outside / "shapes.yaml"), *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(outside), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "shapes: finished, epoch 1 of 1" in done.stdout


@pytest.mark.usefixtures("outside")
def test_a_backbone_of_ones_own_starts_from_its_weights_file(tmp_path: Path) -> None:
    config = BackboneConfig(name="two_conv.two_conv", weights=None, options={"width": 4})
    before = build_backbone(config)
    assert before.weights.random_stages == ("first", "second")
    file = tmp_path / "two_conv.pth"
    torch.save(before.original_state_dict(), file)
    after = build_backbone(BackboneConfig(name=config.name, options={"width": 4, "file": str(file)}))
    assert after.weights.random_stages == ()
    assert len(after.weights.sha256) == 64
    for name, tensor in before.original_state_dict().items():
        assert torch.equal(after.original_state_dict()[name], tensor), name


@pytest.mark.usefixtures("outside")
def test_a_backbone_of_ones_own_is_passed_on_and_served_if_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from tlresearch.tracking.store import connect

    few = {"freeze.schedule": "linear_probe", "freeze.epochs": 1, "tracking.figures": False}
    source = fit("two_conv.yaml", few)
    target = fit("two_conv.yaml", {**few, **QUICK, "backbone.checkpoint": source.run_id, "data.classes": ["5", "6"]})
    # Nothing of the backbone was trained in either run: random weights travelled with the first one.
    for name, tensor in source.task.backbone.state_dict().items():
        assert torch.equal(target.task.backbone.state_dict()[name], tensor), name
    mlflow.set_tracking_uri(connect().uri)
    with pytest.raises(UserError, match=r"a stored model names two_conv\.two_conv, whose code would run"):
        mlflow.pyfunc.load_model(f"runs:/{source.run_id}/model")
    monkeypatch.setenv("TLRESEARCH_TRUSTED_LOADERS", "two_conv")
    served = mlflow.pyfunc.load_model(f"runs:/{source.run_id}/model")
    frame = served.predict(np.zeros((2, 8, 8, 1), dtype=np.uint8))
    assert list(frame.columns) == ["class", "probability", "p(0)", "p(1)", "p(2)", "p(3)"]


@pytest.mark.usefixtures("outside")
def test_a_task_of_ones_own_is_served_verified_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_TRUSTED_LOADERS", "counting")
    from tlresearch.run.recorded import load
    from tlresearch.studies.reproduction.verify import verify
    from tlresearch.understand.comparison.compare import compare

    few = {"freeze.epochs": 2, "tracking.system_metrics": False, "tracking.figures": False}
    result = fit("counting.yaml", few)
    worse = fit("counting.yaml", {**few, "name": "slow", "optimizer.lr": 1e-5})
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("blank.png")
    ((_, shown),) = load(result.run_id).predict(["blank.png"]).answers
    assert float(shown.prediction) < 10
    states = {check.name: check.state for check in verify(result.run_id).checks}
    assert states["model"] == "ok", states
    found = compare(result.run_id, worse.run_id)
    assert found.best["test/mean_error"] == result.run_id  # less of it is better, as the task says
    assert found.best["test/exact"] == result.run_id


@pytest.mark.usefixtures("outside")
def test_a_modality_of_ones_own_is_served_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_TRUSTED_LOADERS", "pulses")
    from tlresearch.export.shipping import export_run, forms_of
    from tlresearch.run.recorded import load
    from tlresearch.studies.reproduction.verify import verify

    result = fit("pulses.yaml", {"tracking.system_metrics": False})
    late = np.zeros(20, np.float32)
    late[17:20] = 10
    np.save("late.npy", late)
    ((_, shown),) = load(result.run_id).predict(["late.npy"]).answers
    assert shown.prediction == "late"
    states = {check.name: check.state for check in verify(result.run_id).checks}
    assert states["model"] == states["trained weights"] == "ok", states
    with pytest.raises(UserError, match="the preprocessing of a series cannot be part of a graph"):
        export_run(result.run_id, forms_of(["pt2"], [], []))
