"""Schedules over backbones of many families, and over one whose stages pass several values between them."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from tests.backbones.cheap import BUILT_SMALLER
from tests.finetuning.test_callback import copy, make_trainer, moved
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.config.schema import OptimizerConfig
from tlresearch.data.base import Batch, Split
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import EpochReport, FreezeScheduleCallback
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.param_groups import is_norm
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.modality.image import Preprocessing
from tlresearch.tasks.classification import ClassificationTask

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
# With and without batch norm, with layer and group scales, attention, channel shuffles, dense and fire connections.
FAMILIES = {
    "resnet18": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "densenet121": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 48,
    "convnext_tiny": 32,
    "vit_b_32": 64,
    "swin_t": 32,
}
SCHEDULES = {
    "gradual": "{schedule: gradual, epochs: 20}",
    "surgical": "{schedule: surgical, stages: ['1'], epochs: 1}",
    "norm_only": "{schedule: norm_only, epochs: 1}",
    "bias_only": "{schedule: bias_only, epochs: 1}",
}


class RandomSplit(Split):
    """Four images of two classes."""

    def __init__(self, side: int) -> None:
        self.images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.targets = torch.arange(4) % 2
        self.names = [str(index) for index in range(4)]

    def load(self, index: int) -> Tensor:
        return self.images[index]

    def raw(self, index: int) -> Tensor:
        return self.images[index]


def schedule_of(freeze: str, names: tuple[str, ...]) -> FreezeSchedule:
    text = "data: {name: digits}\nbackbone: {name: small_cnn, weights: null}\noptimizer: {lr: 0.01}\n"
    return build_schedule(load_text(f"{text}freeze: {freeze}").config, names)


def make_task(backbone: StagedBackbone) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(
        backbone,
        classes=2,
        kind="binary",
        optimizer=partial(build_optimizer, OptimizerConfig(name="sgd", lr=0.01)),
        changing=frozenset(range(len(backbone.stages))),
    )


class Boundaries:
    """Sees in each step whether a graph is built in front of the first trained parameter; moved tensors by phase."""

    def __init__(self, task: ClassificationTask) -> None:
        self.task = task
        self.before = copy(task.backbone)
        self.graphs: list[tuple[int, bool]] = []
        self.moved: list[set[str]] = []
        for number, stage in enumerate(task.backbone.stages):
            stage.register_forward_hook(partial(self.look, number))

    def look(self, number: int, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.task.training and torch.is_grad_enabled():
            tensors = [
                value for value in (output if isinstance(output, tuple) else (output,)) if value.is_floating_point()
            ]
            self.graphs.append((number, any(value.requires_grad for value in tensors)))

    def __call__(self, report: EpochReport) -> None:
        now = copy(self.task.backbone)
        self.moved.append(moved(self.before, now))
        self.before = now
        first = next((n for n, count in enumerate(report.trainable[:-1]) if count), len(report.trainable))
        assert self.graphs
        assert all(graph is (number >= first) for number, graph in self.graphs), report.phase.name
        self.graphs.clear()


def stages_of(names: set[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names}


def run(task: ClassificationTask, schedule: FreezeSchedule, split: Any) -> Boundaries:
    seen = Boundaries(task)
    plan = FreezeScheduleCallback(schedule, seed=0, listeners=[seen])
    make_trainer(plan).fit(task, make_loader(split, batch_size=4, shuffle=True, seed=0))
    assert len(seen.moved) == schedule.max_epochs
    return seen


def build(name: str) -> StagedBackbone:
    options = {"image_size": BUILT_SMALLER[name]} if name in BUILT_SMALLER else {}
    torch.manual_seed(0)
    return build_torchvision(name, weights=None, options=options)


@pytest.mark.parametrize("preset", SCHEDULES)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_frozen_stays_and_what_is_trained_moves(name: str, preset: str) -> None:
    assert name in models.list_models(module=models)
    task = make_task(build(name))
    backbone = task.backbone
    count = len(backbone.stages)
    schedule = schedule_of(SCHEDULES[preset], backbone.stage_names)
    if preset == "gradual":  # the first two depths and all: the ones between differ in nothing
        kept = (*schedule.phases[:2], schedule.phases[-1])
        schedule = FreezeSchedule(tuple(_one_epoch(phase) for phase in kept), schedule.stage_names, schedule.course)
    with_weights = {n for n, stage in enumerate(backbone.stages) if any(True for _ in stage.parameters())}
    if preset == "norm_only" and not any(is_norm(layer) for layer in backbone.modules()):
        with pytest.raises(ConfigError, match="no parameter matches '@norm'"):
            run(task, schedule, RandomSplit(FAMILIES[name]))
        return
    seen = run(task, schedule, RandomSplit(FAMILIES[name]))
    if preset == "gradual":
        depths = [set(), {count - 1}, set(range(count))]
        assert [stages_of(names) for names in seen.moved] == [depth & with_weights for depth in depths]
        return
    (names,) = seen.moved
    if preset == "surgical":
        assert stages_of(names) == {1} & with_weights
        return
    parameters = dict(backbone.named_parameters())
    norms = {
        f"{prefix}.{key}"
        for prefix, layer in backbone.named_modules()
        if is_norm(layer)
        for key, _ in layer.named_parameters(recurse=False)
    }
    allowed = norms if preset == "norm_only" else {name for name in parameters if name.endswith("bias")}
    changed = names & set(parameters)
    assert changed <= allowed
    # A bias in front of a batch norm has no gradient but rounding, and one of the keys of attention has none at all.
    assert len(changed) > 0.5 * len(allowed)


def _one_epoch(phase: Any) -> Any:
    from dataclasses import replace

    return replace(phase, epochs=1)


class Embed(nn.Module):
    """Numbers of words, 0 to fill up, to vectors and the mask of what is a word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.register_buffer("positions", torch.randn(6, 8))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.words(tokens) + cast(Tensor, self.positions), tokens == 0


class Layer(nn.Module):
    """A transformer layer that hands the mask on."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, mask = state
        return self.block(hidden, src_key_padding_mask=mask), mask


class Pool(nn.Module):
    """Mean over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        hidden, mask = state
        words = (~mask).unsqueeze(-1).float()
        return cast(Tensor, (self.norm(hidden) * words).sum(1) / words.sum(1))


class TokenSplit(RandomSplit):
    """Four sentences of two classes."""

    def __init__(self) -> None:
        super().__init__(1)
        self.images = torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 0, 0], [1, 3, 2, 2, 0, 0], [5, 4, 4, 6, 7, 8]])


@pytest.mark.parametrize("preset", SCHEDULES)
def test_a_text_encoder_whose_stages_pass_a_mask_needs_no_special_case(preset: str) -> None:
    torch.manual_seed(0)
    stages = {"embed": Embed(), "layer0": Layer(), "layer1": Layer(), "pool": Pool()}
    backbone = StagedBackbone(stages, out_features=8, preprocessing=Preprocessing(crop=None, resize=None))
    freeze = SCHEDULES[preset].replace("epochs: 20", "epochs: 5")
    seen = run(make_task(backbone), schedule_of(freeze, backbone.stage_names), TokenSplit())
    expected = {
        "gradual": [set(), {3}, {2, 3}, {1, 2, 3}, {0, 1, 2, 3}],
        "surgical": [{1}],
        "norm_only": [{1, 2, 3}],
        "bias_only": [{1, 2, 3}],
    }
    assert [stages_of(names) for names in seen.moved] == expected[preset]
    assert isinstance(next(iter(make_loader(TokenSplit(), batch_size=4, shuffle=False, seed=0))), Batch)
