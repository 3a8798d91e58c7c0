"""Freeze schedules by name (functions that return phases), and building a schedule from a config. No torch.

Sources: `linear_probe`, `full` and `lp_ft` as in Kumar et al., "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution" (ICLR 2022); `gradual` as in Howard and Ruder, "Universal Language Model
Fine-tuning for Text Classification" (ACL 2018); `surgical` and `top_down` (first stage to last) as in Lee et al.,
"Surgical Fine-Tuning Improves Adaptation to Distribution Shifts" (ICLR 2023); `bias_only` as in Ben Zaken et al.,
"BitFit" (ACL 2022); `norm_only` as in Frankle et al., "Training BatchNorm and Only BatchNorm" (ICLR 2021); `lora` as
in Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tlresearch.base.errors import ConfigError, nearest
from tlresearch.config.catalogue import PRESETS, SCHEDULERS
from tlresearch.config.checks import phase_problems
from tlresearch.config.courses import Course
from tlresearch.config.parts import called, make
from tlresearch.config.schema import ExperimentConfig, FreezeConfig, PhaseConfig
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau


def linear_probe(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """The head alone."""
    return [PhaseConfig(name="probe", unfreeze_depth=0, epochs=freeze.epochs)]


def full(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Every stage from the start."""
    return [PhaseConfig(name="full", unfreeze_depth="all", epochs=freeze.epochs)]


def scratch(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Every stage from the start, from random weights: what transfer is compared with."""
    return [PhaseConfig(name="scratch", unfreeze_depth="all", epochs=freeze.epochs)]


def depth(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """The last `unfreeze_depth` stages and the head."""
    return [
        PhaseConfig(name=f"depth {freeze.unfreeze_depth}", unfreeze_depth=freeze.unfreeze_depth, epochs=freeze.epochs)
    ]


def lp_ft(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """The head first, then every stage."""
    probe = freeze.probe_epochs or freeze.epochs // 2
    return [
        PhaseConfig(name="probe", unfreeze_depth=0, epochs=probe),
        PhaseConfig(name="full", unfreeze_depth="all", epochs=freeze.epochs - probe),
    ]


def gradual(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """One stage more each epoch, from the head towards the input; every stage for the rest."""
    count = _one_epoch_each(freeze, len(stages) + 1)
    phases = [PhaseConfig(name=f"depth {d}", unfreeze_depth=d, epochs=1) for d in range(count)]
    phases[-1].epochs = freeze.epochs - (count - 1)
    return phases


def top_down(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """One stage more each epoch, from the input towards the head; every stage for the rest."""
    count = _one_epoch_each(freeze, len(stages))
    phases = [PhaseConfig(name=f"first {n}", stages=list(stages[:n]), epochs=1) for n in range(1, count + 1)]
    phases[-1].epochs = freeze.epochs - (count - 1)
    return phases


def surgical(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Chosen stages and the head."""
    return [PhaseConfig(name="surgical", stages=list(freeze.stages), epochs=freeze.epochs)]


def norm_only(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Weights and biases of norm layers, and the head."""
    return [PhaseConfig(name="norms", parameters=["@norm"], epochs=freeze.epochs)]


def bias_only(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Every bias, and the head."""
    return [PhaseConfig(name="biases", parameters=["@bias"], epochs=freeze.epochs)]


def lora(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Low-rank adapters beside frozen layers, and the head."""
    return [PhaseConfig(name="lora", parameters=["@lora"], epochs=freeze.epochs)]


def none(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """Nothing: the network is evaluated as it is."""
    return [PhaseConfig(name="evaluation", unfreeze_depth=0, head=False, epochs=0)]


def phases(freeze: FreezeConfig, stages: Sequence[str]) -> list[PhaseConfig]:
    """The phases the config spells out."""
    return list(freeze.phases)


def build_schedule(config: ExperimentConfig, stage_names: Sequence[str]) -> FreezeSchedule:
    """Builds the freeze schedule of an experiment over a backbone's stages.

    Args:
        config: The experiment.
        stage_names: The backbone's stages, 0 nearest the input.

    Raises:
        ConfigError: If a depth, stage or length does not fit the backbone; every problem at once.
    """
    phases = _phases(config, stage_names)
    problems: list[str] = []
    resolved = [_resolve(index, phase, config, stage_names, problems) for index, phase in enumerate(phases)]
    if problems:
        raise ConfigError(problems, config.name)
    return FreezeSchedule(tuple(resolved), tuple(stage_names), _course(config))


def _phases(config: ExperimentConfig, stage_names: Sequence[str]) -> list[PhaseConfig]:
    freeze = config.freeze
    preset = PRESETS.load(freeze.schedule, "freeze.schedule")
    if freeze.schedule in PRESETS:
        return cast(list[PhaseConfig], preset(freeze, stage_names))
    made = called(preset, freeze.schedule, "freeze", (freeze, list(stage_names)), freeze.options)
    if not isinstance(made, list) or not made or not all(isinstance(phase, PhaseConfig) for phase in made):
        raise ConfigError(
            [f"freeze.schedule: {freeze.schedule} must return a list of PhaseConfig, but returned {made!r}"],
            config.name,
        )
    wrong = [line for index, phase in enumerate(made) for line in phase_problems(f"freeze.schedule[{index}]", phase)]
    if wrong:
        raise ConfigError(wrong, config.name)
    return made


def _course(config: ExperimentConfig) -> Course:
    if config.scheduler.name in SCHEDULERS:
        return cast(Course, make(config.scheduler, "scheduler"))
    from tlresearch.finetuning.torch_course import TorchCourse  # imports torch, which a schedule does without otherwise

    course = TorchCourse(config.scheduler, config.optimizer.lr)
    course.factor(0, 1)
    return course


def _one_epoch_each(freeze: FreezeConfig, count: int) -> int:
    if freeze.epochs < count:
        raise ConfigError(
            [
                f"freeze.epochs: `{freeze.schedule}` has {count} phases on this backbone and needs at least {count} "
                f"epochs, but got {freeze.epochs}; raise it, or write the phases yourself with `schedule: phases`"
            ]
        )
    return count


def _resolve(
    index: int, phase: PhaseConfig, config: ExperimentConfig, names: Sequence[str], problems: list[str]
) -> Phase:
    key = f"freeze.phases[{index}]" if config.freeze.schedule == "phases" else "freeze"
    stages = _stages(key, phase, names, problems)
    until = phase.until
    epochs = phase.epochs if phase.epochs is not None else round((phase.fraction or 0) * config.freeze.epochs)
    if phase.fraction is not None and epochs < 1:
        problems.append(
            f"{key}.fraction: {phase.fraction} of {config.freeze.epochs} epochs is no epoch; raise one of them"
        )
    warmup = config.scheduler.warmup_epochs if phase.warmup_epochs is None else phase.warmup_epochs
    if warmup >= max(epochs, 1):
        problems.append(
            f"{'scheduler' if phase.warmup_epochs is None else key}.warmup_epochs: the warm-up of {warmup:g} epochs "
            f"leaves nothing of phase '{phase.name or index}', which has {epochs}; every phase warms up anew"
        )
    return Phase(
        name=phase.name or f"phase {index}",
        stages=stages,
        patterns=tuple(phase.parameters),
        head=phase.head,
        epochs=epochs,
        rates=_rates(key, phase, config, names, problems),
        weight_decay=config.optimizer.weight_decay if phase.weight_decay is None else phase.weight_decay,
        until=Plateau(until.metric, until.patience, until.min_delta, until.mode or "min") if until else None,
        at_end=phase.at_end,
        warmup_epochs=warmup,
        rate=phase.rate,
        optimizer_state=phase.optimizer_state,
        frozen_norm=phase.frozen_norm or config.freeze.frozen_norm,
    )


def _stages(key: str, phase: PhaseConfig, names: Sequence[str], problems: list[str]) -> tuple[int, ...]:
    if phase.parameters:
        return tuple(range(len(names)))
    if phase.stages:
        return tuple(sorted({_stage_number(f"{key}.stages", stage, names, problems) for stage in phase.stages}))
    depth = len(names) if phase.unfreeze_depth == "all" else int(phase.unfreeze_depth or 0)
    if depth > len(names):
        problems.append(
            f"{key}.unfreeze_depth: must be at most {len(names)}, the number of stages "
            f"({', '.join(names)}), but got {depth}"
        )
    return tuple(range(max(0, len(names) - depth), len(names)))


def _stage_number(key: str, stage: str, names: Sequence[str], problems: list[str]) -> int:
    if stage in names:
        return names.index(stage)
    if stage.isdigit() and int(stage) < len(names):
        return int(stage)
    problems.append(f"{key}: there is no stage '{stage}'{nearest(stage, names)}; stages: {', '.join(names)}")
    return 0


def _rates(
    key: str, phase: PhaseConfig, config: ExperimentConfig, names: Sequence[str], problems: list[str]
) -> tuple[float, ...]:
    """Returns base rates as in BEiT and timm: factor 1 for the head, ``decay`` for the last stage, then its powers."""
    base = config.optimizer.lr if phase.lr is None else phase.lr
    decay = config.optimizer.layer_lr_decay if phase.layer_lr_decay is None else phase.layer_lr_decay
    rates = [base * decay ** (len(names) - stage) for stage in range(len(names) + 1)]
    for stage, rate in phase.stage_lrs.items():
        number = len(names) if stage == "head" else _stage_number(f"{key}.stage_lrs", stage, names, problems)
        rates[number] = rate
    return tuple(rates)
