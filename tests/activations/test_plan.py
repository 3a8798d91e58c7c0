"""Frozen work is done once, and the result is that of the uncached run."""

from __future__ import annotations

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
from tlresearch.data.base import Data, Fingerprint, SampleKey
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import FreezeScheduleCallback
from tlresearch.finetuning.schedule import FreezeSchedule

THREE_PHASES = make_schedule(make_phase(0, 2), make_phase(2, 2), make_phase(1, 2))


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "cache", max_bytes=10**9)


def history(
    schedule: FreezeSchedule, store: ActivationStore | None, *, data: Data | None = None, mixes: bool = False
) -> list[dict[str, float]]:
    data, task = data or toy_data(), make_task()
    prefix = FrozenPrefix(data, task.backbone, store, batch_size=16, mixes=mixes)
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
    cached, uncached = history(THREE_PHASES, store), history(THREE_PHASES, None)
    close(cached, uncached)
    assert store.computed == 6  # two splits, three boundaries


def test_a_second_run_computes_nothing(store: ActivationStore) -> None:
    schedule = make_schedule(make_phase(1, 2))
    first = history(schedule, store)
    again = ActivationStore(store.root, store.max_bytes)
    assert history(schedule, again) == first
    assert (again.computed, again.reused) == (0, 2)


def test_a_deeper_boundary_starts_from_the_stored_one(store: ActivationStore) -> None:
    history(make_schedule(make_phase(2)), store)
    task, data = make_task(), toy_data()
    ran: list[int] = []
    for number, stage in enumerate(task.backbone.stages):
        stage.register_forward_hook(lambda _m, inputs, _o, n=number: ran.append(n) if len(inputs[0]) > 1 else None)
    FrozenPrefix(data, task.backbone, store, batch_size=16, mixes=False).enter(make_phase(0))
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
    FrozenPrefix(data, toy_backbone(), store, batch_size=16, mixes=False).enter(make_phase(0))
    before = store.computed
    backbone = toy_backbone()
    FrozenPrefix(CHANGES[change](data, backbone), backbone, store, batch_size=16, mixes=False).enter(make_phase(0))
    assert store.computed == before + 2


def test_a_weight_behind_the_boundary_changes_nothing(store: ActivationStore) -> None:
    backbone = toy_backbone()
    FrozenPrefix(toy_data(), backbone, store, batch_size=16, mixes=False).enter(make_phase(1))
    with torch.no_grad():
        backbone.stages[2][0].weight += 1.0
    FrozenPrefix(toy_data(), backbone, store, batch_size=16, mixes=False).enter(make_phase(1))
    assert (store.computed, store.reused) == (2, 2)


def test_random_augmentation_leaves_training_at_raw_inputs(store: ActivationStore) -> None:
    prefix = FrozenPrefix(toy_data(noisy=True), toy_backbone(), store, batch_size=16, mixes=False)
    prefix.enter(make_phase(0))
    assert (prefix.splits["train"].boundary, prefix.splits["val"].boundary) == (0, 3)
    assert prefix.splits["train"].stored is None


def test_mixed_batches_and_moving_statistics_start_at_raw_inputs(store: ActivationStore) -> None:
    mixed = FrozenPrefix(toy_data(), toy_backbone(), store, batch_size=16, mixes=True)
    mixed.enter(make_phase(0))
    assert (mixed.splits["train"].boundary, mixed.splits["val"].boundary) == (0, 3)
    moving = FrozenPrefix(toy_data(), toy_backbone(), store, batch_size=16, mixes=False)
    moving.enter(make_phase(0, frozen_norm="train"))
    assert moving.splits["train"].boundary == 0


def test_frozen_statistics_do_not_move_while_the_prefix_is_computed(store: ActivationStore) -> None:
    backbone = toy_backbone().train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    FrozenPrefix(toy_data(), backbone, store, batch_size=16, mixes=False).enter(make_phase(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(layer.training for layer in backbone.modules())


FAMILIES = [
    "resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0", "regnet_y_400mf",
    "shufflenet_v2_x0_5", "mnasnet0_5", "convnext_tiny", "swin_t",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_boundary_of_a_real_backbone_gives_the_same_features(family: str, store: ActivationStore) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name=f"torchvision/{family}", weights=None)).eval()

    class Images:
        targets = torch.tensor([0, 1])
        names = ("a", "b")
        deterministic = True
        images = torch.randn(2, 3, 64, 64)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, torch.Tensor, int]:
            return self.images[key.index], self.targets[key.index], key.index

        def raw(self, index: int) -> Any:
            raise NotImplementedError

    data = replace(toy_data(), splits={"train": Images(), "val": Images()})
    prefix = FrozenPrefix(data, backbone, store, batch_size=2, mixes=False)
    stages = len(backbone.stage_names)
    with torch.no_grad():
        expected = backbone(Images.images)
        for depth in (stages, stages // 2, 0):
            rates = (0.1,) * (stages + 1)
            phase = replace(make_phase(0), stages=tuple(range(stages - depth, stages)), rates=rates)
            prefix.enter(phase)
            split = prefix.splits["train"]
            assert split.boundary == stages - depth
            batch = split.__getitems__([SampleKey(0, 0), SampleKey(1, 0)])
            torch.testing.assert_close(backbone(batch.inputs, start=batch.boundary), expected, rtol=1e-4, atol=1e-5)
