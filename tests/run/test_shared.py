"""Runs that share data and a frozen backbone come to the same as runs that share nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model

from tests.toy import TRAINER, toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.config.load import load_text, revise
from tlresearch.run.fit import Role, fit
from tlresearch.run.shared import Shared

pytestmark = [pytest.mark.usefixtures("tables"), *(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_sharing_changes_no_number(weights: Path) -> None:
    data = "{name: digits, classes: ['0', '1'], labels_per_class: 8, batch_size: 8, image_size: 32}"
    text = toy_text(
        data=data,
        backbone=f"{{name: torchvision/squeezenet1_1, weights: {weights}}}",
        freeze="{schedule: depth, unfreeze_depth: 0, epochs: 2}",
        cache="{precision: 32-true, memory_format: contiguous}",
        trainer=TRAINER,
    )
    points: list[dict[str, Any]] = [
        {"optimizer.lr": 0.1},
        {"optimizer.lr": 0.01, "trainer.memory_format": "channels_last"},
        {"freeze.unfreeze_depth": 2},
        {"optimizer.lr": 0.001, "seed": 5},
        {"freeze.unfreeze_depth": 1, "regularize.l2_sp": 0.1},
        {"optimizer.lr": 0.1, "trainer.memory_format": "contiguous"},
    ]
    shared, backbones, kinds = Shared(), [], []
    for number, point in enumerate(points):
        experiment = revise(load_text(text), point)
        alone = fit(experiment, role=Role(f"{number} alone"))
        result = fit(experiment, role=Role(f"{number}", repeats="sharing", shared=shared))
        assert result.history == alone.history
        states = alone.task.state_dict(), result.task.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        backbones.append(result.task.backbone)
        kinds.append(result.task.backbone is backbones[0])
    assert kinds == [True, True, False, True, False, True]  # those that train a stage have one of their own
