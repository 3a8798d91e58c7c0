"""Groups by hand: each parameter in one, told apart by identity, with the decay and the moments a phase says."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from tests.finetuning.test_callback import make_phase, make_schedule, make_task, train
from tests.toy import STAGES, toy_backbone
from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError
from tlresearch.config.schema import OptimizerConfig
from tlresearch.finetuning import param_groups
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.parts import staged_parts


def grouped(
    *, everything: bool = False, backbone: StagedBackbone | None = None
) -> tuple[torch.optim.Optimizer, nn.Module, nn.Module]:
    """The optimizer of a toy backbone and head, its groups split by stage."""
    backbone, head = backbone or toy_backbone(), nn.Linear(96, 2)
    optimizer = build_optimizer(OptimizerConfig(name="sgd", lr=1.0, decay_norm_and_bias=everything), backbone, head)
    param_groups.regroup(optimizer, staged_parts(backbone, head), nn.ModuleDict({"backbone": backbone, "head": head}))
    return optimizer, backbone, head


def test_parameters_of_equal_value_are_different_parameters() -> None:
    backbone = toy_backbone()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(1.0)
    optimizer, _, head = grouped(backbone=backbone)
    members = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in (*backbone.parameters(), *head.parameters()))
    assert len(set(members)) == len(members)


def test_a_parameter_in_two_stages_is_an_error() -> None:
    backbone = toy_backbone()
    first: Any = backbone.stages[0]
    second: Any = backbone.stages[1]
    second[1].weight = first[1].weight
    with pytest.raises(ConfigError, match=r"'backbone.stages.0.1\.weight' is in the stages stem and middle"):
        grouped(backbone=backbone)


@pytest.mark.parametrize(("everything", "exempt"), [(False, 3), (True, 0)])
def test_norms_and_biases_do_not_decay_unless_asked(everything: bool, exempt: int) -> None:
    optimizer, _, _ = grouped(everything=everything)
    spared = [group for group in optimizer.param_groups if not group["decays"]]
    assert [len(group["params"]) for group in spared] == ([exempt] * 3 + [1] if exempt else [])


def test_rates_and_decay_are_written_by_stage() -> None:
    optimizer, _, _ = grouped()
    param_groups.apply_rates(optimizer, (0.1, 0.2, 0.3, 0.4), 0.5)
    written = [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    expected = [(name, rate, 0.5) for name, rate in zip((*STAGES, "head"), (0.1, 0.2, 0.3, 0.4), strict=True)]
    assert written == [
        row for name, rate, decay in expected for row in ((name, rate, decay), (f"{name}/no_decay", rate, 0))
    ]
    assert param_groups.stage_rates(optimizer, 4) == (0.1, 0.2, 0.3, 0.4)


class Steps(L.Callback):
    """Steps of Adam's moments of the head after the last batch of each epoch, and the decay in each epoch."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.decays: set[tuple[int, float]] = set()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer, epoch = trainer.optimizers[0], trainer.current_epoch
        self.decays |= {(epoch, group["weight_decay"]) for group in optimizer.param_groups if group["decays"]}
        self.counts[epoch] = int(optimizer.state[pl_module.head[1].weight]["step"])


@pytest.mark.parametrize(("state", "expected"), [("keep", {0: 4, 1: 8}), ("reset", {0: 4, 1: 4})])
def test_a_phase_keeps_or_resets_the_moments_and_sets_the_decay(state: str, expected: dict[int, int]) -> None:
    seen = Steps()
    schedule = make_schedule(make_phase(0, weight_decay=0.1), make_phase(1, optimizer_state=state, weight_decay=0.2))
    train(make_task("adamw"), schedule, seen)
    assert seen.counts == expected
    assert seen.decays == {(0, 0.1), (1, 0.2)}
