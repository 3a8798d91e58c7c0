"""Detectors of transformers as stages: what the original gives at every cut, its loss and decoding, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.backbones.architectures import noisy, small_config
from tests.dense import boxes_text, save_boxes, shapes
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.pyramid import PyramidBackbone
from tlresearch.base.errors import UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig, TaskConfig
from tlresearch.finetuning import lora
from tlresearch.modality.image import Preprocessing
from tlresearch.run.fit import fit
from tlresearch.tasks.build import find_task
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect

pytest.importorskip("pycocotools", reason="the extra detection is not installed")
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SIDE = 40
TARGETS = [torch.tensor([[8.0, 8, 40, 40, 0], [30, 20, 38, 32, 1]]), torch.zeros(0, 5)]


def save_yolos(folder: Path, *, middle: bool = True, weights: bool = True, labels: int = 2) -> Any:
    """Writes a tiny YOLOS with random weights and returns the original in eval mode."""
    config = transformers.YolosConfig(
        **SIZES,
        image_size=(48, 64),
        patch_size=8,
        num_detection_tokens=6,
        use_mid_position_embeddings=middle,
        num_labels=labels,
    )
    torch.manual_seed(3)
    model = transformers.YolosForObjectDetection(config)
    with torch.no_grad():
        for weight in model.parameters():  # positions start at 0, where no mistake would be seen
            weight.normal_(std=0.3)
    model.save_pretrained(folder) if weights else config.save_pretrained(folder)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def head_of(task: TaskConfig, backbone: StagedBackbone, side: int) -> Any:
    return find_task(task.name).build_head(task, backbone, ("a", "b"), Preprocessing(crop=side, resize=None))


def maps_of(folder: Path, weights: str | None = "default") -> PyramidBackbone:
    backbone = build_backbone(BackboneConfig(name=f"hf/{folder}", weights=weights), "maps")
    assert isinstance(backbone, PyramidBackbone)
    return backbone.eval()


@pytest.mark.parametrize("middle", [True, False])
def test_stages_and_head_give_what_the_original_gives_at_every_cut(tmp_path: Path, middle: bool) -> None:
    original = save_yolos(tmp_path, middle=middle)
    backbone = maps_of(tmp_path)
    assert backbone.stage_names == ("embeddings", "layer_0", "layer_1", "layer_2")
    assert backbone.weights.random_stages == ()
    held = {name for name in original.state_dict() if name.startswith("vit.")}
    assert set(backbone.original_state_dict()) == held
    images = torch.rand(2, 3, SIDE, SIDE)
    head = head_of(TaskConfig(name="detection"), backbone, SIDE).eval()
    shares = TARGETS[0][:, :4] / SIDE
    given = [
        {
            "class_labels": TARGETS[0][:, 4].long(),
            "boxes": torch.cat([(shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]], dim=1),
        },
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    with torch.no_grad():
        expected = original(images, labels=given)
        whole = backbone(images)
        for cut in range(1, 4):
            passed = backbone(backbone(images, stop=cut), start=cut)
            assert torch.equal(passed["last_hidden_state"], whole["last_hidden_state"])
        torch.testing.assert_close(whole["last_hidden_state"], expected.last_hidden_state[:, -6:])
        torch.testing.assert_close(sum(head.losses(head(whole), TARGETS).values()), expected.loss)
        (first, _) = head.detections(head(whole))
    decoded = transformers.YolosImageProcessor().post_process_object_detection(
        expected, threshold=0.05, target_sizes=[(SIDE, SIDE)] * 2
    )
    order = decoded[0]["scores"].argsort(descending=True)
    assert len(order) > 0
    torch.testing.assert_close(first["scores"], decoded[0]["scores"][order])
    torch.testing.assert_close(first["boxes"], decoded[0]["boxes"][order].clamp(0, SIDE))
    assert torch.equal(first["labels"], decoded[0]["labels"][order])


def test_queries_over_a_convolutional_network(tmp_path: Path) -> None:
    config = small_config("detr")
    config.num_labels = 2
    torch.manual_seed(3)
    original = transformers.AutoModelForObjectDetection.from_config(config).eval()
    noisy(original)
    original.save_pretrained(tmp_path)
    backbone = maps_of(tmp_path)
    assert backbone.way == "structure"
    assert len(backbone.stage_names) > 6
    assert backbone.weights.random_stages == ()
    images = torch.rand(2, 3, 64, 64)
    head = head_of(TaskConfig(name="detection"), backbone, 64).eval()
    shares = TARGETS[0][:, :4] / 64
    middle = torch.cat([(shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]], dim=1)
    given = [
        {"class_labels": TARGETS[0][:, 4].long(), "boxes": middle},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    with torch.no_grad():
        expected = original(images, labels=given)
        whole = backbone(images)
        for cut in range(1, len(backbone.stage_names)):
            passed = backbone(backbone(images, stop=cut), start=cut)
            torch.testing.assert_close(passed, whole)
        torch.testing.assert_close(sum(head.losses(head(whole), TARGETS).values()), expected.loss)
        assert len(head.detections(head(whole))) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rt_detr", "reads its heads in front of its end too, or has others"),
        ("d_fine", "reads its heads in front of its end too, or has others"),
        ("deformable_detr", "reads its heads in front of its end too, or has others"),
        ("conditional_detr", "read more than tensors with the samples first"),
    ],
)
def test_other_heads_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    small_config(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        maps_of(tmp_path, None)
    assert "\n" not in str(caught.value)


def test_other_classes_keep_all_of_the_head_but_its_last_layer(tmp_path: Path) -> None:
    original = save_yolos(tmp_path, labels=7)
    head = maps_of(tmp_path).native_head(2)  # type: ignore[misc]
    mine, theirs = head.state_dict(), original.state_dict()
    new = {name for name in mine if mine[name].shape != theirs[name].shape}
    assert new == {"class_labels_classifier.layers.2.weight", "class_labels_classifier.layers.2.bias"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name not in new)


def test_its_linear_layers_take_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra text is not installed")
    save_yolos(tmp_path, weights=False)
    backbone = maps_of(tmp_path, None)
    images = torch.rand(1, 3, SIDE, SIDE)
    before = backbone(images)["last_hidden_state"]
    assert lora.inject(backbone, rank=2, alpha=4) == 18  # of each layer queries, keys, values, and three behind them
    assert torch.equal(backbone(images)["last_hidden_state"], before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_boxes(tmp_path_factory.mktemp("shapes"))


@pytest.mark.usefixtures("tables")
def test_it_learns_is_cached_and_its_logged_model_needs_no_folder(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "yolos"
    save_yolos(folder)
    sections = {
        "data": f"{{name: voc, root: {root}, test_fraction: 0.2, batch_size: 4, image_size: {SIDE}}}",
        "backbone": f"{{name: hf/{folder}}}",
        "task": "{name: detection}",
        "freeze": "{schedule: depth, unfreeze_depth: 1, epochs: 2}",
    }
    tracking = "{system_metrics: false, figures: false}"
    cached = fit(load_text(boxes_text(root, **sections, tracking=tracking)))
    plain = fit(load_text(boxes_text(root, **sections, cache="{enabled: false}")))
    for one, other in zip(cached.history, plain.history, strict=True):
        assert one == pytest.approx(other, abs=1e-4, nan_ok=True)
    assert cached.history[1]["train/loss"] < cached.history[0]["train/loss"]
    assert "test/map_50" in cached.metrics
    model = Runs().get(cached.run_id).model_id
    folder.rename(tmp_path / "elsewhere")
    image = torch.randint(0, 256, (60, 30, 3), dtype=torch.uint8).numpy()
    answer: Any = load_model(connect(), model).predict([image])
    assert list(answer.columns) == ["boxes", "classes", "scores"]
    assert all(0 <= x0 <= x1 <= 30 and 0 <= y0 <= y1 <= 60 for x0, y0, x1, y1 in answer["boxes"][0])


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_blood_cells_are_learned_under_a_gradual_schedule(tmp_path: Path, data_dir: Path) -> None:
    save_yolos(tmp_path, weights=False)
    overrides = {
        "backbone": {"name": f"hf/{tmp_path}", "weights": None},
        "data": {"image_size": 64, "train_fraction": 0.1, "augment": "none"},
        "freeze": {"schedule": "gradual", "epochs": 6},
        "optimizer.lr": 3e-3,
        "tracking": {"system_metrics": False, "model": False},
    }
    result = fit("bccd/yolos", overrides)
    losses = [row["train/loss"] for row in result.history]
    assert losses[-1] < losses[0]
    assert {"val/map", "test/map_50", "test/map_WBC"} <= result.metrics.keys()
    figures = {item.path for item in connect().client.list_artifacts(result.run_id, "figures")}
    assert "figures/detections.png" in figures


def test_grey_images_adapt_its_first_layer(tmp_path: Path) -> None:
    save_yolos(tmp_path)
    grey = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", in_channels=1), "maps").eval()
    image = torch.rand(1, 1, SIDE, SIDE)
    torch.testing.assert_close(
        grey(image)["last_hidden_state"], maps_of(tmp_path)(image.expand(1, 3, SIDE, SIDE))["last_hidden_state"]
    )


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    save_yolos(tmp_path, weights=False)
    backbone = maps_of(tmp_path, None)
    for task in (TaskConfig(name="detection", options={"detector": "fcos"}), TaskConfig(name="instances")):
        with pytest.raises(UserError, match="has a detector of its own alone"):
            head_of(task, backbone, SIDE)
    with pytest.raises(UserError, match="finds boxes and pools nothing"):
        build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None, options={"pooling": "cls"}), "maps")
    with pytest.raises(UserError, match="ends in feature maps"):
        build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None))
    with pytest.raises(UserError, match="has no feature maps: it is for `detection`"):
        head_of(TaskConfig(name="segmentation"), backbone, SIDE)


def test_it_learns_the_boxes_of_its_samples_under_their_class_numbers(tmp_path: Path) -> None:
    save_yolos(tmp_path, weights=False)
    torch.manual_seed(0)
    backbone = maps_of(tmp_path, None)
    head = head_of(TaskConfig(name="detection"), backbone, 32)
    images, targets = [], []
    for seed in range(2):
        image, _, found = shapes(seed)
        images.append(torch.from_numpy(image).permute(2, 0, 1) / 128 - 1)
        targets.append(torch.tensor([[*box, float(name == "disc")] for name, box in found]))
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        sum(head.losses(head(backbone(torch.stack(images))), targets).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        for detected, target in zip(head.detections(head(backbone(torch.stack(images)))), targets, strict=True):
            for box in target:
                same = (detected["labels"] == int(box[4])) & (detected["scores"] > 0.5)
                assert (detected["boxes"][same] - box[:4]).abs().amax(dim=1).min() < 6
