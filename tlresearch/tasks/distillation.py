"""Knowledge distillation: a finished run teaches a smaller network through its answers.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (NIPS workshop 2014, arXiv:1503.02531): beside
the labels the student learns the teacher's probabilities at a higher temperature, where the wrong classes say something
too. Where training samples are the same in every epoch the teacher answers each once, ahead of training; under random
augmentation or mixing it answers what the student sees, batch by batch (Beyer et al. 2022: they must look at the same).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.lineage import build_with_lineage, trained_tensors
from tlresearch.base.errors import ConfigError, UserError, WeightsError
from tlresearch.config.load import Loaded, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Batch, Data, TargetKind
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import Preprocessing
from tlresearch.tracking.records import Record, Runs

log = logging.getLogger(__name__)

TEACHER = "tlresearch.teacher"
"""Tag of a run: the run it learnt from."""
_LATEST = "latest:"


@dataclass(frozen=True)
class Teacher:
    """Adds the teacher's part to the loss of a training batch.

    Attributes:
        answers: Logits ``(batch, classes)`` of the teacher for a batch.
        alpha: Share of the teacher's part.
        temperature: Divides the logits of both.
        kind: Several labels are independent.
    """

    answers: Callable[[Batch], Tensor]
    alpha: float
    temperature: float
    kind: TargetKind

    def __call__(self, loss: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns the loss to train with: ``(1 - alpha) * loss + alpha * distillation_loss``."""
        wanted = self.answers(batch).to(outputs.device)
        learnt = distillation_loss(outputs.float(), wanted.float(), self.temperature, self.kind)
        return (1 - self.alpha) * loss + self.alpha * learnt


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, kind: TargetKind) -> Tensor:
    """Mean divergence of the student's probabilities from the teacher's, both at a temperature.

    It is multiplied by the square of the temperature, so that its gradients keep their size (Hinton et al. 2014,
    section 2).

    Args:
        student: Logits ``(batch, classes)``.
        teacher: Logits ``(batch, classes)``.
        temperature: What logits are divided by.
        kind: Several labels are compared one by one.
    """
    student, teacher = student / temperature, teacher / temperature
    if kind == "multilabel":
        crossed = functional.binary_cross_entropy_with_logits(student, teacher.sigmoid())
        least = functional.binary_cross_entropy_with_logits(teacher, teacher.sigmoid())
        return (crossed - least) * temperature**2
    divergence = functional.kl_div(
        student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="batchmean", log_target=True
    )
    return divergence * temperature**2


def pin_teacher(loaded: Loaded[ExperimentConfig], runs: Runs) -> Loaded[ExperimentConfig]:
    """Replaces a teacher's name or the beginning of its id by its whole id, so that what is recorded names one run.

    Raises:
        UserError: If there is no such run, or it has not finished.
    """
    wanted = loaded.config.task.teacher
    if wanted is None:
        return loaded
    name = wanted.removeprefix(_LATEST)
    run = runs.latest(name) if wanted.startswith(_LATEST) else runs.find(wanted)
    if run is None:
        raise UserError(f"task.teacher: no finished run is named '{name}'; run it first, or give a run id")
    return loaded if run.run_id == wanted else revise(loaded, {"task.teacher": run.run_id})


def build_teacher(config: ExperimentConfig, data: Data, runs: Runs) -> Teacher:
    """Builds the teacher of an experiment from the run it names.

    Args:
        config: The student's experiment; its teacher is a run id.
        data: The student's data.
        runs: Where the run is found.

    Raises:
        ConfigError: If the run is of another task, of other classes, or cannot see the student's images.
        WeightsError: If it kept no weights.
    """
    assert config.task.teacher is not None
    run = runs.get(config.task.teacher)
    _check_classes(run, data)
    if config.data.mixup or config.data.cutmix or not data.splits["train"].deterministic:
        answers = _live(run, data)
    else:
        key = (run.store.uri, run.run_id, data.fingerprint.digest, *data.splits["train"].names)
        if key not in _last:
            _last.clear()  # the trials of a sweep ask for the same one
            _last[key] = _table(run, config, data)
        answers = _looked_up(_last[key])
    return Teacher(answers, config.task.distill_alpha, config.task.temperature, data.kind)


def _check_classes(run: Record, data: Data) -> None:
    task, classes = run.loaded.config.task.name, run.classes
    if task != "classification":
        raise ConfigError([f"task.teacher: {run.title} is of task {task}, not classification"], "task")
    if classes != data.classes:
        raise ConfigError(
            [
                f"task.teacher: {run.title} tells {len(classes)} classes apart ({_few(classes)}), but the data "
                f"has {len(data.classes)} ({_few(data.classes)}); a teacher must know the same in the same order"
            ],
            "task",
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _network(run: Record) -> tuple[nn.Module, Modality]:
    """The teacher's backbone and head as one network, and its preprocessing."""
    source = replace(run.loaded.config.backbone, checkpoint=run.run_id, weights="default")
    backbone = build_with_lineage(source, run.runs)
    tensors = trained_tensors(run, "task.teacher")
    if {"head.1.weight", "head.1.bias"} - set(tensors):
        raise WeightsError(f"task.teacher: {run.title} kept no linear head")
    head = nn.Linear(backbone.out_features, len(tensors["head.1.bias"]))
    head.load_state_dict({"weight": tensors["head.1.weight"], "bias": tensors["head.1.bias"]})
    return nn.Sequential(backbone, head).eval().requires_grad_(False), backbone.preprocessing


_last: dict[tuple[Any, ...], Tensor] = {}
"""The answers of the teacher that was asked last, by tracking store, run, data and training samples."""


def _table(run: Record, config: ExperimentConfig, data: Data) -> Tensor:
    """Answers of every training sample ``(samples, classes)``, prepared as the teacher was trained with."""
    network, preprocessing = _network(run)
    source = run.loaded.config.data
    own = replace(
        config.data,
        image_size=source.image_size,
        resize=source.resize,
        seconds=source.seconds,
        max_length=source.max_length,
    )
    split = build_data(own, preprocessing=preprocessing, seed=config.seed).splits["train"]
    assert list(split.names) == list(data.splits["train"].names)
    loader = make_loader(
        split,
        batch_size=config.data.eval_batch_size,
        shuffle=False,
        seed=config.seed,
        workers=config.data.workers,
    )
    log.info("the teacher answers %d training samples", len(split))
    with torch.inference_mode():
        found = torch.cat([network(batch.inputs).float() for batch in loader])
    return found.clone()  # an inference tensor takes no part in a graph


def _looked_up(table: Tensor) -> Callable[[Batch], Tensor]:
    """Answers by the batch's indices."""
    return lambda batch: table[batch.indices.cpu()]


def _live(run: Record, data: Data) -> Callable[[Batch], Tensor]:
    """Answers of a batch as the student sees it, in the teacher's normalisation."""
    network, own = _network(run)
    complaint = ConfigError(["task.teacher: random augmentation together with a teacher is for images only"], "task")
    given = expect(data.preprocessing, Preprocessing, complaint)
    preprocessing = expect(own, Preprocessing, complaint)
    if preprocessing.channels != given.channels:
        channels = f"{preprocessing.channels} channels, but the student {given.channels}"
        raise ConfigError([f"task.teacher: {run.title} takes images of {channels}; use data.augment: none"], "task")
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (given.mean, given.std))
    own_mean, own_std = (torch.tensor(part).view(1, -1, 1, 1) for part in (preprocessing.mean, preprocessing.std))

    @torch.no_grad()
    def answers(batch: Batch) -> Tensor:
        assert batch.boundary == 0
        images = cast(Tensor, batch.inputs)
        network.to(images.device)
        pixels = images * std.to(images.device) + mean.to(images.device)
        return cast(Tensor, network((pixels - own_mean.to(images.device)) / own_std.to(images.device)))

    return answers
