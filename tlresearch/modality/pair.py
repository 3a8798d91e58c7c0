"""Pairs of texts: read together as one input, or each by itself; raw pairs, and pairs in an exported file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlresearch.modality.base import RawInput
from tlresearch.modality.text import TextPreprocessing, Tokens, text_input
from tlresearch.modality.values import Value, stack

Pair = tuple[str, str]
COLUMNS = ("text", "text_pair")


@dataclass(frozen=True)
class JointPairs(TextPreprocessing):
    """Pairs that are read together, one text behind the other (a cross-encoder).

    Attributes:
        columns: What the two texts are called in a table.
        types: Whether the network is told which text a token is of.
    """

    sample = "pair"

    columns: Pair = COLUMNS
    types: bool = False

    @classmethod
    def of(cls, texts: TextPreprocessing, *, types: bool = False) -> Self:
        """Returns the same tokenizer for pairs."""
        return cls(**{field.name: getattr(texts, field.name) for field in fields(texts)}, types=types)

    @property
    def raw(self) -> RawPairs:
        """Two texts."""
        return RawPairs(self.columns)

    def prepare_all(self, samples: Sequence[Pair]) -> list[Value]:
        """Tokenises pairs; of a pair that is too long the longer text is cut."""
        encoded = self.tokenizer.pairs(samples, self.max_length)
        return [
            {**text_input(ids), **({"types": torch.tensor(types, dtype=torch.int64)} if self.types else {})}
            for ids, types in encoded
        ]

    def drawn(self, sample: Any) -> str:
        """Returns both texts."""
        return " / ".join(sample)

    def front(self) -> Tokens:
        """Returns what puts token numbers, mask and types together."""
        return PairTokens(self)

    def description(self) -> dict[str, Any]:
        """Returns the longest input and the columns; the rest comes with the backbone."""
        return {"max_length": self.max_length, "columns": list(self.columns)}

    def example(self) -> Value:
        """Returns an input of one pair, without a batch dimension."""
        value = text_input([1] * min(16, self.max_length))
        return {**value, "types": torch.zeros_like(value["ids"])} if self.types else value


class SeparatePairs(JointPairs):
    """Pairs whose texts are read each by itself (a bi-encoder): a sample gives two inputs, one behind the other."""

    @property
    def single(self) -> TextPreprocessing:
        """What is done to each of the texts."""
        return TextPreprocessing(**{field.name: getattr(self, field.name) for field in fields(TextPreprocessing)})

    def prepare(self, sample: Pair) -> Value:
        """Tokenises both texts of a pair, as a batch of two."""
        return stack(self.prepare_all([sample]))

    def prepare_all(self, samples: Sequence[Pair]) -> list[Value]:
        """Tokenises the texts of all pairs; twice as many inputs as pairs."""
        return self.single.prepare_all([text for pair in samples for text in pair])

    def front(self) -> Tokens:
        """Returns what puts the tokens of all texts into one batch."""
        return SeparateTokens(self)


class RawPairs(RawInput):
    """Two texts; a table holds one pair in each row.

    Args:
        columns: What the two texts are called in a table or data frame.
    """

    name, column, suffixes, texts = "pair of texts", "text", (".csv", ".tsv", ".jsonl"), 2

    def __init__(self, columns: Sequence[str] = COLUMNS) -> None:
        self._columns = tuple(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the two texts."""
        return self._columns

    def decode(self, content: bytes) -> Any:
        """A file is no pair: it holds many."""
        raise ValueError("a pair is two texts, or a row of a table")

    def value(self, given: Any) -> Pair:
        """Takes two texts that are not empty."""
        if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)) or len(given) != 2:
            raise ValueError("the model takes pairs of texts: [text, text], or a data frame with " + self._named)
        first, second = given
        if not all(isinstance(text, str) for text in given):
            raise ValueError("a pair is two texts")
        if not (first.strip() and second.strip()):
            raise ValueError("a text of the pair is empty")
        return first, second

    def text(self, given: str) -> Any:
        """A single text is no pair."""
        return self.value(given)

    def read(self, model_input: Any) -> list[Any]:
        """Reads pairs from a data frame with the two columns, a list of pairs, or one pair.

        Raises:
            ValueError: If it is anything else, or a text is empty.
        """
        if hasattr(model_input, "columns"):
            missing = [column for column in self.columns if column not in model_input.columns]
            if missing:
                held = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs {self._named} but has: {held}")
            model_input = list(zip(*(model_input[column] for column in self.columns), strict=True))
        return super().read(model_input)

    @property
    def _named(self) -> str:
        return "the columns " + " and ".join(f"'{column}'" for column in self.columns)

    def _single(self, given: Any) -> bool:
        return isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(text, str) for text in given)


class PairTokens(Tokens):
    """Token numbers of pairs with their mask, and with types where the network takes them.

    Args:
        preprocessing: The tokenizer, and the longest input.
    """

    def __init__(self, preprocessing: JointPairs) -> None:
        super().__init__(preprocessing)
        self.types = preprocessing.types
        if self.types:
            self.inputs = {**Tokens.inputs, "types": "int64 (N, tokens), 0 for the first text and 1 for the second"}

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> dict[str, Tensor]:
        """Puts ``ids``, ``mask`` and ``types``, all ``(N, length)``, together."""
        return {"ids": ids, "mask": mask, **({} if types is None else {"types": types})}

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns pairs into token numbers, mask and types."""
        arrays = self._encode(samples)
        return arrays if self.types else arrays[:2]

    def example(self) -> tuple[Tensor, ...]:
        """Returns two pairs of seven tokens."""
        ids, mask = super().example()
        return (ids, mask, torch.zeros_like(ids)) if self.types else (ids, mask)


class SeparateTokens(Tokens):
    """Token numbers of both texts of each pair, which the network reads one by one.

    Args:
        preprocessing: The tokenizer, and the longest input.
    """

    inputs: Mapping[str, str] = {
        "ids": "int64 (N, 2, tokens)",
        "mask": "bool (N, 2, tokens), true where there is a token",
    }
    sides: ClassVar[Sequence[int]] = (0, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Puts the texts ``(N, 2, length)`` one behind the other ``(2 N, length)``."""
        return {"ids": ids.flatten(0, 1), "mask": mask.flatten(0, 1)}

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns pairs into token numbers and mask."""
        return tuple(
            part.reshape(len(samples), 2, -1) for part in self._encode([t for pair in samples for t in pair])[:2]
        )

    def example(self) -> tuple[Tensor, ...]:
        """Returns two pairs whose texts have seven tokens."""
        return torch.ones(2, 2, 7, dtype=torch.int64), torch.ones(2, 2, 7, dtype=torch.bool)
