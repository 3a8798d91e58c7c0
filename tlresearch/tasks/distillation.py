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
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.lineage import CONFIG, TRAINED, Download, build_with_lineage
from tlresearch.base.errors import ConfigError, UserError, WeightsError
from tlresearch.config.load import Loaded, load_text, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Batch, Data, TargetKind
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import Preprocessing
from tlresearch.tracking.dataset import recorded_classes
from tlresearch.tracking.records import find_run, search
from tlresearch.tracking.store import Store, connect

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


def pin_teacher(loaded: Loaded[ExperimentConfig]) -> Loaded[ExperimentConfig]:
    """Replaces a teacher's name or the beginning of its id by its whole id, so that what is recorded names one run.

    Raises:
        UserError: If there is no such run, or it has not finished.
    """
    wanted = loaded.config.task.teacher
    if wanted is None:
        return loaded
    store = connect(loaded.config.tracking.uri)
    if wanted.startswith(_LATEST):
        name = wanted.removeprefix(_LATEST).replace("'", "''")
        found = search(store, f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'", limit=1)
        if not found:
            raise UserError(f"task.teacher: no finished run is named '{name}'; run it first, or give a run id")
        run = found[0]
    else:
        run = find_run(store, wanted)
    return loaded if run.info.run_id == wanted else revise(loaded, {"task.teacher": run.info.run_id})


def build_teacher(config: ExperimentConfig, data: Data, download: Download) -> Teacher:
    """Builds the teacher of an experiment from the run it names.

    Args:
        config: The student's experiment; its teacher is a run id.
        data: The student's data.
        download: Fetches artifacts of the run.

    Raises:
        ConfigError: If the run is of another task, of other classes, or cannot see the student's images.
        WeightsError: If it kept no weights.
    """
    run_id = config.task.teacher
    assert run_id is not None
    source = load_text(download(run_id, CONFIG).read_text(), source=f"run {run_id}").config
    _check_classes(connect(config.tracking.uri), run_id, source, data)
    if config.data.mixup or config.data.cutmix or not data.splits["train"].deterministic:
        answers = _live(*_network(source, run_id, download), data, run_id)
    else:
        key = (config.tracking.uri, run_id, data.fingerprint.digest, *data.splits["train"].names)
        if key not in _last:
            _last.clear()  # the trials of a sweep ask for the same one
            _last[key] = _table(*_network(source, run_id, download), source, config, data)
        answers = _looked_up(_last[key])
    return Teacher(answers, config.task.distill_alpha, config.task.temperature, data.kind)


def _check_classes(store: Store, run_id: str, source: ExperimentConfig, data: Data) -> None:
    with store.errors():
        classes = recorded_classes(store.client.get_run(run_id))
    if source.task.name != "classification":
        raise ConfigError([f"task.teacher: run {run_id[:8]} is of task {source.task.name}, not classification"], "task")
    if classes != data.classes:
        raise ConfigError(
            [
                f"task.teacher: run {run_id[:8]} tells {len(classes)} classes apart ({_few(classes)}), but the data "
                f"has {len(data.classes)} ({_few(data.classes)}); a teacher must know the same in the same order"
            ],
            "task",
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _network(source: ExperimentConfig, run_id: str, download: Download) -> tuple[nn.Module, Modality]:
    """The teacher's backbone and head as one network, and its preprocessing."""
    backbone = build_with_lineage(replace(source.backbone, checkpoint=run_id, weights="default"), download)
    tensors = load_file(download(run_id, TRAINED))
    if {"head.1.weight", "head.1.bias"} - set(tensors):
        raise WeightsError(f"task.teacher: run {run_id[:8]} kept no linear head")
    head = nn.Linear(backbone.out_features, len(tensors["head.1.bias"]))
    head.load_state_dict({"weight": tensors["head.1.weight"], "bias": tensors["head.1.bias"]})
    return nn.Sequential(backbone, head).eval().requires_grad_(False), backbone.preprocessing


_last: dict[tuple[Any, ...], Tensor] = {}
"""The answers of the teacher that was asked last, by tracking store, run, data and training samples."""


def _table(
    network: nn.Module, preprocessing: Modality, source: ExperimentConfig, config: ExperimentConfig, data: Data
) -> Tensor:
    """Answers of every training sample ``(samples, classes)``, prepared as the teacher was trained with."""
    own = replace(
        config.data,
        image_size=source.data.image_size,
        resize=source.data.resize,
        seconds=source.data.seconds,
        max_length=source.data.max_length,
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


def _live(network: nn.Module, preprocessing: Modality, data: Data, run_id: str) -> Callable[[Batch], Tensor]:
    """Answers of a batch as the student sees it, in the teacher's normalisation."""
    complaint = ConfigError(["task.teacher: random augmentation together with a teacher is for images only"], "task")
    given = expect(data.preprocessing, Preprocessing, complaint)
    preprocessing = expect(preprocessing, Preprocessing, complaint)
    if preprocessing.channels != given.channels:
        channels = f"{preprocessing.channels} channels, but the student {given.channels}"
        raise ConfigError(
            [f"task.teacher: run {run_id[:8]} takes images of {channels}; use data.augment: none"], "task"
        )
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
