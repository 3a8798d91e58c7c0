"""Regression: loss, metrics and intervals in the number's own unit; and numbers through the one path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats

from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.base.errors import ConfigError, DataError
from tlresearch.config.load import load_text
from tlresearch.finetuning.callback import EpochReport
from tlresearch.run.fit import Role, RunResult
from tlresearch.studies.reproduction.verify import verify
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tasks.regression import NumbersHead, RegressionTask, intervals, measured
from tlresearch.tracking.model import load_model, load_predictor
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.comparison.compare import compare

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
QUIET = "{figures: false, model: false, system_metrics: false, weights: false}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images with their brightness (0 to 1000) and a second number, in tables and as arrays."""
    root = tmp_path_factory.mktemp("numbers")
    generator = np.random.default_rng(0)
    rows, pixels, numbers = [], [], []
    for index in range(96):
        level = int(generator.integers(40, 215))
        image = (level + generator.integers(-30, 30, (8, 8))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"{index}.png")
        split = ("train", "train", "val", "test")[index % 4]
        numbers.append((5000 + 4 * image.mean(), 200 - image.std()))
        pixels.append((split, image))
        rows.append(f"{index}.png,{numbers[-1][0]:.3f},{numbers[-1][1]:.3f},{split}")
    (root / "labels.csv").write_text("\n".join(["image,level,spread,split", *rows]))
    arrays = {}
    for split in ("train", "val", "test"):
        chosen = [row for row, (name, _) in enumerate(pixels) if name == split]
        arrays[f"{split}_images"] = np.stack([pixels[row][1] for row in chosen])
        arrays[f"{split}_labels"] = np.array([numbers[row] for row in chosen])
    np.savez(root / "numbers.npz", **arrays)
    return root


@pytest.fixture(scope="module", autouse=True)
def one_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store: making it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLRESEARCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def text(root: Path, **sections: str) -> str:
    base = {
        "name": "numbers",
        "data": f"{{name: image_csv, root: '{root}', targets: [level], split_column: split, batch_size: 16}}",
        "backbone": "{name: small_cnn, weights: null, options: {in_channels: 1, width: 4}}",
        "task": "{name: regression}",
        "freeze": "{schedule: full, epochs: 12}",
        "optimizer": "{name: adamw, lr: 0.03}",
        "trainer": "{precision: 32-true, memory_format: contiguous, checkpoint_seconds: 0}",
        "tracking": QUIET,
    }
    return "\n".join(f"{key}: {value}" for key, value in {**base, **sections}.items())


def run(root: Path, **sections: str) -> RunResult:
    return fit(load_text(text(root, **sections)))


def test_metrics_are_those_of_scipy() -> None:
    generator = np.random.default_rng(1)
    wanted = generator.integers(0, 6, 200).astype(float)  # with ties
    predicted = np.round(wanted + generator.normal(size=200), 1)
    found = measured(predicted[:, None], wanted[:, None], ["score"])
    error = predicted - wanted
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["r2"] == pytest.approx(1 - (error**2).mean() / wanted.var())
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, wanted)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, wanted)[0])


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(2)
    wanted = generator.normal(size=60)
    predicted = wanted + generator.normal(size=60)
    found = intervals(predicted[:, None], wanted[:, None], ["score"])
    drawn = [generator.integers(0, 60, 60) for _ in range(4000)]
    for name, statistic in (
        ("spearman", lambda rows: stats.spearmanr(predicted[rows], wanted[rows])[0]),
        ("rmse", lambda rows: np.sqrt(((predicted - wanted)[rows] ** 2).mean())),
    ):
        ends = np.quantile([statistic(rows) for rows in drawn], [0.025, 0.975])
        assert [found[f"{name}_low"], found[f"{name}_high"]] == pytest.approx(ends, abs=0.04)


def test_a_constant_prediction_has_no_correlation() -> None:
    found = measured(np.full((5, 1), 0.1), np.arange(5.0)[:, None], ["score"])
    assert np.isnan(found["pearson"])
    assert np.isnan(found["spearman"])
    assert found["r2"] < 0


def test_numbers_come_back_in_their_own_unit() -> None:
    head = NumbersHead(3, 2)
    targets = torch.tensor([[10.0, 0.001], [30.0, 0.003], [50.0, 0.002]])
    head.standardise(targets)
    standardised = head.standardised(targets)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(2))
    torch.testing.assert_close(head.in_own_unit(standardised[:, :, None])[:, :, 0], targets)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{loss: mse}", (0.5**2 + 2.0**2) / 2),
        ("{loss: mae}", (0.5 + 2.0) / 2),
        ("{loss: huber, delta: 1.0}", (0.5**2 / 2 + (2.0 - 0.5)) / 2),
    ],
)
def test_losses_are_in_standard_deviations(options: str, expected: float, folder: Path) -> None:
    task = built(folder, options)
    mean, std = task.numbers.mean, task.numbers.std
    targets = (torch.tensor([[0.0], [1.0]]) * std + mean).float()
    outputs = torch.tensor([[[0.5]], [[3.0]]])
    assert float(task.loss(outputs, targets)) == pytest.approx(expected, rel=1e-4)


def test_quantile_loss_is_least_at_the_quantiles(folder: Path) -> None:
    task = built(folder, "{loss: quantile, quantiles: [0.1, 0.5, 0.9]}")
    values = torch.linspace(-1, 1, 2001)
    targets = (values[:, None] * task.numbers.std + task.numbers.mean).float()

    def loss(levels: list[float]) -> float:
        return float(task.loss(torch.tensor(levels).expand(len(values), 1, 3), targets))

    best = loss([-0.8, 0.0, 0.8])
    assert all(best < loss(levels) for levels in ([-0.9, 0, 0.8], [-0.8, 0.1, 0.8], [-0.8, 0, 0.7], [-0.7, 0, 0.8]))


def built(folder: Path, options: str) -> RegressionTask:
    found = run(folder, task=f"{{name: regression, options: {options}}}", freeze="{schedule: full, epochs: 1}").task
    assert isinstance(found, RegressionTask)
    return found


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("{loss: l3}", "task.options.loss: must be mse, mae, huber, quantile but got 'l3'"),
        ("{loss: huber, delta: 0}", "task.options.delta"),
        ("{loss: quantile, quantiles: [0.9, 0.5, 0.1]}", "task.options.quantiles"),
        ("{loss: quantile, quantiles: [0.1, 0.9]}", "an odd number"),
        ("{los: mse}", "did you mean 'loss'"),
    ],
)
def test_wrong_options_are_named(options: str, complaint: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("[", r"\[")):
        built(folder, options)


def test_brightness_is_learnt_in_its_own_unit(folder: Path) -> None:
    result = run(folder, trainer="{select: best, early_stopping: {metric: val/mae, patience: 50}}")
    assert result.metrics["test/r2"] > 0.8
    assert 5 < result.metrics["test/mae"] < 150  # brightness is 4 times a grey level: hundreds, not shares
    assert result.metrics["test/spearman_low"] < result.metrics["test/spearman"] < result.metrics["test/spearman_high"]
    # Less is better, without being told: the selected epoch is that of the least error.
    best = min(range(len(result.history)), key=lambda epoch: result.history[epoch]["val/mae"])
    assert result.epoch == best


def test_several_numbers_have_metrics_each(folder: Path) -> None:
    both = f"{{name: npz, root: '{folder}/numbers.npz', targets: [level, spread], batch_size: 16}}"
    metrics = run(folder, data=both).metrics
    each = {name: metrics[f"test/mae_{name}"] for name in ("level", "spread")}
    assert each["level"] > 20 * each["spread"]  # own units
    assert metrics["test/mae"] < 2  # standard deviations
    assert metrics["test/r2"] == pytest.approx((metrics["test/r2_level"] + metrics["test/r2_spread"]) / 2)


def test_a_run_is_recorded_served_and_the_same_again(folder: Path) -> None:
    sections = {
        "task": "{name: regression, options: {loss: quantile}}",
        "tracking": "{figures: true, model: true, system_metrics: false}",
        "freeze": "{schedule: full, epochs: 3}",
    }
    result = run(folder, **sections)
    store = connect()
    tags = store.client.get_run(result.run_id).data.tags
    assert tags["tlresearch.monitor"] == "val/mae"
    assert json.loads(tags["tlresearch.directions"])["mae"] == "min"
    figures = {item.path for item in store.client.list_artifacts(result.run_id, "figures")}
    assert {"figures/predicted_against_true.png", "figures/residuals.png"} <= figures
    items = Runs(store).get(result.run_id).items
    assert items is not None
    assert items.measure == "error"
    assert np.mean([item.score for item in items.items]) == pytest.approx(result.metrics["test/mae"], rel=1e-4)

    model = Runs(store).get(result.run_id).model_id
    answers = load_model(store, model).predict(pd.DataFrame({"image": [str(folder / "3.png"), str(folder / "7.png")]}))
    assert list(answers.columns) == ["level", "low(level)", "high(level)"]
    assert all(answers["low(level)"] <= answers["level"])
    assert f"{answers['level'][0]:.6g}" == items.items[0].prediction
    assert "level" in load_predictor(store, model).shown(answers.iloc[0].to_dict()).prediction
    again = run(folder, **sections)
    assert again.metrics == result.metrics


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("old", r"labels.csv, line 3, column 'level': 'old' is no number"),
        ("", r"line 3, column 'level': nothing stands there"),
        ("inf", r"line 3, column 'level': 'inf' is not finite"),
        ("'3,5'", r"is no number"),
        ("1e39", r"line 3, column 'level': '1e39' is too large for float32; choose another unit"),
    ],
)
def test_bad_numbers_are_named_and_can_be_skipped(value: str, complaint: str, folder: Path, tmp_path: Path) -> None:
    root = changed(folder, tmp_path, value)
    with pytest.raises(DataError, match=complaint):
        run(root, freeze="{schedule: full, epochs: 1}")
    data = f"{{name: image_csv, root: '{root}', targets: [level], on_error: skip, split_column: split}}"
    result = run(root, freeze="{schedule: full, epochs: 1}", data=data)
    skipped = connect().client.list_artifacts(result.run_id, "data")
    assert any(item.path == "data/skipped.json" for item in skipped)


def changed(folder: Path, root: Path, value: str) -> Path:
    """The images with a table whose second row has another number."""
    for image in folder.glob("*.png"):
        (root / image.name).symlink_to(image)
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    table.loc[1, "level"] = value
    table.to_csv(root / "labels.csv", index=False)
    return root


def test_a_number_that_never_varies_is_refused(folder: Path, tmp_path: Path) -> None:
    root = changed(folder, tmp_path, "1")
    table = pd.read_csv(root / "labels.csv", dtype=str)
    table["level"] = "3.5"
    table.to_csv(root / "labels.csv", index=False)
    with pytest.raises(DataError, match=r"column 'level': the number is 3.5 in all 48 training samples"):
        run(root)


def test_numbers_that_float32_cannot_tell_apart_are_refused(folder: Path, tmp_path: Path) -> None:
    root = changed(folder, tmp_path, "1")
    table = pd.read_csv(root / "labels.csv", dtype=str)
    table["level"] = [str(1_700_000_000 + index) for index in range(len(table))]
    table.to_csv(root / "labels.csv", index=False)
    with pytest.raises(DataError, match=r"column 'level': numbers of about 1.7e\+09 .* subtract a constant"):
        run(root)


def test_targets_belong_to_sources_of_numbers() -> None:
    with pytest.raises(ConfigError, match=r"data.targets: is only read by image_csv, npz"):
        load_text("data: {name: digits, targets: [age]}")


def test_labels_are_refused_by_regression() -> None:
    with pytest.raises(ConfigError, match="regression learns numbers targets"):
        fit(load_text("data: {name: digits}\nbackbone: {name: small_cnn, weights: null}\ntask: {name: regression}"))


def test_a_loss_and_a_metric_of_a_library_see_numbers(folder: Path) -> None:
    task = (
        "{name: regression, loss: {name: torch.nn.SmoothL1Loss, beta: 0.5}, metrics: [torchmetrics.MeanAbsoluteError]}"
    )
    result = run(folder, task=task, freeze="{schedule: full, epochs: 2}")
    assert result.metrics["test/mean_absolute_error"] == pytest.approx(result.metrics["test/mae"], rel=1e-4)
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]


class Stop:
    """Ends a run after its second epoch, as a killed process does."""

    def __call__(self, report: EpochReport) -> None:
        if report.epoch == 1:
            raise RuntimeError("stopped")


def test_an_interrupted_run_goes_on_as_the_unbroken_one(folder: Path) -> None:
    loaded = load_text(text(folder, freeze="{schedule: lp_ft, epochs: 4}", task="{name: regression, dropout: 0.2}"))
    whole = fit(loaded, role=Role("whole", repeats="whole", test=True))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(loaded, role=Role("broken", listener=Stop(), test=True))
    resumed = fit(loaded, role=Role("broken", test=True))
    assert resumed.history == whole.history
    assert resumed.metrics == whole.metrics


def test_a_sweep_minimises_the_error_without_being_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(text(folder, freeze="{schedule: full, epochs: 2}"))
    (tmp_path / "sweep.yaml").write_text(
        f"name: errors\nexperiment: {tmp_path}/base.yaml\ntrials: 3\nsampler: {{name: random}}\n"
        "space: {optimizer.lr: {low: 1.0e-4, high: 1.0e-1, log: true}}\nconfirm: {top: 2, seeds: 2}\n"
    )
    result = run_sweep(str(tmp_path / "sweep.yaml"))
    values = [trial.value for trial in result.trials if trial.value is not None]
    assert (result.objective, result.best_value) == ("val/mae", min(values))
    means = [group.metrics["val/mae"].mean for group in result.confirmed]
    assert means == sorted(means)
    compared = compare(sweep="errors")
    assert compared.directions["val/mae"] == "min"
    [groups] = {len([row for row in compared.rows if row.members])}
    assert groups == 2


def test_two_runs_are_compared_by_the_error_of_each_sample(folder: Path) -> None:
    better = run(folder)
    worse = run(folder, freeze="{schedule: linear_probe, epochs: 1}", name="worse")
    [test] = compare(better.run_id, worse.run_id).tests
    assert test.metric == "test error"
    assert test.test is not None
    assert test.test.difference == pytest.approx(better.metrics["test/mae"] - worse.metrics["test/mae"], rel=1e-3)


def test_a_recorded_run_is_verified(folder: Path) -> None:
    tracking = "{figures: false, model: true, system_metrics: false}"
    result = run(folder, tracking=tracking, freeze="{schedule: full, epochs: 2}")
    assert {check.state for check in verify(result.run_id).checks} <= {"ok"}
