"""Corruptions of images: as strong as ImageNet-C's, and the same in every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.toy import ToySplit
from tlresearch.base.errors import DataError
from tlresearch.config import shift
from tlresearch.config.schema import DataConfig
from tlresearch.data import weather
from tlresearch.data.base import SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.corruptions import CORRUPTIONS, CorruptedSplit, corrupt
from tlresearch.data.seeding import seeded
from tlresearch.modality.image import Preprocessing

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
    if kind in ("snow", "fog"):  # the authors' strengths change more than one thing at a time
        assert errors[4] > errors[0]
    else:
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


def test_a_cloud_is_smoother_the_more_its_small_shapes_are_damped() -> None:
    rough = []
    for decay in (1.2, 1.6, 2.0):
        torch.manual_seed(0)
        cloud = weather.plasma(100, decay)
        assert cloud.shape == (128, 128)
        assert (cloud.min(), cloud.max()) == (0, 1)
        rough.append((cloud[1:] - cloud[:-1]).abs().mean().item())
    assert rough == sorted(rough, reverse=True)
    grey = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    foggy = corrupt(grey, "fog", 1).float() / 255
    torch.manual_seed(0)
    cloud = weather.plasma(100, 2)[:100, :100]
    by_hand = (0.502 + 1.5 * cloud) * 0.502 / (0.502 + 1.5)  # (x + density * cloud) * max / (max + density)
    torch.testing.assert_close(foggy[0], by_hand, atol=0.005, rtol=0)


def test_a_moving_camera_draws_a_line_and_a_zoom_keeps_the_middle() -> None:
    dot = torch.zeros(1, 61, 61, dtype=torch.uint8)
    dot[0, 30, 30] = 255
    torch.manual_seed(3)
    line = (corrupt(dot, "motion_blur", 3)[0] > 0).nonzero()
    extent = line.amax(dim=0) - line.amin(dim=0)
    assert 12 <= float(extent.float().norm()) <= 31  # a spread of 8 pixels to one side, a reach of 15 twice
    assert len(line) <= 31  # one pixel wide
    even = torch.full((3, 50, 60), 77, dtype=torch.uint8)
    for kind in ("motion_blur", "zoom_blur"):
        assert (corrupt(even, kind, 5).float() - 77).abs().max() <= 1
    assert torch.equal(weather.enlarged(dot.float(), 1.0), dot.float())
    assert weather.enlarged(dot.float(), 2.0)[0].nonzero().float().mean(dim=0).tolist() == pytest.approx(
        [30, 30], abs=1
    )


def test_snow_whitens_and_falls_once_more_upside_down() -> None:
    dark = torch.full((3, 80, 80), 40, dtype=torch.uint8)
    torch.manual_seed(0)
    snowy = corrupt(dark, "snow", 3).float()
    ground = 0.7 * 40 + 0.3 * (40 * 1.5 + 127.5)  # where no flake is
    assert snowy.min().item() == pytest.approx(ground, abs=1.5)
    assert snowy.mean().item() > ground + 2
    assert torch.equal(snowy, snowy.flip(1, 2))


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
