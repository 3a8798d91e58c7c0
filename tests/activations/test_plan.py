"""Frozen work is done once, and the result is that of the uncached run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.finetuning.test_callback import make_phase, make_schedule, make_task, make_trainer
from tests.toy import toy_backbone, toy_data
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.base import Batch, Data, Fingerprint, SampleKey, Split
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import FreezeScheduleCallback
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.modality.values import Value

THREE_PHASES = make_schedule(make_phase(0, 2), make_phase(2, 2), make_phase(1, 2))


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "cache", max_bytes=10**9)


def history(
    schedule: FreezeSchedule, store: ActivationStore, *, data: Data | None = None, **options: Any
) -> list[dict[str, float]]:
    data, task = data or toy_data(), make_task()
    prefix = FrozenPrefix(data, task.backbone, store, batch_size=16, **options)
    plan = FreezeScheduleCallback(schedule, seed=0, on_phase=prefix.enter)
    loaders = [
        make_loader(prefix.splits["train"], batch_size=16, shuffle=True, seed=0),
        make_loader(prefix.splits["val"], batch_size=32, shuffle=False, seed=0),
    ]
    make_trainer(plan).fit(task, *loaders)
    return plan.history


def close(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_cached_run_equals_the_uncached_one_over_three_phases(store: ActivationStore) -> None:
    cached, uncached = history(THREE_PHASES, store), history(THREE_PHASES, store, off="for comparison")
    close(cached, uncached)
    assert store.computed == 8  # two splits: their inputs and three boundaries


def test_a_second_run_computes_nothing(store: ActivationStore) -> None:
    schedule = make_schedule(make_phase(1, 2))
    first = history(schedule, store)
    again = ActivationStore(store.root, store.max_bytes)
    assert history(schedule, again) == first
    assert (again.computed, again.reused) == (0, 2)  # not even the inputs are looked at


def test_a_deeper_boundary_starts_from_the_stored_one(store: ActivationStore) -> None:
    history(make_schedule(make_phase(2)), store)
    task, data = make_task(), toy_data()
    ran: list[int] = []
    for number, stage in enumerate(task.backbone.stages):
        stage.register_forward_hook(lambda _m, inputs, _o, n=number: ran.append(n) if len(inputs[0]) > 1 else None)
    FrozenPrefix(data, task.backbone, store, batch_size=16).enter(make_phase(0))
    assert set(ran) == {1, 2}


def _another_weight(data: Data, backbone: Any) -> Data:
    with torch.no_grad():
        backbone.stages[0][0].weight[0, 0, 0, 0] += 1e-4
    return data


def _another_statistic(data: Data, backbone: Any) -> Data:
    backbone.stages[1][1].running_mean[0] += 1e-4
    return data


def _another_function(data: Data, backbone: Any) -> Data:
    backbone.stages[1][2] = torch.nn.Tanh()
    return data


CHANGES = {
    "one weight": _another_weight,
    "one statistic": _another_statistic,
    "one function": _another_function,
    "one image": lambda data, backbone: replace(data, fingerprint=Fingerprint("e" * 64)),
    "preprocessing": lambda data, backbone: replace(data, preprocessing=toy_backbone().preprocessing),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_foreign_entry_is_never_used(change: str, store: ActivationStore) -> None:
    data = toy_data()
    FrozenPrefix(data, toy_backbone(), store, batch_size=16).enter(make_phase(0))
    backbone = toy_backbone()
    prefix = FrozenPrefix(CHANGES[change](data, backbone), backbone, store, batch_size=16)
    prefix.enter(make_phase(0))
    assert prefix.passes == 2


def test_a_weight_behind_the_boundary_changes_nothing(store: ActivationStore) -> None:
    backbone = toy_backbone()
    FrozenPrefix(toy_data(), backbone, store, batch_size=16).enter(make_phase(1))
    with torch.no_grad():
        backbone.stages[2][0].weight += 1.0
    again = FrozenPrefix(toy_data(), backbone, store, batch_size=16)
    again.enter(make_phase(1))
    assert (again.passes, store.reused) == (0, 2)


def test_random_augmentation_leaves_training_at_raw_inputs(store: ActivationStore) -> None:
    prefix = FrozenPrefix(toy_data(noisy=True), toy_backbone(), store, batch_size=16)
    prefix.enter(make_phase(0))
    assert (prefix.splits["train"].boundary, prefix.splits["val"].boundary) == (0, 3)
    assert not prefix.splits["train"].activations


def test_mixed_batches_and_moving_statistics_start_at_raw_inputs(store: ActivationStore) -> None:
    mixed = FrozenPrefix(toy_data(), toy_backbone(), store, batch_size=16, mixes=True)
    mixed.enter(make_phase(0))
    assert (mixed.splits["train"].boundary, mixed.splits["val"].boundary) == (0, 3)
    moving = FrozenPrefix(toy_data(), toy_backbone(), store, batch_size=16)
    moving.enter(make_phase(0, frozen_norm="train"))
    assert moving.splits["train"].boundary == 0


def test_frozen_statistics_do_not_move_while_the_prefix_is_computed(store: ActivationStore) -> None:
    backbone = toy_backbone().train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    FrozenPrefix(toy_data(), backbone, store, batch_size=16).enter(make_phase(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(layer.training for layer in backbone.modules())


FAMILIES = [
    "resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0", "regnet_y_400mf",
    "shufflenet_v2_x0_5", "mnasnet0_5", "convnext_tiny", "swin_t",
]  # fmt: skip


class Photos(Split):
    """Eight random images; made in two steps, so that views of them can be kept."""

    targets = torch.arange(8) % 2
    names = tuple("abcdefgh")

    def __init__(self, *, noise: float = 0.0) -> None:
        self.images = torch.randint(0, 255, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
        self.noise = noise

    @property
    def load_key(self) -> str:
        return "64 pixels"

    @property
    def augment_key(self) -> str:
        return f"noise {self.noise}" if self.noise else ""

    def load(self, index: int) -> torch.Tensor:
        return self.images[index]

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        inputs = torch.stack([value / 255 - 0.5 for value in values if isinstance(value, torch.Tensor)])
        for row, key in enumerate(keys):
            generator = torch.Generator().manual_seed(key.index * 1009 + key.epoch)
            inputs[row] += self.noise * torch.randn(inputs[row].shape, generator=generator)
        indices = [key.index for key in keys]
        return Batch(inputs, self.targets[indices], torch.tensor(indices))

    def raw(self, index: int) -> Any:
        return self.images[index]


def trained(family: str, depth: int, store: ActivationStore, **options: Any) -> tuple[list[dict[str, float]], int]:
    """History and number of prefix passes of two epochs on eight images."""
    torch.manual_seed(0)
    task = make_task(backbone=build_backbone(BackboneConfig(name=f"torchvision/{family}", weights=None)))
    stages = len(task.backbone.stages)
    data = replace(toy_data(), splits={"train": Photos(noise=options.pop("noise", 0.0)), "val": Photos()})
    prefix = FrozenPrefix(data, task.backbone, store, batch_size=4, **options)
    phase = replace(make_phase(0), stages=tuple(range(stages - depth, stages)), rates=(0.01,) * (stages + 1), epochs=2)
    schedule = FreezeSchedule((phase,), task.backbone.stage_names)
    plan = FreezeScheduleCallback(schedule, seed=0, on_phase=prefix.enter)
    loaders = [
        make_loader(prefix.splits["train"], batch_size=4, shuffle=True, seed=0),
        make_loader(prefix.splits["val"], batch_size=8, shuffle=False, seed=0),
    ]
    make_trainer(plan).fit(task, *loaders)
    return plan.history, prefix.passes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_of_a_real_backbone_is_that_of_the_uncached_run(family: str, store: ActivationStore) -> None:
    cached, passes = trained(family, 1, store)
    uncached, none = trained(family, 1, store, off="for comparison")
    assert (passes, none) == (2, 0)
    close(cached, uncached)


def test_kept_views_are_those_that_are_drawn_without_the_store(store: ActivationStore) -> None:
    options = {"noise": 0.3, "views": 2}
    cached, passes = trained("squeezenet1_1", 1, store, **options)
    uncached, _ = trained("squeezenet1_1", 1, store, off="for comparison", **options)
    fresh, _ = trained("squeezenet1_1", 1, store, noise=0.3)
    assert passes == 3  # two views of the training samples, and the validation samples
    close(cached, uncached)
    assert fresh == uncached  # of two views in two epochs none is shown twice
    one_view, _ = trained("squeezenet1_1", 1, store, noise=0.3, views=1)
    assert one_view[0] == cached[0]
    assert one_view[1] != cached[1]


def test_another_augmentation_has_views_of_its_own(store: ActivationStore) -> None:
    trained("squeezenet1_1", 0, store, noise=0.3, views=1)
    _, passes = trained("squeezenet1_1", 0, store, noise=0.2, views=1)
    assert passes == 1
