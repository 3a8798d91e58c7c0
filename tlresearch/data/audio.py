"""Sources of sounds: from a listing of files to splits for classification or speech recognition."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tlresearch.base.errors import DataError
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.audio_files import AudioFiles
from tlresearch.data.audio_tables import Listing, list_folder, list_manifest
from tlresearch.data.base import Split, SplitName
from tlresearch.data.images import TableSplit
from tlresearch.data.prepared import Prepared
from tlresearch.data.table import Checked, Table, refuse
from tlresearch.data.targets import labelled
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import Value

logger = logging.getLogger(__name__)


class AudioSplit(TableSplit):
    """Sounds; nothing about them is random.

    Args:
        preprocessing: What is done to each clip.
        table: What is passed on to `TableSplit`.
    """

    def __init__(self, *table: Any, preprocessing: AudioPreprocessing, **named: Any) -> None:
        super().__init__(*table, **named)
        self._preprocessing = preprocessing

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        return repr(self._preprocessing)

    def load(self, index: int) -> Value:
        """Returns one network input; see `AudioPreprocessing`."""
        return self._preprocessing(self.raw(index))


def audio_splits(
    table: Table, prepared: Prepared, config: DataConfig, preprocessing: AudioPreprocessing, seed: int
) -> tuple[AudioPreprocessing, Mapping[SplitName, Split]]:
    """Makes the splits of a table of sounds.

    Args:
        table: The table.
        prepared: Its samples, checked and distributed.
        config: The `data` section; `data.seconds` overrides the preprocessing's length.
        preprocessing: The backbone's.
        seed: Of no effect: nothing is random.
    """
    if config.seconds is not None:
        preprocessing = replace(preprocessing, seconds=config.seconds)
    _mention_lengths(table, prepared.checked, preprocessing)
    return preprocessing, {
        split: AudioSplit(
            table.images,
            rows,
            targets=prepared.targets_of(split),
            names=[table.names[row] for row in rows],
            preprocessing=preprocessing,
        )
        for split, rows in prepared.splits.items()
    }


def audio_folder(
    config: DataConfig,
    rate: int,
    *,
    pattern: str | None = None,
    test: Mapping[str, Sequence[str]] | None = None,
    val: Mapping[str, Sequence[str]] | None = None,
    transcripts: Mapping[str, str] | None = None,
) -> Table:
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
) -> Table:
    """Source `audio_manifest`; see `list_manifest`.

    Args:
        config: The `data` section: `table`, `label_column` and `split_column`.
        rate: Samples per second that are wanted.
        path_column: Column of the paths.
        transcript_column: Column of the transcripts: the data are then for speech recognition.
    """
    if transcript_column and config.targets:
        raise DataError("data.targets: a clip has numbers or a transcript; leave out data.options.transcript_column")
    listing = list_manifest(
        find_data(str(config.root)),
        config.table,
        path_column=path_column,
        text_column=transcript_column or config.label_column,
        targets=config.targets,
        split_column=config.split_column,
        delimiter=config.delimiter,
        encoding=config.encoding,
        labels=transcript_column is None,
    )
    return (_transcribed if transcript_column else _labelled)(listing, rate)


def _labelled(listing: Listing, rate: int) -> Table:
    learnt = listing.numbers or labelled(listing.texts)
    return Table(
        name=listing.root.name,
        names=listing.names,
        images=AudioFiles(listing.root, listing.names, rate),
        splits=listing.splits,
        samples="sounds",
        passed=listing.passed,
        **learnt,
    )


def _transcribed(listing: Listing, rate: int) -> Table:
    """Transcripts as numbers of their characters; number 0 is the first class, and CTC's blank is not among them."""
    characters = sorted(set("".join(listing.texts)))
    number = {character: position for position, character in enumerate(characters)}
    targets = [torch.tensor([number[c] for c in text], dtype=torch.int64) for text in listing.texts]
    none = torch.zeros(len(targets), dtype=torch.int64)
    return Table(
        name=listing.root.name,
        classes=tuple(characters),
        labels=none,
        names=listing.names,
        images=AudioFiles(listing.root, listing.names, rate),
        splits=listing.splits,
        targets=targets,
        kind="transcript",
        samples="sounds",
        passed=listing.passed,
    )


_LONG, _TIMES = 30.0, 20
"""Seconds, and times as long as most, from which a clip is named that all others of its batch are padded to."""


def _mention_lengths(table: Table, checked: Mapping[int, Checked], preprocessing: AudioPreprocessing) -> None:
    """Says how many clips are cut, or padded because the network needs more samples than they have."""
    name = table.name
    seconds = {row: record.width / record.height for row, record in checked.items()}
    short = sum(length * preprocessing.sample_rate < preprocessing.shortest for length in seconds.values())
    if short:
        least = preprocessing.shortest / preprocessing.sample_rate
        logger.warning("%s: %d clips are shorter than %.3g s and are padded with silence", name, short, least)
    row = max(seconds, key=lambda row: seconds[row], default=None)
    if row is not None and preprocessing.seconds is None:
        longest, usual = seconds[row], sorted(seconds.values())[len(seconds) // 2]
        if longest > max(_LONG, _TIMES * usual):
            logger.warning(
                "%s: %s lasts %.0f s, and most last %.3g s: the other clips of its batch are padded to its length; "
                "cut clips with data.seconds, or cut that one up",
                *(name, table.names[row], longest, usual),
            )
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
