from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet50_Weights, Swin_T_Weights
from torchvision.transforms import functional as F

from tlresearch.base.errors import DataError
from tlresearch.data.transforms import build_augmentation
from tlresearch.modality.image import Evaluation, Preprocessing

WEIGHTS = [
    ResNet18_Weights.IMAGENET1K_V1,
    ResNet50_Weights.IMAGENET1K_V2,
    EfficientNet_B0_Weights.IMAGENET1K_V1,
    Swin_T_Weights.IMAGENET1K_V1,
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("size", [(300, 401), (256, 256), (90, 60)])
def test_evaluation_equals_the_weights_own_transforms(weights: ResNet18_Weights, size: tuple[int, int]) -> None:
    theirs = weights.transforms()
    ours = Evaluation(
        Preprocessing(
            crop=theirs.crop_size[0],
            resize=theirs.resize_size[0],
            mean=tuple(theirs.mean),
            std=tuple(theirs.std),
            interpolation=theirs.interpolation.value,
            antialias=theirs.antialias,
        )
    )
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(image), theirs(image), atol=1e-6, rtol=0)


def test_a_batch_is_preprocessed_as_its_images_are() -> None:
    images = torch.randint(0, 256, (5, 3, 40, 50), dtype=torch.uint8)
    evaluation = Evaluation(Preprocessing(24, 30))
    assert torch.equal(evaluation(images), torch.stack([evaluation(image) for image in images]))


@pytest.mark.parametrize(
    ("crop", "resize", "size", "expected"),
    [
        (224, 256, None, (224, 256)),
        (224, 256, 112, (112, 128)),
        (None, None, 64, (64, 64)),
        (32, None, 64, (64, 64)),
    ],
)
def test_another_image_size_scales_the_resize(
    crop: int | None, resize: int | None, size: int | None, expected: tuple[int, int]
) -> None:
    found = Preprocessing(crop, resize).sized(size)
    assert (found.crop, found.resize) == expected


@pytest.mark.parametrize("name", ["flip", "crop_flip", "randaugment", "trivial"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_give_images_of_the_input_size(name: str, channels: int) -> None:
    evaluation = Evaluation(Preprocessing(24, 30, (0.5,) * channels, (0.5,) * channels))
    augment = build_augmentation(name, evaluation)
    assert augment is not None
    image = torch.randint(0, 256, (channels, 40, 50), dtype=torch.uint8)
    given = evaluation.frame(image) if augment.framed else image
    results = [augment(given) for _ in range(20)]
    assert all(result.shape == (channels, 24, 24) and result.dtype == torch.uint8 for result in results)
    assert any(not torch.equal(result, results[0]) for result in results)


def test_flip_is_the_frame_or_its_mirror_image() -> None:
    evaluation = Evaluation(Preprocessing(24, 30))
    augment = build_augmentation("flip", evaluation)
    assert augment is not None
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    frame = evaluation.frame(image)
    seen = {torch.equal(result, frame) for result in (augment(frame) for _ in range(30))}
    assert seen == {True, False}
    assert all(
        torch.equal(result, frame) or torch.equal(result, frame.flip(-1))
        for result in (augment(frame) for _ in range(10))
    )


def test_images_taken_as_they_are_keep_their_size() -> None:
    augment = build_augmentation("crop_flip", Evaluation(Preprocessing(None, None)), size=(9, 12))
    assert augment is not None
    assert augment(torch.zeros(3, 9, 12, dtype=torch.uint8)).shape == (3, 9, 12)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'randaugmnt' \(did you mean 'randaugment'\?\).*crop_flip"):
        build_augmentation("randaugmnt", Evaluation(Preprocessing(8, 8)))
    with pytest.raises(DataError, match=r"'bilinar' \(did you mean 'bilinear'\?\)"):
        Evaluation(Preprocessing(8, 8, interpolation="bilinar"))


@pytest.mark.parametrize("size", [(6000, 1), (1, 20_000), (2, 100_000)])
def test_a_sliver_is_never_resized_whole(size: tuple[int, int]) -> None:
    sizes: list[int] = []

    class Watched(torch.Tensor):
        """Notes the size of every tensor that is made of it."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = super().__torch_function__(func, types, args, kwargs or {})
            sizes.extend([made.numel()] if isinstance(made, torch.Tensor) else [])
            return made

    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8).as_subclass(Watched)
    assert Evaluation(Preprocessing(24, 30)).frame(image).shape == (3, 24, 24)
    assert max(sizes) <= max(image.numel(), 3 * 30 * 30 * 64)


def test_cutting_the_ends_of_a_sliver_changes_nothing_that_is_seen() -> None:
    image = torch.randint(0, 256, (3, 2, 300), dtype=torch.uint8)
    evaluation = Evaluation(Preprocessing(24, 30))
    whole = F.center_crop(F.resize(image, [30], antialias=True), [24, 24])
    assert torch.equal(evaluation.frame(image), whole)
