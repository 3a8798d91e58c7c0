"""`freeze.schedule: none`: the network is evaluated as it is, and recorded as any run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import load_text
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


@pytest.mark.parametrize("select", ["last", "best"])
def test_nothing_is_trained_and_everything_evaluated(select: str, tmp_path: Path) -> None:
    loaded = load_text(
        toy_text(
            freeze="{schedule: none}",
            trainer=f"{{precision: 32-true, memory_format: contiguous, select: {select}}}",
            tracking="{system_metrics: false}",
        )
    )
    torch.manual_seed(loaded.config.seed)
    before = build_backbone(loaded.config.backbone).original_state_dict()
    result = fit(loaded)
    assert len(result.history) == 1
    assert not any(name.startswith("train/") for name in result.metrics)
    assert {"val/accuracy", "test/accuracy"} <= result.metrics.keys()
    after = result.task.backbone.original_state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    run = connect().client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["selected/test/accuracy"] == result.metrics["test/accuracy"]
    assert fit(loaded).metrics == result.metrics
