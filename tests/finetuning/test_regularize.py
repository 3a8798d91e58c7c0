"""Regularisers by hand: L2-SP, the average of the weights, stochastic depth, dropout of the head."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.finetuning.test_callback import Snapshots, copy, make_phase, make_schedule, make_task, moved, train
from tests.toy import toy_backbone, toy_text
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.finetuning.regularize import L2SP, WeightAverage, set_stochastic_depth
from tlresearch.finetuning.schedule import Plateau
from tlresearch.run.fit import fit
from tlresearch.tasks.classification import ClassificationTask

NOLOAD = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning")


def test_l2_sp_is_half_the_squared_distance_of_what_is_trained() -> None:
    backbone = toy_backbone()
    penalty = L2SP(backbone, 0.5)
    assert penalty(backbone) == 0
    top: Any = backbone.stages[2]
    stem: Any = backbone.stages[0]
    with torch.no_grad():
        top[0].weight += 2.0  # 6 x 4 weights
        top[0].bias -= 1.0  # 6 weights
        stem[0].weight += 9.0
    stem.requires_grad_(False)
    value = penalty(backbone)
    assert float(value.detach()) == pytest.approx(0.5 * 0.5 * (24 * 4 + 6 * 1), rel=1e-6)
    value.backward()
    torch.testing.assert_close(top[0].weight.grad, torch.full((6, 4, 1, 1), 0.5 * 2.0))
    torch.testing.assert_close(top[0].bias.grad, torch.full((6,), 0.5 * -1.0))
    assert stem[0].weight.grad is None


def test_l2_sp_holds_weights_near_their_start_and_leaves_the_head_alone() -> None:
    distances, heads = [], []
    for strength in (0.0, 1.0, 10.0):
        task = make_task()
        start, head = copy(task.backbone), copy(task.head)
        task._penalty = L2SP(task.backbone, strength) if strength else None
        train(task, make_schedule(make_phase(3, epochs=3)))
        weights = dict(task.backbone.named_parameters())
        distances.append(sum(float((weight - start[name]).detach().square().sum()) for name, weight in weights.items()))
        heads.append(moved(head, copy(task.head)))
    assert distances[0] > 1.2 * distances[1] > 1.2 * distances[2]
    assert all(heads)


class Watch(L.Callback):
    """The trained weights after each step and what validation saw, in front of the average."""

    def __init__(self, task: ClassificationTask) -> None:
        self.steps: list[dict[str, Tensor]] = [self.take(task)]
        self.validated: list[dict[str, Tensor]] = []
        self.starts: list[dict[str, Tensor]] = []

    @staticmethod
    def take(task: Any) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in task.changing_state().items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(self.take(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(self.take(pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.starts.append(self.take(pl_module))


def by_hand(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    average = {name: tensor.double() for name, tensor in steps[0].items()}
    for number, weights in enumerate(steps[1:], start=1):
        keep = min(decay, (1 + number) / (10 + number))
        for name, tensor in weights.items():
            counts = not tensor.is_floating_point()
            average[name] = tensor.double() if counts else keep * average[name] + (1 - keep) * tensor.double()
    return average


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("select", [None, Plateau("val/loss", patience=1)], ids=["last", "best"])
def test_the_average_is_what_is_validated_selected_and_kept(select: Plateau | None) -> None:
    task = make_task()
    watch, average = Watch(task), WeightAverage(0.6, task.changing_state)
    plan = train(
        task, make_schedule(make_phase(3, epochs=3)), average, watch, select=select, weights=average.current
    )  # 4 steps and 1 validation batch an epoch
    for epoch in range(3):
        assert_near(watch.validated[epoch], by_hand(watch.steps[: 1 + 4 * (epoch + 1)], 0.6))
        assert not moved(watch.starts[epoch], watch.steps[4 * epoch])  # training goes on from the trained weights
    plan.restore_selected(task)
    chosen = 2 if plan.best is None else plan.best.epoch
    assert chosen is not None
    assert not moved(Watch.take(task), watch.validated[chosen])
    assert moved(Watch.take(task), watch.steps[4 * (chosen + 1)])


def test_accumulated_batches_are_no_step_of_the_average() -> None:
    task = make_task()
    watch, average = Watch(task), WeightAverage(0.6, task.changing_state)
    from tests.finetuning.test_callback import make_trainer
    from tests.toy import toy_data
    from tlresearch.data.loading import make_loader
    from tlresearch.finetuning.callback import FreezeScheduleCallback

    plan = FreezeScheduleCallback(make_schedule(make_phase(3)), seed=0, weights=average.current)
    trainer = make_trainer(plan, average, watch)
    trainer.accumulate_grad_batches = 2
    data = toy_data()
    loaders = [make_loader(data.splits[s], batch_size=16, shuffle=True, seed=0) for s in ("train", "val")]  # type: ignore[index]
    trainer.fit(task, *loaders)
    assert average.steps == 2
    assert_near(average.average, by_hand([watch.steps[0], watch.steps[2], watch.steps[4]], 0.6))


def test_what_is_frozen_again_is_validated_with_its_own_weights() -> None:
    task = make_task()
    watch, average = Watch(task), WeightAverage(0.9, task.changing_state)
    train(task, make_schedule(make_phase(3), make_phase(1, epochs=2)), average, watch, weights=average.current)
    frozen = {name for name in watch.steps[0] if name.startswith(("backbone.stages.0.", "backbone.stages.1."))}
    assert frozen
    for seen in watch.validated[1:]:
        assert not frozen & moved(seen, watch.steps[4])
    assert any(name in moved(watch.validated[2], watch.steps[-1]) for name in watch.steps[0] if "stages.2" in name)


@NOLOAD
def test_a_run_ends_with_the_average_it_was_validated_with() -> None:
    from tlresearch.data.build import build_data
    from tlresearch.data.loading import make_loader

    loaded = load_text(toy_text(regularize="{ema: 0.9}", freeze="{schedule: full, epochs: 2}"))
    result = fit(loaded)
    data = build_data(loaded.config.data, preprocessing=result.task.backbone.preprocessing, seed=0)
    batches = list(make_loader(data.splits["val"], batch_size=999, shuffle=False, seed=0))
    task = result.task.eval()
    with torch.no_grad():
        loss = float(task.loss(task(batches[0].inputs), batches[0].targets))
    assert loss == pytest.approx(result.metrics["val/loss"], rel=1e-5)


def test_stochastic_depth_rises_linearly_to_the_deepest_block() -> None:
    backbone = build_torchvision("convnext_tiny", weights=None)
    set_stochastic_depth(backbone, 0.36)
    rates = [layer.p for layer in backbone.modules() if isinstance(layer, StochasticDepth)]
    assert rates == pytest.approx([0.36 * (n + 1) / 18 for n in range(18)])


def test_stochastic_depth_is_on_in_trained_stages_and_off_in_frozen_ones() -> None:
    backbone = build_torchvision("convnext_tiny", weights=None)
    set_stochastic_depth(backbone, 0.9)
    with torch.no_grad():  # the branches begin next to nothing
        for name, weight in backbone.named_parameters():
            if name.endswith("layer_scale"):
                weight.fill_(1.0)
    from tlresearch.finetuning import param_groups
    from tlresearch.finetuning.parts import staged_parts
    from tlresearch.finetuning.schedule import Phase

    count = len(backbone.stages)
    head = nn.Linear(backbone.out_features, 2)
    x = torch.randn(2, 3, 32, 32)
    for stages, equal in ((), True), (tuple(range(count)), False):
        phase = Phase("p", stages=stages, rates=(0.1,) * (count + 1), epochs=1)
        parts = staged_parts(backbone, head)
        param_groups.apply_phase(phase, parts)
        param_groups.apply_modes(phase, parts)
        assert torch.equal(backbone(x), backbone(x)) is equal


def test_stochastic_depth_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"regularize\.stochastic_depth: this backbone has no stochastic depth"):
        set_stochastic_depth(toy_backbone(), 0.1)


def test_dropout_of_the_head_is_on_in_training_alone() -> None:
    task = make_task(dropout=0.5)
    shots = Snapshots()
    train(task, make_schedule(make_phase(0)), shots)
    features = torch.ones(64, 96)
    task.head.train()
    assert not torch.equal(task.head(features), task.head(features))
    task.head.eval()
    assert torch.equal(task.head(features), task.head(features))
    plain = make_task()
    train(plain, make_schedule(make_phase(0)))
    assert not torch.equal(plain.head[1].weight, task.head[1].weight)  # type: ignore[index, union-attr]
