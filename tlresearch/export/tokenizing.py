"""A backbone's tokenizer as the library `tokenizers` reads it, so that texts are cut without tlresearch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.data.text_tokenizer import WORD, PieceTokenizer, TextPreprocessing, WordTokenizer


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


def reader(text: str, unknown: int) -> Callable[[Sequence[str]], tuple[NDArray[Any], NDArray[Any]]]:
    """Returns a function from texts to token numbers and mask, both ``(N, length)``.

    Args:
        text: What `portable` wrote.
        unknown: The token of a text that has none.
    """
    tokenizer = _library().Tokenizer.from_str(text)

    def read(texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = tokenizer.encode_batch(list(texts))
        ids = np.array([row.ids or [unknown] for row in rows], np.int64)
        mask = np.array([row.attention_mask or [1] for row in rows], bool)
        empty = ~mask.any(axis=1)
        ids[empty, 0], mask[empty, 0] = unknown, True
        return ids, mask

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
