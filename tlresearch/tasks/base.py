"""What every task is: a LightningModule over a staged backbone and a head, with loss and metrics per split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NotRequired, TypedDict, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from tlresearch.activations.inference import arranged
from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName, TargetKind
from tlresearch.finetuning.sharding import placed_like, whole
from tlresearch.modality.base import Modality
from tlresearch.modality.values import to_device
from tlresearch.tasks.metrics import AddedMetrics
from tlresearch.tasks.predictor import Answers, Predictor
from tlresearch.tracking.dataset import SAMPLES_OF
from tlresearch.tracking.items import Items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OptimizerFactory = Callable[[StagedBackbone, nn.Module], Optimizer]
Mixer = Callable[[Batch, int], Batch]
Penalty = Callable[[StagedBackbone], Tensor]
Teacher = Callable[[Tensor, Any, Batch], Tensor]
"""Turns loss, outputs and batch of a training step into the loss that is learnt from."""


class TaskArguments(TypedDict):
    """What every task is built with, whatever it learns; see `Task`."""

    optimizer: OptimizerFactory
    changing: frozenset[int]
    mixer: NotRequired[Mixer | None]
    penalty: NotRequired[Penalty | None]
    options: NotRequired[Mapping[str, Any]]
    criterion: NotRequired[nn.Module | None]
    metrics: NotRequired[Mapping[str, Metric]]


class Task(L.LightningModule, ABC):
    """Everything that is known of one thing to learn; what is trained when is the freeze schedule's business.

    Subclasses say as class attributes what they learn, and give head, loss, metrics and predictor. Metrics are gathered
    per epoch rather than logged per step, and `finish_epoch` hands them to the freeze schedule: there is no second
    place where they are kept.

    Args:
        backbone: The staged backbone.
        head: The head; takes ``(batch, out_features)``.
        optimizer: Makes the optimizer from backbone and head.
        changing: Numbers of the stages whose weights can differ from the loaded ones: what checkpoints hold
            beside the head.
        mixer: Applied to each training batch with the epoch's number, such as mixup.
        penalty: Added to the training loss, such as L2-SP.
        options: Options of the task, over `defaults`.
        criterion: Takes outputs and targets and gives the loss, instead of `loss`.
        metrics: Metrics beside the task's own, of validation and test; they get what `scored` gives.
    """

    learns: ClassVar[tuple[TargetKind, ...]] = ()
    """Kinds of targets; empty for any."""
    end: ClassVar[End] = "pooled"
    """What it needs at the backbone's end."""
    directions: ClassVar[Directions] = {}
    """Whether less or more is better, of each metric beside the loss; see `direction_of`."""
    monitor: ClassVar[str] = "accuracy"
    """Metric of validation that a run is watched and a sweep optimised by, unless the config names one."""
    ignored: ClassVar[int | None] = None
    """Target that does not count, of tasks that have one."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Options (``task.options``) with their defaults."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages beside the usual ones that a served model needs."""
    predictor: ClassVar[type[Predictor] | None] = None
    """What predicts from raw samples; without one no model is logged."""
    served_columns: tuple[str, ...] = ()
    """Columns of the served model's answer, where it is not a class with probabilities."""
    strict_loading = False  # checkpoints hold what was trained, not what was loaded

    def __init__(
        self,
        backbone: StagedBackbone,
        head: nn.Module,
        *,
        optimizer: OptimizerFactory,
        changing: frozenset[int],
        mixer: Mixer | None = None,
        penalty: Penalty | None = None,
        options: Mapping[str, Any] | None = None,
        criterion: nn.Module | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._optimizer = optimizer
        self._changing = changing
        self._mixer = mixer
        self._penalty = penalty
        self.options = {**self.defaults, **(options or {})}
        self.criterion = criterion
        self.added = nn.ModuleDict({f"{split}_metrics": AddedMetrics(metrics or {}) for split in ("val", "test")})
        self.added_labels = tuple(metrics or ())
        self.class_parts: Mapping[str, str] = {}
        """What stands for each class in the names of its metrics, of tasks that have such metrics."""
        self.results: dict[str, dict[str, float]] = {}
        self.memory_format = "contiguous"
        self.teacher: Teacher | None = None
        self.publishes = False
        """Whether metrics are handed to Lightning too, for callbacks and loggers of the user's."""

    @classmethod
    @abstractmethod
    def build(cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments) -> Task:
        """Builds the task of an experiment.

        Args:
            config: The experiment.
            backbone: The backbone; it ends as `end` says.
            data: The data; their kind is one of `learns`.
            arguments: What every task passes on to `Task`.
        """

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> nn.Module:
        """Builds the head; a served model is rebuilt by it too.

        Args:
            config: The `task` section.
            backbone: The backbone.
            classes: Class names.
            preprocessing: What the inputs are.

        Raises:
            ConfigError: If an option is wrong.
        """
        raise TypeError(f"{cls.__name__} has a predictor but no build_head.")

    @classmethod
    def profile(cls, data: Data, split: SplitName) -> Mapping[str, float]:
        """Returns what is recorded of a split's targets: how many samples of each class there are."""
        targets, classes = data.splits[split].targets, len(data.classes)
        if not isinstance(targets, Tensor):
            return {}
        counts = targets.sum(0).int() if targets.ndim == 2 else torch.bincount(targets, minlength=classes)
        return {f"{SAMPLES_OF}{name}": int(count) for name, count in zip(data.classes, counts, strict=True)}

    @classmethod
    def balanced(cls, data: Data) -> Tensor:
        """Returns the weight of each class in the loss, by how rare it is.

        Raises:
            ConfigError: If the task has no classes to weigh.
        """
        raise ConfigError([f"task.class_weights: {cls.__name__} has no classes to weigh; set it to none"], "task")

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float] | None:
        """Measures a served model's answers by the task's metrics; ``None`` where they are of different things."""
        return None

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the mean loss of a batch."""

    def compared(self, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Returns what a loss that the config names gets: outputs and targets as they are, unless a task says else."""
        return outputs, targets

    def scored(self, outputs: Any, batch: Batch) -> tuple[Any, Any]:
        """Returns predictions and targets of a batch as metrics of torchmetrics take them.

        Raises:
            ConfigError: Unless the task says what they are.
        """
        raise ConfigError([f"task.metrics: {type(self).__name__} takes no further metrics; leave it out"], "task")

    @abstractmethod
    def update_metrics(self, split: str, outputs: Any, batch: Batch, loss: Tensor) -> None:
        """Takes a batch into the metrics of a split."""

    @abstractmethod
    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns a split's metrics without its name, such as ``{"loss": 0.3, "accuracy": 0.9}``, and resets them."""

    def figures(self, data: Data) -> dict[str, Figure]:
        """Returns figures of the last evaluation by file name; none unless the task has some."""
        return {}

    def items(self, data: Data) -> Items | None:
        """Returns the predictions of the last evaluation sample by sample; ``None`` unless the task keeps them."""
        return None

    def forward(self, inputs: Any, boundary: int = 0) -> Any:
        """Runs backbone and head; `inputs` are the activations at `boundary`, 0 for raw inputs."""
        return self.head(self.backbone(arranged(inputs, self.memory_format), start=boundary))

    def arrange(self, memory_format: str) -> None:
        """Puts weights, and from now on inputs, into a memory format: ``contiguous`` or ``channels_last``."""
        self.memory_format = memory_format
        self.to(memory_format=torch.channels_last if memory_format == "channels_last" else torch.contiguous_format)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a training batch."""
        mixed = self._mixer(batch, self.current_epoch) if self._mixer else batch
        outputs = self(mixed.inputs, mixed.boundary)
        loss = self._loss(outputs, mixed.targets)
        self.update_metrics("train", _detached(outputs), batch, loss.detach())
        if self.teacher:
            loss = self.teacher(loss, outputs, mixed)
        return loss + self._penalty(self.backbone) if self._penalty else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Takes a validation batch into the metrics."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Takes a test batch into the metrics."""
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Closes the validation metrics."""
        self._close("val")

    def on_test_epoch_end(self) -> None:
        """Closes the test metrics."""
        self._close("test")

    def finish_epoch(self) -> dict[str, float]:
        """Closes the training metrics and returns those of the epoch as ``split/name``."""
        self._close("train")
        return {f"{s}/{name}": value for s in ("train", "val") for name, value in self.results.get(s, {}).items()}

    def configure_optimizers(self) -> Optimizer:
        """Makes the optimizer; the freeze schedule sets its rates, so there is no scheduler.

        Raises:
            ConfigError: If a parameter of the task is in no group: it would silently stay as it is.
        """
        optimizer = self._optimizer(self.backbone, self.head)
        grouped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        left_out = [name for name, parameter in self.named_parameters() if id(parameter) not in grouped]
        if left_out:
            raise ConfigError(
                [f"task: {', '.join(left_out)} would never be trained; parameters belong to the backbone or the head"],
                "parameter groups",
            )
        return optimizer

    def changing_state(self) -> dict[str, Tensor]:
        """Returns the tensors that training can change: head, trained stages, stages that were not loaded."""
        prefixes = ("head.", *(f"backbone.stages.{stage}." for stage in self._changing))
        return {name: whole(tensor) for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Puts whole tensors in place; of a sharded weight each rank takes its part."""
        now = self.state_dict()
        parts = {name: placed_like(tensor, now.get(name)) for name, tensor in state_dict.items()}
        return super().load_state_dict(parts, strict=strict, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what was loaded and stays frozen."""
        checkpoint["state_dict"] = self.changing_state()

    def _evaluate(self, split: str, batch: Batch) -> None:
        with torch.no_grad():
            outputs = self(batch.inputs, batch.boundary)
            self.update_metrics(split, outputs, batch, self._loss(outputs, batch.targets))
            if (added := self._added(split)).metrics:
                added.update(*self.scored(outputs, batch))

    def _close(self, split: str) -> None:
        added = self._added(split).finish() if split != "train" else {}
        self.results[split] = {**self.compute_metrics(split), **added}
        if self.publishes:
            self.log_dict({f"{split}/{name}": value for name, value in self.results[split].items()})

    def _loss(self, outputs: Any, targets: Any) -> Tensor:
        if self.criterion is None:
            return self.loss(outputs, targets)
        loss: Tensor = self.criterion(*self.compared(outputs, targets))
        return loss

    def _added(self, split: str) -> AddedMetrics:
        return cast(AddedMetrics, self.added[f"{split}_metrics"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch; `Batch.boundary` is a plain number and stays."""
        return to_device(batch, device)


def _detached(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: _detached(part) for name, part in outputs.items()}
    return outputs.detach()


def measure_served(
    task: type[Task], predict: Callable[[list[Any]], Any], data: Data, split: SplitName, batch_size: int
) -> dict[str, float] | None:
    """Measures what a served model says of a split by the metrics of its task: raw samples in, metrics out.

    Args:
        task: The task's class.
        predict: The served model: takes raw samples and returns a data frame with one row for each.
        data: The data.
        split: The split.
        batch_size: Samples that are asked for at once.

    Returns:
        Metrics without the name of the split, and without the loss, which a served model does not know; ``None`` where
        the answers are of other things than the metrics (see `Task.measure`).
    """
    part, preprocessing = data.splits[split], data.preprocessing
    handed: Callable[[Any], Any] = preprocessing.handed if preprocessing is not None else lambda sample: sample
    spans = (range(start, min(start + batch_size, len(part))) for start in range(0, len(part), batch_size))
    rows = ((span, predict([handed(part.raw(row)) for row in span])) for span in spans)
    measured = task.measure(data, split, rows)
    return measured and {name: value for name, value in measured.items() if name != "loss"}
