"""Runs with further test sets: what they report, when, and that it is the same from the cache and when repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import DataError
from tlresearch.config.load import load_text
from tlresearch.run.fit import Role, fit
from tlresearch.run.shift.evaluate import RECORD
from tlresearch.run.training import gaps
from tlresearch.studies.reproduction.repeat import repeat_run
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.usefixtures("tables"), *(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY)]
SETS = "{same: {split: test}, rest: {split: all}, bad: {corruptions: {kinds: [gaussian_noise], severities: [1, 5]}}}"
NAMES = ("same", "rest", "bad_gaussian_noise_1", "bad_gaussian_noise_5")


def text(shift: str, schedule: str = "linear_probe", **more: str) -> str:
    own = "name: digits, classes: ['3', '8'], labels_per_class: 24, test_fraction: 0.2, batch_size: 16"
    return toy_text(data=f"{{{own}, shift: {shift}}}", freeze=f"{{schedule: {schedule}, epochs: 2}}", **more)


def test_a_run_reports_metrics_drop_and_distances_of_every_set(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from rich.console import Console

    figures = "{figures: true, model: false, weights: false, system_metrics: false}"
    result = fit(load_text(text(SETS, "full", tracking=figures)))
    told = [record.getMessage() for record in caplog.records if "training samples of the run" in record.getMessage()]
    assert len(told) == 1  # of the set that holds every sample
    assert told[0].startswith("data.shift[rest]: 48 of its ")
    metrics = result.metrics
    assert list(dict.fromkeys(key.split("/")[1] for key in metrics if key.startswith("shift/"))) == list(NAMES)
    # The test split under another name, whether its stages are run ahead or not.
    for key in ("accuracy", "loss", "calibration_error"):
        assert metrics[f"shift/same/{key}"] == pytest.approx(metrics[f"test/{key}"], abs=1e-6)
    assert metrics["shift/same/drop"] == 0
    assert metrics["shift/same/frechet"] == pytest.approx(0, abs=1e-6)
    for name in NAMES:
        drop = metrics["test/accuracy"] - metrics[f"shift/{name}/accuracy"]
        assert metrics[f"shift/{name}/drop"] == pytest.approx(drop)
        stages = [key for key in metrics if key.startswith(f"shift/{name}/stages/") and key.endswith("/proxy_a")]
        assert len(stages) == len(result.task.backbone.stages)
        assert metrics[stages[-1]] == metrics[f"shift/{name}/proxy_a"]
    weak, strong = (metrics[f"shift/bad_gaussian_noise_{severity}/mmd"] for severity in (1, 5))
    assert metrics["shift/same/mmd"] < weak < strong
    assert metrics["shift/bad_gaussian_noise_5/loss"] != metrics["shift/bad_gaussian_noise_1/loss"]

    store = connect()
    run = store.client.get_run(result.run_id)
    assert {key: run.data.metrics[key] for key in metrics if key.startswith(("shift/", "gap/"))} == {
        key: value for key, value in metrics.items() if key.startswith(("shift/", "gap/"))
    }
    record = json.loads(Path(store.client.download_artifacts(result.run_id, RECORD)).read_text())
    assert [(one["name"], one["severity"]) for one in record] == list(zip(NAMES, (0, 0, 1, 5), strict=True))
    assert len({one["fingerprint"] for one in record}) == len(NAMES)
    samples = [one["samples"] for one in record]
    assert samples[1] > samples[0] + 48  # the training samples too, and those of validation
    assert any(item.path == "figures/shift.png" for item in store.client.list_artifacts(result.run_id, "figures"))

    gap = metrics["train/accuracy"] - metrics["val/accuracy"]
    assert metrics["gap/accuracy"] == pytest.approx(gap)
    Console(width=140).print(result)
    shown = capsys.readouterr().out
    assert "train - val" in shown
    assert f"{gap:+.4f}" in shown
    assert "further test sets" in shown
    assert all(name in shown for name in NAMES)


def test_trials_do_not_look_at_the_sets_and_a_repetition_does() -> None:
    loaded = load_text(text("{rest: {split: all}}"))
    trial = fit(loaded, role=Role("trial"))
    assert not any(key.startswith(("shift/", "test/")) for key in trial.metrics)
    result = fit(loaded)
    repeated = repeat_run(result.run_id)
    assert repeated.verdict == "identical"
    assert {"shift/rest/accuracy", "shift/rest/mmd", "gap/loss"} <= {metric.name for metric in repeated.metrics}


def test_the_cache_changes_nothing_and_the_weights_of_the_last_phase_are_looked_at() -> None:
    probe = load_text(text("{rest: {split: all}}"))
    cached, again = fit(probe).metrics, fit(probe).metrics
    plain = fit(load_text(text("{rest: {split: all}}", cache="{enabled: false}"))).metrics
    tuned = fit(load_text(text("{rest: {split: all}}", schedule="full"))).metrics
    for key in (key for key in cached if key.startswith("shift/")):
        assert again[key] == cached[key]
        assert plain[key] == pytest.approx(cached[key], rel=1e-3, abs=1e-5), key
    assert tuned["shift/rest/frechet"] != cached["shift/rest/frechet"]


def test_classes_that_do_not_match_are_named_before_anything_trains() -> None:
    with pytest.raises(
        DataError, match=r"data\.shift\[other\]: its classes are not those of digits: it has no '8'; digits has no '5'"
    ):
        fit(load_text(text("{other: {classes: ['3', '5']}}")))
    with pytest.raises(DataError, match=r"data\.shift\[turned\]: .*they are in another order: 8, 3 and 3, 8"):
        fit(load_text(text("{turned: {classes: ['8', '3']}}")))


def test_without_a_test_split_the_drop_is_that_from_validation() -> None:
    contrast = "{noisy: {corruptions: {kinds: [contrast], severities: [3]}}}"
    data = f"{{name: digits, classes: ['3', '8'], labels_per_class: 8, shift: {contrast}}}"
    metrics = fit(load_text(toy_text(data=data, freeze="{schedule: linear_probe, epochs: 1}"))).metrics
    drop = metrics["val/accuracy"] - metrics["shift/noisy_contrast_3/accuracy"]
    assert metrics["shift/noisy_contrast_3/drop"] == pytest.approx(drop)
    with pytest.raises(DataError, match=r"data\.shift\[a\]\.split: there is no test split; it has train, val"):
        fit(load_text(toy_text(data="{name: digits, classes: ['3', '8'], shift: {a: {split: test}}}")))


def test_the_gap_is_of_metrics_that_both_splits_have() -> None:
    metrics = {"train/loss": 0.2, "train/accuracy": 0.9, "val/loss": 0.5, "val/auroc": 0.7, "test/loss": 0.4}
    assert gaps(metrics) == {"gap/loss": pytest.approx(-0.3)}
