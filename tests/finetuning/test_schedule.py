"""The schedule core: pure functions from history to position and rates."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlresearch.base.errors import ConfigError
from tlresearch.config.courses import Constant, Cosine, Course, Exponential, Linear, OneCycle, Step
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau

STAGES = ("stem", "middle", "top")


def phase(name: str = "p", depth: int = 0, epochs: int = 2, **options: object) -> Phase:
    stages = tuple(range(len(STAGES) - depth, len(STAGES)))
    return Phase(name, stages=stages, rates=(0.1, 0.2, 0.3, 1.0), epochs=epochs, **options)  # type: ignore[arg-type]


def schedule(*phases: Phase, course: Course | None = None) -> FreezeSchedule:
    return FreezeSchedule(phases, STAGES, course or Constant())


def losses(*values: float) -> list[dict[str, float]]:
    return [{"val/loss": value} for value in values]


def test_depth_counts_stages_from_the_head() -> None:
    assert [phase(depth=d).stages for d in (0, 1, 2, 3)] == [(), (2,), (1, 2), (0, 1, 2)]
    assert [phase(depth=d).boundary for d in (0, 1, 2, 3)] == [3, 2, 1, 0]
    assert [phase(depth=1).trains(group) for group in range(4)] == [False, False, True, True]


def test_phases_follow_one_another_by_epochs() -> None:
    plan = schedule(phase("a", 0, 2), phase("b", 3, 1))
    where = [plan.position([{}] * epoch) for epoch in range(5)]
    assert [here.phase for here in where] == [0, 0, 1, 2, 2]
    assert where[2].reason == "2 epochs"
    assert where[1].reason == ""
    assert where[3].starts == (0, 2, 3)


def test_a_plateau_ends_a_phase_after_its_patience() -> None:
    plan = schedule(phase(epochs=10, until=Plateau("val/loss", patience=2)), phase(epochs=1))
    assert plan.position(losses(3, 2, 2, 1.9)).phase == 0
    ended = plan.position(losses(3, 2, 2, 2))
    assert (ended.phase, ended.best_epoch, ended.starts) == (1, 1, (0, 4))
    assert "has not improved for 2 epochs" in ended.reason


def test_a_plateau_counts_small_gains_as_none() -> None:
    plan = schedule(phase(epochs=10, until=Plateau("val/loss", patience=2, min_delta=0.5)))
    assert plan.position(losses(3, 2.8, 2.6)).phase == 1
    assert plan.position(losses(3, 2.8, 2.4)).phase == 0


def test_a_plateau_of_a_rising_metric() -> None:
    plan = schedule(phase(epochs=10, until=Plateau("val/loss", patience=1, mode="max")))
    assert plan.position(losses(1, 2, 3)).phase == 0
    assert plan.position(losses(1, 2, 2)).phase == 1


def test_nan_never_improves() -> None:
    plan = schedule(phase(epochs=10, until=Plateau("val/loss", patience=2)))
    assert plan.position(losses(math.nan, math.nan)).phase == 1
    assert plan.position(losses(math.nan, 5.0)).phase == 0


def test_the_next_phase_forgets_the_best_of_the_one_before() -> None:
    until = Plateau("val/loss", patience=2)
    plan = schedule(phase("a", 0, 2, until=until), phase("b", 1, 9, until=until))
    assert plan.position(losses(1, 1, 5)).best_epoch == 2


def test_an_unknown_metric_names_the_known_ones() -> None:
    plan = schedule(phase(until=Plateau("val/acc", patience=1)))
    with pytest.raises(ConfigError, match="'val/acc' is not recorded; recorded: val/loss"):
        plan.position(losses(1))


def test_frozen_stages_have_rate_zero() -> None:
    plan = schedule(phase(depth=1))
    assert plan.rates(0, (0,), 0.0) == (0.0, 0.0, 0.3, 1.0)


@pytest.mark.parametrize(
    ("course", "values"),
    [
        (Constant(), [1, 1, 1]),
        (Linear(), [1, 0.5, 0]),
        (Cosine(), [1, 0.5, 0]),
        (Cosine(0.2), [1, 0.6, 0.2]),
        (Step(2, 0.1), [1, 0.01, 0.0001]),
        (OneCycle(rise=0.5, start_factor=0.1, end_factor=0.0), [0.1, 1, 0]),
        (Exponential(0.5), [1, 1 / 16, 1 / 256]),
    ],
)
def test_course_at_start_middle_and_end(course: Course, values: list[float]) -> None:
    assert [course.factor(epoch, 8) for epoch in (0, 4, 8)] == pytest.approx(values)


def test_step_falls_at_the_epochs_torch_falls_at() -> None:
    course = Step(7, 0.1)
    assert [course.factor(e, 25) for e in (6, 6.99, 7, 13, 14)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_rate_restarts_with_each_phase_unless_it_continues() -> None:
    cosine = Cosine()
    restarting = schedule(phase("a", 0, 4), phase("b", 1, 4), course=cosine)
    assert restarting.factor(1, (0, 4), 4.0) == pytest.approx(1.0)
    continuing = schedule(phase("a", 0, 4), phase("b", 1, 4, rate="continue"), course=cosine)
    assert continuing.factor(0, (0,), 3.999) == pytest.approx(0.5, abs=1e-3)
    assert continuing.factor(1, (0, 4), 4.0) == pytest.approx(0.5)
    assert continuing.factor(1, (0, 4), 8.0) == pytest.approx(0.0)


def test_warm_up_rises_linearly_and_the_course_starts_after_it() -> None:
    plan = schedule(phase(epochs=6, warmup_epochs=2.0), course=Linear())
    assert [plan.factor(0, (0,), epoch) for epoch in (0, 1, 2, 4, 6)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_a_schedule_must_train_something() -> None:
    with pytest.raises(ConfigError, match="trains nothing"):
        schedule(phase(head=False))


@st.composite
def schedules(draw: st.DrawFn) -> FreezeSchedule:
    phases = []
    for index in range(draw(st.integers(1, 5))):
        until = Plateau("val/loss", draw(st.integers(1, 3))) if draw(st.booleans()) else None
        phases.append(
            phase(
                f"p{index}",
                draw(st.integers(0, 3)),
                draw(st.integers(1, 5)),
                until=until,
                rate=draw(st.sampled_from(["restart", "continue"])),
                warmup_epochs=draw(st.sampled_from([0.0, 0.5, 1.0])),
            )
        )
    course = draw(st.sampled_from([Constant(), Cosine(), Linear(), Step()]))
    return schedule(*phases, course=course)


@settings(max_examples=150, deadline=None)
@given(schedules(), st.lists(st.floats(0, 5), min_size=25, max_size=25))
def test_any_schedule_moves_forward_one_phase_at_a_time_and_ends(plan: FreezeSchedule, values: list[float]) -> None:
    history = losses(*values)
    where = [plan.position(history[:n]) for n in range(len(history) + 1)]
    steps = [later.phase - earlier.phase for earlier, later in itertools.pairwise(where)]
    assert set(steps) <= {0, 1}
    assert where[plan.max_epochs].phase == len(plan.phases)
    for here in where[: plan.max_epochs]:
        assert list(here.starts) == sorted(here.starts)
        assert here.starts == where[-1].starts[: len(here.starts)]
        # What a resumed run computes from the stored history is what the unbroken run knew.
        assert here == plan.position(history[: here.epoch])


@settings(max_examples=150, deadline=None)
@given(schedules(), st.floats(0, 1, exclude_max=True))
def test_factors_stay_between_zero_and_one(plan: FreezeSchedule, part: float) -> None:
    for index, start in enumerate(plan.starts):
        factor = plan.factor(index, plan.starts, start + part * plan.phases[index].epochs)
        assert 0.0 <= factor <= 1.0 + 1e-9
