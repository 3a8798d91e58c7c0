"""Regression: one or several numbers of each image, text, sound or anything else, in their own unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities.data import dim_zero_cat

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.modality.base import Modality
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.intervals import interval
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.predictor import BATCH, Answers, ScoresPredictor, Shown
from tlresearch.tracking.figures import COLOURS, new_figure, style
from tlresearch.tracking.items import Item, Items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("train", "val", "test")
LOSSES = ("mse", "mae", "huber", "quantile")
METRICS: Directions = {"mae": "min", "rmse": "min", "r2": "max", "pearson": "max", "spearman": "max"}
COARSE = 0.01
"""Standard deviations by which a number has to move to count as another answer."""

Floats = NDArray[np.float64]


class NumbersHead(nn.Module):
    """A linear layer that gives numbers in standard deviations, and what they are in their own unit.

    Args:
        width: Width of the features.
        targets: How many numbers a sample has.
        levels: Numbers for each of them: one, or one per quantile.
        dropout: Probability of dropout in front of the linear layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, targets: int, levels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, targets * levels)
        self.shape = (targets, levels)
        if width == 1:  # a cosine is a number already: it is where training begins
            nn.init.ones_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        # Buffers, so that a stored model answers in the unit of the data that it was trained with.
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("std", torch.ones(targets))

    def forward(self, features: Tensor) -> Tensor:
        """Returns standardised numbers ``(batch, targets, levels)`` of features ``(batch, width)``."""
        scores: Tensor = self.linear(self.dropout(features))
        return scores.reshape(-1, *self.shape)

    def standardise(self, targets: Sequence[Any] | Tensor) -> None:
        """Takes mean and standard deviation of the training targets ``(samples, targets)``."""
        exact = torch.as_tensor(targets).double()
        self.mean.copy_(exact.mean(dim=0))
        self.std.copy_(exact.std(dim=0, correction=0))

    def standardised(self, targets: Tensor) -> Tensor:
        """Brings numbers ``(batch, targets)`` from their own unit to standard deviations from the mean."""
        return (targets - self.mean) / self.std

    def in_own_unit(self, scores: Tensor) -> Tensor:
        """Brings numbers ``(batch, targets, levels)`` back to their own unit, quantiles in their order."""
        scores = scores.float()
        ordered = scores.sort(dim=2).values if scores.shape[2] > 1 else scores
        return ordered * self.std[:, None] + self.mean[:, None]


class RegressionPredictor(ScoresPredictor):
    """Predicts numbers in their own unit, with an interval where quantiles were learnt."""

    def __init__(
        self, backbone: StagedBackbone, head: nn.Module, preprocessing: Modality, classes: Sequence[str], kind: Any
    ) -> None:
        super().__init__(backbone, head, preprocessing, classes, kind)
        self.numbers = cast(NumbersHead, head)
        self.outputs = {"numbers": f"float32 (N, {len(classes)}), in their own unit: {', '.join(classes)}"}
        self.inside = "network, unit"
        if self.levels > 1:
            self.outputs["interval"] = f"float32 (N, {len(classes)}, 2), lowest and highest quantile"

    @property
    def levels(self) -> int:
        """Numbers for each target: one, or one per quantile."""
        return self.numbers.shape[1]

    @torch.inference_mode()
    def predict(self, samples: Sequence[Any]) -> Tensor:
        """Returns numbers ``(samples, targets, levels)`` in their own unit."""
        batches = [
            self.preprocessing.prepare_all(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH)
        ]
        return self.numbers.in_own_unit(torch.cat([self.network(stack(batch)) for batch in batches]))

    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns a column per number, and of quantiles ``low(<name>)`` and ``high(<name>)`` beside it."""
        numbers = self.predict(samples)
        found = {name: numbers[:, place, self.levels // 2].tolist() for place, name in enumerate(self.classes)}
        if self.levels > 1:
            for place, name in enumerate(self.classes):
                found[f"low({name})"] = numbers[:, place, 0].tolist()
                found[f"high({name})"] = numbers[:, place, -1].tolist()
        return found

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns the numbers with their intervals."""
        return Shown(", ".join(f"{name} {row[name]:.4g}{_between(row, name)}" for name in self.classes), None)

    def first(self, sample: Any) -> NDArray[Any]:
        """Returns the numbers ``(1, targets)`` of a raw sample."""
        found: NDArray[Any] = self.predict([sample])[:, :, self.levels // 2].numpy()
        return found

    def answered(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Returns the numbers, and their interval where quantiles were learnt."""
        numbers = self.numbers.in_own_unit(scores)
        middle = numbers[:, :, self.levels // 2]
        return (middle, numbers[:, :, [0, -1]]) if self.levels > 1 else (middle,)

    def changed(self, found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
        """Whether a sample's numbers moved by more than `COARSE` standard deviations."""
        return np.asarray((self._apart(found, wanted) > COARSE).any(axis=1))

    def moved(self, found: NDArray[Any], wanted: NDArray[Any]) -> float:
        """The largest difference of a number, in standard deviations of the training samples."""
        return float(self._apart(found, wanted).max())

    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures numbers of samples."""
        wanted = torch.as_tensor(data.splits[split].targets)[list(rows)]
        return measured(np.concatenate(list(found)), wanted.numpy(), self.classes, self.numbers.std)

    def _apart(self, found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
        apart: NDArray[Any] = np.abs(found - wanted) / self.numbers.std.numpy()
        return apart


class Gathered(Metric):
    """Loss, predictions and targets of a split; from all devices, where there are several."""

    predicted: list[Tensor]
    wanted: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predicted", [], dist_reduce_fx="cat")
        self.add_state("wanted", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, wanted: Tensor) -> None:
        """Takes numbers ``(batch, targets, levels)`` in their own unit, and the targets ``(batch, targets)``."""
        self.predicted.append(predicted.detach())
        self.wanted.append(wanted)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns all of them."""
        return dim_zero_cat(self.predicted), dim_zero_cat(self.wanted)


class RegressionTask(Task):
    """Numbers from a linear head, standardised by the training samples while it is trained.

    Metrics are in the number's own unit, but the loss is in standard deviations. Of several numbers each has its own
    metrics (``mae_<name>``); the errors without a name are then means in standard deviations.

    Args:
        backbone: The staged backbone.
        names: Names of the numbers.
        head: The head.
        arguments: See `Task`.
    """

    learns = ("numbers",)
    monitor = "mae"
    directions: ClassVar[Directions] = {
        **METRICS,
        **{f"{name}_*": way for name, way in METRICS.items()},
        "interval_width": "min",
        "interval_width_*": "min",
    }
    defaults: ClassVar[Mapping[str, Any]] = {"loss": "mse", "delta": 1.0, "quantiles": (0.05, 0.5, 0.95)}
    predictor = RegressionPredictor

    def __init__(
        self,
        backbone: StagedBackbone,
        *,
        names: Sequence[str],
        head: NumbersHead,
        **arguments: Unpack[TaskArguments],
    ) -> None:
        super().__init__(backbone, head, **arguments)
        self.names = tuple(names)
        self.numbers = head
        self.class_parts = metric_names(self.names, reserved=("low", "high")) if len(self.names) > 1 else {}
        self.served_columns = (
            *self.names,
            *(f"{end}({name})" for name in self.names for end in ("low", "high") if head.shape[1] > 1),
        )
        self.losses = nn.ModuleDict({f"{s}_loss": MeanMetric(nan_strategy=math.nan) for s in SPLITS})
        self.gathered = nn.ModuleDict({f"{s}_numbers": Gathered() for s in SPLITS})
        self.predictions: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"val": [], "test": []}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> RegressionTask:
        """Builds the regression of an experiment.

        Raises:
            ConfigError: If an option is wrong, or is for classes.
        """
        if config.task.label_smoothing or config.task.class_weights != "none":
            raise ConfigError(
                ["task.label_smoothing, task.class_weights: are for classes, but numbers are learnt; leave them out"],
                config.name,
            )
        head = cls.build_head(config.task, backbone, data.classes, data.preprocessing)
        head.standardise(data.splits["train"].targets)
        return cls(backbone, names=data.classes, head=head, **arguments)

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> NumbersHead:
        """Builds a linear layer behind dropout.

        Raises:
            ConfigError: If an option is wrong.
        """
        options = {**cls.defaults, **config.options}
        problems = list(_problems(options))
        if problems:
            raise ConfigError(problems, "task")
        levels = len(options["quantiles"]) if options["loss"] == "quantile" else 1
        return NumbersHead(backbone.out_features, len(classes), levels, config.dropout)

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float]:
        """Measures the numbers that a served model answers with."""
        found = np.concatenate([table[list(data.classes)].to_numpy(dtype=np.float32) for _, table in answers])
        std = torch.as_tensor(data.splits["train"].targets).double().std(dim=0, correction=0)
        return measured(found, torch.as_tensor(data.splits[split].targets).numpy(), data.classes, std)

    @classmethod
    def profile(cls, data: Data, split: SplitName) -> dict[str, float]:
        """Returns mean, standard deviation, least and greatest of each number."""
        targets = torch.as_tensor(data.splits[split].targets).double()
        rows = zip(data.classes, targets.T, strict=True)
        return {
            f"{what} of {name}": float(value)
            for name, column in rows
            for what, value in (
                ("mean", column.mean()),
                ("standard deviation", column.std(correction=0)),
                ("least", column.min()),
                ("greatest", column.max()),
            )
        }

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in standard deviations.

        Args:
            outputs: Standardised numbers ``(batch, targets, levels)``.
            targets: Numbers ``(batch, targets)`` in their own unit.
        """
        outputs, wanted = outputs.float(), self.numbers.standardised(targets.float())[:, :, None]
        name = self.options["loss"]
        if name == "quantile":
            levels = torch.tensor(self.options["quantiles"], device=outputs.device)
            below = wanted - outputs
            return torch.maximum(levels * below, (levels - 1) * below).mean()
        if name == "huber":
            return functional.huber_loss(outputs, wanted, delta=float(self.options["delta"]))
        return (functional.l1_loss if name == "mae" else functional.mse_loss)(outputs, wanted)

    def compared(self, outputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
        """Returns numbers and targets ``(batch, targets)`` in standard deviations."""
        return outputs.float()[:, :, outputs.shape[2] // 2], self.numbers.standardised(targets.float())

    def scored(self, outputs: Tensor, batch: Batch) -> tuple[Any, Any]:
        """Returns numbers and targets in their own unit, ``(batch,)``; of several ``(batch, targets)``."""
        numbers = self.numbers.in_own_unit(outputs)[:, :, outputs.shape[2] // 2]
        return (numbers, batch.targets) if len(self.names) > 1 else (numbers[:, 0], batch.targets[:, 0])

    def update_metrics(self, split: str, outputs: Tensor, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the split's metrics; keeps the numbers of evaluation for figures."""
        numbers = self.numbers.in_own_unit(outputs)
        mean, gathered = self._meters(split)
        mean.update(loss, weight=len(batch.targets))
        gathered.update(numbers, batch.targets)
        if split in self.predictions:
            self.predictions[split].append((batch.indices.cpu(), numbers.cpu(), batch.targets.cpu()))

    def on_validation_epoch_start(self) -> None:
        """Forgets the predictions of the epoch before."""
        self.predictions["val"].clear()

    def on_test_epoch_start(self) -> None:
        """Forgets earlier predictions."""
        self.predictions["test"].clear()

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss and metrics of a split and resets them; of the test with their intervals."""
        mean, gathered = self._meters(split)
        numbers, wanted = (part.cpu().numpy() for part in gathered.compute())
        std = self.numbers.std.cpu()
        found = {"loss": float(mean.compute()), **measured(self._middle(numbers), wanted, self.names, std)}
        if numbers.shape[2] > 1:
            found |= self._widths(numbers, wanted)
        # With several devices each rank sees its share of the samples only.
        shared = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if split == "test" and not shared:
            found |= intervals(self._middle(numbers), wanted, self.names)
        mean.reset()
        gathered.reset()
        return found

    def figures(self, data: Data) -> dict[str, Figure]:
        """Draws predicted against true numbers, and residuals, of the test split, else of validation."""
        kept = self._kept()
        if kept is None:
            return {}
        split, _, numbers, wanted = kept
        return {
            "predicted_against_true.png": predicted_figure(split, self.names, numbers.numpy(), wanted.numpy()),
            "residuals.png": residuals_figure(split, self.names, self._middle(numbers.numpy()), wanted.numpy()),
        }

    def items(self, data: Data) -> Items | None:
        """Returns the numbers of the test split, else of validation, sample by sample."""
        kept = self._kept()
        if kept is None or len(kept[1]) != len(data.splits[kept[0]]):
            return None  # with several devices each rank sees its share only
        split, indices, numbers, wanted = kept
        middle = torch.from_numpy(self._middle(numbers.numpy()))
        unit = self.numbers.std.cpu() if len(self.names) > 1 else torch.ones(1)
        errors = ((middle - wanted).abs() / unit).mean(dim=1)
        names = [data.splits[split].names[index] for index in indices.tolist()]
        rows = zip(names, wanted.tolist(), middle.tolist(), errors.tolist(), strict=True)
        items = tuple(Item(name, _text(target), _text(found), error) for name, target, found, error in rows)
        return Items(split, items, measure="error")

    def _kept(self) -> tuple[SplitName, Tensor, Tensor, Tensor] | None:
        split: SplitName = "test" if self.predictions["test"] else "val"
        if not self.predictions[split]:
            return None
        indices, numbers, wanted = (torch.cat(parts) for parts in zip(*self.predictions[split], strict=True))
        return split, indices, numbers, wanted

    def _meters(self, split: str) -> tuple[MeanMetric, Gathered]:
        return cast(MeanMetric, self.losses[f"{split}_loss"]), cast(Gathered, self.gathered[f"{split}_numbers"])

    def _middle(self, numbers: NDArray[Any]) -> NDArray[Any]:
        middle: NDArray[Any] = numbers[:, :, numbers.shape[2] // 2]
        return middle

    def _widths(self, numbers: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
        """How many targets lie inside their interval, and how wide the intervals are in standard deviations."""
        low, high = numbers[:, :, 0], numbers[:, :, -1]
        inside = (low <= wanted) & (wanted <= high)
        width = (high - low) / (self.numbers.std.cpu().numpy() if len(self.names) > 1 else 1)
        return {"interval_coverage": float(inside.mean()), "interval_width": float(width.mean())}


def measured(
    predicted: NDArray[Any], wanted: NDArray[Any], names: Sequence[str], std: Tensor | None = None
) -> dict[str, float]:
    """Returns MAE, RMSE, R2, Pearson's and Spearman's correlation; of several numbers their means and each one's.

    Args:
        predicted: Numbers ``(samples, targets)``.
        wanted: Targets ``(samples, targets)``.
        names: Names of the numbers.
        std: Standard deviation of each, which the means over several are measured in.
    """
    once = np.ones((len(wanted), 1))
    each = [
        {key: float(value[0]) for key, value in _weighted(found, true, once).items()}
        for found, true in _columns(predicted, wanted)
    ]
    if len(names) == 1:
        return each[0]
    units = std.tolist() if std is not None else [1.0] * len(names)
    means = {
        key: float(
            np.mean([one[key] / (unit if key in ("mae", "rmse") else 1) for one, unit in zip(each, units, strict=True)])
        )
        for key in METRICS
    }
    parts = metric_names(names, reserved=("low", "high")).values()
    return means | {f"{key}_{part}": one[key] for part, one in zip(parts, each, strict=True) for key in METRICS}


def intervals(predicted: NDArray[Any], wanted: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """Returns 95 % bootstrap intervals of each number's metrics over the samples; see `interval`."""
    parts = metric_names(names, reserved=("low", "high")).values() if len(names) > 1 else [""]
    found: dict[str, float] = {}
    for part, (numbers, true) in zip(parts, _columns(predicted, wanted), strict=True):

        def statistic(key: str, numbers: Floats = numbers, true: Floats = true) -> Callable[[NDArray[Any]], Floats]:
            return lambda counts: _weighted(numbers, true, counts.astype(np.float64), (key,))[key]

        for key in METRICS:
            found |= interval(f"{key}_{part}" if part else key, len(true), statistic(key))
    return found


def _columns(predicted: NDArray[Any], wanted: NDArray[Any]) -> list[tuple[Floats, Floats]]:
    return list(zip(predicted.T.astype(np.float64), wanted.T.astype(np.float64), strict=True))


def _weighted(
    predicted: Floats, wanted: Floats, counts: Floats, keys: Sequence[str] = tuple(METRICS)
) -> dict[str, Floats]:
    """Metrics of resamples, given how often each sample is drawn.

    Args:
        predicted: Predictions ``(samples,)``.
        wanted: Targets ``(samples,)``.
        counts: ``(samples, resamples)``.
        keys: Which metrics.
    """
    total, error = counts.sum(axis=0), predicted - wanted
    measures: Mapping[str, Callable[[], Floats]] = {
        "mae": lambda: np.abs(error) @ counts / total,
        "rmse": lambda: np.sqrt(error**2 @ counts / total),
        "r2": lambda: 1 - (error**2 @ counts / total) / _covariance(wanted, wanted, counts),
        "pearson": lambda: _correlation(predicted, wanted, counts),
        "spearman": lambda: _correlation(_ranks(predicted, counts), _ranks(wanted, counts), counts),
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        return {key: np.asarray(measures[key]()) for key in keys}


def _covariance(first: Floats, second: Floats, counts: Floats) -> Floats:
    """Covariance of resamples; values are ``(samples,)``, or differ between resamples ``(samples, resamples)``."""
    total = counts.sum(axis=0)
    # Shifted by the first value: the variance of a constant is then exactly zero.
    columns = [(value - value[:1]).reshape(len(value), -1) for value in (first, second)]
    means = [(column * counts).sum(axis=0) / total for column in columns]
    return np.asarray((columns[0] * columns[1] * counts).sum(axis=0) / total - means[0] * means[1])


def _correlation(first: Floats, second: Floats, counts: Floats) -> Floats:
    """Pearson's correlation of resamples; NaN where one of the two is constant."""
    variances = _covariance(first, first, counts) * _covariance(second, second, counts)
    return np.asarray(_covariance(first, second, counts) / np.sqrt(np.where(variances > 0, variances, np.nan)))


def _ranks(values: Floats, counts: Floats) -> Floats:
    """Ranks of the values within each resample ``(samples, resamples)``; equal ones share the mean of theirs."""
    different, place = np.unique(values, return_inverse=True)
    drawn = np.zeros((len(different), counts.shape[1]))
    np.add.at(drawn, place, counts)
    ranks: Floats = (drawn.cumsum(axis=0) - drawn / 2)[place]
    return ranks


def predicted_figure(split: str, names: Sequence[str], numbers: NDArray[Any], wanted: NDArray[Any]) -> Figure:
    """Draws predictions against targets, the diagonal, and intervals where there are some.

    Args:
        split: The split.
        names: Names of the numbers.
        numbers: ``(samples, targets, levels)``.
        wanted: ``(samples, targets)``.
    """
    figure = new_figure(4.6 * len(names), 4.4)
    middle = numbers.shape[2] // 2
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        found, true = numbers[:, place, middle], wanted[:, place]
        if numbers.shape[2] > 1:
            ends = np.abs(numbers[:, place, [0, -1]] - found[:, None]).T
            axes.errorbar(true, found, ends, fmt="none", ecolor=COLOURS[5], elinewidth=0.6, alpha=0.5)
        axes.scatter(true, found, s=10, color=COLOURS[0], alpha=0.5, linewidths=0)
        ends = [float(min(true.min(), found.min())), float(max(true.max(), found.max()))]
        axes.plot(ends, ends, color=COLOURS[1], linewidth=1)
        style(axes, title=f"{name}, {len(true)} samples of {split}", x="true", y="predicted")
    return figure


def residuals_figure(split: str, names: Sequence[str], numbers: NDArray[Any], wanted: NDArray[Any]) -> Figure:
    """Draws predicted minus true against the prediction, and how often each residual is.

    Args:
        split: The split.
        names: Names of the numbers.
        numbers: ``(samples, targets)``.
        wanted: ``(samples, targets)``.
    """
    figure = new_figure(7.6, 3.2 * len(names))
    for place, name in enumerate(names):
        left, right = (figure.add_subplot(len(names), 2, 2 * place + side) for side in (1, 2))
        residuals = numbers[:, place] - wanted[:, place]
        left.scatter(numbers[:, place], residuals, s=10, color=COLOURS[0], alpha=0.5, linewidths=0)
        left.axhline(0, color=COLOURS[1], linewidth=1)
        style(left, title=f"{name}, residuals of {split}", x="predicted", y="predicted - true")
        right.hist(residuals, bins=30, color=COLOURS[0])
        right.axvline(0, color=COLOURS[1], linewidth=1)
        style(right, x="predicted - true", y="samples")
    return figure


def _problems(options: Mapping[str, Any]) -> list[str]:
    problems = []
    if options["loss"] not in LOSSES:
        problems.append(f"task.options.loss: must be {', '.join(LOSSES)} but got '{options['loss']}'")
    delta = options["delta"]
    if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not delta > 0:
        problems.append(f"task.options.delta: must be above 0 (standard deviations) but got {delta!r}")
    quantiles = options["quantiles"]
    numbers = isinstance(quantiles, Sequence) and all(isinstance(q, float) and 0 < q < 1 for q in quantiles)
    if not numbers or list(quantiles) != sorted(set(quantiles)) or len(quantiles) % 2 == 0:
        problems.append(
            "task.options.quantiles: must be an odd number of rising shares between 0 and 1, whose middle one is the "
            f"prediction, such as [0.05, 0.5, 0.95], but got {quantiles!r}"
        )
    return problems


def _between(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"low({name})"), row.get(f"high({name})")
    return "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"


def _text(numbers: Sequence[float]) -> str:
    return ";".join(f"{number:.6g}" for number in numbers)
