"""The schedule at work: effects on weights and buffers, not flags."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from tests.toy import STAGES, toy_backbone, toy_data
from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import OptimizerConfig
from tlresearch.data.base import Data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import FreezeScheduleCallback, FrozenWeightsMovedError
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau
from tlresearch.tasks.classification import ClassificationTask

Weights = dict[str, torch.Tensor]


def make_phase(depth: int, epochs: int = 1, **options: Any) -> Phase:
    stages = options.pop("stages", tuple(range(3 - depth, 3)))
    return Phase(options.pop("name", f"depth {depth}"), stages=stages, rates=(0.05,) * 4, epochs=epochs, **options)


def make_schedule(*phases: Phase) -> FreezeSchedule:
    return FreezeSchedule(phases, STAGES)


def make_task(optimizer: str = "sgd", *, backbone: StagedBackbone | None = None, **options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    config = OptimizerConfig(name=optimizer, lr=0.05, options={"momentum": 0.9} if optimizer == "sgd" else {})
    return ClassificationTask(
        backbone or toy_backbone(),
        classes=2,
        kind="binary",
        optimizer=partial(build_optimizer, config),
        changing=frozenset({0, 1, 2}),
        **options,
    )


def make_trainer(plan: FreezeScheduleCallback, *more: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=plan.schedule.max_epochs,
        callbacks=[plan, *more],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def train(
    task: ClassificationTask,
    schedule: FreezeSchedule,
    *more: L.Callback,
    data: Data | None = None,
    **options: Any,
) -> FreezeScheduleCallback:
    data = data or toy_data()
    plan = FreezeScheduleCallback(schedule, seed=0, **options)
    loaders = [
        make_loader(data.splits["train"], batch_size=16, shuffle=True, seed=0),
        make_loader(data.splits["val"], batch_size=32, shuffle=False, seed=0),
    ]
    make_trainer(plan, *more).fit(task, *loaders)
    return plan


def copy(module: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class Snapshots(L.Callback):
    """Copies of all weights after each epoch."""

    def __init__(self) -> None:
        self.taken: list[Weights] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.taken.append(copy(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.taken.append(copy(pl_module))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_frozen_parameters_and_statistics_are_bit_identical_and_the_others_move(depth: int) -> None:
    task = make_task()
    before = copy(task.backbone)
    train(task, make_schedule(make_phase(depth, epochs=2)))
    changed = {int(name.split(".")[1]) for name in moved(before, copy(task.backbone))}
    assert changed == set(range(3 - depth, 3))


def test_frozen_norm_train_lets_statistics_move_but_no_weight() -> None:
    task = make_task()
    before = copy(task.backbone)
    train(task, make_schedule(make_phase(0, frozen_norm="train")))
    names = moved(before, copy(task.backbone))
    assert names
    assert all("running" in name or "num_batches" in name for name in names)


def test_frozen_dropout_is_off() -> None:
    task = make_task()
    middle: Any = task.backbone.stages[1]
    middle[3].p = 0.999
    alive: list[float] = []
    middle.register_forward_hook(lambda _m, _i, out: alive.append(float((out != 0).float().mean())))
    train(task, make_schedule(make_phase(1), make_phase(2)))
    steps = len(alive) // 2
    assert min(alive[: steps - 1]) > 0.1
    assert min(alive[steps:]) < 0.1  # the check can fail: once the stage is trained, dropout is on


def test_gradual_unfreezing_moves_each_stage_from_its_phase_on() -> None:
    shots = Snapshots()
    train(make_task(), make_schedule(*(make_phase(d) for d in (0, 1, 2, 3))), shots)
    for epoch in range(4):
        names = {n for n in moved(shots.taken[epoch], shots.taken[epoch + 1]) if n.startswith("backbone")}
        assert {int(name.split(".")[2]) for name in names} == set(range(3 - epoch, 3))


def test_refreezing_holds_momentum_back() -> None:
    shots = Snapshots()
    train(make_task("adamw"), make_schedule(make_phase(3), make_phase(0, epochs=2)), shots)
    names = moved(shots.taken[1], shots.taken[3])
    assert names
    assert all(name.startswith(("head", "metrics", "losses")) for name in names)


def test_one_group_per_stage_and_decay_split_from_start_to_end() -> None:
    seen: list[list[tuple[str, int]]] = []

    class Groups(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            groups = trainer.optimizers[0].param_groups
            seen.append([(g["name"], len(g["params"])) for g in groups])

    task = make_task()
    train(task, make_schedule(make_phase(0), make_phase(2), make_phase(1)), Groups())
    assert seen[0] == seen[1] == seen[2]
    assert [name for name, _ in seen[0]] == [n for s in (*STAGES, "head") for n in (s, f"{s}/no_decay")]
    assert sum(count for _, count in seen[0]) == len(list(task.parameters()))


def test_patterns_train_what_matches_and_nothing_else() -> None:
    task = make_task()
    before = copy(task.backbone)
    train(task, make_schedule(make_phase(3, patterns=("@norm",))))
    names = {name for name in moved(before, copy(task.backbone)) if "running" not in name and "num_b" not in name}
    assert names == {f"stages.{s}.1.{kind}" for s in range(3) for kind in ("weight", "bias")}


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(Exception, match=r"no parameter matches 'layer9\.\*'"):
        train(make_task(), make_schedule(make_phase(3, patterns=("layer9.*",))))


def test_a_plateau_ends_the_phase_and_the_best_weights_are_handed_on() -> None:
    shots = Snapshots()
    until = Plateau("val/loss", patience=1, min_delta=100.0)  # only the first epoch ever improves
    schedule = make_schedule(make_phase(3, epochs=9, until=until, at_end="restore_best"), make_phase(0))
    plan = train(make_task(), schedule, shots)
    assert len(plan.history) == 3
    first = {n: t for n, t in shots.taken[1].items() if n.startswith("backbone")}
    last = {n: t for n, t in shots.taken[-1].items() if n.startswith("backbone")}
    assert not moved(first, last)


def test_early_stopping_ends_the_run_and_says_what_was_not_reached(caplog: pytest.LogCaptureFixture) -> None:
    schedule = make_schedule(make_phase(0, epochs=5), make_phase(3, name="never"))
    plan = train(make_task(), schedule, early_stopping=Plateau("val/loss", patience=2, min_delta=100.0))
    assert len(plan.history) == 3
    assert "never" in caplog.text


def test_something_that_moves_a_frozen_weight_stops_the_run() -> None:
    class Vandal(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            with torch.no_grad():
                pl_module.backbone.stages[0][0].weight[0, 0, 0, 0] += 1e-6

    with pytest.raises(FrozenWeightsMovedError, match=r"moved 1 frozen tensors: stem:0\.weight"):
        train(make_task(), make_schedule(make_phase(1)), Vandal())


def test_no_gradient_is_computed_in_front_of_the_boundary() -> None:
    seen: list[tuple[bool, bool]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            middle = pl_module.backbone(torch.randn(2, 1, 4, 4), stop=2)
            seen.append((middle.requires_grad, pl_module.backbone(middle, start=2).requires_grad))

    train(make_task(), make_schedule(make_phase(1)), Look())
    assert set(seen) == {(False, True)}


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_the_module_comes_back_with_the_modes_and_the_gradients_that_it_came_with() -> None:
    task = make_task()
    task.backbone.stages[0].eval()
    train(task, make_schedule(make_phase(1)))
    assert all(parameter.requires_grad for parameter in task.parameters())
    assert [stage.training for stage in task.backbone.stages] == [False, True, True]


def test_full_equals_plain_lightning_training() -> None:
    data = toy_data()
    ours = make_task()
    middle: Any = ours.backbone.stages[1]
    middle[3].p = 0.0
    train(ours, make_schedule(make_phase(3, epochs=2)), data=data)

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone = toy_backbone()
            self.head = nn.Linear(96, 2)
            self.backbone.stages[1][3].p = 0.0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.head(self.backbone(batch.inputs)), batch.targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, fused=True)

    plain = Plain()
    loader = make_loader(data.splits["train"], batch_size=16, shuffle=True, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(plain, loader)
    assert not moved(copy(plain.backbone), copy(ours.backbone))
    assert torch.equal(plain.head.weight, ours.head[1].weight)  # type: ignore[index, union-attr]


def test_linear_probe_equals_a_linear_layer_on_extracted_features() -> None:
    data = toy_data()
    task = make_task()
    start = copy(task.head)
    train(task, make_schedule(make_phase(0, epochs=2)), data=data)

    linear = nn.Linear(96, 2)
    linear.load_state_dict({"weight": start["1.weight"], "bias": start["1.bias"]})
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.05, momentum=0.9)
    backbone = toy_backbone().eval()
    loader: Any = make_loader(data.splits["train"], batch_size=16, shuffle=True, seed=0)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                features = backbone(batch.inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(features), batch.targets).backward()
            optimizer.step()
    torch.testing.assert_close(linear.weight, task.head[1].weight)  # type: ignore[index, union-attr]
