"""Speech recognition: connectionist temporal classification (Graves et al. 2006) over a sequence of hidden states."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.text import CharErrorRate, WordErrorRate

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.direction import Directions
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.modality.base import Modality
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.predictor import BATCH, Answers, Predictor, Shown
from tlresearch.tracking.items import Item, Items

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
BLANK = 0
"""Number of the symbol for "nothing new" in the head's outputs; characters follow from 1."""


class Frames(NamedTuple):
    """What the head says of each frame.

    Attributes:
        scores: Logits ``(batch, frames, 1 + characters)``, the blank first.
        lengths: Real frames of each utterance, ``(batch,)`` int64.
    """

    scores: Tensor
    lengths: Tensor

    def detach(self) -> Frames:
        """The same without a graph."""
        return Frames(self.scores.detach(), self.lengths)


class FrameHead(nn.Module):
    """A linear layer on each frame.

    Args:
        width: Width of the hidden states.
        characters: Number of characters.
        dropout: Probability of dropout in front of the layer.
    """

    def __init__(self, width: int, characters: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, characters + 1)

    def forward(self, value: dict[str, Tensor]) -> Frames:
        """Scores each frame of ``hidden``; the mask gives the lengths."""
        return Frames(self.linear(self.dropout(value["hidden"])), value["mask"].sum(dim=1))


class Meters(nn.Module):
    """Loss and error rates of one split; as a module, so that they follow the task to its device."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy=math.nan)  # a loss that is NaN is not left out
        self.accuracy = MeanMetric()
        self.words = WordErrorRate()
        self.characters = CharErrorRate()

    def update(self, said: Sequence[str], wanted: Sequence[str], loss: Tensor) -> None:
        """Takes a batch of transcripts."""
        self.loss.update(loss, weight=len(wanted))
        self.accuracy.update(torch.tensor([float(a == b) for a, b in zip(said, wanted, strict=True)]))
        self.words.update(list(said), list(wanted))
        self.characters.update(list(said), list(wanted))

    def finish(self) -> dict[str, float]:
        """Returns every value and resets."""
        named = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "word_error_rate": self.words,
            "character_error_rate": self.characters,
        }
        values = {name: float(metric.compute()) for name, metric in named.items()}
        for metric in named.values():
            metric.reset()
        return values


class SpeechPredictor(Predictor):
    """Writes down what is said; the classes are the characters, in the order of the outputs behind the blank."""

    not_exported = "a recognition answers with as many letters as it hears, which no graph here holds"

    @torch.inference_mode()
    def table(self, samples: Sequence[Tensor]) -> dict[str, list[Any]]:
        """Returns ``transcript`` and ``probability``, a geometric mean over the frames, of waveforms ``(samples,)``."""
        texts: list[str] = []
        sureness: list[float] = []
        for start in range(0, len(samples), BATCH):
            batch = stack(self.preprocessing.prepare_all(samples[start : start + BATCH]))
            found, sure = greedy(self.network(batch), self.classes)
            texts += found
            sureness += sure
        return {"transcript": texts, "probability": sureness}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns transcript and probability."""
        return Shown(row["transcript"] or "(nothing)", row["probability"])


class SpeechRecognitionTask(Task):
    """Characters from frames: a linear layer with the CTC loss, decoded greedily.

    Metrics are ``word_error_rate`` and ``character_error_rate`` (edits per word, or character, of the whole split), and
    ``accuracy``, the share of utterances without any error.

    Args:
        backbone: The staged backbone; ends in a sequence.
        characters: The characters of the transcripts, in the order of the targets' numbers.
        head: The head; ``None`` makes the linear one.
        dropout: Probability of dropout in front of the linear layer.
        arguments: See `Task`.
    """

    served_columns = ("transcript", "probability")
    learns = ("transcript",)
    monitor = "word_error_rate"
    directions: ClassVar[Directions] = {"accuracy": "max", "word_error_rate": "min", "character_error_rate": "min"}
    end = "sequence"
    predictor = SpeechPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        *,
        characters: Sequence[str],
        head: nn.Module | None = None,
        dropout: float = 0.0,
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head or FrameHead(backbone.out_features, len(characters), dropout), **arguments)
        self.characters = tuple(characters)
        self.meters = nn.ModuleDict({f"{split}_meters": Meters() for split in SPLITS})
        self.predictions: dict[str, list[tuple[int, str, float]]] = {"val": [], "test": []}
        self._too_short, self._warned = 0, False

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> SpeechRecognitionTask:
        """Builds the speech recognition task of an experiment."""
        head = cls.build_head(config.task, backbone, data.classes, data.preprocessing)
        return cls(backbone, characters=data.classes, head=head, **arguments)

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> nn.Module:
        """Builds a linear layer on each frame."""
        return FrameHead(backbone.out_features, len(classes), config.dropout)

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float]:
        """Measures the transcripts that a served model answers with."""
        part, meters = data.splits[split], Meters()
        for span, table in answers:
            said = [_spelt(part.targets[row].tolist(), data.classes) for row in span]
            meters.update(list(table["transcript"]), said, torch.tensor(0.0))
        return meters.finish()

    def loss(self, outputs: Frames, targets: Sequence[Tensor]) -> Tensor:
        """CTC loss per character, averaged over the utterances.

        An utterance with fewer frames than its transcript needs counts 0; how many there are is said in a warning.
        """
        # On the processor: the loss on a GPU has no deterministic gradient, and costs little beside the backbone.
        scores = outputs.scores.float().log_softmax(dim=2).transpose(0, 1).cpu()
        wanted = [target.cpu() + 1 for target in targets]
        lengths = torch.tensor([len(target) for target in wanted])
        each = functional.ctc_loss(
            scores,
            torch.cat(wanted),
            outputs.lengths.cpu(),
            lengths,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return (each / lengths.clamp(min=1)).mean().to(outputs.scores.device)

    def update_metrics(self, split: str, outputs: Frames, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the transcripts of evaluation."""
        decoded, sureness = self.decode(outputs)
        wanted = [self.spell(target.tolist()) for target in batch.targets]
        self._meters(split).update(decoded, wanted, loss)
        if split == "train":
            frames = outputs.lengths.tolist()
            self._too_short += sum(needed_frames(t) > n for t, n in zip(batch.targets, frames, strict=True))
        if split in self.predictions:
            self.predictions[split] += zip(batch.indices.tolist(), decoded, sureness, strict=True)

    def decode(self, outputs: Frames) -> tuple[list[str], list[float]]:
        """Transcripts with their sureness; see `greedy`."""
        return greedy(outputs, self.characters)

    def spell(self, numbers: Sequence[int]) -> str:
        """Text of characters by number, with single spaces."""
        return _spelt(numbers, self.characters)

    def on_validation_epoch_start(self) -> None:
        """Forgets the transcripts of the epoch before."""
        self.predictions["val"].clear()

    def on_test_epoch_start(self) -> None:
        """Forgets earlier transcripts."""
        self.predictions["test"].clear()

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and error rates of a split and resets them."""
        if split == "train" and self._too_short and not self._warned:
            self._warned = True
            log.warning(
                "%d utterances have fewer frames than their transcript needs and teach nothing; lower the hop of the "
                "backbone, or leave them out",
                self._too_short,
            )
        self._too_short = 0
        return self._meters(split).finish()

    def items(self, data: Data) -> Items | None:
        """Returns the transcripts of the test split, else of validation, one by one."""
        split: SplitName = "test" if self.predictions["test"] else "val"
        part, found = data.splits[split], self.predictions[split]
        if not found or len(found) != len(part):
            return None  # with several devices each rank sees its share only
        return Items(
            split,
            tuple(
                Item(part.names[index], self.spell(part.targets[index].tolist()), text, sure)
                for index, text, sure in found
            ),
        )

    def _meters(self, split: str) -> Meters:
        return cast(Meters, self.meters[f"{split}_meters"])  # ModuleDict refuses `train`, a method of its own


def greedy(outputs: Frames, characters: Sequence[str]) -> tuple[list[str], list[float]]:
    """Greedy decoding: the best symbol of each frame, repetitions and blanks taken out.

    Returns:
        The transcript of each utterance, and the geometric mean over its frames of the best symbol's probability.
    """
    best, symbols = outputs.scores.float().log_softmax(dim=2).max(dim=2)
    texts, sureness = [], []
    for values, numbers, length in zip(best, symbols, outputs.lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(numbers[:length]).tolist()
        texts.append(_spelt([number - 1 for number in merged if number != BLANK], characters))
        sureness.append(float(values[:length].mean().exp()))
    return texts, sureness


def _spelt(numbers: Sequence[int], characters: Sequence[str]) -> str:
    return " ".join("".join(characters[number] for number in numbers).split())


def needed_frames(target: Tensor) -> int:
    """Fewest frames a transcript can be read from: one per character, and a blank between equal neighbours."""
    return len(target) + int((target[1:] == target[:-1]).sum())
