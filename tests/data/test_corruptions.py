"""Corruptions of images: as strong as ImageNet-C's, and the same in every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.toy import ToySplit
from tlresearch.config import shift
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Preprocessing, SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.corruptions import CORRUPTIONS, CorruptedSplit, corrupt
from tlresearch.data.seeding import seeded
from tlresearch.errors import DataError

GREY = Preprocessing(crop=None, resize=None, mean=(0.5,), std=(0.5,))


def picture(side: int = 120, channels: int = 3) -> Tensor:
    """Patches of all sizes, as in a photo."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((channels, side, side), 130.0)
    for patches in (2, 4, 8, 16, 32):
        grid = 80 * torch.rand(1, channels, min(patches, side), min(patches, side), generator=generator) - 40
        image += functional.interpolate(grid, size=(side, side), mode="bilinear")[0]
    return image.clamp(0, 255).to(torch.uint8)


def test_the_config_knows_every_kind() -> None:
    assert tuple(CORRUPTIONS) == shift.CORRUPTIONS
    assert {len(strengths) for _, strengths in CORRUPTIONS.values()} == {len(shift.SEVERITIES)}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_higher_severity_is_further_from_the_image(kind: str) -> None:
    image = picture()
    errors = []
    for severity in shift.SEVERITIES:
        with seeded("test", kind):
            changed = corrupt(image, kind, severity)
        assert (changed.dtype, changed.shape) == (torch.uint8, image.shape)
        errors.append((changed.float() - image.float()).abs().mean().item())
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_small_and_grey_images_are_corrupted_too(kind: str) -> None:
    assert corrupt(picture(8, 1), kind, 5).shape == (1, 8, 8)


def test_strengths_are_those_of_the_paper() -> None:
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    with seeded("strength"):
        noise = corrupt(grey, "gaussian_noise", 2).float()
        salt = corrupt(grey, "impulse_noise", 5)
    assert (noise - 128).std().item() / 255 == pytest.approx(0.12, rel=0.03)
    assert ((salt == 0) | (salt == 255)).float().mean().item() == pytest.approx(0.27, rel=0.03)
    assert corrupt(grey, "brightness", 1).float().mean().item() / 255 == pytest.approx(128 / 255 + 0.1, abs=0.01)
    half = grey.clone()
    half[:, :, :100] = 64
    low = corrupt(half, "contrast", 3)
    assert int(low.max()) - int(low.min()) == pytest.approx(0.2 * 64, abs=1)


def test_a_blur_keeps_the_sum_and_spreads_over_its_radius() -> None:
    dot = torch.zeros(1, 41, 41, dtype=torch.uint8)
    dot[0, 18:23, 18:23] = 255
    blurred = corrupt(dot, "defocus_blur", 1)  # radius 3
    reached = (blurred[0] > 0).nonzero()
    assert 2 <= 20 - int(reached.min()) - 2 <= 4
    assert blurred.float().sum() == pytest.approx(25 * 255, rel=0.05)


def test_the_same_sample_is_corrupted_in_the_same_way_whatever_was_drawn_before() -> None:
    split = build_data(DataConfig(name="digits"), preprocessing=GREY, seed=0).splits["val"]
    one = CorruptedSplit(split, "gaussian_noise", 3, name="noise")
    first = [one.load(index) for index in range(4)]
    torch.manual_seed(5)
    again = [one.load(index) for index in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].float() - split.load(0), first[1].float() - split.load(1))  # type: ignore[attr-defined]
    batch = one.finish(first[2:4], [SampleKey(2, 0), SampleKey(3, 0)])
    assert torch.equal(batch.inputs[0], one[SampleKey(2, 7)][0])
    assert batch.targets.tolist() == split.targets[2:4].tolist()
    assert one.load_key != CorruptedSplit(split, "gaussian_noise", 4, name="noise").load_key


def test_other_samples_than_images_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"data\.shift\[noise\]\.corruptions: only images with classes"):
        CorruptedSplit(ToySplit(4, 0, noisy=False), "gaussian_noise", 1, name="noise")
