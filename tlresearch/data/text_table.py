"""What every source of text returns: a table of texts with labels, or of sentences with one tag per word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from tlresearch.data.base import SplitName
from tlresearch.data.rows import Label, numbered
from tlresearch.data.table import Checked, Table, refuse

Text = str | tuple[str, str] | Sequence[str]
"""A text, a pair of texts, or a sentence that is split into words already."""


_BILOU = {"L-": "E-", "U-": "S-"}
"""Prefixes of BILOU that BIOES calls otherwise."""


class Texts:
    """The texts of a table, in memory.

    Args:
        texts: Texts, or sentences of words.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = texts

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes every text; one that is empty cannot be used."""
        return [
            Checked(
                hashlib.sha256(json.dumps(text).encode()).hexdigest(),
                0,
                0,
                None if all(part.strip() for part in _parts(text)) else "the text is empty",
            )
            for text in (self.texts[index] for index in indices)
        ]

    def load(self, index: int, channels: int) -> Tensor:
        """Returns a text as its bytes in UTF-8, uint8 ``(bytes,)``; `channels` is of no effect."""
        text = self.texts[index]
        return torch.frombuffer(
            bytearray((text if isinstance(text, str) else " ".join(text)).encode()), dtype=torch.uint8
        )


def _parts(text: Text) -> Sequence[str]:
    """What must not be empty: both texts of a pair, else the text."""
    return text if isinstance(text, tuple) else ["".join(text)]


def label_table(
    name: str,
    *,
    names: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[Label],
    splits: Sequence[SplitName] | None,
    classes: Sequence[str] | None = None,
) -> Table:
    """Makes a table of texts with one label each, or with any number.

    Args:
        name: Short name of the data set.
        names: Unique name of each sample.
        texts: The texts.
        labels: Label, or list of labels, of each.
        splits: Split of each sample, if given.
        classes: All labels in their order; found and sorted unless given.
    """
    several = any(not isinstance(label, str) for label in labels)
    lists: Sequence[Label] = [[row] if isinstance(row, str) else row for row in labels] if several else labels
    ordered, numbers = numbered(lists, classes)
    return Table(name, ordered, numbers, names, Texts(texts), splits, samples="texts")


def tag_table(
    name: str,
    *,
    names: Sequence[str],
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    splits: Sequence[SplitName] | None,
) -> Table:
    """Makes a table of sentences with one tag per word, such as ``B-person``, ``I-person`` and ``O``.

    BILOU is read as BIOES, which it is in other letters: L is E, and U is S. Kinds without a prefix (IO) are read as
    ``I-person``, so that neighbours of one kind are one entity.

    Raises:
        DataError: If a tag is of another form.
    """
    different = {tag for row in tags for tag in row}
    if not any("-" in tag for tag in different):
        rename = {tag: tag if tag == "O" else f"I-{tag}" for tag in different}
    else:
        rename = {tag: _BILOU.get(tag[:2], tag[:2]) + tag[2:] for tag in different}
    refuse(
        [f"'{tag}'" for tag in sorted(different) if rename[tag] != "O" and not _is_tag(rename[tag])],
        what=f"{name}: tags of another form",
        cure="A tag is O, or one of B, I, E, S (or L, U) with a hyphen and the kind, such as B-person; "
        "say with data.label_column which column holds them",
    )
    tags = [[rename[tag] for tag in row] for row in tags]
    kinds = {tag for row in tags for tag in row}
    classes = ("O", *sorted(kinds - {"O"}, key=lambda tag: (tag.partition("-")[2], tag)))
    number = {tag: position for position, tag in enumerate(classes)}
    return Table(
        name,
        classes,
        torch.zeros(len(names), dtype=torch.int64),
        names,
        Texts(sentences),
        splits,
        targets=[torch.tensor([number[tag] for tag in row], dtype=torch.int64) for row in tags],
        kind="tokens",
        samples="sentences",
    )


def _is_tag(tag: str) -> bool:
    prefix, hyphen, kind = tag.partition("-")
    return prefix in tuple("BIES") and bool(hyphen and kind)
