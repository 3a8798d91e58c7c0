"""Token classification, such as named entities: one tag per word, judged by whole entities as seqeval does."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError, MissingExtraError
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName, TargetKind
from tlresearch.data.text import IGNORED
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.text import RawSentences, TextPreprocessing, text_input
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.predictor import BATCH, Answers, Predictor, Shown
from tlresearch.tracking import figures
from tlresearch.tracking.items import Item, Items
from tlresearch.tracking.text_figures import wrong_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTSIDE = "O"
_WORD = re.compile(r"https?://\S+|[@#]\w+|\w+(?:[-.'’]\w+)*|[^\w\s]")
"""Addresses, names and marks of messages, words with what joins their parts, and every other sign by itself."""

Piece = tuple[int, list[int], list[int]]
"""Of one run through the network: number of the sentence, token numbers, and the words they begin, -1 for none."""

Entity = tuple[str, int, int]
"""Kind, first and last word."""


class TokenHead(nn.Module):
    """A linear layer on the hidden states of each token.

    Args:
        width: Width of the hidden states.
        classes: Number of tags.
        dropout: Probability of dropout in front of it.
    """

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, value: dict[str, Tensor]) -> Tensor:
        """Returns logits ``(batch, length, classes)`` of ``hidden`` ``(batch, length, width)``."""
        logits: Tensor = self.linear(self.dropout(value["hidden"]))
        return logits


class EntityScore(Metric):
    """Precision, recall and F1 over entities, all together and by kind.

    An entity is right if its kind and both of its ends are. Which tags make an entity is decided by seqeval's default
    rules, those of the CoNLL shared tasks: an I without its B begins one too.

    Args:
        kinds: Kinds of entity.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.add_state("counts", torch.zeros(len(self.kinds), 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, given: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
        """Takes the given and the predicted tags of sentences."""
        counted = torch.zeros_like(self.counts, device="cpu")
        for row, (right, answer) in enumerate(zip(given, predicted, strict=True)):
            if len(right) != len(answer):
                raise ValueError(f"sentence {row} has {len(right)} given but {len(answer)} predicted tags.")
            wanted, found = set(entities(right)), set(entities(answer))
            for column, members in enumerate((wanted & found, found, wanted)):
                for kind, _, _ in members:
                    counted[self.kinds.index(kind), column] += 1
        self.counts += counted.to(self.counts.device)

    def compute(self) -> dict[str, float]:
        """Returns ``precision``, ``recall``, ``f1`` and ``f1_<kind>``; 0 where there is nothing to divide by."""
        precision, recall, f1 = _scores(self.counts.sum(0).tolist())
        values = {"precision": precision, "recall": recall, "f1": f1}
        for part, counts in zip(metric_names(self.kinds).values(), self.counts.tolist(), strict=True):
            values[f"f1_{part}"] = _scores(counts)[2]
        return values


class TokenMeters(nn.Module):
    """Loss, accuracy over words and, for evaluation, scores over entities of one split.

    Args:
        kinds: Kinds of entity; empty leaves their scores out.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy=math.nan)  # a loss that is NaN is not left out
        self.accuracy = MeanMetric()
        self.entities = EntityScore(kinds) if kinds else None

    def finish(self) -> dict[str, float]:
        """Returns every value and resets."""
        values = {"loss": float(self.loss.compute()), "accuracy": float(self.accuracy.compute())}
        for metric in (self.loss, self.accuracy):
            metric.reset()
        if self.entities is not None:
            values |= self.entities.compute()
            self.entities.reset()
        return values


class TokensPredictor(Predictor):
    """Tags the words of raw texts; what is longer than the longest input runs in several parts."""

    not_exported = "tags are answered word by word, with the words cut by tlresearch"

    def __init__(
        self,
        backbone: StagedBackbone,
        head: nn.Module,
        preprocessing: Modality,
        classes: Sequence[str],
        kind: TargetKind,
    ) -> None:
        super().__init__(backbone, head, preprocessing, classes, kind)
        self.texts = texts_of(preprocessing)
        self.raw = RawSentences()

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
            encoded = self.texts.tokenizer.sentences([words[start:]], self.texts.max_length)[0]
            begun: list[int] = []
            last = None
            for word in encoded.words:
                begun.append(-1 if word is None or word == last else start + word)
                last = word if word is not None else last
            pieces.append((number, encoded.ids, begun))
            whole = len(encoded.ids) < self.texts.max_length
            seen = max((word + 1 for word in encoded.words if word is not None), default=0)
            # A part of which no word was taken would be cut in the same way again.
            start = len(words) if whole or not seen else start + seen
        return pieces


class TokensTask(Task):
    """A linear head on each token with cross entropy; tokens without a tag of their own have no part in it.

    Args:
        backbone: The staged backbone; it must end in hidden states.
        classes: The tags.
        head: The head; ``None`` makes the linear one.
        dropout: Probability of dropout in front of the linear layer.
        label_smoothing: Smoothing of the cross entropy.
        class_weights: Weight of each tag in the loss.
        arguments: See `Task`.

    Raises:
        MissingExtraError: If seqeval is not installed.
    """

    served_columns = ("words", "tags", "entities", "probability")
    learns = ("tokens",)
    monitor = "f1"
    directions: ClassVar[Directions] = dict.fromkeys(("accuracy", "precision", "recall", "f1", "f1_*"), "max")
    end = "sequence"
    ignored = IGNORED
    packages = ("seqeval",)
    predictor = TokensPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        *,
        classes: Sequence[str],
        head: nn.Module | None = None,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head or TokenHead(backbone.out_features, len(classes), dropout), **arguments)
        entities(["O"])  # says now if seqeval is missing, not after the first epoch
        self.classes = tuple(classes)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        kinds = kinds_of(classes)
        self.class_parts = metric_names(kinds)
        self.meters = nn.ModuleDict(
            {f"{split}_meters": TokenMeters(kinds if split != "train" else ()) for split in ("train", "val", "test")}
        )
        self.predictions: dict[str, dict[int, tuple[list[int], float]]] = {"val": {}, "test": {}}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> TokensTask:
        """Builds the token classification task of an experiment."""
        return cls(
            backbone,
            classes=data.classes,
            head=cls.build_head(config.task, backbone, data.classes, data.preprocessing),
            label_smoothing=config.task.label_smoothing,
            class_weights=cls.balanced(data) if config.task.class_weights == "balanced" else None,
            **arguments,
        )

    @classmethod
    def balanced(cls, data: Data) -> Tensor:
        """Returns weights by the number of tags."""
        return tag_weights(list(data.splits["train"].targets), len(data.classes))

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> nn.Module:
        """Builds a linear layer on each token."""
        return TokenHead(backbone.out_features, len(classes), config.dropout)

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float]:
        """Measures a served model's tags of the words that count in training.

        Those are the words with a token of their own within the longest input.
        """
        part, texts = data.splits[split], texts_of(data.preprocessing)
        meters = TokenMeters(kinds_of(data.classes))
        assert meters.entities is not None
        for span, table in answers:
            meters.loss.update(torch.tensor(0.0))
            encoded = texts.tokenizer.sentences([part.raw(row) for row in span], texts.max_length)
            for row, sentence, tags in zip(span, encoded, table["tags"], strict=True):
                given = [data.classes[tag] for tag in part.targets[row].tolist() if tag != IGNORED]
                found = [tags[word] for word in dict.fromkeys(sentence.words) if word is not None]
                meters.accuracy.update(torch.tensor([float(a == b) for a, b in zip(given, found, strict=True)]))
                meters.entities.update([given], [found])
        return meters.finish()

    def loss(self, outputs: Tensor, targets: Tensor | Sequence[Tensor]) -> Tensor:
        """Mean cross entropy over the tokens that have a tag.

        Args:
            outputs: Logits ``(batch, length, classes)``.
            targets: Tag of each token, ``(length,)`` for each sentence; `IGNORED` has none.
        """
        tags = padded(targets, outputs)
        if not bool((tags != IGNORED).any()):
            return outputs.sum() * 0.0  # the mean over nothing would be no number
        return functional.cross_entropy(
            outputs.flatten(0, 1),
            tags.flatten(),
            weight=self.class_weights.to(outputs.device) if self.class_weights is not None else None,
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )

    def scored(self, outputs: Tensor, batch: Batch) -> tuple[Any, Any]:
        """Returns the probabilities ``(tags, classes)`` and tags ``(tags,)`` of the tokens that have one."""
        tags = padded(batch.targets, outputs)
        return outputs.float().softmax(dim=2)[tags != IGNORED], tags[tags != IGNORED]

    def update_metrics(self, split: str, outputs: Tensor, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the predictions of evaluation for figures."""
        tags = padded(batch.targets, outputs)
        tagged = tags != IGNORED
        words = int(tagged.sum())
        if not words:
            return
        sure, best = outputs.float().softmax(dim=2).max(dim=2)
        meters = self._meters(split)
        meters.loss.update(loss, weight=words)
        meters.accuracy.update((best == tags)[tagged].float())
        if meters.entities is None:
            return
        rows = [
            (given[seen].tolist(), found[seen].tolist()) for given, found, seen in zip(tags, best, tagged, strict=True)
        ]
        meters.entities.update([self._named(given) for given, _ in rows], [self._named(found) for _, found in rows])
        least = sure.masked_fill(~tagged, 1.0).amin(dim=1)
        for index, (_, found), score in zip(batch.indices.tolist(), rows, least.tolist(), strict=True):
            self.predictions[split][index] = (found, score)

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and metrics of a split and resets them."""
        return self._meters(split).finish()

    def on_validation_epoch_start(self) -> None:
        """Forgets the predictions of the epoch before."""
        self.predictions["val"].clear()

    def on_test_epoch_start(self) -> None:
        """Forgets earlier predictions."""
        self.predictions["test"].clear()

    def figures(self, data: Data) -> dict[str, Figure]:
        """Draws the confusion of kinds word by word, and the sentences with wrong entities, least sure last."""
        split, answers = self._last()
        kinds = ["O", *kinds_of(self.classes)]
        matrix = torch.zeros(len(kinds), len(kinds), dtype=torch.int64)
        wrong = []
        for index, (found, score) in answers.items():
            given = [tag for tag in data.splits[split].targets[index].tolist() if tag != IGNORED]
            for right, answer in zip(given, found, strict=True):
                matrix[self._kind(right, kinds), self._kind(answer, kinds)] += 1
            wanted, predicted = entities(self._named(given)), entities(self._named(found))
            if wanted != predicted:
                wrong.append((score, index, wanted, predicted))
        if not answers:
            return {}
        drawn = {"confusion_matrix.png": figures.confusion_matrix(matrix.numpy(), kinds)}
        wrong = sorted(wrong, reverse=True, key=lambda row: row[0])[:20]
        if wrong:
            drawn["wrong_sentences.png"] = wrong_texts(
                [" ".join(data.splits[split].raw(index)) for _, index, _, _ in wrong],
                [_worded(wanted, data.splits[split].raw(index)) for _, index, wanted, _ in wrong],
                [_worded(predicted, data.splits[split].raw(index)) for _, index, _, predicted in wrong],
                [score for score, _, _, _ in wrong],
                title=f"Sentences of {split} with wrong entities, surest first",
            )
        return drawn

    def items(self, data: Data) -> Items | None:
        """Returns the entities of each sentence of the test split, else of validation."""
        split, answers = self._last()
        part = data.splits[split]
        if len(answers) != len(part):
            return None
        rows = []
        for index, (found, score) in sorted(answers.items()):
            given = [tag for tag in part.targets[index].tolist() if tag != IGNORED]
            wanted, answer = _listed(self._named(given)), _listed(self._named(found))
            rows.append(Item(part.names[index], wanted, answer, score))
        return Items(split, tuple(rows))

    def _last(self) -> tuple[SplitName, dict[int, tuple[list[int], float]]]:
        split: SplitName = "test" if self.predictions["test"] else "val"
        return split, self.predictions[split]

    def _named(self, tags: Sequence[int]) -> list[str]:
        return [self.classes[tag] for tag in tags]

    def _kind(self, tag: int, kinds: Sequence[str]) -> int:
        return kinds.index(self.classes[tag].partition("-")[2] or "O")

    def _meters(self, split: str) -> TokenMeters:
        return cast(TokenMeters, self.meters[f"{split}_meters"])


def texts_of(preprocessing: Modality | None) -> TextPreprocessing:
    """Returns the tokenizer of a task over texts.

    Raises:
        ConfigError: If the inputs are something else.
    """
    return expect(preprocessing, TextPreprocessing, ConfigError(["task.name: tokens is for texts"], "task"))


def kinds_of(classes: Sequence[str]) -> list[str]:
    """Returns the kinds of entity that tags are of."""
    return sorted({tag.partition("-")[2] for tag in classes if tag != OUTSIDE})


def padded(targets: Tensor | Sequence[Tensor], outputs: Tensor) -> Tensor:
    """Returns the tags of a batch ``(batch, length)``, padded with `IGNORED` to the length of the outputs."""
    tags = torch.full(outputs.shape[:2], IGNORED, dtype=torch.int64, device=outputs.device)
    for row, target in enumerate(targets):
        tags[row, : len(target)] = target
    return tags


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a sentence by seqeval's default rules.

    Raises:
        MissingExtraError: If seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ModuleNotFoundError as error:
        if error.name != "seqeval":
            raise
        raise MissingExtraError("seqeval", "text") from None
    found: list[Entity] = get_entities(list(tags))
    return found


def tag_weights(targets: Sequence[Any], classes: int) -> Tensor:
    """Returns weights inversely proportional to the frequency of each tag; see `balanced_weights`."""
    every = torch.cat(list(targets))
    tags = every[every != IGNORED]
    return len(tags) / (classes * torch.bincount(tags, minlength=classes).clamp(min=1).float())


def _scores(counts: Sequence[int]) -> tuple[float, float, float]:
    right, found, wanted = counts
    return right / max(found, 1), right / max(wanted, 1), 2 * right / max(found + wanted, 1)


def _listed(tags: Sequence[str]) -> str:
    return ";".join(f"{kind} {first}-{last}" for kind, first, last in entities(tags))


def _worded(found: Sequence[Entity], words: Sequence[str]) -> str:
    return ", ".join(f"{' '.join(words[first : last + 1])} ({kind})" for kind, first, last in found) or "none"


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
