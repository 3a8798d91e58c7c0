"""A trained token classification, such as named entities, as files that tag raw texts, without the data or the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlresearch.backbones.text import TextBackbone
from tlresearch.data.base import Data
from tlresearch.data.text_tokenizer import TextPreprocessing, text_input
from tlresearch.data.values import stack
from tlresearch.serving.base import BATCH, RawPredictor, Shown, read_description, with_weights
from tlresearch.serving.raw import RawSentences
from tlresearch.serving.text import text_backbone
from tlresearch.tasks.base import Task
from tlresearch.tasks.tokens import TokenHead, TokensTask, entities

OUTSIDE = "O"
_WORD = re.compile(r"https?://\S+|[@#]\w+|\w+(?:[-.'’]\w+)*|[^\w\s]")
"""Addresses, names and marks of messages, words with what joins their parts, and every other sign by itself."""

Piece = tuple[int, list[int], list[int]]
"""Of one run through the network: number of the sentence, token numbers, and the words they begin, -1 for none."""


class TokensPredictor(RawPredictor):
    """Tags the words of raw texts.

    Args:
        network: From a batch of tokens to logits ``(batch, length, tags)``.
        preprocessing: The tokenizer.
        max_length: Most tokens that run at once; a longer text runs in several parts.
        classes: The tags in the order of the logits.
    """

    def __init__(
        self, network: nn.Module, preprocessing: TextPreprocessing, max_length: int, classes: Sequence[str]
    ) -> None:
        super().__init__(RawSentences())
        self.network = network.eval()
        self.preprocessing = preprocessing
        self.max_length = max_length
        self.classes = tuple(classes)

    @torch.inference_mode()
    def table(self, samples: Sequence[str | list[str]]) -> dict[str, list[Any]]:
        """Tags texts, or sentences that are split into words already.

        Returns:
            ``words``; ``tags``, one per word; ``entities``, each with ``kind``, ``text``, and ``start`` and ``end``,
            its place in the text (in the words joined by spaces, where they were given); and ``probability``, that of
            the least sure tag. A word without a token of its own is outside of every entity.
        """
        split = [_split(sample) for sample in samples]
        tags = [[OUTSIDE] * len(words) for _, words, _ in split]
        least = [1.0] * len(split)
        pieces = [piece for number, (_, words, _) in enumerate(split) for piece in self._pieces(number, words)]
        for start in range(0, len(pieces), BATCH):
            part = pieces[start : start + BATCH]
            scores, best = (
                self.network(stack([text_input(ids) for _, ids, _ in part])).float().softmax(dim=2).max(dim=2)
            )
            for (number, _, words), row, sure in zip(part, best.tolist(), scores.tolist(), strict=True):
                for word, tag, score in zip(words, row, sure, strict=False):  # rows are padded
                    if word >= 0:
                        tags[number][word] = self.classes[tag]
                        least[number] = min(least[number], score)
        return {
            "words": [words for _, words, _ in split],
            "tags": tags,
            "entities": [_found(*row, tagged) for row, tagged in zip(split, tags, strict=True)],
            "probability": least,
        }

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns the entities with their kinds, and the probability of the least sure tag."""
        found = ", ".join(f"{entity['text']} ({entity['kind']})" for entity in row["entities"])
        return Shown(found or "none", row["probability"])

    def _pieces(self, number: int, words: Sequence[str]) -> list[Piece]:
        """Cuts a sentence into as many parts as the longest input asks for."""
        pieces: list[Piece] = []
        start = 0
        while start < len(words):
            encoded = self.preprocessing.tokenizer.sentences([words[start:]], self.max_length)[0]
            begun: list[int] = []
            last = None
            for word in encoded.words:
                begun.append(-1 if word is None or word == last else start + word)
                last = word if word is not None else last
            pieces.append((number, encoded.ids, begun))
            whole = len(encoded.ids) < self.max_length
            seen = max((word + 1 for word in encoded.words if word is not None), default=0)
            # A part of which no word was taken would be cut in the same way again.
            start = len(words) if whole or not seen else start + seen
        return pieces


def tokens_servable(task: Task, data: Data) -> bool:
    """Whether `load_tokens_predictor` can rebuild the network: our own task over texts."""
    texts = isinstance(data.preprocessing, TextPreprocessing) and isinstance(task.backbone, TextBackbone)
    return type(task) is TokensTask and texts


def load_tokens_predictor(folder: Path) -> TokensPredictor:
    """Reads what `save_text_predictor` wrote of a token classification; nothing is unpickled and nothing downloaded."""
    description = read_description(folder)
    backbone, classes = text_backbone(folder, description, "sequence"), description["classes"]
    network = with_weights(folder, backbone, TokenHead(backbone.out_features, len(classes), 0.0))
    return TokensPredictor(network, backbone.preprocessing, description["max_length"], classes)


def _split(sample: str | list[str]) -> tuple[str, list[str], list[int]]:
    """Returns text, words, and where in the text each begins."""
    if isinstance(sample, str):
        found = list(_WORD.finditer(sample))
        return sample, [match.group() for match in found], [match.start() for match in found]
    starts, place = [], 0
    for word in sample:
        starts.append(place)
        place += len(word) + 1
    return " ".join(sample), sample, starts


def _found(text: str, words: Sequence[str], starts: Sequence[int], tags: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for kind, first, last in entities(tags):
        start, end = starts[first], starts[last] + len(words[last])
        rows.append({"kind": kind, "text": text[start:end], "start": start, "end": end})
    return rows
