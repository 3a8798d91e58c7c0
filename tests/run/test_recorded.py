"""A recorded run is opened again: its numbers without torch, its data and networks as they were, its predictions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tlresearch as tl
from tests.recorded import Recorded
from tests.studies.reproduction.test_repeat import altered
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.config.load import load_text
from tlresearch.run.fit import fit
from tlresearch.tracking.records import Runs

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
NUMBERS = """
import sys
import tlresearch as tl

run = tl.load(sys.argv[1])
print(run.metrics["test/accuracy"], len(run.history), run.config.optimizer.lr, run.tags["tlresearch.weights"])
print(run.origin.computation["threads"], run.state, run.items.split, "torch" in sys.modules)
"""


def test_what_a_run_came_to_is_read_without_torch(recorded: Recorded) -> None:
    done = subprocess.run([sys.executable, "-c", NUMBERS, recorded.run[:8]], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    run = Runs().get(recorded.run)
    assert first == f"{run.values['selected/test/accuracy']} 3 0.05 weights.safetensors"
    assert second.split()[1:] == ["finished", "test", "False"]


def test_a_run_read_again_is_what_fit_gave(recorded: Recorded) -> None:
    quick = {"tracking.model": False, "tracking.weights": False, "freeze.epochs": 2}
    result = fit(load_text(recorded.text()), quick)
    run = tl.load(result.run_id)
    assert run.metrics == result.metrics
    assert run.history == result.history
    assert run.loaded.recorded == result.config
    assert tl.load(run) is not run  # opened anew


def test_data_and_networks_are_those_of_the_run(recorded: Recorded) -> None:
    run = tl.load(recorded.run[:8])
    assert (run.run_id, run.name) == (recorded.run, "base")
    assert run.data.classes == ("dark", "light")
    assert run.inputs == run.origin.inputs
    before, after = load_file(recorded.weights), load_file(recorded.artifact("weights/trained.safetensors"))
    assert all(torch.equal(before[name], tensor) for name, tensor in run.start.original_state_dict().items())
    trained = run.task.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in after.items())
    assert run.backbone is run.task.backbone is not run.start


def test_files_and_arrays_are_predicted_alike(recorded: Recorded) -> None:
    run = tl.load(recorded.run)
    file = recorded.folder / "images/test/light/0.png"
    pixels = np.asarray(Image.open(file))
    answers = run.predict([file, pixels, str(file.parent)])
    assert [source.name for source, _ in answers.answers][:2] == [str(file), "sample 1"]
    assert len(answers.rows) == 2 + 4
    assert answers.rows[0] == answers.rows[1] == answers.rows[2]
    assert set(answers.rows[0]) == {"class", "probability", "p(dark)", "p(light)"}
    assert "sample 1" in str(answers)


def test_a_run_shows_itself(recorded: Recorded) -> None:
    run = tl.load(recorded.run)
    shown = str(run)
    assert "base: finished" in shown
    assert f"{run.metrics['test/accuracy']:.4f}" in shown
    assert "<table" in run._repr_html_()
    assert "<table" in tl.compare(run, recorded.trial)._repr_html_()
    assert "end of the run" in str(tl.verify(run))
    assert "what became of the stages" in tl.inspect(run)._repr_html_()


def test_what_a_run_lacks_is_said_when_it_is_asked_for(recorded: Recorded) -> None:
    trial = tl.load(recorded.trial)
    assert trial.metrics == {}
    assert len(trial.history) == 2
    with pytest.raises(TrackingError, match="kept no weights, as trials do not"):
        _ = trial.task
    with pytest.raises(TrackingError, match="has no model: trials of a sweep"):
        trial.predict([recorded.image])
    with pytest.raises(UserError, match=r"run .* is no experiment, and a recorded run is repeated as it was"):
        tl.reproduce(trial, ["optimizer.lr=1"])
    with altered(recorded.weights):
        recorded.weights.unlink()
        run = tl.load(recorded.run)
        assert run.metrics
        assert run.config.backbone.weights == str(recorded.weights)
        with pytest.raises(UserError, match=r"weights\.safetensors"):
            _ = run.data
