"""Transforms of torchvision, albumentations and one's own, for images with labels, masks, boxes and instances."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from tests.dense import save_boxes, save_instances, save_masks
from tests.toy import toy_text
from tlresearch.base.errors import ConfigError, DataError
from tlresearch.config.load import load_text
from tlresearch.config.schema import DataConfig, TransformConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.own_transforms import build_own
from tlresearch.data.seeding import seeded
from tlresearch.modality.image import Preprocessing

MINE = "tests.data.test_own_transforms"
PREPROCESSING = Preprocessing(crop=32, resize=32)
GREY = Preprocessing(crop=8, resize=8, mean=(0.5,), std=(0.5,))


def upside_down(image: Tensor, *target: Any) -> Any:
    """A function of one's own, of the image alone or with its target."""
    flipped = image.flip(-2)
    return (flipped, tv_tensors.Mask(target[0].flip(-2))) if target else flipped


def as_float(image: Tensor) -> Tensor:
    """Gives another type."""
    return image / 255


def as_array(image: Tensor) -> Any:
    """Gives an array."""
    return image.numpy()


def broken(image: Tensor) -> Tensor:
    """Raises."""
    raise KeyError("nothing there")


def noisy(image: Tensor, strength: int) -> Tensor:
    """Draws from the generators of NumPy and Python."""
    moved = int(np.random.randint(strength)) + random.randrange(strength)
    return (image.int() + moved).clamp(max=255).to(torch.uint8)


def own(*entries: Any) -> Any:
    sections = [
        TransformConfig(entry) if isinstance(entry, str) else TransformConfig(entry.pop("name"), entry)
        for entry in entries
    ]
    return build_own(sections, "data.transforms")


def digits(**config: Any) -> Data:
    loaded = load_text(toy_text(), {f"data.{key}": value for key, value in config.items()})
    return build_data(loaded.config.data, preprocessing=GREY, seed=0)


FLIPS = {
    "torchvision": {"name": "torchvision.transforms.v2.RandomVerticalFlip", "p": 1.0},
    "albumentations": {"name": "albumentations.VerticalFlip", "p": 1.0},
    "own": {"name": f"{MINE}.upside_down"},
}


@pytest.mark.parametrize("library", FLIPS)
def test_an_image_is_moved(library: str) -> None:
    plain, moved = digits(), digits(transforms=[FLIPS[library]])
    keys = [SampleKey(3, 0), SampleKey(5, 1)]
    assert torch.equal(
        moved.splits["train"].__getitems__(keys).inputs, plain.splits["train"].__getitems__(keys).inputs.flip(-2)
    )
    assert torch.equal(moved.splits["val"].__getitems__(keys).inputs, plain.splits["val"].__getitems__(keys).inputs)


def test_what_is_drawn_is_a_function_of_the_key_alone() -> None:
    augmentation = own(
        {"name": "albumentations.RandomBrightnessContrast", "p": 1.0},
        {"name": f"{MINE}.noisy", "strength": 50},
        {"name": "torchvision.transforms.v2.RandomRotation", "degrees": 20},
    )
    image = torch.arange(3 * 16 * 16).reshape(3, 16, 16).remainder(200).to(torch.uint8)

    def drawn(key: int) -> Tensor:
        with seeded(key):
            moved: Tensor = augmentation(image)
        return moved

    first, second = drawn(1), drawn(2)
    state = random.getstate()
    assert torch.equal(drawn(1), first)
    assert not torch.equal(first, second)
    assert random.getstate() == state


def test_transforms_of_albumentations_that_follow_each_other_are_one() -> None:
    flips = own(
        FLIPS["albumentations"] | {}, {"name": "albumentations.HorizontalFlip", "p": 1.0}, f"{MINE}.upside_down"
    )
    assert len(flips.transform.steps) == 2


def test_a_result_of_another_size_is_framed() -> None:
    data = digits(transforms=[{"name": "albumentations.Resize", "height": 31, "width": 20}])
    assert data.splits["train"].__getitems__([SampleKey(0, 0)]).inputs.shape == (1, 1, 8, 8)


def test_images_of_evaluation_have_theirs_and_the_cache_knows() -> None:
    plain, prepared = digits(), digits(eval_transforms=[FLIPS["torchvision"] | {}])
    keys = [SampleKey(0, 0)]
    expected = plain.splits["val"].__getitems__(keys).inputs.flip(-2)
    assert torch.equal(prepared.splits["val"].__getitems__(keys).inputs, expected)
    assert torch.equal(
        prepared.splits["train"].__getitems__(keys).inputs, plain.splits["train"].__getitems__(keys).inputs
    )
    assert "RandomVerticalFlip" in prepared.splits["val"].load_key
    assert prepared.splits["val"].deterministic
    assert not digits(transforms=[FLIPS["torchvision"] | {}]).splits["train"].deterministic


@pytest.mark.parametrize("library", FLIPS)
def test_a_mask_moves_with_its_image(library: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "masks", "root": str(save_masks(tmp_path)), "image_size": 32}
    plain = build_data(DataConfig(**config), preprocessing=PREPROCESSING, seed=0)
    flip = dict(FLIPS[library])
    transforms = [TransformConfig(str(flip.pop("name")), flip)]
    moved = build_data(DataConfig(**config, transforms=transforms), preprocessing=PREPROCESSING, seed=0)
    before, after = (data.splits["train"].__getitems__([SampleKey(0, 0)]) for data in (plain, moved))
    assert torch.equal(after.targets, before.targets.flip(-2))
    assert after.targets.dtype == before.targets.dtype


@pytest.mark.parametrize("library", ["torchvision", "albumentations"])
@pytest.mark.parametrize("targets", ["boxes", "masks"])
def test_boxes_and_instances_move_with_their_image(targets: str, library: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "voc", "root": str(save_boxes(tmp_path)), "image_size": 32}
    if targets == "masks":
        config |= {"name": "instance_masks", "root": str(save_instances(tmp_path)), "options": {"targets": "masks"}}
    plain = build_data(DataConfig(**config), preprocessing=PREPROCESSING, seed=0)
    flip = dict(FLIPS[library])
    transforms = [TransformConfig(str(flip.pop("name")), flip)]
    moved = build_data(DataConfig(**config, transforms=transforms), preprocessing=PREPROCESSING, seed=0)
    for index in range(4):
        before, after = (data.splits["train"].__getitems__([SampleKey(index, 0)]) for data in (plain, moved))
        if targets == "masks":
            assert torch.equal(after.targets[0], before.targets[0].flip(-2))
            continue
        expected = before.targets[0].clone()
        expected[:, [1, 3]] = 32 - before.targets[0][:, [3, 1]]
        assert torch.allclose(after.targets[0], expected, atol=0.01)


def test_boxes_that_a_crop_leaves_outside_are_dropped_with_their_class(tmp_path: Path) -> None:
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[0.0, 0, 4, 4], [20, 20, 30, 30]]), format="XYXY", canvas_size=(32, 32)
    )  # type: ignore[call-overload]
    crop = own({"name": "albumentations.Crop", "x_min": 16, "y_min": 16, "x_max": 32, "y_max": 32})
    with seeded(0):
        image, moved = crop(tv_tensors.Image(torch.zeros(3, 32, 32, dtype=torch.uint8)), boxes)
    assert image.shape == (3, 16, 16)
    assert moved.tolist() == [[0, 0, 0, 0], [4, 4, 14, 14]]


BAD: dict[str, tuple[Any, str]] = {
    "another type": (f"{MINE}.as_float", "must give an image uint8 (1, height, width), but gave float32 (1, 8, 8)"),
    "an array": (f"{MINE}.as_array", "but gave ndarray uint8 (1, 8, 8)"),
    "raises": (f"{MINE}.broken", "broken does not take uint8 (1, 8, 8): KeyError: 'nothing there'"),
    "other channels": (
        {"name": "torchvision.transforms.v2.Grayscale", "num_output_channels": 3},
        "but gave uint8 (3, 8, 8)",
    ),
    "refused arguments": (
        {"name": "albumentations.HorizontalFlip", "p": 3.0},
        "albumentations.HorizontalFlip cannot be made with these arguments",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("key", ["transforms", "eval_transforms"])
def test_a_wrong_transform_is_one_line_before_training(key: str, case: str) -> None:
    entry, expected = BAD[case]
    with pytest.raises((ConfigError, DataError)) as caught:
        digits(**{key: [entry]})
    assert expected in str(caught.value)
    assert f"data.{key}" in str(caught.value)
    assert "\n" not in str(caught.value).partition("problem\n")[2]


def test_a_function_that_forgets_the_mask_is_one_line(tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "masks", "root": str(save_masks(tmp_path)), "image_size": 32}
    with pytest.raises(DataError, match=r"data\.transforms: .*as_float does not take Image uint8 .* and Mask uint8"):
        build_data(
            DataConfig(**config, transforms=[TransformConfig(f"{MINE}.as_float")]), preprocessing=PREPROCESSING, seed=0
        )


def test_augment_and_transforms_are_one_of_the_two() -> None:
    with pytest.raises(ConfigError, match=r"data\.augment: give it or data\.transforms, not both"):
        digits(transforms=[FLIPS["own"] | {}], augment="flip")
