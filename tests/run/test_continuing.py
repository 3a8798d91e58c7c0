"""More epochs for a finished run: it goes on where that ended, and is the run that had them from the start."""

from __future__ import annotations

import pytest
import torch

from tests.toy import toy_text
from tlresearch.base.errors import UserError
from tlresearch.config.courses import Constant, Cosine, Course, Step
from tlresearch.config.load import load_text
from tlresearch.finetuning.resume import RunFolder, read_folder
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau
from tlresearch.run.continuing import CONTINUES
from tlresearch.run.fit import RunResult, fit
from tlresearch.tracking.store import connect

pytestmark = pytest.mark.usefixtures("tables")
CONSTANT = "{name: constant}"
FULL = "{schedule: full, epochs: 2}"


def run(epochs: int | None = None, source: str | None = None, **sections: str) -> RunResult:
    """A run with ordinary pauses between checkpoints, so that only the one at the end is written."""
    trainer = "{precision: 32-true, memory_format: contiguous}"
    text = toy_text(**{"trainer": trainer, "scheduler": CONSTANT, "freeze": FULL, **sections})
    overrides = [*([f"freeze.epochs={epochs}"] if epochs else []), *([f"continue={source}"] if source else [])]
    return fit(load_text(text), overrides)


def same(one: RunResult, other: RunResult) -> None:
    """Both have the same weights and metrics in every epoch, bit for bit."""
    assert one.history == other.history
    assert one.metrics == other.metrics
    state = other.task.changing_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.task.changing_state().items())


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimizer": "{name: adamw, lr: 0.01, weight_decay: 0.1}", "scheduler": "{name: step, step_size: 1}"},
        {"regularize": "{ema: 0.9}", "data": "{name: digits, classes: ['0', '1'], augment: flip, batch_size: 64}"},
        {"trainer": "{precision: 32-true, memory_format: contiguous, select: best, monitor: val/loss}"},
        {"freeze": "{schedule: linear_probe, epochs: 2}", "scheduler": "{name: exponential, gamma: 0.5}"},
    ],
)
def test_it_is_the_run_that_had_the_epochs_from_the_start(
    sections: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    short = run(**sections)
    longer = run(4, short.run_id[:8], **sections)
    assert (
        f"goes on from run {short.run_id[:8]} behind its 2 epochs, as a run of 4 epochs from the start" in caplog.text
    )
    same(longer, run(4, **sections))
    client = connect().client
    assert client.get_run(longer.run_id).data.tags[CONTINUES] == short.run_id
    points = client.get_metric_history(longer.run_id, "val/loss")
    assert [point.step for point in points] == [0, 1, 2, 3]  # its curves are whole
    assert longer.run_id != short.run_id


def test_it_can_be_gone_on_with_again_and_by_name(caplog: pytest.LogCaptureFixture) -> None:
    first = run()
    second = fit(load_text(toy_text(scheduler=CONSTANT, freeze=FULL, name="second")), ["freeze.epochs=3", f"continue={first.run_id}"])  # fmt: skip # noqa: E501
    assert len(second.history) == 3
    third = run(5, "second")
    same(third, run(5))


def test_a_rate_that_depends_on_the_length_is_said_to_differ(caplog: pytest.LogCaptureFixture) -> None:
    cosine = {"scheduler": "{name: cosine}"}
    short = run(**cosine)
    longer = run(4, short.run_id, **cosine)
    assert "a run of 4 epochs from the start would have trained otherwise from epoch 1 on" in caplog.text
    assert longer.history[:2] == short.history
    assert len(longer.history) == 4


def test_without_being_asked_a_longer_run_begins_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    short = run()
    assert "begins anew" not in caplog.text
    longer = run(3)
    assert (
        f"run {short.run_id[:8]} is the same with 2 epochs: this one begins anew; continue={short.run_id[:8]} goes on"
        in caplog.text
    )
    assert CONTINUES not in connect().client.get_run(longer.run_id).data.tags


def test_what_cannot_be_gone_on_with_is_refused_with_the_cure() -> None:
    kept = run()
    for overrides, text in (
        (
            ["optimizer.lr=0.5", "freeze.epochs=3"],
            r"continue: optimizer.lr is 0.5 but was 0.05 in run .*backbone.check",
        ),
        (["freeze.epochs=2"], r"freeze.epochs: run .* has 2 epochs; to go on from it give more"),
    ):
        with pytest.raises(UserError, match=text):
            fit(load_text(toy_text(scheduler=CONSTANT, freeze=FULL, trainer="{precision: 32-true, memory_format: contiguous}")), [*overrides, f"continue={kept.run_id}"])  # fmt: skip # noqa: E501
    with pytest.raises(UserError, match="there is no run 'nothing'"):
        run(3, "nothing")
    without = run(tracking="{checkpoint: false, system_metrics: false, figures: false, model: false}")
    with pytest.raises(UserError, match=r"continue: run .* kept no state to go on from \(tracking.checkpoint"):
        run(3, without.run_id)
    with pytest.raises(UserError, match="continues: a group of seeds cannot go on from one run"):
        fit(load_text(toy_text(continues=kept.run_id, seeds="[0, 1]")))


def test_an_interrupted_run_of_the_name_is_said_to_stay_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    left = RunFolder("another config")
    left.write(run_id="0123456789abcdef", name="experiment")
    held = RunFolder("one that runs")
    held.write(run_id="f" * 16, name="experiment")
    assert left._lock is not None
    left._lock.release()
    run()
    said = [line for line in caplog.messages if "was interrupted" in line]
    assert len(said) == 1
    assert said[0].startswith("run 01234567 of this name was interrupted, and stays unfinished")
    assert read_folder(left.path)["run_id"] == "0123456789abcdef"


STEADY = Constant()


def phase(epochs: int, **about: object) -> Phase:
    return Phase("p", stages=(0,), rates=(0.1, 0.1), epochs=epochs, **about)  # type: ignore[arg-type]


def test_schedules_agree_where_neither_rates_nor_ends_depend_on_the_length() -> None:
    history = [{"val/loss": 1.0 / (epoch + 1)} for epoch in range(4)]

    def parts(one: list[Phase], other: list[Phase], course: Course = STEADY) -> int | None:
        names = ("a",)
        schedules = [FreezeSchedule(tuple(phases), names, course) for phases in (one, other)]
        return schedules[0].parts_with(schedules[1], history)

    assert parts([phase(4)], [phase(9)]) is None
    assert parts([phase(4)], [phase(4), phase(2, head=False)]) is None  # a phase behind them
    assert parts([phase(4)], [phase(9)], Step(step_size=2)) is None
    assert parts([phase(4)], [phase(9)], Cosine()) == 0
    assert parts([phase(2), phase(2)], [phase(3), phase(3)]) == 2  # the second begins later
    assert parts([phase(4, warmup_epochs=1.0)], [phase(9, warmup_epochs=1.0)]) is None
    until = Plateau("val/loss", 2)
    assert parts([phase(4, until=until)], [phase(9, until=until)]) is None
    best = {"until": until, "at_end": "restore_best"}
    assert parts([phase(4, **best)], [phase(9, **best)]) == 3  # its best weights were put back
