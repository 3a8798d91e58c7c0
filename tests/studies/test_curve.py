"""Learning curves: what is run and what is not run again, from where on a schedule pays, and what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import UserError
from tlresearch.base.statistics import paired_test, summary
from tlresearch.cli import main
from tlresearch.run import fit as experiment
from tlresearch.show import markdown
from tlresearch.studies import seeds
from tlresearch.studies.curve import Curve, Payoff, Point, fit_curve, payoffs, remarks
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.usefixtures("tables"), *(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY)]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configs of the runs that are made."""
    made: list[Any] = []

    def fit(loaded: Any, **arguments: Any) -> Any:
        made.append(loaded.config)
        return experiment.fit(loaded, **arguments)

    monkeypatch.setattr(seeds, "fit", fit)
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    freeze = "{schedule: linear_probe, epochs: 1}"
    variants = "{slow: {freeze: {schedule: full}, optimizer: {lr: 0.001}}}"
    path.write_text(
        toy_text(
            freeze=freeze,
            tracking="{figures: false, model: false, weights: false, system_metrics: false}",
            variants=variants,
        )
    )
    return path


def test_the_command_runs_all_shows_the_curve_and_runs_nothing_twice(
    file: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["curve", str(file), "--labels", "2,4", "--schedules", "linear_probe,slow", "--seeds", "2"]
    assert main(words) == 0
    made = [(one.freeze.schedule, one.data.labels_per_class, one.seed, one.data.split_seed) for one in fits]
    # The most labels first, and other samples for each seed, the same for both schedules.
    assert made == [(s, n, seed, seed) for s in ("linear_probe", "full") for n in (4, 2) for seed in (0, 1)]
    assert [one.optimizer.lr for one in fits] == [0.05] * 4 + [0.001] * 4
    shown = capsys.readouterr().out
    assert "test/accuracy over labels per class, 2 seeds" in shown
    assert "slow: " in shown
    assert "no p-value can be below 0.5" in shown

    store = connect()
    assert main(words) == 0
    assert len(fits) == 8
    parent = capsys.readouterr().out.partition("MLflow run ")[2][:32]
    assert len(Runs(store).get(parent).members) == 4
    files = {item.path for item in store.client.list_artifacts(parent)}
    assert {"curve.json", "curve.md", "figures"} <= files
    history = store.client.get_metric_history(parent, "curve/slow/test/accuracy")
    assert sorted({point.step for point in history}) == [2, 4]

    part = fit_curve(file, [4], ["linear_probe", "slow"], seeds=2)  # another question about the same runs
    assert len(fits) == 8
    probe, slow = part.points
    assert probe.against is None
    assert slow.against is not None
    assert slow.against.difference == pytest.approx(slow.reached.mean - probe.reached.mean)


def test_mistakes_are_named_before_anything_trains(
    file: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["curve", str(file), "--labels", "1,x"]) == 2
    assert "--labels are whole numbers such as 1,2,5,10, but got '1,x'" in capsys.readouterr().err
    assert main(["curve", str(file), "--labels", "2,9999", "--schedules", "linear_probe", "--seeds", "1"]) == 2
    assert "data.labels_per_class=9999" in capsys.readouterr().err
    assert main(["curve", str(file), "--schedules", "linear_prob"]) == 2
    assert "did you mean 'linear_probe'" in capsys.readouterr().err
    with pytest.raises(UserError, match="--schedules names each schedule once"):
        fit_curve(file, [1], ["full", "full"])
    with pytest.raises(UserError, match="--seeds is a number of seeds from 1"):
        fit_curve(file, [1], ["full"], seeds=0)
    assert len(fits) == 1  # the run that found too few samples


def curve(gains: dict[int, list[float]]) -> Curve:
    """A curve whose second schedule gains so much over the first one, per number of labels and seed."""
    points = [Point("probe", labels, summary([0.5] * len(values)), None, None, "") for labels, values in gains.items()]
    for labels, values in gains.items():
        reached = [0.5 + value for value in values]
        against = paired_test(reached, [0.5] * len(values))
        points.append(Point("full", labels, summary(reached), summary([0.1]), against, ""))
    return Curve("toy", "test/accuracy", tuple(points), "", 1.0)


def test_a_schedule_pays_where_the_interval_of_the_gain_lies_above_zero() -> None:
    found = curve({1: [-0.2, -0.1, -0.1], 2: [0.1, -0.1, 0.2], 5: [0.1, 0.1, 0.2], 10: [0.1, -0.2, 0.2]})
    (payoff,) = payoffs(found)
    assert payoff.point is not None
    assert (payoff.point.labels, payoff.not_at) == (5, (10,))
    assert "full: better than probe from 5 per class on (+0.133, +0.100 to +0.200), but not with 10" in remarks(found)
    assert "★ +0.133 (+0.100 to +0.200)" in markdown.render(found.page)


def test_nothing_is_claimed_where_no_interval_does() -> None:
    found = curve({1: [-0.2, -0.1, -0.1], 2: [0.1, -0.1, 0.2]})
    assert payoffs(found) == [Payoff("full", None, ())]
    assert remarks(found)[0].startswith("full: nowhere better than probe")
