"""Of a recorded run: what moved and how far, gradients while it trained, explained images; figures on the run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetuning.test_callback import make_task
from tests.recorded import Recorded
from tests.toy import toy_backbone, toy_data
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.backbones.build import build_backbone
from tlresearch.cli import main
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.run.recorded import load
from tlresearch.tasks.base import Task
from tlresearch.tracking.items import Item, Items
from tlresearch.tracking.manifest import damaged, read_json, read_manifest
from tlresearch.tracking.store import connect
from tlresearch.understand.inspection.inspect import STAGES, inspect
from tlresearch.understand.inspection.saliency import choose, explain, last_map, saliency_figure
from tlresearch.understand.inspection.stages import (
    StageChange,
    relative_change,
    similarities,
    stage_changes,
    stages_figure,
)

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


def test_what_fine_tuning_did_is_shown_and_added_to_the_run(recorded: Recorded) -> None:
    store = connect()
    ended = store.client.get_run(recorded.run).info.end_time
    shown = str(inspect(recorded.run))
    assert "what became of the stages" in shown

    base, trained = load_file(recorded.weights), load_file(recorded.artifact("weights/trained.safetensors"))
    names = [name for name in base if f"backbone.stages.0.{name}" in trained and name.endswith(("weight", "bias"))]
    assert names
    moved = sum(float((trained[f"backbone.stages.0.{name}"] - base[name]).square().sum()) for name in names)
    total = sum(float(base[name].square().sum()) for name in names)
    kept = read_json(store, recorded.run, STAGES)
    assert kept is not None
    assert kept["stages"][0]["moved"] == pytest.approx(math.sqrt(moved / total), rel=1e-5)
    assert f"{math.sqrt(moved / total):.4f}" in shown

    gradients = store.client.get_metric_history(recorded.run, "gradient_norm/block1")
    assert len(gradients) == 3
    assert all(point.value > 0 for point in gradients)
    assert kept["stages"][0]["gradients"] == [[point.step, pytest.approx(point.value)] for point in gradients]

    run = store.client.get_run(recorded.run)
    assert run.info.end_time == ended
    assert "figures/stages.png" in {item.path for item in store.client.list_artifacts(recorded.run, "figures")}
    manifest = read_manifest(store, recorded.run)
    assert manifest is not None
    assert damaged(store, run, manifest) == []


def test_a_stage_that_stayed_is_the_same(recorded: Recorded) -> None:
    run = load(recorded.run)
    run.backbone.stages[0].load_state_dict(run.start.stages[0].state_dict())
    first, second, *_ = stage_changes(run)
    assert (first.moved, first.statistics) == (0, 0)
    assert first.similarity == pytest.approx(1)
    assert second.moved > 0
    assert second.similarity < 1


def test_similarity_falls_with_the_change() -> None:
    before, data, values = toy_backbone(), toy_data(), []
    for factor in (0.05, 1.0):
        after = toy_backbone()
        with torch.no_grad():
            weight = after.stages[1][0].weight
            weight += factor * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        first, changed, later = similarities(before, after, data)
        assert first == pytest.approx(1)
        values.append((changed, later))
    assert all(1 > small > large for small, large in zip(*values, strict=True))


def test_relative_change_is_that_of_the_norms() -> None:
    assert relative_change([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])]) == pytest.approx(0.1)
    assert math.isnan(relative_change([], []))


def test_a_run_without_weights_says_so(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", recorded.trial]) == 2
    assert "kept no weights" in capsys.readouterr().err
    assert main(["inspect", "nothing_of_this_name"]) == 2
    assert "is no backbone, no experiment" in capsys.readouterr().err
    assert main(["inspect", "small_cnn", "--saliency", "2"]) == 2
    assert "are for a recorded run" in capsys.readouterr().err


def test_the_surest_errors_come_first() -> None:
    data = toy_data()
    names = data.splits["test"].names
    items = [Item(names[0], "a", "a", 0.9), Item(names[1], "a", "b", 0.6), Item(names[2], "a", "b", 0.8)]
    items += [Item(names[3], "a", "a", 0.95)]
    found = Items("test", tuple(items))
    assert choose(data, "test", found, 2, []) == [2, 3]
    assert choose(data, "test", found, 4, []) == [2, 1, 3, 0]
    assert choose(data, "test", None, 2, []) == [0, 1]
    assert choose(data, "test", found, 2, [names[5]]) == [5]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_last_map_is_in_front_of_the_pooling(name: str) -> None:
    backbone = build_backbone(BackboneConfig(name=f"torchvision/{name}", weights=None)).eval()
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(inputs)
        layer, seen = last_map(backbone, inputs), list[torch.Tensor]()
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        assert torch.equal(backbone(inputs), before)
    assert torch.allclose(seen[0].mean(dim=(2, 3)), before, atol=1e-6)


def toy_trained() -> tuple[Task, Data]:
    task = make_task()
    return task, replace(toy_data(), preprocessing=task.backbone.preprocessing)


def test_the_heat_is_that_of_grad_cam() -> None:
    """By its definition: maps weighted by the mean gradient of the predicted class, what speaks for it alone."""
    task, data = toy_trained()
    found = explain(task, data, "test", [0, 3])
    split = data.splits["test"]
    task.eval()
    value = torch.stack([split[SampleKey(row, 0)][0] for row in (0, 3)])
    maps = task.backbone(value, stop=2)
    for layer in task.backbone.stages[2][:3]:
        maps = layer(maps)
    maps.retain_grad()
    task.head(maps.flatten(1)).max(dim=1).values.sum().backward()
    heat = (maps.grad.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu().detach()
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    assert torch.allclose(torch.stack([one.heat for one in found]), heat, atol=1e-5)
    assert [one.name for one in found] == [split.names[row] for row in (0, 3)]
    assert [one.target for one in found] == ["left", "right"]


def test_images_beside_their_heat(tmp_path: Path) -> None:
    saliency_figure(explain(*toy_trained(), "test", [0, 1, 2])).savefig(tmp_path / "heat.png")
    assert (tmp_path / "heat.png").stat().st_size > 5000


def test_figures_are_drawn(tmp_path: Path) -> None:
    rows = [StageChange(f"s{n}", 10, n > 0, 0.1 * n, math.nan, 1 - 0.2 * n, ((0, 0.5), (1, 0.1))) for n in range(3)]
    assert len(stages_figure(rows).axes) == 3  # nothing to show of the statistics
    place = tmp_path / "plan.png"
    inspect("digits/transfer", picture=place)
    assert place.stat().st_size > 5000
