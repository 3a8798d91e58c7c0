"""Images with masks: folders, arrays and legends; image and mask move together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.modality.image import IGNORE, Preprocessing

SIZE = 16


def picture(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A bright ellipse in a dark image: its mask can be read off the image."""
    y, x = np.mgrid[:height, :width]
    generator = np.random.default_rng(seed)
    cy, cx = generator.uniform(0.3, 0.7, 2) * (height, width)
    return (((y - cy) / height) ** 2 + ((x - cx) / width) ** 2 < 0.06).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images with masks of 0 and 255."""
    for seed in range(10):
        save(tmp_path / f"images/{seed}.png", picture(seed) * 200)
        save(tmp_path / f"masks/{seed}.png", picture(seed) * 255)
    return tmp_path


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("P")
        image.putdata(pixels.ravel().tolist())
    image.save(path)


def build(root: Path, *, side: int = SIZE, channels: int = 3, **settings: Any) -> Data:
    config = DataConfig(name="masks", root=str(root), image_size=side, **settings)
    return build_data(config, preprocessing=Preprocessing(32, 32, (0.5,) * channels, (0.5,) * channels), seed=0)


TWO = {"classes": {"back": 0, "front": 255}}


def test_a_folder_of_pairs(folder: Path) -> None:
    data = build(folder, test_fraction=0.2, options=TWO)
    assert (data.kind, data.classes) == ("masks", ("back", "front"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 2, "test": 2}
    for split in data.splits.values():
        for index, name in enumerate(split.names):
            assert torch.equal(split.targets[index], torch.from_numpy(picture(int(Path(name).stem))))


def test_classes_from_a_file_or_from_the_masks(folder: Path) -> None:
    assert build(folder).classes == ("0", "255")
    (folder / "classes.json").write_text(json.dumps({"cell": 255, "rest": 0}))
    data = build(folder)
    assert data.classes == ("cell", "rest")
    assert data.splits["train"].targets[0].float().mean() > 0.5  # the rest is number 1


def test_colours_palettes_and_pixels_that_do_not_count(tmp_path: Path) -> None:
    for seed in range(6):
        save(tmp_path / f"images/{seed}.png", picture(seed) * 200)
        colours = np.zeros((SIZE, SIZE, 3), np.uint8)
        colours[picture(seed) == 1] = (255, 0, 0)
        colours[0] = (1, 2, 3)
        save(tmp_path / f"colour/{seed}_m.png", colours)
        numbers = picture(seed).copy()
        numbers[0] = 9
        save(tmp_path / f"palette/{seed}_m.png", numbers, mode="P")
    colour = {"classes": {"a": [0, 0, 0], "b": [255, 0, 0]}, "ignore": [[1, 2, 3]], "masks": "colour"}
    palette = {"classes": ["a", "b"], "ignore": 9, "masks": "palette"}
    for options in (colour, palette):
        split = build(tmp_path, options={**options, "mask_suffix": "_m"}).splits["train"]
        for target, name in zip(split.targets, split.names, strict=True):
            assert (target[0] == IGNORE).all()
            assert torch.equal(target[1:], torch.from_numpy(picture(int(Path(name).stem)))[1:])


def test_splits_by_folder_above_or_below(tmp_path: Path) -> None:
    for layout in ("{part}/images", "images/{part}"):
        root = tmp_path / layout.replace("/", "-").replace("{part}", "p")
        for part, count in (("train", 3), ("valid", 2)):
            for seed in range(count):
                save(root / layout.format(part=part) / f"{seed}.png", picture(seed) * 200)
                save(root / layout.format(part=part).replace("images", "masks") / f"{seed}.png", picture(seed) * 255)
        data = build(root, options=TWO)
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 2}


@pytest.mark.parametrize("augment", ["flip", "crop_flip"])
def test_the_mask_moves_with_its_image(folder: Path, augment: str) -> None:
    split = build(folder, augment=augment, options=TWO).splits["train"]
    plain = build(folder, options=TWO).splits["train"]
    seen = set()
    for epoch in range(6):
        keys = [SampleKey(index, epoch) for index in range(len(split))]
        batch = split.__getitems__(keys)  # type: ignore[attr-defined]
        bright = batch.inputs.mean(dim=1) > 0  # 200 is bright: the image says where the mask must be
        # Only pixels at the edge may differ, where the image is mixed and the mask is not.
        assert (bright == batch.targets.bool()).float().mean() > 0.93
        seen.add(batch.targets.sum().item() if augment == "crop_flip" else batch.targets.float().argmax().item())
        again = split.__getitems__(keys)  # type: ignore[attr-defined]
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.targets, batch.targets)
        assert torch.equal(split.targets_at(keys), batch.targets)  # type: ignore[attr-defined]
    assert len(seen) > 1
    assert not split.deterministic
    assert plain.deterministic


def test_a_letterbox_keeps_proportions_and_does_not_count_what_it_adds(tmp_path: Path) -> None:
    for seed in range(4):
        save(tmp_path / f"images/{seed}.png", picture(seed, 16, 32) * 200)
        save(tmp_path / f"masks/{seed}.png", picture(seed, 16, 32) * 255)
    boxed = build(tmp_path, side=64, options={**TWO, "fit": "letterbox"})
    split = boxed.splits["train"]
    image, target, _ = split[SampleKey(0, 0)]
    assert image.shape == (3, 64, 64)
    assert (target[32:] == IGNORE).all()
    assert not (target[:32] == IGNORE).any()
    assert image[:, 40:].abs().max() < 0.02  # the mean colour
    stretched = build(tmp_path, side=64, options=TWO).splits["train"][SampleKey(0, 0)][1]
    assert not (stretched == IGNORE).any()


def test_arrays_with_many_channels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, SIZE, SIZE, 5)).astype(np.uint8)
    masks = np.stack([picture(seed) for seed in range(6)])
    np.savez(
        tmp_path / "cube.npz",
        train_images=images[:4],
        train_masks=masks[:4],
        val_images=images[4:],
        val_masks=masks[4:],
    )
    split = build(tmp_path / "cube.npz", channels=5).splits["val"]
    assert split[SampleKey(1, 0)][0].shape == (5, SIZE, SIZE)
    assert torch.equal(split.targets[1], torch.from_numpy(masks[5]))
    with pytest.raises(DataError, match=r"it has 5 channels but the network takes 3: set backbone.in_channels=5"):
        build(tmp_path / "cube.npz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"classes": {"a": 0, "b": 7}}}, r"the value 255 in its mask is no class; known are 0, 7"),
        ({"options": {"mask": "x"}}, r"masks has no option 'mask' \(did you mean 'masks'\?\)"),
        ({"options": {"masks": "label"}}, "has no folder 'label'; name it by data.options.masks"),
        ({"options": {"classes": {"a": 0, "b": 0}}}, "data.options.classes: two classes have the same value"),
        ({"augment": "randaugment", "options": TWO}, "data.augment: randaugment moves images without their masks"),
        ({"mixup": 0.2, "options": TWO}, "data.mixup and data.cutmix: are for classification"),
        ({"options": {**TWO, "fit": "squash"}}, "data.options.fit: unknown 'squash'"),
    ],
)
def test_mistakes_are_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(folder, **settings)


def test_pairs_that_do_not_fit(folder: Path) -> None:
    save(folder / "images/extra.png", picture(1) * 200)
    with pytest.raises(DataError, match=r"images without a mask in 'masks' \(1\): images/extra.png"):
        build(folder, options=TWO)
    save(folder / "masks/extra.png", picture(1, 8, 16) * 255)
    with pytest.raises(DataError, match=r"images/extra.png: it is 16x16 but its mask is 16x8"):
        build(folder, options=TWO)
    assert build(folder, options=TWO, on_error="skip").skipped.keys() == {"images/extra.png"}


def test_another_mask_or_meaning_is_another_data_set(folder: Path) -> None:
    first = build(folder, options=TWO).fingerprint.digest
    assert build(folder, options=TWO).fingerprint.digest == first
    assert build(folder, options={"classes": {"front": 255, "back": 0}}).fingerprint.digest != first
    save(folder / "masks/3.png", picture(4) * 255)
    assert build(folder, options=TWO).fingerprint.digest != first


def test_real_membranes(real: Callable[[str], str]) -> None:
    options = {"images": "image", "masks": "label", "classes": {"membrane": 0, "cell": 255}}
    data = build(Path(real("isbi2012_em")), side=64, test_fraction=0.2, options=options)
    assert sum(map(len, data.splits.values())) == 30
    shares = [float((mask == 0).float().mean()) for split in data.splits.values() for mask in split.targets]
    assert 0.1 < min(shares) < max(shares) < 0.4


def test_masks_are_paired_by_a_pattern(tmp_path: Path) -> None:
    for seed in range(6):
        save(tmp_path / f"images/{seed}_scan.png", picture(seed) * 200)
        save(tmp_path / f"masks/{seed}_label.gif", picture(seed) * 255)
    save(tmp_path / "masks/9_label.png", picture(9) * 255)
    with pytest.raises(DataError, match=r"images without a mask in 'masks' \(6\): .*pair_pattern .*0_label\.gif"):
        build(tmp_path)
    data = build(tmp_path, options={**TWO, "pair_pattern": r"(\d+)_"})
    assert data.passed == {"masks without an image": 1}
    for split in data.splits.values():
        for index, name in enumerate(split.names):
            assert torch.equal(split.targets[index], torch.from_numpy(picture(int(Path(name).name[0]))))
    for pattern, message in (("(", "is no regular expression"), (r"\d", "has no group"), ("(x)", "does not fit")):
        with pytest.raises(DataError, match=message):
            build(tmp_path, options={"pair_pattern": pattern})
    save(tmp_path / "masks/0_label.png", picture(0) * 255)
    with pytest.raises(DataError, match=r"masks for the same image \(1\): masks/0_label\.gif and masks/0_label\.png"):
        build(tmp_path, options={"pair_pattern": r"(\d+)_"})


def test_masks_in_a_format_that_is_not_read_are_named(folder: Path) -> None:
    (folder / "masks/3.png").unlink()
    np.save(folder / "masks/3.npy", picture(3))
    with pytest.raises(DataError, match=r"images/3\.png\. 'masks' holds 3\.npy, which is none of the formats"):
        build(folder)


@pytest.mark.parametrize(
    ("name", "text", "ignore"),
    [
        ("names.txt", "back\nfront\n", None),
        ("values.txt", "\ufeff0 back\r\n255 front\r\n", None),
        ("values.csv", "0,back\n255,front\n", None),
        ("classes.json", '{"back": 0, "front": 255}', None),
    ],
)
def test_class_names_from_a_file(name: str, text: str, ignore: Any, folder: Path) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    if name == "names.txt":
        for seed in range(10):
            save(folder / f"masks/{seed}.png", picture(seed))
    assert build(folder, options={"classes": name}).classes == ("back", "front")
    with pytest.raises(DataError, match=r"data\.options\.classes: there is no file .*nowhere\.txt"):
        build(folder, options={"classes": "nowhere.txt"})


def test_colours_from_a_file(folder: Path) -> None:
    for seed in range(10):
        save(folder / f"masks/{seed}.png", np.stack([picture(seed) * 9, picture(seed) * 0, picture(seed)], axis=2))
    (folder / "colours.txt").write_text("0 0 0 back ground\n9 0 1\tfront\n")
    assert build(folder, options={"classes": "colours.txt"}).classes == ("back ground", "front")


@pytest.mark.parametrize("options", [{}, {"classes": ["back", "front"]}])
def test_broken_masks_are_left_out_and_grey_colours_are_numbers(options: dict[str, Any], folder: Path) -> None:
    for seed in range(10):
        save(folder / f"masks/{seed}.png", np.stack([picture(seed)] * 3, axis=2))
    (folder / "masks/3.png").write_bytes(b"")
    (folder / "masks/4.png").write_bytes(b"x" * 30)
    with pytest.raises(DataError, match=r"unreadable images with masks \(2\): images/3\.png: its mask"):
        build(folder, options=options)
    data = build(folder, options=options, on_error="skip")
    assert sorted(data.skipped) == ["images/3.png", "images/4.png"]
    assert len(data.classes) == 2


def test_a_mask_lies_on_the_photo_that_is_seen(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for seed in range(10):
        Image.fromarray(np.rot90(picture(seed) * 200, 2)).save(folder / f"images/{seed}.png", exif=exif)
    split = build(folder, options=TWO).splits["train"]
    for index in range(len(split)):
        assert torch.equal((split.raw(index)[0] > 0).to(torch.uint8), split.targets[index])


def test_a_mask_is_found_however_the_letters_of_its_name_are_composed(folder: Path) -> None:
    (folder / "images/0.png").rename(folder / "images/cafe\u0301.png")
    (folder / "masks/0.png").rename(folder / "masks/caf\u00e9.png")
    data = build(folder, options=TWO)
    assert sum(len(split) for split in data.splits.values()) == 10
