"""The answers of a stored network come to the metrics of the task it was made from, whatever the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pandas import DataFrame

from tests.serving.every_task import EVERY, make
from tlresearch.data.loading import make_loader
from tlresearch.tasks.base import measure_served


@pytest.mark.parametrize("name", ["text", "tokens", "sounds", "recognition"])
def test_metrics_are_those_of_the_task(name: str, tmp_path: Path) -> None:
    made = make(EVERY[name](tmp_path))
    predictor = made.predictor(tmp_path / "stored")
    with torch.no_grad():
        for batch in make_loader(made.data.splits["val"], batch_size=4, shuffle=False, seed=0):
            made.task.update_metrics("val", made.task(batch.inputs), batch, torch.tensor(0.5))
    wanted = made.task.compute_metrics("val")
    found = measure_served(
        type(made.task), lambda raw: DataFrame(predictor.table(predictor.read(raw))), made.data, "val", 3
    )
    assert found is not None
    assert len(found) >= 3
    assert found == pytest.approx({key: wanted[key] for key in found}, abs=1e-5, nan_ok=True)


def test_masks_and_boxes_are_answered_at_another_size_than_is_measured(tmp_path: Path) -> None:
    made = make(EVERY["masks"](tmp_path))
    assert measure_served(type(made.task), lambda raw: None, made.data, "val", 3) is None
