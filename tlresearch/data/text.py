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
from tlresearch.modality.pair import JointPairs, SeparatePairs
from tlresearch.modality.text import Encoded, TextPreprocessing, text_input
from tlresearch.modality.values import Value, stack

log = logging.getLogger(__name__)

_ENCODING = threading.RLock()
IGNORED = -100
"""Target of a token that has none: all but the first of a word, and those the tokenizer adds."""


def _text_table(config: DataConfig) -> Table:
    return read_text_table(
        find_data(_root(config)),
        config.files,
        text_columns=config.text_columns or (config.text_column,),
        label_column=config.label_column,
        targets=config.targets,
        split_column=config.split_column,
        delimiter=config.delimiter,
        encoding=config.encoding,
        quotes=config.quotes,
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
        text_columns=config.text_columns or (config.text_column,),
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
        values: Network input of each sample, where they are known already.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        *,
        targets: Tensor | Sequence[Tensor],
        names: Sequence[str],
        preprocessing: TextPreprocessing,
        values: Sequence[Value] | None = None,
    ) -> None:
        self.texts = texts
        self.targets = targets
        self.names = names
        self._preprocessing = preprocessing
        self._values = values

    @property
    def lengths(self) -> Sequence[int]:
        """Characters of each text, of both texts of a pair together, or words of each sentence."""
        return [sum(map(len, text)) if isinstance(text, tuple) else len(text) for text in self.texts]

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        return f"tokens, {self._preprocessing!r}"

    def raw(self, index: int) -> Text:
        """Returns the text, or the words of the sentence."""
        return self.texts[index]

    def load(self, index: int) -> Value:
        """Returns token numbers ``ids`` with their ``mask`` of one sample."""
        return self.values[index]

    @property
    def values(self) -> Sequence[Value]:
        """Network input of each sample."""
        with _ENCODING:  # threads that want samples wait for the first
            if self._values is None:
                texts = [text if isinstance(text, (str, tuple)) else " ".join(text) for text in self.texts]
                self._values = self._preprocessing.prepare_all(texts)
        return self._values


class PairSplit(Split):
    """Pairs whose texts are read each by itself: what is kept and run through the stages is each different text once.

    Args:
        pairs: The pairs.
        targets: Targets of this split.
        names: Names of this split's samples.
        preprocessing: The tokenizer, and how long a text may be.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], *, targets: Tensor, names: Sequence[str], preprocessing: SeparatePairs
    ) -> None:
        self.targets = targets
        self.names = names
        self._pairs = pairs
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        self._row = {text: row for row, text in enumerate(texts)}
        self._texts = TextSplit(
            texts, targets=torch.arange(len(texts)), names=texts, preprocessing=preprocessing.single
        )

    @property
    def parts(self) -> TextSplit:
        """The different texts."""
        return self._texts

    def rows_of(self, index: int) -> Sequence[int]:
        """Positions of the two texts of a pair."""
        return [self._row[text] for text in self._pairs[index]]

    @property
    def lengths(self) -> Sequence[int]:
        """Characters of both texts together."""
        return [sum(map(len, pair)) for pair in self._pairs]

    @property
    def load_key(self) -> str:
        """What loading the texts depends on."""
        return self._texts.load_key

    def raw(self, index: int) -> tuple[str, str]:
        """Returns the pair."""
        return self._pairs[index]

    def load(self, index: int) -> Value:
        """Returns both texts, as a batch of two."""
        return stack([self._texts.load(row) for row in self.rows_of(index)])


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
    assert isinstance(table.images, Texts)
    pairs = isinstance(table.images.texts[0], tuple)
    if pairs != isinstance(preprocessing, JointPairs):
        raise DataError(
            "backbone.pairs: the samples are pairs of texts; say how they are read: joint, concat or cosine"
            if pairs
            else "backbone.pairs: is for pairs of texts, which data.text_columns names; leave it out"
        )
    if isinstance(preprocessing, JointPairs) and config.text_columns:
        preprocessing = replace(preprocessing, columns=(config.text_columns[0], config.text_columns[1]))
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


def _split(table: Table, rows: Sequence[int], targets: Any, preprocessing: TextPreprocessing) -> Split:
    assert isinstance(table.images, Texts)
    names = [table.names[row] for row in rows]
    texts: Any = [table.images.texts[row] for row in rows]
    if isinstance(preprocessing, SeparatePairs):
        return PairSplit(texts, targets=targets, names=names, preprocessing=preprocessing)
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
    values = [text_input(tokens.ids) for tokens in encoded]
    return TextSplit(texts, targets=by_token, names=names, preprocessing=preprocessing, values=values)


def _root(config: DataConfig) -> str:
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder or file of the texts")
    return config.root


def _number(column: str) -> int | None:
    """A column by its number; the names that other sources have by default are none."""
    return int(column) if column.isdecimal() else None
