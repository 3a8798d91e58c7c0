"""Which trials of a study count: any number of workers that come, go and die find the same, and the total is exact."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tests.toy import toy_text
from tlresearch.base import liveness
from tlresearch.base.liveness import Identity, is_gone
from tlresearch.config.load import load_sweep
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.run import run as run_sweep

SPACE = {"optimizer.lr": SpaceConfig(low=1e-4, high=1e-1, log=True)}
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
ACTIONS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ask", "end", "fail", "kill", "prune"])), max_size=60)


class Crew:
    """Workers as Optuna sees them: each asks, and ends its trial or is killed; nobody coordinates them."""

    def __init__(self, total: int, wished: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        self.total = total
        self.busy: dict[int, optuna.Trial] = {}
        self.ran: list[float] = []
        for number in range(wished):
            self.study.enqueue_trial({"x": number / 10})

    def names(self, worker: int) -> Identity:
        return Identity("elsewhere", worker, 0.0, post=f"post {worker}")

    def act(self, worker: int, action: str) -> None:
        trial = self.busy.pop(worker, None)
        if trial is None:
            if action == "ask":  # also one that looked when there was still a trial to begin: it does not look here
                trial = self.study.ask()
                if studies.claim(self.study, trial, self.total, self.names(worker)):
                    trial.suggest_float("x", 0, 1)
                    self.busy[worker] = trial
                else:
                    self.study.tell(trial, state=TrialState.FAIL)
        elif action == "end":
            self.study.tell(trial, 1.0)
        elif action == "prune":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif action == "fail":
            trial.set_user_attr(studies.FAILURE, "of its own")
            self.study.tell(trial, state=TrialState.FAIL)
        elif action == "kill":  # the process that takes its place sees to the trial
            again = Identity("elsewhere", worker + 100, 1.0, post=f"post {worker}")
            studies.give_back(self.study, again)
        else:
            self.busy[worker] = trial

    def finish(self) -> None:
        for worker in list(self.busy):
            self.act(worker, "end")
        for _ in range(200):
            studies.give_back(self.study, Identity.own())
            now = studies.standing(self.study.get_trials(deepcopy=False), self.total)
            if not now.open and not now.running:
                return
            self.act(0, "ask")
            self.act(0, "end")
        raise AssertionError("it never ends")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(actions=ACTIONS, total=st.integers(1, 6), wished=st.integers(0, 3))
def test_whoever_comes_goes_and_dies_the_total_is_met_exactly(
    actions: list[tuple[int, str]], total: int, wished: int
) -> None:
    crew = Crew(total, wished)
    for worker, action in actions:
        crew.act(worker, action)
    crew.finish()
    assert len(studies.ended(crew.study)) == total
    values = [trial.params["x"] for trial in studies.ended(crew.study)]
    for number in range(min(wished, total)):
        assert number / 10 in values  # a point that the sweep names is not lost with the worker that tried it
    tried = [trial.user_attrs.get(studies.RETRY_OF) for trial in studies.ended(crew.study)]
    assert len(set(tried) - {None}) == len([one for one in tried if one is not None])  # none is tried again twice


def test_a_point_that_came_one_too_late_is_tried_when_the_total_is_raised() -> None:
    crew = Crew(total=1, wished=2)
    crew.act(0, "ask")
    crew.act(1, "ask")
    crew.finish()
    assert [trial.params["x"] for trial in studies.ended(crew.study)] == [0.0]
    crew.total = 2
    crew.finish()
    assert [trial.params["x"] for trial in studies.ended(crew.study)] == [0.0, 0.1]


def test_a_trial_tried_again_has_the_same_values() -> None:
    crew = Crew(total=1, wished=0)
    crew.act(0, "ask")
    before = crew.busy[0].params["x"]
    crew.act(0, "kill")
    assert studies.given_back(crew.study) == [0]
    crew.finish()
    assert [trial.params["x"] for trial in studies.ended(crew.study)] == [before]


def test_two_workers_that_give_the_same_trial_back_have_it_tried_again_once() -> None:
    crew = Crew(total=2, wished=0)
    crew.act(0, "ask")
    lost = crew.busy[0].params
    crew.act(0, "kill")
    crew.study.enqueue_trial(lost, user_attrs={studies.RETRY_OF: 0})  # the other one looked at the same moment
    crew.act(1, "ask")
    crew.act(2, "ask")
    crew.finish()
    assert [trial.params == lost for trial in studies.ended(crew.study)].count(True) == 1
    assert len(studies.ended(crew.study)) == 2


def test_a_process_of_this_machine_is_known_to_be_gone() -> None:
    own = Identity.own()
    assert not is_gone(own.record())
    assert is_gone({**own.record(), "started": own.started - 60})  # its number was another process's
    assert is_gone({**own.record(), "pid": 2**22 + 1})
    assert not is_gone({**own.record(), "host": "another", "pid": 2**22 + 1})


def test_silence_of_another_machine_gives_its_trial_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a database on a server a worker is heard of; the beats themselves are tested with PostgreSQL."""
    study = studies.open_study(SweepConfig(name="s"), SPACE)
    trial = study.ask()
    monkeypatch.setattr(liveness, "_host", lambda: "another machine")
    assert studies.claim(study, trial, 1, Identity.own())
    monkeypatch.undo()
    assert studies.give_back(study, Identity.own()) == 0
    unnamed = study.ask()
    assert studies.give_back(study, Identity.own()) == 0
    monkeypatch.setattr(studies, "UNNAMED_SECONDS", 0.0)
    assert studies.give_back(study, Identity.own()) == 1
    assert study.get_trials(deepcopy=False)[unnamed.number].state == TrialState.FAIL


def test_deaths_are_counted_but_not_orderly_stops() -> None:
    crew = Crew(total=1, wished=0)
    crew.act(0, "ask")
    crew.act(0, "kill")
    crew.act(0, "ask")
    assert crew.busy[0].user_attrs[studies.DEATHS] == 1
    crew.busy[0].set_user_attr(studies.STOPPED, True)
    crew.study.tell(crew.busy.pop(0), state=TrialState.FAIL)
    studies.give_back(crew.study, Identity.own())
    crew.act(1, "ask")
    assert crew.busy[1].user_attrs[studies.DEATHS] == 1
    crew.act(1, "kill")
    crew.act(1, "ask")
    assert crew.busy[1].user_attrs[studies.DEATHS] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_trial_that_kills_every_process_is_failed_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text())
    (tmp_path / "s.yaml").write_text("experiment: toy.yaml\nspace: {optimizer.lr: {low: 0.01, high: 0.1}}\ntrials: 2\n")
    monkeypatch.chdir(tmp_path)
    config = load_sweep("s.yaml").config
    study = studies.open_study(config, SPACE)
    study.enqueue_trial({"optimizer.lr": 0.02}, user_attrs={studies.DEATHS: studies.MOST_DEATHS})
    result = run_sweep("s.yaml")
    failed, done = sorted(result.trials, key=lambda trial: trial.number)
    assert failed.user_attrs[studies.FAILURE] == "10 processes died while they ran it"
    assert failed.params == {}
    assert done.state == TrialState.COMPLETE
