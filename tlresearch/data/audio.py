"""Sources of sounds: from a listing of files to splits for classification or speech recognition."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from tlresearch.base.errors import DataError, nearest
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.audio_files import AudioFiles, AudioSplit
from tlresearch.data.audio_tables import Listing, list_folder, list_manifest
from tlresearch.data.base import Data
from tlresearch.data.prepared import prepare
from tlresearch.data.table import Checked, Table, in_order, refuse
from tlresearch.modality.base import expect
from tlresearch.modality.sound import AudioPreprocessing

logger = logging.getLogger(__name__)


def build_audio(config: DataConfig, *, preprocessing: AudioPreprocessing, seed: int) -> Data:
    """Reads, checks and splits the sounds of a config.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.seconds` overrides its length.
        seed: Of no effect: nothing is random.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    complaint = (
        f"data.name: {config.name} gives sounds, which this backbone does not take; "
        "choose a speech backbone, or put log_mel/ in front of an image backbone"
    )
    preprocessing = expect(preprocessing, AudioPreprocessing, DataError(complaint))
    if config.augment != "none" or config.mixup or config.cutmix:
        raise DataError("data.augment, mixup and cutmix: are for images; set augment=none, mixup=0 and cutmix=0")
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder of the sounds")
    table, files = LISTINGS[config.name](config, preprocessing.sample_rate)
    if config.seconds is not None:
        preprocessing = replace(preprocessing, seconds=config.seconds)
    found = prepare(table, config)
    _mention_lengths(table.name, found.checked, preprocessing)
    return Data(
        name=table.name,
        splits={
            split: AudioSplit(
                files,
                rows,
                targets=found.targets_of(split),
                names=[table.names[row] for row in rows],
                preprocessing=preprocessing,
            )
            for split, rows in found.splits.items()
        },
        classes=found.classes,
        kind=found.kind,
        fingerprint=found.fingerprint,
        preprocessing=preprocessing,
        skipped=found.skipped,
    )


def audio_folder(
    config: DataConfig,
    rate: int,
    *,
    pattern: str | None = None,
    test: Mapping[str, Sequence[str]] | None = None,
    val: Mapping[str, Sequence[str]] | None = None,
    transcripts: Mapping[str, str] | None = None,
) -> tuple[Table, AudioFiles]:
    """Source `audio_folder`; see `list_folder`.

    Args:
        config: The `data` section.
        rate: Samples per second that are wanted.
        pattern: See `list_folder`.
        test: See `list_folder`.
        val: See `list_folder`.
        transcripts: What is said in the clips of each label: the data are then for speech recognition.
    """
    listing = list_folder(find_data(str(config.root)), pattern=pattern, test=test, val=val)
    if transcripts is None:
        return _labelled(listing, rate)
    if not isinstance(transcripts, Mapping):
        raise DataError(f"data.options.transcripts: maps labels to what is said, but got {transcripts!r}")
    said = {str(label): " ".join(str(text).split()) for label, text in transcripts.items()}
    refuse(
        [f"'{label}'" for label in sorted(set(listing.texts) - set(said))],
        what="data.options.transcripts: labels without a transcript",
        cure="Say what is heard in the clips of every label",
    )
    return _transcribed(replace(listing, texts=[said[label] for label in listing.texts]), rate)


def audio_manifest(
    config: DataConfig, rate: int, *, path_column: str = "path", transcript_column: str | None = None
) -> tuple[Table, AudioFiles]:
    """Source `audio_manifest`; see `list_manifest`.

    Args:
        config: The `data` section: `table`, `label_column` and `split_column`.
        rate: Samples per second that are wanted.
        path_column: Column of the paths.
        transcript_column: Column of the transcripts: the data are then for speech recognition.
    """
    listing = list_manifest(
        find_data(str(config.root)),
        config.table,
        path_column=path_column,
        text_column=transcript_column or config.label_column,
        split_column=config.split_column,
    )
    return (_transcribed if transcript_column else _labelled)(listing, rate)


def _checked_options(source: Callable[..., tuple[Table, AudioFiles]]) -> Callable[..., tuple[Table, AudioFiles]]:
    """Calls a source with `data.options`, whose unknown keys are the config's mistake."""
    known = [name for name, p in inspect.signature(source).parameters.items() if p.kind is p.KEYWORD_ONLY]

    def call(config: DataConfig, rate: int) -> tuple[Table, AudioFiles]:
        for name in config.options:
            if name not in known:
                guess = nearest(name, known)
                raise DataError(f"data.options: {config.name} has no option '{name}'{guess}; it has {', '.join(known)}")
        return source(config, rate, **config.options)

    return call


LISTINGS: Mapping[str, Callable[[DataConfig, int], tuple[Table, AudioFiles]]] = {
    "audio_folder": _checked_options(audio_folder),
    "audio_manifest": _checked_options(audio_manifest),
}


def _labelled(listing: Listing, rate: int) -> tuple[Table, AudioFiles]:
    classes = in_order(listing.texts)
    number = {label: position for position, label in enumerate(classes)}
    files = AudioFiles(listing.root, listing.names, rate)
    labels = torch.tensor([number[label] for label in listing.texts], dtype=torch.int64)
    name = listing.root.name
    return Table(name, classes, labels, listing.names, files, listing.splits, samples="sounds"), files


def _transcribed(listing: Listing, rate: int) -> tuple[Table, AudioFiles]:
    """Transcripts as numbers of their characters; number 0 is the first class, and CTC's blank is not among them."""
    characters = sorted(set("".join(listing.texts)))
    number = {character: position for position, character in enumerate(characters)}
    files = AudioFiles(listing.root, listing.names, rate)
    targets = [torch.tensor([number[c] for c in text], dtype=torch.int64) for text in listing.texts]
    none = torch.zeros(len(targets), dtype=torch.int64)
    table = Table(
        name=listing.root.name,
        classes=tuple(characters),
        labels=none,
        names=listing.names,
        images=files,
        splits=listing.splits,
        targets=targets,
        kind="transcript",
        samples="sounds",
    )
    return table, files


def _mention_lengths(name: str, checked: Mapping[int, Checked], preprocessing: AudioPreprocessing) -> None:
    """Says how many clips are cut, or padded because the network needs more samples than they have."""
    seconds = {row: record.width / record.height for row, record in checked.items()}
    short = sum(length * preprocessing.sample_rate < preprocessing.shortest for length in seconds.values())
    if short:
        least = preprocessing.shortest / preprocessing.sample_rate
        logger.warning("%s: %d clips are shorter than %.3g s and are padded with silence", name, short, least)
    if preprocessing.seconds is not None:
        cut = sum(length > preprocessing.seconds for length in seconds.values())
        if cut:
            logger.warning(
                "%s: %d clips of %d are longer than data.seconds=%g and are cut; the longest has %.3g s",
                name,
                cut,
                len(seconds),
                preprocessing.seconds,
                max(seconds.values()),
            )
