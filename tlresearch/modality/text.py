"""Texts: the tokenizer that comes with a backbone, how texts are read, and the tokenizer in an exported file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.modality.base import Front, Modality, RawInput
from tlresearch.modality.values import Value

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

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[tuple[list[int], list[int]]]:
        """Returns the token numbers of each pair, one text behind the other, and which of the two each token is of."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the files it can be built from again."""
        ...


@dataclass(frozen=True)
class TextPreprocessing(Modality):
    """What is done to a text before the network; the part of the weights that is not a tensor.

    Attributes:
        name: Where the tokenizer comes from.
        sha256: Hash of its vocabulary and rules.
        max_length: Most tokens of a text; what is longer is cut.
        limit: Most tokens the backbone can take; ``None`` where there is no limit.
        tokenizer: The tokenizer itself.
    """

    sample = "text"

    name: str = field(repr=False)
    sha256: str
    max_length: int
    limit: int | None
    tokenizer: Tokenizer = field(repr=False, compare=False)

    @property
    def raw(self) -> RawInput:
        """Texts and files of text."""
        return RawTexts()

    def prepare(self, sample: Any) -> Value:
        """Tokenises a text."""
        return self.prepare_all([sample])[0]

    def prepare_all(self, samples: Sequence[Any]) -> list[Value]:
        """Tokenises texts, which tokenizers do faster together."""
        return [text_input(ids) for ids in self.tokenizer.texts(samples, self.max_length)]

    def drawn(self, sample: Any) -> str:
        """Returns the text."""
        return sample if isinstance(sample, str) else " ".join(sample)

    def front(self) -> Tokens:
        """Returns what puts token numbers and mask together."""
        return Tokens(self)

    def description(self) -> dict[str, Any]:
        """Returns the longest input; the tokenizer comes with the backbone."""
        return {"max_length": self.max_length}

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

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[tuple[list[int], list[int]]]:
        """Returns the token numbers of each pair and which text they are of; the longer text is cut first."""
        firsts, seconds = zip(*pairs, strict=True)
        found = self.tokenizer(
            list(firsts), list(seconds), truncation=True, max_length=max_length, return_token_type_ids=True
        )
        return [
            (list(ids), list(types)) if ids else ([self._unknown], [0])
            for ids, types in zip(found["input_ids"], found["token_type_ids"], strict=True)
        ]

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
        return [self._encode(split_words(text, max_length)) or [1] for text in texts]

    def sentences(self, sentences: Sequence[Sequence[str]], max_length: int) -> list[Encoded]:
        """Returns one token for each word, cut at `max_length`."""
        return [
            Encoded(self._encode([word.lower() for word in words[:max_length]]), list(range(len(words[:max_length]))))
            for words in sentences
        ]

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[tuple[list[int], list[int]]]:
        """Returns the words of both texts of each pair; the longer text is cut first."""
        encoded = []
        for first, second in pairs:
            words = [split_words(first, max_length), split_words(second, max_length)]
            while sum(map(len, words)) > max_length:
                max(words, key=len).pop()
            numbers = self._encode([*words[0], *words[1]]) or [1]
            encoded.append((numbers, [int(place >= len(words[0])) for place in range(len(numbers))]))
        return encoded

    def save(self, folder: Path) -> None:
        """Writes ``words.txt``, one word in each line."""
        (folder / "words.txt").write_text("\n".join(self.words), encoding="utf-8")

    def _encode(self, words: Sequence[str]) -> list[int]:
        return [self._numbers.get(word, 1) for word in words]


def split_words(text: str, most: int | None = None) -> list[str]:
    """Splits a text into words and marks, in lower case; ``don't`` is one word, and so is ``n't``.

    Args:
        text: The text.
        most: How many of its first words are wanted; what follows costs nothing.
    """
    return [word.group() for word in islice(_WORD.finditer(text.lower()), most)]


class RawTexts(RawInput):
    """Texts; a text is a sample itself, never a path or base64. A file is one text in UTF-8."""

    name, column, suffixes, texts = "text", "text", (".txt", ".text", ".md"), 1

    def decode(self, content: bytes) -> str:
        """Decodes UTF-8."""
        try:
            return self.value(content.decode("utf-8-sig").strip())
        except UnicodeDecodeError:
            raise ValueError("not a text in UTF-8") from None

    def text(self, given: str) -> str:
        """Takes a text."""
        return self.value(given)

    def value(self, given: Any) -> str:
        """Takes a text that is not empty."""
        if not isinstance(given, str):
            raise ValueError("the model takes texts: a list of strings, or a data frame with the column 'text'")
        if not given.strip():
            raise ValueError("the text is empty")
        return given


class RawSentences(RawTexts):
    """Texts for models of words; a sample is a text, or the words of a sentence that is split already."""

    def value(self, given: Any) -> Any:
        """Takes a text, or its words."""
        if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) and len(given):
            if all(isinstance(word, str) for word in given):
                return list(given)
            raise ValueError("a sentence is a text, or a list of its words")
        return super().value(given)


class Tokens(Front):
    """Token numbers with their mask, as a backbone over text takes them; the tokenizer is in the metadata.

    Args:
        preprocessing: The tokenizer, and the longest input.
    """

    inputs: Mapping[str, str] = {
        "ids": "int64 (N, tokens)",
        "mask": "bool (N, tokens), true where there is a token",
    }
    inside = "{network}; the tokenizer is in the metadata (tokenizer), for the library tokenizers"

    def __init__(self, preprocessing: TextPreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Puts ``ids`` and ``mask``, both ``(N, length)``, together."""
        return {"ids": ids, "mask": mask}

    def arrays(self, samples: Sequence[str]) -> tuple[NDArray[Any], ...]:
        """Turns texts into token numbers and mask by the tokenizer that is shipped, not by the project's."""
        return self._encode(samples)[:2]

    def example(self) -> tuple[Tensor, ...]:
        """Returns two texts of seven tokens."""
        return torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.bool)

    def metadata(self) -> dict[str, str]:
        """Returns the tokenizer, and the token of a text that has none."""
        return {"tokenizer": self._tokenizer, "unknown": str(self._unknown)}

    @cached_property
    def _tokenizer(self) -> str:
        return portable(self.preprocessing, self.preprocessing.max_length)

    @cached_property
    def _unknown(self) -> int:
        return self.preprocessing.tokenizer.texts([""], self.preprocessing.max_length)[0][0]

    @cached_property
    def _encode(self) -> Callable[[Sequence[Any]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        return reader(self._tokenizer, self._unknown)


def portable(preprocessing: TextPreprocessing, max_length: int) -> str:
    """Returns a tokenizer as JSON, which also cuts texts at their longest and fills up a batch.

    Raises:
        MissingExtraError: If tokenizers is not installed.
        UserError: If the tokenizer is one of the user's own.
    """
    library, given = _library(), preprocessing.tokenizer
    if isinstance(given, PieceTokenizer):
        made = library.Tokenizer.from_str(given.tokenizer.backend_tokenizer.to_str())
        pad, direction = given.tokenizer.pad_token_id or 0, given.tokenizer.truncation_side
    elif isinstance(given, WordTokenizer):
        numbers = {"<pad>": 0, "<unknown>": 1, **{word: number for number, word in enumerate(given.words, start=2)}}
        made = library.Tokenizer(library.models.WordLevel(numbers, unk_token="<unknown>"))
        made.normalizer = library.normalizers.Lowercase()
        # What the pattern matches is kept, what lies between is not.
        made.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(WORD), behavior="removed", invert=True)
        pad, direction = 0, "right"
    else:
        raise UserError(f"export: a tokenizer of the kind {type(given).__name__} cannot be written for others")
    made.enable_truncation(max_length, direction=direction)
    made.enable_padding(pad_id=pad, pad_token=made.id_to_token(pad) or "")
    text: str = made.to_str()
    return text


def reader(text: str, unknown: int) -> Callable[[Sequence[Any]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Returns a function from texts, or pairs of them, to token numbers, mask and types, all ``(N, length)``.

    Args:
        text: What `portable` wrote.
        unknown: The token of a text that has none.
    """
    tokenizer = _library().Tokenizer.from_str(text)

    def read(texts: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        rows = tokenizer.encode_batch(list(texts))
        ids = np.array([row.ids or [unknown] for row in rows], np.int64)
        mask = np.array([row.attention_mask or [1] for row in rows], bool)
        empty = ~mask.any(axis=1)
        ids[empty, 0], mask[empty, 0] = unknown, True
        return ids, mask, np.array([row.type_ids or [0] for row in rows], np.int64)

    return read


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
    except ModuleNotFoundError:
        raise MissingExtraError("tokenizers", "export") from None
    return tokenizers
