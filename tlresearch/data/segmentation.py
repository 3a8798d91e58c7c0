"""Source `masks`: images with a mask of classes each, as two folders or as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tlresearch.base.errors import DataError, nearest
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import Data, SplitName
from tlresearch.data.dense_split import DenseSplit, MaskTargets, build_joint
from tlresearch.data.files import FileImages
from tlresearch.data.mask_files import (
    ArrayMasks,
    FileMasks,
    Legend,
    Masks,
    Pairs,
    found_legend,
    ignored_values,
    read_legend,
)
from tlresearch.data.medical import PICTURES
from tlresearch.data.npz import load_arrays
from tlresearch.data.prepared import prepare
from tlresearch.data.table import SPLIT_ALIASES, SPLITS, Images, Table, refuse
from tlresearch.data.volumes import OPTIONS as MEDICAL_OPTIONS
from tlresearch.data.volumes import Reading, all_slices, file_of, is_volume, read_reading
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import Evaluation, Preprocessing

OPTIONS = ("images", "masks", "mask_suffix", "classes", "ignore", "fit", *MEDICAL_OPTIONS)
LEGEND_FILE = "classes.json"
FITS = ("stretch", "letterbox", "crop")

_EXPECTED = "expected <root>/<images>/<name> with <root>/<masks>/<name>, also below train, val and test"


def build_masks(config: DataConfig, *, preprocessing: Preprocessing, seed: int) -> Data:
    """Reads, checks and splits images with masks.

    Options (``data.options``): ``images`` and ``masks`` (names of the folders), ``mask_suffix`` (what a mask's name
    has behind its image's), ``classes`` (names with their mask values, numbers or colours, or names alone), ``ignore``
    (value of pixels that do not count), ``fit`` (see `Preprocessing.fit`; ``stretch``), and those of medical images
    (see `read_reading`). Without ``classes`` they are read from ``classes.json`` in the root, else every value that
    occurs is a class.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size.
        seed: Seed of the augmentation.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    check_options(config, OPTIONS)
    preprocessing = check_image_backbone(config, preprocessing)
    fit = config.options.get("fit", "stretch")
    if fit not in FITS:
        raise DataError(f"data.options.fit: unknown '{fit}'; choose from {', '.join(FITS)}")
    if config.root is None:
        raise DataError("data.root is not set: masks needs the folder of images and masks, or an npz file")
    root = find_data(config.root)
    names, images, masks, splits = _read_arrays(root) if root.suffix == ".npz" else _read_folder(root, config.options)
    legend = _legend(root, masks, len(names), config.options)
    pairs = Pairs(images, masks, legend)
    table = Table(
        name=root.stem,
        classes=legend.classes,
        labels=torch.zeros(len(names), dtype=torch.int64),
        names=names,
        images=pairs,
        splits=splits,
        targets=[torch.empty(0)] * len(names),  # a pair's hash holds the mask
        kind="masks",
        samples="images with masks",
        groups=[file_of(name) for name in names] if any(file_of(name) != name for name in names) else None,
    )
    found = prepare(table, config)
    sizes = {row: (checked.height, checked.width) for row, checked in found.checked.items()}
    wanted = preprocessing.sized(config.image_size)
    if wanted.crop is None:
        side = one_size(sizes.values())
        wanted = replace(wanted, crop=side, resize=side)
    wanted = replace(wanted, fit=fit)
    check_channels(images, names, wanted.channels)
    evaluation = Evaluation(wanted)
    assert wanted.crop is not None
    augmentation = build_joint(config.augment, evaluation, wanted.crop)
    return Data(
        name=table.name,
        splits={
            split: DenseSplit(
                images,
                MaskTargets(pairs),
                rows,
                names=[names[row] for row in rows],
                sizes=[sizes[row] for row in rows],
                evaluation=evaluation,
                augmentation=augmentation if split == "train" else None,
                seed=seed,
            )
            for split, rows in found.splits.items()
        },
        classes=found.classes,
        kind="masks",
        fingerprint=found.fingerprint,
        preprocessing=wanted,
        skipped=found.skipped,
    )


def check_options(config: DataConfig, known: Sequence[str]) -> None:
    """Refuses options that a source does not have, and mixing, which masks and boxes do not survive.

    Raises:
        DataError: If there is one.
    """
    for name in config.options:
        if name not in known:
            raise DataError(
                f"data.options: {config.name} has no option '{name}'{nearest(name, known)}; it has {', '.join(known)}"
            )
    if config.mixup or config.cutmix:
        raise DataError("data.mixup and data.cutmix: are for classification; set them to 0")
    if config.labels_per_class is not None:
        raise DataError("data.labels_per_class: an image has many classes here; use data.train_fraction")


def check_image_backbone(config: DataConfig, preprocessing: Modality) -> Preprocessing:
    """Returns the preprocessing of a backbone that takes images.

    Raises:
        DataError: If it takes something else.
    """
    complaint = DataError(f"data.name: {config.name} gives images, which this backbone does not take")
    return expect(preprocessing, Preprocessing, complaint)


def check_channels(images: Images, names: Sequence[str], channels: int) -> None:
    """Refuses images that cannot be brought to the network's channels.

    Raises:
        DataError: If they cannot; the text names the cure.
    """
    try:
        images.load(0, channels)
    except ValueError as error:
        raise DataError(f"{names[0]}: {error}") from None


def one_size(sizes: Any) -> int:
    """Returns the side of images that are all squares of one size.

    Raises:
        DataError: If they are not.
    """
    different = sorted(set(sizes))
    if len(different) > 1 or different[0][0] != different[0][1]:
        shown = ", ".join(f"{width}x{height}" for height, width in different[:3])
        raise DataError(f"images are taken as they are but are no squares of one size ({shown}); set data.image_size")
    return int(different[0][0])


Found = tuple[list[str], Images, Masks, list[SplitName] | None]


def _read_folder(root: Path, options: Mapping[str, Any]) -> Found:
    """Finds images and masks; a mask has the name of its image, with another extension or a suffix."""
    if not root.is_dir():
        raise DataError(f"data.root: {root} is neither a folder nor an npz file; {_EXPECTED}")
    images, masks = str(options.get("images", "images")), str(options.get("masks", "masks"))
    parts = [folder for folder in sorted(SPLIT_ALIASES) if (root / folder / images).is_dir()] or [""]
    suffix, reading = str(options.get("mask_suffix", "")), read_reading(options)
    found = [_slices(root, _pairs(root, Path(part, images), Path(part, masks), suffix), reading) for part in parts]
    names = [image for pairs in found for image, _ in pairs]
    if not names:
        raise DataError(f"{root} holds no images in '{images}'; {_EXPECTED} (data.options.images and .masks name them)")
    # The split is the folder above, or the first one below: images/train/1.png.
    first = [
        part or Path(image).relative_to(images).parts[0]
        for part, ps in zip(parts, found, strict=True)
        for image, _ in ps
    ]
    splits = [SPLIT_ALIASES[name] for name in first] if all(name in SPLIT_ALIASES for name in first) else None
    pictures = FileImages(root, names, reading.windows)
    return names, pictures, FileMasks(root, [mask for pairs in found for _, mask in pairs]), splits


def _slices(root: Path, pairs: Sequence[tuple[str, str]], reading: Reading) -> list[tuple[str, str]]:
    """Replaces pairs of volumes by pairs of their slices."""
    images, masks = zip(*pairs, strict=True) if pairs else ((), ())
    refuse(
        [f"{image} with {mask}" for image, mask in pairs if is_volume(image) != is_volume(mask)],
        what=f"{root}: volumes whose mask is none, or the other way round",
        cure="Give both as volumes, or both as images",
    )
    sides = [*zip(all_slices(root, images, reading), all_slices(root, masks, reading), strict=True)]
    refuse(
        [f"{file_of(a[0])} has {len(a)}, {file_of(b[0])} {len(b)}" for a, b in sides if len(a) != len(b)],
        what=f"{root}: volumes with another number of slices than their masks",
        cure="Save the masks on the grid of their volumes",
    )
    return [pair for a, b in sides for pair in zip(a, b, strict=True)]


def _pairs(root: Path, images: Path, masks: Path, suffix: str) -> list[tuple[str, str]]:
    for folder, key in ((images, "images"), (masks, "masks")):
        if not (root / folder).is_dir():
            raise DataError(f"{root} has no folder '{folder}'; name it by data.options.{key}. {_EXPECTED}")
    by_stem = {_stem(path, root / masks): path for path in _files(root / masks)}
    pictures = _files(root / images)
    wanted = {path: _stem(path, root / images) + suffix for path in pictures}
    refuse(
        [path.relative_to(root).as_posix() for path, stem in wanted.items() if stem not in by_stem],
        what=f"{root}: images without a mask in '{masks}'",
        cure="A mask has its image's name, perhaps with data.options.mask_suffix behind it",
    )
    return [
        (path.relative_to(root).as_posix(), by_stem[stem].relative_to(root).as_posix()) for path, stem in wanted.items()
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.lower().endswith(PICTURES))


def _stem(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    # All of the ending of .nii.gz; in other names a point may stand anywhere.
    ending = max((e for e in PICTURES if name.lower().endswith(e)), key=len)
    return name[: -len(ending)]


def _read_arrays(path: Path) -> Found:
    """Reads ``{train,val,test}_images`` uint8 ``(N, H, W[, C])`` and ``..._masks`` ``(N, H, W[, 3])``."""
    arrays = load_arrays(path)
    present = [split for split in SPLITS if f"{split}_images" in arrays and f"{split}_masks" in arrays]
    if "train" not in present:
        raise DataError(f"{path} lacks train_images or train_masks; it holds {', '.join(arrays) or 'nothing'}")
    for split in present:
        pictures, masks = arrays[f"{split}_images"], arrays[f"{split}_masks"]
        if pictures.shape[:3] != masks.shape[:3] or masks.ndim not in (3, 4) or masks.dtype.kind not in "uib":
            raise DataError(
                f"{path}: {split}_masks must be integers of the images' size {pictures.shape[:3]} "
                f"but are {masks.dtype} {masks.shape}"
            )
    try:
        images = ArrayImages(np.concatenate([arrays[f"{split}_images"] for split in present]))
        masks = np.concatenate([arrays[f"{split}_masks"] for split in present])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    names = [f"{split}/{index}" for split in present for index in range(len(arrays[f"{split}_images"]))]
    splits: list[SplitName] = [split for split in present for _ in arrays[f"{split}_images"]]
    return names, images, ArrayMasks(masks), None if present == ["train"] else splits


def _legend(root: Path, masks: Masks, count: int, options: Mapping[str, Any]) -> Legend:
    given, where = options.get("classes"), "data.options.classes"
    file = root / LEGEND_FILE
    try:
        if given is None and file.is_file():
            given, where = json.loads(file.read_text(encoding="utf-8")), str(file)
        if given is None:
            where = "data.options.classes is needed to read the masks"
            return found_legend(masks, count, ignored_values(options.get("ignore")))
        if not isinstance(given, (Mapping, Sequence)) or isinstance(given, str):
            raise ValueError("it must be names with their mask values, such as {background: 0, cell: 255}")
        return read_legend(given, options.get("ignore"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{where}: {error}") from None
