"""Segmentation: losses and metrics against known values, and runs that learn, are cached and go on after a kill."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from tests.dense import masks_text, save_masks, shapes
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.finetuning import lora
from tlresearch.modality.image import IGNORE
from tlresearch.run.fit import fit
from tlresearch.serving.stored import WEIGHTS
from tlresearch.studies.reproduction.verify import verify
from tlresearch.tasks.counts import ClassCounts, Counts
from tlresearch.tasks.losses import Combined, CrossEntropy, Dice, Focal
from tlresearch.tasks.segmentation import (
    DECODERS,
    SegmentationHead,
    SegmentationTask,
    balanced_pixel_weights,
    overlap_metrics,
)
from tlresearch.tracking.manifest import local, model_address
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytestmark = pytest.mark.usefixtures("tables")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masks(tmp_path_factory.mktemp("shapes"))


def scores_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (2, 8, 8), generator=generator)
    masks[0, :3] = IGNORE
    return torch.randn(2, 3, 8, 8, generator=generator), masks.to(torch.uint8)


def test_cross_entropy_is_torchs_and_focal_is_less() -> None:
    scores, masks = scores_and_masks()
    weights = torch.tensor([1.0, 2.0, 0.5])
    for weight in (None, weights):
        expected = functional.cross_entropy(scores, masks.long(), weight=weight, ignore_index=IGNORE)
        found = CrossEntropy(weight, IGNORE)(scores, masks)
        assert torch.isclose(found, expected)
        assert Focal(2.0, weight, IGNORE)(scores, masks) < found
    logits = torch.tensor([math.log(0.9 / 0.1), 0.0]).view(1, 2, 1, 1)
    by_hand = 0.1**2 * -math.log(0.9)
    assert float(Focal()(logits, torch.zeros(1, 1, 1))) == pytest.approx(by_hand)


def test_dice_by_hand_and_pixels_that_do_not_count() -> None:
    dice = Dice(IGNORE)
    masks = torch.tensor([[[0, 0, 1, 1]]])
    right = 50 * functional.one_hot(masks, 2).permute(0, 3, 1, 2).float()
    assert float(dice(right, masks)) == pytest.approx(0, abs=1e-5)
    # Everything called 0: class 0 has 2 * 2 / (4 + 2), class 1 has 0 / (0 + 2); 1 is added to smooth.
    wrong = torch.tensor([50.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    assert float(dice(wrong, masks)) == pytest.approx(1 - ((2 * 2 + 1) / (6 + 1) + (0 + 1) / (2 + 1)) / 2)
    ignored = torch.tensor([[[0, 0, IGNORE, IGNORE]]])
    assert float(dice(wrong, ignored)) == pytest.approx(0, abs=1e-5)
    both = Combined()(wrong, masks)
    assert torch.isclose(both, dice(wrong, masks) + CrossEntropy()(wrong, masks))


def test_metrics_are_those_of_torchmetrics() -> None:
    scores, masks = scores_and_masks()
    predicted, truth = scores.argmax(1), masks.long()
    counts = ClassCounts(3, ignored=IGNORE)
    counts.update(predicted, truth)
    found = overlap_metrics(counts.compute(), ("a", "b c", "d"))
    arguments: Any = {"num_classes": 3, "ignore_index": IGNORE, "average": "none"}
    iou = MulticlassJaccardIndex(**arguments)(predicted, truth)
    dice = MulticlassF1Score(**arguments)(predicted, truth)  # over all pixels, F1 is Dice
    assert [found["iou_a"], found["iou_b_c"], found["iou_d"]] == pytest.approx(iou.tolist())
    assert [found["dice_a"], found["dice_b_c"], found["dice_d"]] == pytest.approx(dice.tolist())
    assert (found["iou"], found["dice"]) == pytest.approx((float(iou.mean()), float(dice.mean())))
    absent = overlap_metrics(Counts(*torch.tensor([[3, 3, 0], [4, 4, 0], [4, 4, 0]])), ("a", "b", "c"))
    assert math.isnan(absent["dice_c"])
    assert absent["dice"] == pytest.approx(0.75)


def test_balanced_weights_make_every_class_count_alike() -> None:
    masks = [torch.tensor([[0, 0, 0, 1], [0, 0, 0, IGNORE]], dtype=torch.uint8)]
    assert balanced_pixel_weights(masks, 2).tolist() == pytest.approx([7 / (2 * 6), 7 / (2 * 1)])


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_use_every_map_and_give_the_wanted_size(name: str) -> None:
    backbone = build_backbone(BackboneConfig(name="torchvision/squeezenet1_1", weights=None), "maps")
    head = SegmentationHead(DECODERS[name](backbone.maps, 4), (75, 75))  # maps of odd sizes
    maps = {name: leaf.requires_grad_() for name, leaf in backbone(torch.rand(2, 3, 75, 75)).items()}
    maps = {name: leaf.detach().requires_grad_() for name, leaf in maps.items()}
    scores = head(maps)
    assert scores.shape == (2, 4, 75, 75)
    scores.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in maps.values())


def test_a_cached_run_equals_the_uncached_one_and_records_overlays(root: Path) -> None:
    freeze = "{schedule: gradual, epochs: 5}"
    tracking = "{model: false, system_metrics: false}"
    cached = fit(load_text(masks_text(root, freeze=freeze, tracking=tracking)))
    plain = fit(load_text(masks_text(root, freeze=freeze, cache="{enabled: false}")))
    for one, other in zip(cached.history, plain.history, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert {"val/dice", "val/iou", "val/dice_disc", "train/loss"} <= cached.history[0].keys()
    assert cached.history[-1]["train/loss"] < cached.history[0]["train/loss"]
    figures = {item.path for item in connect().client.list_artifacts(cached.run_id, "figures")}
    assert "figures/overlays.png" in figures


def test_views_of_augmented_samples_come_with_their_own_masks(root: Path) -> None:
    probe = {"augment": "crop_flip", "freeze": "{schedule: linear_probe, epochs: 2}"}
    kept = fit(load_text(masks_text(root, cache="{views: 2}", **probe)))
    plain = fit(load_text(masks_text(root, cache="{enabled: false}", **probe)))
    for one, other in zip(kept.history, plain.history, strict=True):  # two views, two epochs: the same samples
        assert one == pytest.approx(other, abs=1e-4)


def test_a_broken_off_run_goes_on_and_ends_as_the_unbroken_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = "{schedule: lp_ft, probe_epochs: 1, epochs: 3}"
    unbroken = fit(load_text(masks_text(root, augment="flip", freeze=freeze, seed="1")))
    plain, steps = SegmentationTask.training_step, 0

    def counted(self: SegmentationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 4:  # of 2 steps an epoch: in the second phase
            raise KeyboardInterrupt
        return plain(self, batch, batch_idx)

    home = Path(os.environ["TLRESEARCH_HOME"])
    monkeypatch.setenv("TLRESEARCH_HOME", str(shutil.copytree(home, home.with_name("other"))))
    monkeypatch.setattr(SegmentationTask, "training_step", counted)
    text = masks_text(root, augment="flip", freeze=freeze, seed="1")
    with pytest.raises(KeyboardInterrupt):
        fit(load_text(text))
    resumed = fit(load_text(text))
    assert steps == 8  # the epoch that was broken off is repeated, the one before is not
    assert resumed.history == unbroken.history
    state = unbroken.task.changing_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.task.changing_state().items())


@torch.no_grad()
def test_adapters_in_a_backbone_with_maps_start_equal_and_merge() -> None:
    pytest.importorskip("peft", reason="the extra text is not installed")
    backbone = build_backbone(BackboneConfig(name="torchvision/squeezenet1_1", weights=None), "maps").eval()
    x = torch.rand(1, 3, 64, 64)
    before, names = backbone(x), list(backbone.state_dict())
    assert lora.inject(backbone, rank=2, alpha=4.0) > 10
    assert all(torch.allclose(backbone(x)[name], leaf, atol=1e-5) for name, leaf in before.items())
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.01)
    adapted = backbone(x)
    assert not torch.allclose(adapted["1"], before["1"])
    lora.merge(backbone)
    assert list(backbone.state_dict()) == names
    assert all(torch.allclose(backbone(x)[name], leaf, atol=1e-4) for name, leaf in adapted.items())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"task": "{name: segmentation, options: {decoder: unett}}"},
            r"task.options.decoder: unknown 'unett' \(did you",
        ),
        (
            {"task": "{name: segmentation, options: {widht: 8}}"},
            r"segmentation has no option 'widht' \(did you mean 'width'",
        ),
        ({"task": "{name: segmentation, loss: hinge}"}, "task.loss.name: 'hinge' is unknown"),
        ({"task": "{name: segmentation, loss: {name: dice, gamma: 2}}"}, "task.loss.gamma: is only read by focal"),
        ({"task": "{name: classification}"}, "classification learns binary or multiclass or multilabel targets"),
    ],
)
def test_mistakes_are_named(root: Path, sections: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(load_text(masks_text(root, **sections)))


def test_the_logged_model_predicts_masks_of_raw_images(root: Path) -> None:
    tracking = "{figures: false, system_metrics: false}"
    result = fit(load_text(masks_text(root, freeze="{schedule: full, epochs: 6}", tracking=tracking)))
    checks = {check.name: check for check in verify(result.run_id).checks}
    assert checks["model"].state == checks["trained weights"].state == "ok", checks
    store = connect()
    model = Runs(store).get(result.run_id).model_id
    with local(store, model_address(store, model)) as folder:
        file = folder / "artifacts" / "model" / WEIGHTS
        tensors = load_file(file)
        save_file({name: torch.zeros_like(t) if name.startswith("head.") else t for name, t in tensors.items()}, file)
        failed = {check.name for check in verify(result.run_id).checks if check.state == "failed"}
        save_file(tensors, file)
    assert failed == {"artifacts", "model"}  # what the model says is measured, and not what the run kept
    image, mask, _ = shapes(0)
    answer = load_model(store, model).predict([image, np.pad(image, ((0, 9), (0, 0), (0, 0)))])
    assert list(answer.columns) == ["mask", "share(back)", "share(square)", "share(disc)"]
    predicted = np.array(answer["mask"][0])
    assert (predicted == mask).mean() > 0.7
    assert np.array(answer["mask"][1]).shape == (41, 32)
    assert answer["share(back)"][0] == pytest.approx(float((predicted == 0).mean()))
