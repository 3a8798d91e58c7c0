"""From the `data` section of a config to splits of text: read, checked, split, tokenised once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Split, SplitName
from tlresearch.data.prepared import Prepared
from tlresearch.data.table import Table
from tlresearch.data.text_files import read_conll, read_text_lines, read_text_table
from tlresearch.data.text_hub import read_hub
from tlresearch.data.text_table import Text, Texts
from tlresearch.modality.text import Encoded, TextPreprocessing, text_input
from tlresearch.modality.values import Value

log = logging.getLogger(__name__)

_ENCODING = threading.RLock()
IGNORED = -100
"""Target of a token that has none: all but the first of a word, and those the tokenizer adds."""


def _text_table(config: DataConfig) -> Table:
    return read_text_table(
        find_data(_root(config)),
        config.files,
        text_column=config.text_column,
        label_column=config.label_column,
        targets=config.targets,
        split_column=config.split_column,
        delimiter=config.delimiter,
        encoding=config.encoding,
    )


def _text_lines(config: DataConfig) -> Table:
    return read_text_lines(find_data(_root(config)), config.files)


def _conll(config: DataConfig) -> Table:
    return read_conll(
        find_data(_root(config)),
        config.files,
        token_column=_number(config.text_column),
        tag_column=_number(config.label_column),
    )


def _hf_dataset(config: DataConfig) -> Table:
    if config.dataset is None:
        raise DataError("data.dataset is not set: hf_dataset needs a name on the hub, or a folder")
    return read_hub(
        config.dataset,
        text_column=config.text_column,
        label_column=config.label_column,
        targets=config.targets,
        options=config.options,
    )


TEXT_SOURCES: Mapping[str, Callable[[DataConfig], Table]] = {
    "text_table": _text_table,
    "text_lines": _text_lines,
    "conll": _conll,
    "hf_dataset": _hf_dataset,
}


class TextSplit(Split):
    """Samples of one split; tokenised when the first is asked for, all at once.

    Args:
        texts: Texts, or the words of each sentence.
        targets: Targets of this split; those of tags are one number per token.
        names: Names of this split's samples.
        preprocessing: The tokenizer, and how long a text may be.
        encoded: Token numbers of each sample, where they are known already.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        *,
        targets: Tensor | Sequence[Tensor],
        names: Sequence[str],
        preprocessing: TextPreprocessing,
        encoded: Sequence[list[int]] | None = None,
    ) -> None:
        self.texts = texts
        self.targets = targets
        self.names = names
        self._preprocessing = preprocessing
        self._encoded = encoded

    @property
    def lengths(self) -> Sequence[int]:
        """Characters of each text, or words of each sentence."""
        return [len(text) for text in self.texts]

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        return f"tokens, {self._preprocessing!r}"

    def raw(self, index: int) -> Text:
        """Returns the text, or the words of the sentence."""
        return self.texts[index]

    def load(self, index: int) -> Value:
        """Returns token numbers ``ids`` with their ``mask`` of one sample."""
        return text_input(self.encoded[index])

    @property
    def encoded(self) -> Sequence[list[int]]:
        """Token numbers of each sample."""
        with _ENCODING:  # threads that want samples wait for the first
            if self._encoded is None:
                texts = [text if isinstance(text, str) else " ".join(text) for text in self.texts]
                self._encoded = self._preprocessing.tokenizer.texts(texts, self._preprocessing.max_length)
        return self._encoded


def text_splits(
    table: Table, prepared: Prepared, config: DataConfig, preprocessing: TextPreprocessing, seed: int
) -> tuple[TextPreprocessing, Mapping[SplitName, Split]]:
    """Makes the splits of a table of texts.

    Args:
        table: The table.
        prepared: Its samples, checked and distributed.
        config: The `data` section; `data.max_length` overrides the preprocessing's length.
        preprocessing: The backbone's.
        seed: Of no effect: nothing is random.

    Raises:
        DataError: If texts are to be longer than the backbone takes.
    """
    longest = config.max_length or preprocessing.max_length
    if preprocessing.limit is not None and longest > preprocessing.limit:
        raise DataError(
            f"data.max_length: {longest} tokens are more than {preprocessing.name} takes; at most {preprocessing.limit}"
        )
    preprocessing = replace(preprocessing, max_length=longest)
    return preprocessing, {
        split: _split(table, rows, prepared.targets_of(split), preprocessing) for split, rows in prepared.splits.items()
    }


def aligned(encoded: Encoded, tags: Tensor) -> Tensor:
    """Returns the tag of each token: a word's for the first of its tokens, `IGNORED` for all others.

    Args:
        encoded: The tokens of a sentence.
        tags: Tag of each word, ``(words,)``.
    """
    found = torch.full((len(encoded.ids),), IGNORED, dtype=torch.int64)
    last = None
    for position, word in enumerate(encoded.words):
        if word is not None and word != last:
            found[position] = tags[word]
        last = word
    return found


def _split(table: Table, rows: Sequence[int], targets: Any, preprocessing: TextPreprocessing) -> TextSplit:
    assert isinstance(table.images, Texts)
    names = [table.names[row] for row in rows]
    texts = [table.images.texts[row] for row in rows]
    if table.kind != "tokens":
        return TextSplit(texts, targets=targets, names=names, preprocessing=preprocessing)
    encoded = preprocessing.tokenizer.sentences(texts, preprocessing.max_length)
    by_token = [aligned(tokens, tags) for tokens, tags in zip(encoded, targets, strict=True)]
    lost = sum(map(len, texts)) - sum(int((tags != IGNORED).sum()) for tags in by_token)
    if lost:
        log.warning(
            "%s: %d words are neither trained on nor counted: they lie beyond data.max_length=%d or have no token",
            names[0].partition(":")[0],
            lost,
            preprocessing.max_length,
        )
    ids = [tokens.ids for tokens in encoded]
    return TextSplit(texts, targets=by_token, names=names, preprocessing=preprocessing, encoded=ids)


def _root(config: DataConfig) -> str:
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder or file of the texts")
    return config.root


def _number(column: str) -> int | None:
    """A column by its number; the names that other sources have by default are none."""
    return int(column) if column.isdecimal() else None
