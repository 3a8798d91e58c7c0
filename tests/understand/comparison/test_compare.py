"""Comparing recorded runs: what differs, what is best, and what pruned and failed runs look like."""

from __future__ import annotations

import json

import pytest

from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import TrackingConfig
from tlresearch.show.terminal import plain_text
from tlresearch.tracking.items import Item, Items
from tlresearch.tracking.records import DIRECTIONS, GROUP, SEED, Runs
from tlresearch.tracking.run import open_run
from tlresearch.understand.comparison.compare import Comparison, compare

pytestmark = [
    pytest.mark.usefixtures("tables"),
    pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning"),
]
CONFIG = TrackingConfig(system_metrics=False)


def record(
    name: str,
    lr: float,
    accuracies: list[float],
    ending: str = "",
    parent: str | None = None,
    experiment: str = "e",
) -> str:
    params = {"optimizer.lr": lr, "seed": 0, "task.name": "classification"}
    run = open_run(CONFIG, experiment=experiment, name=name, params=params, tags={}, parent=parent)
    for epoch, accuracy in enumerate(accuracies):
        run.log_metrics({"val/accuracy": accuracy, "val/loss": 1 - accuracy, "system/x": 1.0}, epoch)
    if ending == "pruned":
        run.mark_pruned("too slow")
    run.close("FAILED" if ending == "failed" else "FINISHED")
    return run.run_id


def text(comparison: Comparison, width: int = 200) -> str:
    return plain_text(comparison.page, width)


def test_runs_are_compared_by_id_prefix_and_name() -> None:
    first = record("first", 1e-3, [0.5, 0.9, 0.8])
    second = record("second", 1e-2, [0.5, 0.85])
    record("again", 1e-2, [0.1])
    record("again", 1e-2, [0.1])
    found = compare(first[:10], "second")
    assert [row.run_id for row in found.rows] == [first, second]
    assert found.differing == {"optimizer.lr": ("0.001", "0.01")}
    assert found.metrics == ("val/accuracy", "val/loss")
    value = found.rows[0].metrics["val/accuracy"]
    assert (value.last, value.best, value.best_step) == (0.8, 0.9, 1)
    assert found.best == {"val/accuracy": second, "val/loss": second}
    shown = text(found)
    assert "★ 0.85" in shown
    assert "0.8 (0.9 @ 1)" in shown
    assert found.url.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")
    with pytest.raises(TrackingError, match="'again' is 2 runs"):
        compare("again")
    elsewhere = record("again", 1e-2, [0.1], experiment="other/place")
    assert [row.run_id for row in compare("other/place/again").rows] == [elsewhere]
    with pytest.raises(TrackingError, match="'e/again' is 2 runs"):
        compare("e/again")
    with pytest.raises(TrackingError, match="there is no run 'nowhere/again'"):
        compare("nowhere/again")
    with pytest.raises(TrackingError, match="did you mean 'second'"):
        compare("secnd")


def test_a_sweep_is_sorted_by_its_objective_with_pruned_and_failed_last() -> None:
    tags = {"tlresearch.study": "rates", "tlresearch.metric": "val/loss", "tlresearch.direction": "minimize"}
    parent = open_run(CONFIG, experiment="e", name="rates", params={}, tags=tags)
    record("t0", 1e-1, [0.99], "pruned", parent.run_id)
    record("t1", 1e-2, [0.5], "", parent.run_id)
    record("t2", 1e-3, [0.9], "", parent.run_id)
    record("t3", 1e-4, [], "failed", parent.run_id)
    record("t4", 1e-5, [0.7], "", parent.run_id)
    parent.close()
    found = compare(sweep="rates")
    assert [row.name for row in found.rows] == ["t2", "t4", "t1", "t0", "t3"]
    assert [row.state for row in found.rows[3:]] == ["pruned", "failed"]
    assert found.metrics[0] == "val/loss"
    assert found.best["val/loss"] == found.rows[0].run_id
    shown = text(found)
    assert "pruned" in shown
    assert "failed" in shown
    short = compare(sweep="rates", top=2)
    assert (len(short.rows), short.left_out) == (2, 3)
    assert "3 more trials" in text(short)
    with pytest.raises(TrackingError, match="no sweep 'other'"):
        compare(sweep="other")


def judged(name: str, value: float, **tags: str) -> str:
    metrics = {"val/answer_accuracy": value, "val/map_wer": value, "val/slips": value, "gap/answer_accuracy": value}
    with open_run(CONFIG, experiment="e", name=name, params={}, tags=tags) as run:
        run.log_metrics({**metrics, "shift/rain/drop": value}, 0)
    return run.run_id


def test_which_way_a_metric_is_better_is_what_the_runs_task_says() -> None:
    """`answer_accuracy` contains `wer`, which once made less of it the better."""
    said = {DIRECTIONS: json.dumps({"answer_accuracy": "max", "map_*": "max"})}
    low, high = judged("low", 0.2, **said), judged("high", 0.8, **said)
    found = compare(low, high)
    assert found.best == {"val/answer_accuracy": high, "val/map_wer": high, "shift/rain/drop": low}
    assert "gap/answer_accuracy" not in found.directions  # neither more nor less of it is better
    assert "val/slips" not in found.directions  # nobody said it
    assert "★ 0.8" in text(found)
    before = [judged(name, value) for name, value in (("lower", 0.2), ("higher", 0.8))]
    assert compare(*before).best == {"shift/rain/drop": before[0]}


def group(name: str, accuracies: dict[int, list[bool]], data: str = "d 1") -> str:
    """A group with a run per seed; each says which of its test samples are right."""
    parent = open_run(CONFIG, experiment="e", name=name, params={"group.seeds": "x"}, tags={GROUP: name})
    for seed, right in accuracies.items():
        record_items(f"seed {seed}", right, seed, data, {GROUP: name, SEED: str(seed)}, parent.run_id)
    parent.close()
    return parent.run_id


def record_items(
    name: str,
    right: list[bool],
    seed: int,
    data: str = "d 1",
    tags: dict[str, str] | None = None,
    parent: str | None = None,
) -> str:
    params = {"optimizer.lr": len(name), "seed": seed, "task.name": "classification"}
    tags = {"tlresearch.data": data, **(tags or {})}
    run = open_run(CONFIG, experiment="e", name=name, params=params, tags=tags, parent=parent)
    items = Items("test", tuple(Item(f"{n}.png", "a", "a" if yes else "b", 0.9) for n, yes in enumerate(right)))
    run.log_text(items.text(), items.path)
    accuracy = sum(right) / len(right)
    run.log_metrics({"test/accuracy": accuracy, "selected/test/accuracy": accuracy}, 0)
    run.log_metrics({"selected/val/loss": 1 - accuracy} if tags.get(GROUP) else {}, 0)
    run.close()
    return run.run_id


def test_two_runs_are_tested_on_the_samples_that_both_predicted() -> None:
    good, bad = [True] * 40, [True] * 28 + [False] * 12
    first, second = record_items("good", good, 0), record_items("bad", bad, 1, data="d 2")
    record_items("near", [True] * 39 + [False], 0)
    record_items("elsewhere", [True] * 7, 0, data="d 3")
    (paired,) = compare(second, first).tests
    assert (paired.first, paired.second, paired.over) == ("good", "bad", "40 test samples")
    assert paired.test is not None
    assert paired.test.difference == pytest.approx(0.3)
    assert paired.test.p_value == pytest.approx(2 * 0.5**12)  # McNemar: 12 samples for the one, none for the other
    assert not paired.within_noise
    near, elsewhere = (compare(first, name).tests[0] for name in ("near", "elsewhere"))
    assert near.within_noise
    assert elsewhere.test is None
    assert elsewhere.reason == "no predictions of the same samples, and other data"
    shown = text(compare(second, first))
    assert "more than noise" in shown
    assert "+0.3000" in shown
    assert "not tested: no predictions" in text(compare(first, "elsewhere"))


def test_groups_show_mean_and_interval_and_are_tested_over_samples_and_seeds() -> None:
    high = group("high", {1: [True] * 20, 2: [True] * 19 + [False], 3: [True] * 20})
    low = group("low", {1: [True] * 15 + [False] * 5, 2: [True] * 14 + [False] * 6, 3: [True] * 15 + [False] * 5})
    found = compare(high, low)
    assert found.metrics == ("test/accuracy", "val/loss")
    value = found.rows[0].metrics["test/accuracy"]
    assert value.over_seeds is not None
    assert value.last == pytest.approx(59 / 60)
    assert value.over_seeds.n == 3
    assert found.rows[0].params["seeds"] == "1 2 3"
    assert found.rows[0].seconds == sum(Runs().get(run_id).seconds for run_id in found.rows[0].members.values())
    assert found.differing == {}
    assert found.best["test/accuracy"] == high
    samples, seeds = found.tests
    assert (samples.over, seeds.over) == ("20 test samples x 3 seeds", "3 seeds")
    assert samples.test is not None
    assert samples.test.difference == pytest.approx(0.25)
    assert not samples.within_noise
    assert seeds.test is not None
    assert seeds.test.p_value == pytest.approx(0.25)
    assert seeds.within_noise  # three seeds cannot show more
    assert "from 3 seeds no p below 0.25 can come" in text(found)
    assert "0.983 ± 0.029 (0.950 to 1.000)" in text(found)


def test_many_runs_are_rows_and_fit_the_terminal() -> None:
    names = [record(f"run{number}", 10.0**-number, [0.1 * number]) for number in range(6)]
    found = compare(*names)
    lines = text(found, width=44).splitlines()
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("metrics: "))]
    assert max(map(len, table)) <= 44
    assert all(word in "".join(table) for word in ("accuracy", "lr", "val/loss", "duration", "1e-05", "★ 0.5"))
