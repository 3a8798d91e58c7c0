"""Word embeddings and a small convolutional encoder after Kim 2014, so that frozen and trained embeddings compare.

Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014): CNN-rand, CNN-static and CNN-non-static.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import End, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.text import FOLDER, Recipe, TextBackbone
from tlresearch.backbones.weights import load_stages, locate
from tlresearch.base.errors import UserError, WeightsError, nearest
from tlresearch.base.files import sha256
from tlresearch.base.paths import find_data, find_weights
from tlresearch.modality.text import LONGEST, TextPreprocessing, WordTokenizer, split_words

RANGE = 0.25
"""Random embeddings are uniform in plus or minus this; Kim's has about the variance of word2vec's vectors."""


class WordEmbeddings(nn.Module):
    """A table of word vectors; number 0 is padding and always 0.

    Args:
        vectors: The table ``(words + 2, width)``.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(vectors), vectors.shape[1], padding_idx=0, _weight=vectors)

    def forward(self, value: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turns ``ids`` ``(batch, length)`` into ``hidden`` ``(batch, length, width)``."""
        return {"hidden": self.embedding(value["ids"]), "mask": value["mask"]}


class Convolutions(nn.Module):
    """Convolutions of several widths over words, ReLU, and the maximum over time.

    Args:
        width: Width of the word vectors.
        maps: Feature maps of each convolution.
        sizes: Words that each convolution spans.
    """

    def __init__(self, width: int, maps: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, maps, size, padding=size - 1) for size in sizes)

    def forward(self, value: dict[str, Tensor]) -> Tensor:
        """Turns ``hidden`` states into ``(batch, maps * sizes)``; padding of the batch has no part in it."""
        mask = value["mask"]
        hidden = (value["hidden"] * mask.unsqueeze(-1)).transpose(1, 2)
        found = []
        for convolution in self.convolutions:
            maps = functional.relu(convolution(hidden))
            # Windows that touch a word: with the padding in front they are as many more as the window is wider.
            inside = functional.pad(mask, (maps.shape[2] - mask.shape[1], 0), value=True).unsqueeze(1)
            found.append((maps * inside).amax(dim=2))
        return torch.cat(found, dim=1)


def build_word_cnn(
    model: str = "word_cnn",
    *,
    weights: str | None = None,
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
    end: End = "pooled",
) -> TextBackbone:
    """Builds two stages: ``embeddings`` and ``convolutions``; for tokens the embeddings alone.

    Args:
        model: Its name; there is only one.
        weights: ``None`` for random weights, a file, or a URL; word vectors are given in `options`.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: Of no effect.
        options: ``vocabulary``, a text file or a list of them under the data directory, whose words get vectors (of
            a ``.tsv`` all columns count); ``vectors``, a file of word vectors as text (GloVe, or word2vec with its
            header) under the weights directory, which without a vocabulary gives the words too; ``min_count`` of a
            word (1), ``width`` of random vectors (300), ``maps`` (100) and ``sizes`` ([3, 4, 5]) of the convolutions.
        end: ``pooled`` or ``sequence``.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If an option is unknown, out of range or missing.
    """
    given = {"vocabulary": None, "vectors": None, "min_count": 1, "width": 300, "maps": 100, "sizes": [3, 4, 5]}
    for key, value in (options or {}).items():
        if key not in given:
            raise UserError(f"backbone.options: {model} has no option '{key}'{nearest(key, list(given))}")
        given[key] = value
    if weights == "default":
        raise WeightsError(f"backbone.weights: there are no pretrained weights of {model}; use null, a file, or "
                           "backbone.options.vectors")  # fmt: skip
    sizes = _sizes(given["sizes"])
    numbers = {key: _whole(key, given[key]) for key in ("min_count", "width", "maps")}
    source = find_weights(str(given["vectors"])) if given["vectors"] else None
    vectors = _read_vectors(source) if source else {}
    words = _vocabulary(model, given["vocabulary"], numbers["min_count"], vectors)
    width = len(next(iter(vectors.values()))) if vectors else numbers["width"]
    stages: dict[str, nn.Module] = {"embeddings": WordEmbeddings(_table(words, vectors, width))}
    if end == "pooled":
        stages["convolutions"] = Convolutions(width, numbers["maps"], sizes)
    random = tuple(name for name in stages if name != "embeddings" or not vectors)
    record = WeightsRecord(source.name if source else "random", sha256(source) if source else "", random)
    if weights is not None:
        record = load_stages(stages, locate(weights, weights_sha256), prefix=weights_prefix)
    tokenizer = WordTokenizer(words)
    rebuilt = {"width": width, "maps": numbers["maps"], "sizes": sizes, "vocabulary": f"{FOLDER}/words.txt"}
    return TextBackbone(
        stages,
        out_features=numbers["maps"] * len(sizes) if end == "pooled" else width,
        preprocessing=TextPreprocessing(model, tokenizer.sha256, LONGEST, None, tokenizer),
        weights=record,
        save_files=partial(_save, tokenizer, Recipe(name=model, options=rebuilt)),
    )


def _save(tokenizer: WordTokenizer, recipe: Recipe, folder: Path) -> Recipe:
    tokenizer.save(folder)
    return recipe


def _vocabulary(model: str, files: Any, least: int, vectors: Mapping[str, Tensor]) -> list[str]:
    if not files:
        if not vectors:
            raise UserError(
                f"backbone.options.vocabulary: {model} needs the text files whose words get a vector, such as the "
                "training data, or backbone.options.vectors"
            )
        return list(vectors)
    paths = [find_data(str(file)) for file in ([files] if isinstance(files, str) else files)]
    if len(paths) == 1 and paths[0].name == "words.txt":  # what was saved with a model
        return paths[0].read_text(encoding="utf-8").split("\n")
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            counts.update(split_words(path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            raise UserError(f"backbone.options.vocabulary: {path} is no text in UTF-8") from None
    # By frequency, then by letters: the same files give the same numbers.
    return sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))


def _table(words: Sequence[str], vectors: Mapping[str, Tensor], width: int) -> Tensor:
    table = torch.empty(len(words) + 2, width).uniform_(-RANGE, RANGE)
    table[0] = 0
    for number, word in enumerate(words, start=2):
        if word in vectors:
            table[number] = vectors[word]
    return table


def _read_vectors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            word, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:
                continue  # word2vec's header: how many words, how wide
            try:
                vector = torch.tensor([float(value) for value in values])
            except ValueError:
                raise WeightsError(f"backbone.options.vectors: {path}:{number} is no word with its numbers") from None
            if found and len(vector) != len(next(iter(found.values()))):
                raise WeightsError(
                    f"backbone.options.vectors: {path}:{number} has {len(vector)} numbers, unlike those above"
                )
            found.setdefault(word.lower(), vector)
    if not found:
        raise WeightsError(f"backbone.options.vectors: {path} holds no word vectors")
    return found


def _sizes(value: Any) -> list[int]:
    sizes = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [_whole("sizes", size) for size in sizes]


def _whole(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"backbone.options.{key} must be a whole number of at least 1 but got {value!r}")
    return value
