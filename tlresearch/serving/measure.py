"""What a served model says of a split, measured by the metrics of its task: raw samples in, metrics out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlresearch.data.base import Data, SplitName, TargetKind
from tlresearch.data.text import IGNORED
from tlresearch.tasks import classification, speech, tokens

Predict = Callable[[list[Any]], Any]
"""Takes raw samples and returns a data frame with one row for each."""
Rows = Iterator[tuple[range, Any]]
"""Positions in the split, and the answers for them."""

NO_LOSS = torch.tensor(0.0)  # a served model does not know the loss


def measure_served(predict: Predict, data: Data, split: SplitName, batch_size: int) -> dict[str, float] | None:
    """Measures the answers for a split.

    Args:
        predict: The served model.
        data: The data.
        split: The split.
        batch_size: Samples that are asked for at once.

    Returns:
        Metrics without the name of the split; ``None`` where answers and logged metrics are of different things: masks
        and boxes are answered in pixels of the raw image, and measured at the size of the input.
    """
    measure = MEASURES.get(data.kind)
    if measure is None:
        return None
    part = data.splits[split]
    spans = (range(start, min(start + batch_size, len(part))) for start in range(0, len(part), batch_size))
    rows = ((span, predict([_as_served(part.raw(row)) for row in span])) for span in spans)
    return {name: value for name, value in measure(data, split, rows).items() if name != "loss"}


def _classes(data: Data, split: SplitName, rows: Rows) -> dict[str, float]:
    meters = classification.Meters(data.kind, len(data.classes), thorough=True)
    targets = torch.as_tensor(data.splits[split].targets)
    for span, answers in rows:
        probabilities = torch.tensor(answers[[f"p({name})" for name in data.classes]].to_numpy(dtype=np.float32))
        wanted = targets[span.start : span.stop]
        meters.update(probabilities, wanted.int() if data.kind == "multilabel" else wanted, NO_LOSS)
    return meters.finish()


def _tags(data: Data, split: SplitName, rows: Rows) -> dict[str, float]:
    """Over the words that count in training: those with a token of their own within the longest input."""
    part, wanted = data.splits[split], data.preprocessing
    meters = tokens.TokenMeters(sorted({tag.partition("-")[2] for tag in data.classes if tag != "O"}))
    assert meters.entities is not None
    for span, answers in rows:
        meters.loss.update(NO_LOSS)
        encoded = wanted.tokenizer.sentences([part.raw(row) for row in span], wanted.max_length)
        for row, sentence, tags in zip(span, encoded, answers["tags"], strict=True):
            given = [data.classes[tag] for tag in part.targets[row].tolist() if tag != IGNORED]
            found = [tags[word] for word in dict.fromkeys(sentence.words) if word is not None]
            meters.accuracy.update(torch.tensor([float(a == b) for a, b in zip(given, found, strict=True)]))
            meters.entities.update([given], [found])
    return meters.finish()


def _transcripts(data: Data, split: SplitName, rows: Rows) -> dict[str, float]:
    part, meters = data.splits[split], speech.Meters()
    for span, answers in rows:
        wanted = ["".join(data.classes[number] for number in part.targets[row].tolist()) for row in span]
        meters.update(list(answers["transcript"]), [" ".join(text.split()) for text in wanted], NO_LOSS)
    return meters.finish()


MEASURES: Mapping[TargetKind, Callable[[Data, SplitName, Rows], dict[str, float]]] = {
    "binary": _classes,
    "multiclass": _classes,
    "multilabel": _classes,
    "tokens": _tags,
    "transcript": _transcripts,
}


def _as_served(sample: Any) -> Any:
    """A raw sample as a user hands it over: images ``(H, W, C)`` and sounds as arrays, text as it is."""
    if not isinstance(sample, Tensor):
        return sample
    return sample.permute(1, 2, 0).numpy() if sample.ndim == 3 else sample.numpy()
