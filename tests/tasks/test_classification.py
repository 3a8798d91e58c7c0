"""Classification: losses and metrics against hand-computed values, for every kind of target."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.toy import TRAINER, toy_backbone, toy_data, toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.config.schema import OptimizerConfig
from tlresearch.data.base import Batch
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.run.fit import fit
from tlresearch.tasks.classification import ClassificationTask, balanced_weights


def make(kind: str = "multiclass", classes: int = 3, **options: Any) -> ClassificationTask:
    optimizer = partial(build_optimizer, OptimizerConfig())
    return ClassificationTask(
        toy_backbone(),
        classes=classes,
        kind=kind,  # type: ignore[arg-type]
        optimizer=optimizer,
        changing=frozenset(),
        **options,
    )


def batch(targets: Tensor) -> Batch:
    return Batch(None, targets, torch.arange(len(targets)))


def test_metrics_of_a_split_by_hand() -> None:
    task = make()
    logits = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [5.0, 0, 0], [0, 0, 5.0]])
    targets = torch.tensor([0, 1, 1, 2])
    for part in (slice(0, 3), slice(3, 4)):  # a smaller last batch weighs less
        loss = task.loss(logits[part], targets[part])
        task.update_metrics("val", logits[part], batch(targets[part]), loss)
    found = task.compute_metrics("val")
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(logits, targets)), rel=1e-5)
    task.update_metrics("val", logits[:1], batch(targets[:1]), torch.tensor(0.0))
    assert task.compute_metrics("val")["accuracy"] == 1.0  # nothing is left of the epoch before


def test_a_class_without_a_sample_is_no_warning() -> None:
    task = make()
    task.update_metrics("val", torch.randn(2, 3), batch(torch.tensor([0, 1])), torch.tensor(1.0))
    assert "auroc" in task.compute_metrics("val")


def test_a_class_without_a_sample_does_not_count_in_auroc() -> None:
    task = make("multilabel", classes=2)
    targets = torch.tensor([[1.0, 0], [0, 0], [1, 0]])
    task.update_metrics("val", torch.tensor([[2.0, 1], [-1, 2], [1, 0]]), batch(targets), torch.tensor(1.0))
    assert task.compute_metrics("val")["auroc"] == 1.0  # not the mean of 1 and 0


def test_the_test_has_auroc_by_class_and_intervals() -> None:
    task = make(class_names=("red", "white cell", "rest"))
    logits, targets = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    logits[torch.arange(60), targets] += 1
    for split in ("val", "test"):
        task.update_metrics(split, logits, batch(targets), torch.tensor(1.0))
    val, test = task.compute_metrics("val"), task.compute_metrics("test")
    assert not any(name.startswith(("auroc_", "accuracy_")) for name in val)
    each = [test[f"auroc_of_{name}"] for name in ("red", "white_cell", "rest")]
    assert test["auroc"] == val["auroc"] == pytest.approx(sum(each) / 3)
    for name in ("auroc", "accuracy"):
        assert test[f"{name}_low"] < test[name] < test[f"{name}_high"]


def test_label_smoothing_is_for_training_only() -> None:
    task = make(label_smoothing=0.2)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    plain = functional.cross_entropy(logits, targets)
    assert not torch.isclose(task.train().loss(logits, targets), plain)
    assert torch.isclose(task.eval().loss(logits, targets), plain)


def test_balanced_weights_make_every_class_count_alike() -> None:
    targets = torch.tensor([0] * 6 + [1] * 2)
    weights = balanced_weights(targets, "binary", 2)
    assert weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    assert float((weights[targets] * (targets == 0)).sum()) == pytest.approx(float((weights[targets] * targets).sum()))
    several = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1]])
    assert balanced_weights(several, "multilabel", 2).tolist() == [3.0, 1.0]


def test_several_labels_are_independent() -> None:
    task = make("multilabel", classes=2, class_weights=torch.tensor([3.0, 1.0]))
    logits, targets = torch.tensor([[2.0, -2.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([3.0, 1.0]))
    assert torch.isclose(task.loss(logits, targets), expected)
    task.update_metrics("val", logits, batch(targets), expected)
    assert task.compute_metrics("val")["accuracy"] == pytest.approx(0.75)
    assert task.figures(replace(toy_data(), kind="multilabel")) == {}


def test_mixed_targets_are_learnt_as_shares() -> None:
    shares = torch.tensor([[0.7, 0.3, 0.0]])
    logits = torch.randn(1, 3)
    expected = -(shares * logits.log_softmax(1)).sum()
    assert torch.isclose(make().loss(logits, shares), expected)


def test_figures_show_the_wrong_ones() -> None:
    task, data = make("binary", classes=2), toy_data()
    split = data.splits["val"]
    logits = functional.one_hot(1 - split.targets, 2).float() * 9  # every answer is wrong
    task.update_metrics("val", logits, Batch(None, split.targets, torch.arange(len(split))), torch.tensor(1.0))
    assert set(task.figures(data)) == {"confusion_matrix.png", "wrong_samples.png"}


def test_a_parameter_in_no_group_is_an_error() -> None:
    task = make()
    task.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match="temperature would never be trained"):
        task.configure_optimizers()


@pytest.mark.usefixtures("tables")
def test_without_a_test_split_predictions_are_of_the_selected_epoch_not_of_the_last() -> None:
    text = toy_text(
        data="{name: digits, classes: ['0', '1'], labels_per_class: 24, batch_size: 16}",
        trainer=TRAINER.replace("}", ", select: best, monitor: val/loss, mode: max}"),  # the first epoch
        tracking="{figures: true, model: false, system_metrics: false}",
    )
    result = fit(load_text(text))
    assert result.epoch == 0
    (_, probabilities, targets) = (torch.cat(parts) for parts in zip(*result.task.predictions["val"], strict=True))  # type: ignore[arg-type]
    loss = float(functional.nll_loss(probabilities.log(), targets))
    assert loss == pytest.approx(result.history[0]["val/loss"], rel=1e-4)
    assert loss != pytest.approx(result.history[-1]["val/loss"], rel=1e-2)
    assert "test/loss" not in result.metrics
