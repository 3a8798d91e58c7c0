"""Classification of images, texts, sounds or anything else: binary, multi-class and multi-label."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics import classification as tm
from torchmetrics.utilities.data import dim_zero_cat

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName, TargetKind
from tlresearch.modality.base import Modality
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.counts import ClassCounts
from tlresearch.tasks.intervals import bootstrap_intervals
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.predictor import BATCH, Answers, ScoresPredictor, Shown
from tlresearch.tracking import figures
from tlresearch.tracking.items import Item, Items
from tlresearch.tracking.text_figures import wrong_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SPLITS = ("train", "val", "test")
SHOWN = 20
"""Most samples in the figure of wrong ones."""
NO_LOSS = torch.tensor(0.0)  # a served model does not know the loss
PER_CLASS = 100
"""Most classes whose AUROC is recorded one by one."""


class Meters(nn.Module):
    """Loss and metrics of one split; as a module, so that they follow the task to its device.

    Args:
        kind: What the targets are.
        classes: Number of classes, or of labels.
        thorough: All metrics, or accuracy alone, which costs next to nothing.
    """

    def __init__(self, kind: TargetKind, classes: int, *, thorough: bool) -> None:
        super().__init__()
        self.multilabel = kind == "multilabel"
        self.classes = classes
        self.loss = MeanMetric(nan_strategy=math.nan)  # a loss that is NaN is not left out
        self.counts: ClassCounts | None = None if self.multilabel else ClassCounts(classes)
        self.thorough = thorough
        self.metrics = MetricCollection(_metrics(kind, classes, thorough=thorough))

    def update(self, probabilities: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Takes a batch."""
        self.loss.update(loss, weight=len(targets))
        if self.counts is not None:
            self.counts.update(probabilities.argmax(dim=1), targets)
        if len(self.metrics):
            self.metrics.update(probabilities, targets)

    def finish(self, names: Sequence[str] = ()) -> dict[str, float]:
        """Returns every value and resets; what has no value is NaN.

        AUROC is the mean over the classes that have something to rank; torchmetrics would count the others as 0.

        Args:
            names: Names of the classes, if AUROC of each is wanted too: ``auroc_of_<name>``.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples")
            values = {"loss": self.loss.compute(), **self._counted(), **self.metrics.compute()}
        if "auroc" in values:
            each = self._auroc(values["auroc"])
            values["auroc"] = each.nanmean()
            parts = metric_names(names).values()
            values |= {f"auroc_of_{part}": value for part, value in zip(parts, each, strict=False)}
        metrics: list[Metric | MetricCollection] = [self.loss, self.metrics, *([self.counts] if self.counts else [])]
        for metric in metrics:
            metric.reset()
        return {name: float(value) for name, value in values.items()}

    def _counted(self) -> dict[str, Tensor]:
        values = self.counts.compute().means() if self.counts is not None else {}
        return values if self.thorough else {name: value for name, value in values.items() if name == "accuracy"}

    def _auroc(self, values: Tensor) -> Tensor:
        """AUROC of each class, NaN where there is nothing to rank."""
        targets = dim_zero_cat(cast(Any, self.metrics["auroc"]).target)
        counts = targets.sum(dim=0) if self.multilabel else torch.bincount(targets, minlength=self.classes)
        return values.masked_fill((counts == 0) | (counts == len(targets)), float("nan"))


class ClassPredictor(ScoresPredictor):
    """Predicts a class, or several labels, with the probability of each; several have independent probabilities."""

    @torch.inference_mode()
    def predict(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Returns the likeliest class ``(samples,)`` and the probabilities ``(samples, classes)``."""
        outputs = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(samples), BATCH):
            outputs.append(self.network(stack(self.preprocessing.prepare_all(samples[start : start + BATCH]))).float())
        logits = torch.cat(outputs)
        probabilities = logits.sigmoid() if self.kind == "multilabel" else logits.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities

    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns ``class``, its ``probability``, and ``p(<class>)`` of each class.

        Of several labels, ``class`` holds those above one half, joined by ``;``, and ``probability`` is that of the
        least sure one.
        """
        _, probabilities = self.predict(samples)
        rows = [self._row(row) for row in probabilities.tolist()]
        names = ("class", "probability", *(f"p({name})" for name in self.classes))
        return {name: [row[column] for row in rows] for column, name in enumerate(names)}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns class and probability."""
        return Shown(row["class"] or "none", row["probability"])

    def _row(self, probabilities: list[float]) -> tuple[Any, ...]:
        if self.kind == "multilabel":
            given = [name for name, value in zip(self.classes, probabilities, strict=True) if value > 0.5]
            return ";".join(given), min(max(value, 1 - value) for value in probabilities), *probabilities
        best = max(probabilities)
        return self.classes[probabilities.index(best)], best, *probabilities

    def first(self, sample: Any) -> NDArray[Any]:
        """Returns the probabilities ``(1, classes)`` of a raw sample."""
        found: NDArray[Any] = self.predict([sample])[1].numpy()
        return found

    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures probabilities of samples."""
        targets = torch.as_tensor(data.splits[split].targets)[list(rows)]
        meters = Meters(data.kind, len(data.classes), thorough=True)
        probabilities = torch.from_numpy(np.concatenate(list(found))).float()
        meters.update(probabilities, targets.int() if data.kind == "multilabel" else targets, NO_LOSS)
        return {name: value for name, value in meters.finish().items() if name != "loss"}


class ClassificationTask(Task):
    """A linear head with cross entropy; several independent labels with binary cross entropy.

    Binary targets are a multi-class problem of two classes: one head, one set of metrics, no threshold.

    Args:
        backbone: The staged backbone.
        classes: Number of classes, or of labels.
        kind: What the targets are.
        head: The head; ``None`` makes the linear one.
        dropout: Probability of dropout in front of the linear layer.
        label_smoothing: Smoothing of the cross entropy.
        class_weights: Weight of each class in the loss.
        class_names: Names of the classes, if AUROC of each is recorded for the test.
        arguments: See `Task`.
    """

    learns = ("binary", "multiclass", "multilabel")
    directions: ClassVar[Directions] = {
        "accuracy": "max",
        "balanced_accuracy": "max",
        "macro_f1": "max",
        "auroc": "max",
        "auroc_of_*": "max",
        "calibration_error": "min",
        **dict.fromkeys(("accuracy_low", "accuracy_high", "auroc_low", "auroc_high"), "max"),
    }
    predictor = ClassPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        *,
        classes: int,
        kind: TargetKind,
        head: nn.Module | None = None,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        class_names: Sequence[str] = (),
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head or linear_head(backbone.out_features, classes, dropout), **arguments)
        self.kind = kind
        self.label_smoothing = label_smoothing
        # Not a buffer: it belongs to the data, and no checkpoint should bring another one.
        self.class_weights = class_weights
        # Of two classes the second's AUROC is the first's.
        self.class_names = class_names if classes <= PER_CLASS and (classes > 2 or kind == "multilabel") else ()
        self.class_parts = metric_names(self.class_names)
        self.meters = nn.ModuleDict({f"{s}_meters": Meters(kind, classes, thorough=s != "train") for s in SPLITS})
        self.predictions: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"val": [], "test": []}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> ClassificationTask:
        """Builds the classification task of an experiment.

        Raises:
            ConfigError: If labels are smoothed of which a sample has several.
        """
        if data.kind == "multilabel" and config.task.label_smoothing:
            raise ConfigError(
                ["task.label_smoothing: is for one label per sample, but the data has several"], config.name
            )
        return cls(
            backbone,
            classes=len(data.classes),
            kind=data.kind,
            head=cls.build_head(config.task, backbone, data.classes, data.preprocessing),
            label_smoothing=config.task.label_smoothing,
            class_weights=cls.balanced(data) if config.task.class_weights == "balanced" else None,
            class_names=data.classes,
            **arguments,
        )

    @classmethod
    def balanced(cls, data: Data) -> Tensor:
        """Returns weights by the number of samples."""
        return balanced_weights(torch.as_tensor(data.splits["train"].targets), data.kind, len(data.classes))

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> nn.Module:
        """Builds a linear layer behind dropout."""
        return linear_head(backbone.out_features, len(classes), config.dropout)

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float]:
        """Measures the probabilities that a served model answers with."""
        meters = Meters(data.kind, len(data.classes), thorough=True)
        targets = torch.as_tensor(data.splits[split].targets)
        for span, table in answers:
            probabilities = torch.tensor(table[[f"p({name})" for name in data.classes]].to_numpy(dtype=np.float32))
            given = targets[span.start : span.stop]
            meters.update(probabilities, given.int() if data.kind == "multilabel" else given, NO_LOSS)
        return meters.finish()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy; `targets` are class numbers ``(batch,)`` or shares ``(batch, classes)``."""
        weights = self.class_weights.to(outputs.device) if self.class_weights is not None else None
        if self.kind == "multilabel":
            return functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weights)
        return functional.cross_entropy(
            outputs, targets, weight=weights, label_smoothing=self.label_smoothing if self.training else 0.0
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Returns the probability of each class, or of each label by itself."""
        outputs = outputs.float()
        return outputs.sigmoid() if self.kind == "multilabel" else outputs.softmax(dim=1)

    def scored(self, outputs: Tensor, batch: Batch) -> tuple[Any, Any]:
        """Returns the probabilities ``(batch, classes)``, and class numbers ``(batch,)`` or 0/1 columns."""
        return self.probabilities(outputs), batch.targets.int() if self.kind == "multilabel" else batch.targets

    def update_metrics(self, split: str, outputs: Tensor, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the predictions of evaluation for figures."""
        probabilities, targets = self.scored(outputs, batch)
        self._meters(split).update(probabilities, targets, loss)
        if split in self.predictions:
            self.predictions[split].append((batch.indices.cpu(), probabilities.cpu(), targets.cpu()))

    def on_validation_epoch_start(self) -> None:
        """Forgets the predictions of the epoch before."""
        self.predictions["val"].clear()

    def on_test_epoch_start(self) -> None:
        """Forgets earlier predictions."""
        self.predictions["test"].clear()

    def figures(self, data: Data) -> dict[str, Figure]:
        """Draws the confusion matrix and the wrongly classified samples of the test split, else of validation."""
        split: SplitName = "test" if self.predictions["test"] else "val"
        if not self.predictions[split]:
            return {}
        indices, probabilities, _ = (torch.cat(parts) for parts in zip(*self.predictions[split], strict=True))
        return prediction_figures(data, split, indices, probabilities)

    def items(self, data: Data) -> Items | None:
        """Returns the predictions of the test split, else of validation, sample by sample."""
        split: SplitName = "test" if self.predictions["test"] else "val"
        if not self.predictions[split]:
            return None
        indices, probabilities, _ = (torch.cat(parts) for parts in zip(*self.predictions[split], strict=True))
        if len(indices) != len(data.splits[split]):
            return None  # with several devices each rank sees its share only
        return Items(split, prediction_items(data, split, indices, probabilities))

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and metrics of a split and resets them; of the test also AUROC by class, and intervals."""
        if split != "test":
            return self._meters(split).finish()
        return self._meters(split).finish(self.class_names) | self._intervals()

    def _intervals(self) -> dict[str, float]:
        # With several devices each rank sees its share of the samples only.
        shared = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if shared or not self.predictions["test"]:
            return {}
        _, probabilities, targets = (torch.cat(parts) for parts in zip(*self.predictions["test"], strict=True))
        return bootstrap_intervals(probabilities.double().numpy(), targets.long().numpy())

    def _meters(self, split: str) -> Meters:
        return cast(Meters, self.meters[f"{split}_meters"])  # ModuleDict refuses `train`, a method of its own


def prediction_figures(data: Data, split: SplitName, indices: Tensor, probabilities: Tensor) -> dict[str, Figure]:
    """Draws what a classifier said of a split.

    Args:
        data: The data set.
        split: The split that was evaluated.
        indices: Positions in the split, ``(samples,)``.
        probabilities: Probability per class, ``(samples, classes)``.

    Returns:
        Figures by file name. Several labels per sample have no confusion matrix: they get none.
    """
    if data.kind == "multilabel":
        return {}
    targets = torch.as_tensor(data.splits[split].targets)[indices]
    confidence, predicted = probabilities.max(dim=1)
    classes = len(data.classes)
    matrix = torch.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
    found = {"confusion_matrix.png": figures.confusion_matrix(matrix.numpy(), data.classes)}
    wrong = (predicted != targets).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    if len(wrong):
        positions = [int(indices[i]) for i in wrong]
        samples = [data.splits[split].raw(position) for position in positions]
        draw: Callable[..., Figure] = figures.sample_grid
        drawn = [data.preprocessing.drawn(sample) if data.preprocessing else None for sample in samples]
        if not all(hasattr(sample, "ndim") for sample in drawn):
            names = [data.splits[split].names[position] for position in positions]
            drawn = [sample if isinstance(sample, str) else name for sample, name in zip(drawn, names, strict=True)]
            draw = wrong_texts
        found["wrong_samples.png"] = draw(
            drawn,
            [data.classes[int(targets[i])] for i in wrong],
            [data.classes[int(predicted[i])] for i in wrong],
            [float(confidence[i]) for i in wrong],
            title=f"Wrongly classified samples of {split}, surest first",
        )
    return found


def prediction_items(data: Data, split: SplitName, indices: Tensor, probabilities: Tensor) -> tuple[Item, ...]:
    """Names, targets and predictions of the samples at `indices` ``(n,)``, given ``(n, classes)`` probabilities."""
    part = data.splits[split]
    targets = torch.as_tensor(part.targets)[indices]
    if data.kind == "multilabel":
        given = probabilities > 0.5
        scores = torch.where(given, probabilities, 1 - probabilities).min(dim=1).values
        wanted, answers = (_labels(chosen, data.classes) for chosen in (targets > 0.5, given))
    else:
        scores, best = probabilities.max(dim=1)
        wanted, answers = ([data.classes[number] for number in numbers.tolist()] for numbers in (targets, best))
    names = [part.names[index] for index in indices.tolist()]
    return tuple(map(Item, names, wanted, answers, scores.tolist()))


def _labels(chosen: Tensor, classes: Sequence[str]) -> list[str]:
    return [";".join(name for name, yes in zip(classes, row, strict=True) if yes) for row in chosen.tolist()]


def linear_head(width: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Returns a linear layer behind dropout."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))


def balanced_weights(targets: Tensor, kind: TargetKind, classes: int) -> Tensor:
    """Returns class weights inversely proportional to frequency, ``n / (classes * n_c)`` (King and Zeng 2001).

    For several labels it is the ratio of negatives to positives of each, as ``pos_weight`` takes it.
    """
    if kind == "multilabel":
        positives = targets.sum(0).clamp(min=1)
        return (len(targets) - positives) / positives
    counts = torch.bincount(targets, minlength=classes).clamp(min=1)
    return len(targets) / (classes * counts.float())


def _metrics(kind: TargetKind, classes: int, *, thorough: bool) -> dict[str, Metric | MetricCollection]:
    """Metrics that need more than counts by class; see `ClassCounts`."""
    each: Literal["none"] = "none"
    if kind == "multilabel":
        found: dict[str, Metric | MetricCollection] = {"accuracy": tm.MultilabelAccuracy(classes, average="micro")}
        if thorough:
            found["macro_f1"] = tm.MultilabelF1Score(classes, average="macro")
            found["auroc"] = tm.MultilabelAUROC(classes, average=each)
        return found
    if not thorough:
        return {}
    return {
        "auroc": tm.MulticlassAUROC(classes, average=each),
        "calibration_error": tm.MulticlassCalibrationError(classes, n_bins=15, norm="l1"),
    }
