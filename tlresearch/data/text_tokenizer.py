"""How text becomes numbers: the tokenizer that comes with a backbone, and what a run records of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from tlresearch.data.values import Value

LONGEST = 512
"""Most tokens of a text unless `data.max_length` says otherwise, where the backbone would take more."""

WORD = r"\w+(?:['’]\w+)*|['’]\w+|[^\w\s]"
"""Pattern of what counts as a word: words and marks."""
_WORD = re.compile(WORD)


class Encoded(NamedTuple):
    """A sentence of given words as tokens.

    Attributes:
        ids: Number of each token.
        words: Which word each token is a part of; ``None`` for tokens the tokenizer adds.
    """

    ids: list[int]
    words: list[int | None]


class Tokenizer(Protocol):
    """Turns text into token numbers; never into none: a text without tokens becomes the unknown one."""

    def texts(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Returns the token numbers of each text, cut at `max_length`."""
        ...

    def sentences(self, sentences: Sequence[Sequence[str]], max_length: int) -> list[Encoded]:
        """Returns the tokens of sentences that are split into words already, cut at `max_length`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the files it can be built from again."""
        ...


@dataclass(frozen=True)
class TextPreprocessing:
    """What is done to a text before the network; the part of the weights that is not a tensor.

    Attributes:
        name: Where the tokenizer comes from.
        sha256: Hash of its vocabulary and rules.
        max_length: Most tokens of a text; what is longer is cut.
        limit: Most tokens the backbone can take; ``None`` where there is no limit.
        tokenizer: The tokenizer itself.
    """

    sample: ClassVar[str] = "text"

    name: str = field(repr=False)
    sha256: str
    max_length: int
    limit: int | None
    tokenizer: Tokenizer = field(repr=False, compare=False)

    def example(self) -> Value:
        """Returns an input of one sample of 16 tokens, without a batch dimension."""
        return text_input([1] * min(16, self.max_length))


def text_input(ids: Sequence[int]) -> dict[str, Tensor]:
    """A tokenised text as a backbone takes it: ``ids`` and ``mask``, both ``(length,)``."""
    return {"ids": torch.tensor(ids, dtype=torch.int64), "mask": torch.ones(len(ids), dtype=torch.bool)}


class PieceTokenizer:
    """A tokenizer of transformers, whose tokens are parts of words.

    Args:
        tokenizer: A fast tokenizer: one that knows which word a token comes from.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._unknown = next((number for number in special if number is not None), 0)
        # Byte-level vocabularies tell a word that follows a space from one that does not.
        self._spaces = "ByteLevel" in json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"].__str__()

    @property
    def sha256(self) -> str:
        """Hash of vocabulary, merges and rules."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> PieceTokenizer:
        """It never changes, and copying a vocabulary takes longer than most backbones."""
        return self

    def texts(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Returns the token numbers of each text, cut at `max_length`."""
        found = self.tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        return [list(ids) or [self._unknown] for ids in found]

    def sentences(self, sentences: Sequence[Sequence[str]], max_length: int) -> list[Encoded]:
        """Returns the tokens of sentences that are split into words already, cut at `max_length`."""
        if self._spaces:
            sentences = [[*words[:1], *(f" {word}" for word in words[1:])] for words in sentences]
        found = self.tokenizer(
            [list(words) for words in sentences], is_split_into_words=True, truncation=True, max_length=max_length
        )
        pairs = [(list(ids), list(found.word_ids(row))) for row, ids in enumerate(found["input_ids"])]
        return [Encoded(ids, words) if ids else Encoded([self._unknown], [None]) for ids, words in pairs]

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and its settings."""
        self.tokenizer.save_pretrained(folder)


class WordTokenizer:
    """A tokenizer whose tokens are whole words in lower case: 0 is padding, 1 any unknown word.

    Args:
        words: The vocabulary; word i has number i + 2.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words, start=2)}

    @property
    def sha256(self) -> str:
        """Hash of the vocabulary."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> WordTokenizer:
        """It never changes."""
        return self

    def texts(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Returns the token numbers of each text, cut at `max_length`."""
        return [self._encode(split_words(text)[:max_length]) or [1] for text in texts]

    def sentences(self, sentences: Sequence[Sequence[str]], max_length: int) -> list[Encoded]:
        """Returns one token for each word, cut at `max_length`."""
        return [
            Encoded(self._encode([word.lower() for word in words[:max_length]]), list(range(len(words[:max_length]))))
            for words in sentences
        ]

    def save(self, folder: Path) -> None:
        """Writes ``words.txt``, one word in each line."""
        (folder / "words.txt").write_text("\n".join(self.words), encoding="utf-8")

    def _encode(self, words: Sequence[str]) -> list[int]:
        return [self._numbers.get(word, 1) for word in words]


def split_words(text: str) -> list[str]:
    """Splits a text into words and marks, in lower case; ``don't`` is one word, and so is ``n't``."""
    return _WORD.findall(text.lower())
