"""From the `data` section of a config to splits ready for training; the registry of sources."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tlresearch.base.errors import DataError, nearest, one_line
from tlresearch.base.paths import data_folder, find_data
from tlresearch.config.parts import make
from tlresearch.config.schema import DataConfig
from tlresearch.data import detection, segmentation, volumes
from tlresearch.data.audio import audio_folder, audio_manifest, audio_splits
from tlresearch.data.base import Data, Split, SplitName
from tlresearch.data.digits import read_digits
from tlresearch.data.download import ensure_here
from tlresearch.data.folders import summary
from tlresearch.data.handed import table_of
from tlresearch.data.image_csv import read_image_csv
from tlresearch.data.image_folder import read_image_folder
from tlresearch.data.images import image_splits
from tlresearch.data.npz import read_npz
from tlresearch.data.prepared import Prepared, prepare
from tlresearch.data.sampling import check_sampling
from tlresearch.data.table import Table
from tlresearch.data.text import TEXT_SOURCES, text_splits
from tlresearch.data.torchvision_sets import read_torchvision
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.text import TextPreprocessing

logger = logging.getLogger(__name__)

Splits = Callable[[Table, Prepared, DataConfig, Any, int], tuple[Any, Mapping[SplitName, Split]]]


class Kind(NamedTuple):
    """What samples of one kind need.

    Attributes:
        samples: What they are called.
        modality: What a backbone that takes them has for its inputs.
        splits: Makes splits of a table of them.
        cure: Which backbone takes them.
    """

    samples: str
    modality: type[Modality]
    splits: Splits
    cure: str


IMAGES = Kind("images", Preprocessing, image_splits, "choose torchvision/<model>, timm/<model> or small_cnn")
TEXTS = Kind("texts", TextPreprocessing, text_splits, "choose hf/<model> or word_cnn")
SOUNDS = Kind(
    "sounds",
    AudioPreprocessing,
    audio_splits,
    "choose a speech backbone, or put log_mel/ in front of an image backbone",
)


KINDS: Mapping[str, Kind] = {kind.samples: kind for kind in (IMAGES, TEXTS, SOUNDS)}
"""What samples need by `Table.samples`; sentences are texts."""


class Source(NamedTuple):
    """One entry of the registry.

    Attributes:
        read: Reads the table, given the config and the backbone's preprocessing; the user's own may give the data.
        kind: What its samples are.
        options: Names that ``data.options`` may have; ``None`` leaves them to whatever they are passed on to.
    """

    read: Callable[[DataConfig, Any], Table | Data]
    kind: Kind = IMAGES
    options: Sequence[str] | None = ()


def _below(read: Callable[[Path, DataConfig], Table], options: Sequence[str] = ()) -> Source:
    """A source of images below `data.root`."""
    return Source(lambda config, _: read(find_data(str(config.root)), config), IMAGES, options)


def _torchvision(config: DataConfig, _: Any) -> Table:
    if config.dataset is None:
        raise DataError("data.dataset is not set: torchvision needs the name of a data set, such as CIFAR10")
    # Not looked up with find_data: before a download the folder need not exist.
    folder = data_folder() / Path(config.root or "").expanduser()
    return read_torchvision(
        folder,
        dataset=config.dataset,
        download=config.download,
        options=config.options,
        orientation=config.orientation,
    )


def _named(function: Callable[..., Any]) -> tuple[str, ...]:
    """Options of a reader: its arguments, without those that every reader has."""
    parameters = inspect.signature(function).parameters
    return tuple(name for name in parameters if name not in ("root", "config", "rate"))


def _sounds(read: Callable[..., Table]) -> Source:
    return Source(lambda config, wanted: read(config, wanted.sample_rate, **config.options), SOUNDS, _named(read))


def _texts(name: str, read: Callable[[DataConfig], Table]) -> Source:
    # What the hub takes is up to `datasets`.
    return Source(lambda config, _: read(config), TEXTS, None if name == "hf_dataset" else ())


def _own(config: DataConfig, preprocessing: Modality) -> Table | Data:
    """What a class or function of the user's own gives: a table, data with splits of any modality, or a data set."""
    given = {"preprocessing": preprocessing}
    if config.root is not None:
        given["root"] = find_data(config.root)  # type: ignore[assignment]
    made = make(config, "data", **given)
    if isinstance(made, (Table, Data)):
        return made
    return table_of(made, config, texts=isinstance(preprocessing, TextPreprocessing))


OWN = Source(_own, options=None)
"""A function of the user's own, by its dotted path."""

SOURCES: Mapping[str, Source] = {
    "image_folder": _below(read_image_folder, volumes.OPTIONS),
    "image_csv": _below(read_image_csv, volumes.OPTIONS),
    "npz": _below(lambda root, config: read_npz(root, config.targets)),
    "torchvision": Source(_torchvision, options=None),
    "digits": Source(lambda config, _: read_digits()),
    "masks": _below(segmentation.read_masks, segmentation.OPTIONS),
    **{
        name: _below(detection.read_boxes, (*_named(reader), *detection.OPTIONS))
        for name, reader in detection.READERS.items()
    },
    "audio_folder": _sounds(audio_folder),
    "audio_manifest": _sounds(audio_manifest),
    **{name: _texts(name, read) for name, read in TEXT_SOURCES.items()},
}
"""Sources by the name of ``data.name``; a dotted path names one of the user's own."""

_NEED_NO_ROOT = ("torchvision", "digits", "hf_dataset")


def build_data(config: DataConfig, *, preprocessing: Modality, seed: int) -> Data:
    """Reads, checks and splits the samples of a config.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size (see `Preprocessing.sized`).
        seed: Seed of the augmentation.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    source = _source(config)
    try:
        data = _read(config, source, preprocessing, seed)
    except OSError as error:  # a folder that may not be read, a name that no file can have, a disk that is full
        raise DataError(f"data: {config.name} cannot be read: {one_line(error, 200)}") from None
    if config.sampling == "balanced":
        check_sampling(data)
    return data


def _read(config: DataConfig, source: Source, preprocessing: Modality, seed: int) -> Data:
    if source is not OWN:
        _check(config, source, preprocessing)
    ensure_here(config)
    table = source.read(config, preprocessing)
    if isinstance(table, Data):
        return table
    if source is OWN:  # only now is it known what its samples are
        source = source._replace(kind=IMAGES if table.plane else KINDS.get(table.samples, TEXTS))
        _check(config, source, preprocessing)
    data = _built(table, config, source.kind, preprocessing, seed)
    if data.passed:
        logger.warning("%s: %d %s, %s", data.name, len(table.names), table.samples, summary(data.passed))
    return data


def _built(table: Table, config: DataConfig, kind: Kind, preprocessing: Modality, seed: int) -> Data:
    prepared = prepare(table, config)
    preprocessing = preprocessing.sized(config.image_size, config.resize)
    if isinstance(preprocessing, Preprocessing):
        preprocessing = replace(preprocessing, orientation=config.orientation, windows=table.windows)
    preprocessing, splits = kind.splits(table, prepared, config, preprocessing, seed)
    return Data(
        name=table.name,
        splits=splits,
        classes=prepared.classes,
        kind=prepared.kind,
        fingerprint=prepared.fingerprint,
        preprocessing=preprocessing,
        skipped=prepared.skipped,
        passed=table.passed,
    )


def _check(config: DataConfig, source: Source, preprocessing: Modality) -> None:
    """Refuses what does not fit together, before anything is read."""
    samples, modality, _, cure = source.kind
    complaint = f"data.name: {config.name} gives {samples}, which this backbone does not take; {cure}"
    preprocessing = expect(preprocessing, modality, DataError(complaint))
    dense = config.name == "masks" or config.name in detection.READERS
    if isinstance(preprocessing, Preprocessing) and preprocessing.channels not in (1, 3) and not dense:
        raise DataError(f"the backbone takes {preprocessing.channels} channels; images have 1 or 3")
    own = bool(config.transforms or config.eval_transforms)
    unfit = {
        "transforms": own,
        "augment": config.augment != "none",
        "mixup": config.mixup > 0,
        "cutmix": config.cutmix > 0,
    }
    for key, given in unfit.items():
        if given and source.kind is not IMAGES:
            raise DataError(f"data.{key}: is for images, but {config.name} holds {samples}; leave it out")
    if dense:
        if config.mixup or config.cutmix:
            raise DataError("data.mixup and data.cutmix: are for classification; set them to 0")
        if config.labels_per_class is not None:
            raise DataError("data.labels_per_class: an image has many classes here; use data.train_fraction")
    options = config.options if source.options is None else source.options
    for name in config.options:
        if name not in options:
            known = ", ".join(options) or "none"
            raise DataError(
                f"data.options: {config.name} has no option '{name}'{nearest(name, [*options])}; it has {known}"
            )
    if config.root is None and config.name in SOURCES and config.name not in _NEED_NO_ROOT:
        raise DataError(f"data.root is not set: {config.name} needs the folder or file of the {samples}")


def _source(config: DataConfig) -> Source:
    if config.name in SOURCES:
        return SOURCES[config.name]
    if "." not in config.name:
        raise DataError(
            f"data.name: unknown source '{config.name}'{nearest(config.name, [*SOURCES])}; "
            f"choose from {', '.join(SOURCES)}, or give the dotted path of your own"
        )
    return OWN
