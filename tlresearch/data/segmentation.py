"""Source `masks`: images with a mask of classes each, as two folders or as arrays."""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import SplitName
from tlresearch.data.files import PICTURES, FileImages
from tlresearch.data.folders import composed, list_files, stem_of
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
from tlresearch.data.npz import load_arrays
from tlresearch.data.plane import MaskTargets
from tlresearch.data.rows import read_text
from tlresearch.data.table import SPLITS, Images, Table, refuse, split_of, splits_among
from tlresearch.data.volumes import OPTIONS as MEDICAL_OPTIONS
from tlresearch.data.volumes import Reading, all_slices, file_of, is_volume, read_reading

OPTIONS = ("images", "masks", "mask_suffix", "pair_pattern", "classes", "ignore", "fit", *MEDICAL_OPTIONS)
MASKS = (*PICTURES, ".gif")
"""Endings of masks: some sets have theirs as GIF."""
LEGEND_FILE = "classes.json"
FITS = ("stretch", "letterbox", "crop")

_LEGEND_LINE = re.compile(r"^\s*(?P<whole>(?:(?P<value>\d+(?:[\s,;]+\d+[\s,;]+\d+)?)[\s,;:]+)?(?P<name>\S.*?))\s*$")
_EXPECTED = "expected <root>/<images>/<name> with <root>/<masks>/<name>, also below train, val and test"


class _Source(NamedTuple):
    """Images with their masks, as they lie somewhere."""

    names: list[str]
    images: Images
    masks: Masks
    splits: list[SplitName] | None
    passed: Mapping[str, int]


def read_masks(root: Path, config: DataConfig) -> Table:
    """Reads images with masks.

    Options (``data.options``): ``images`` and ``masks`` (names of the folders), ``mask_suffix`` (what a mask's name
    has behind its image's), ``pair_pattern`` (a regular expression whose first group is the same in the names of an
    image and its mask), ``classes`` (names with their mask values, numbers or colours, or names alone, or a file of
    them), ``ignore`` (value of pixels that do not count), ``fit`` (see `Preprocessing.fit`; ``stretch``), and those of
    `read_reading`. Without ``classes`` they are read from ``classes.json`` in the root, else every value that occurs is
    a class.

    Args:
        root: Folder, or npz file.
        config: The `data` section.

    Raises:
        DataError: If anything about the data is wrong; the text names the place and the cure.
    """
    fit = config.options.get("fit", "stretch")
    if fit not in FITS:
        raise DataError(f"data.options.fit: unknown '{fit}'; choose from {', '.join(FITS)}")
    reading = read_reading(config.options, config.orientation)
    source = _read_arrays(root) if root.suffix == ".npz" else _read_folder(root, config.options, reading)
    legend = _legend(root, source.masks, len(source.names), config.options)
    pairs = Pairs(source.images, source.masks, legend)
    return Table(
        name=root.stem,
        classes=legend.classes,
        labels=torch.zeros(len(source.names), dtype=torch.int64),
        names=source.names,
        images=pairs,
        splits=source.splits,
        targets=[torch.empty(0)] * len(source.names),  # a pair's hash holds the mask
        kind="masks",
        samples="images with masks",
        groups=[file_of(n) for n in source.names] if any(file_of(n) != n for n in source.names) else None,
        plane=lambda sizes: MaskTargets(pairs),
        fit=fit,
        windows=reading.windows,
        passed={why: count for why, count in source.passed.items() if count},
    )


def _read_folder(root: Path, options: Mapping[str, Any], reading: Reading) -> _Source:
    """Finds images and masks: a mask has the name of its image, with another ending or a suffix, or by a pattern."""
    if not root.is_dir():
        raise DataError(f"data.root: {root} is neither a folder nor an npz file; {_EXPECTED}")
    images, masks = str(options.get("images", "images")), str(options.get("masks", "masks"))
    above = sorted(path.name for path in root.iterdir() if (path / images).is_dir())
    meant = splits_among(above, str(root))
    parts: list[str] = [*meant] or [""]
    passed: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []
    first: list[str] = []
    for part in parts:
        own = _pairs(root, Path(part, images), Path(part, masks), options, passed)
        slices = _slices(root, own, reading)
        pairs += slices
        # The split is the folder above, or the first one below: images/train/1.png.
        first += [part or Path(image).relative_to(images).parts[0] for image, _ in slices]
    if not pairs:
        raise DataError(f"{root} holds no images in '{images}'; {_EXPECTED} (data.options.images and .masks name them)")
    names = [image for image, _ in pairs]
    splits = [split for name in first if (split := split_of(name)) is not None]
    if len(splits) == len(names):
        splits_among(sorted(set(first)), str(root))
    pictures = FileImages(root, names, reading)
    drawn = FileMasks(root, [mask for _, mask in pairs], reading.orientation)
    return _Source(names, pictures, drawn, splits if len(splits) == len(names) else None, passed)


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


def _pairs(
    root: Path, images: Path, masks: Path, options: Mapping[str, Any], passed: Counter[str]
) -> list[tuple[str, str]]:
    """Pairs of an image and its mask, in the order of the images; what is no pair is counted."""
    for folder, key in ((images, "images"), (masks, "masks")):
        if not (root / folder).is_dir():
            raise DataError(f"{root} has no folder '{folder}'; name it by data.options.{key}. {_EXPECTED}")
    pictures = list_files(root, PICTURES, below=images.as_posix())
    drawn = list_files(root, MASKS, below=masks.as_posix())
    key_of = _key_by(options)
    by_key: dict[str, list[str]] = {}
    for name in drawn.names:
        by_key.setdefault(key_of(name, masks, ""), []).append(name)
    refuse(
        [" and ".join(sorted(names)) for names in by_key.values() if len(names) > 1],
        what=f"{root}: masks for the same image",
        cure="Keep one of them",
    )
    keys = {name: key_of(name, images, str(options.get("mask_suffix", ""))) for name in _in_order(pictures.names)}
    lacking = [name for name, key in keys.items() if key not in by_key]
    if lacking:
        refuse(
            lacking,
            what=f"{root}: images without a mask in '{masks}'",
            cure=_missing(root, masks, drawn.names, lacking[0]),
        )
    passed.update(pictures.passed + drawn.passed)
    passed["masks without an image"] += len(set(by_key) - set(keys.values()))
    return [(name, by_key[key][0]) for name, key in keys.items()]


def _key_by(options: Mapping[str, Any]) -> Callable[[str, Path, str], str]:
    """What an image and its mask have in common: the name without ending and suffix, or a group of the pattern."""
    pattern = options.get("pair_pattern")
    if pattern is None:
        return lambda name, folder, suffix: composed(stem_of(Path(name).relative_to(folder).as_posix(), MASKS) + suffix)
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"data.options.pair_pattern: {pattern!r} is no regular expression: {error}") from None
    if not compiled.groups:
        raise DataError(f"data.options.pair_pattern: '{pattern}' has no group for what both names have, such as (\\d+)")

    def key(name: str, folder: Path, suffix: str) -> str:
        match = compiled.search(Path(name).relative_to(folder).as_posix())
        if match is None or match[1] is None:
            raise DataError(f"data.options.pair_pattern: '{pattern}' does not fit {name}")
        return composed(match[1])

    return key


def _missing(root: Path, masks: Path, drawn: Sequence[str], image: str) -> str:
    """The cure for images without a mask, by what lies there instead."""
    cure = "A mask has its image's name, perhaps with data.options.mask_suffix behind it, or data.options.pair_pattern"
    stem = stem_of(Path(image).name, PICTURES)
    alike = sorted(path.name for path in (root / masks).rglob(f"{glob.escape(stem)}.*"))
    if alike:
        return f"'{masks}' holds {alike[0]}, which is none of the formats that are read ({' '.join(MASKS)})"
    return f"{cure} says what they share; '{masks}' holds {', '.join(sorted(drawn)[:3]) or 'no pictures'}"


def _in_order(names: Sequence[str]) -> list[str]:
    return sorted(names, key=Path)


def _read_arrays(path: Path) -> _Source:
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
    return _Source(names, images, ArrayMasks(masks), None if present == ["train"] else splits, {})


def _legend(root: Path, masks: Masks, count: int, options: Mapping[str, Any]) -> Legend:
    given, where = options.get("classes"), "data.options.classes"
    file = root / (given if isinstance(given, str) else LEGEND_FILE)
    try:
        if isinstance(given, str) and not file.is_file():
            raise ValueError(
                f"there is no file {file}; or give names with their mask values: {{background: 0, cell: 255}}"
            )
        if isinstance(given, str) or (given is None and file.is_file()):
            given, where = _legend_file(file), str(file)
        if given is None:
            where = "data.options.classes is needed to read the masks"
            return found_legend(masks, count, ignored_values(options.get("ignore")))
        if not isinstance(given, (Mapping, Sequence)) or isinstance(given, str):
            raise ValueError("it must be names with their mask values, such as {background: 0, cell: 255}")
        return read_legend(given, options.get("ignore"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{where}: {error}") from None


def _legend_file(file: Path) -> Any:
    """Reads ``.json``, or a text with a class in each line: its name, or its number or colour with its name."""
    text = read_text(file)
    if file.suffix.lower() == ".json":
        return json.loads(text)
    lines = [_LEGEND_LINE.match(line) for line in text.split("\n") if line.strip()]
    if not all(match and match["value"] for match in lines):
        return [match["whole"] for match in lines if match]
    numbers = [(match["name"], [int(part) for part in re.findall(r"\d+", match["value"])]) for match in lines if match]
    return {name: value[0] if len(value) == 1 else value for name, value in numbers}
