"""What an experiment and a sweep are: every option with its meaning, unit, default and range. No torch."""

from __future__ import annotations

import typing
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Literal

from tlresearch.base.errors import nearest
from tlresearch.config.catalogue import (
    BACKBONES,
    CALLBACKS,
    LOGGERS,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    PRESETS,
    SCHEDULERS,
    SOURCES,
    TASKS,
    TRANSFORMS,
)
from tlresearch.config.merging import hints_of
from tlresearch.config.parts import PartConfig, Registry
from tlresearch.config.published_schema import ReferenceConfig
from tlresearch.config.setting import setting


def type_of(key: str) -> Any:
    """Returns the type of an experiment's option by its full key; `Any` inside free-form mappings and for whole parts.

    Raises:
        KeyError: If there is no such option; the message names the nearest.
    """
    section: Any = ExperimentConfig
    parts = key.split(".")
    for index, part in enumerate(parts):
        hints = hints_of(section)
        registry: Registry | None = getattr(section, "registry", None)
        hint = hints.get(part) or (registry.type_of(part) if registry else None)
        if hint is None:
            raise KeyError(f"unknown key{nearest(part, list(hints))}")
        if typing.get_origin(hint) is dict:
            return Any
        inner = [kind for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)]
        if index == len(parts) - 1 and any(isinstance(kind, type) and issubclass(kind, PartConfig) for kind in inner):
            return Any
        if not inner or index == len(parts) - 1:
            if inner or index < len(parts) - 1:
                raise KeyError("is a section, not an option" if inner else f"'{part}' is an option, not a section")
            return hint
        section = inner[0]
    raise KeyError("is empty")


# One option per line, whatever its length: read as a table.
# fmt: off
@dataclass
class TransformConfig(PartConfig):
    """A transform of images."""

    registry: ClassVar[Registry] = TRANSFORMS
    name: str = setting("", f"{TRANSFORMS.listing[3:].capitalize()}.")


@dataclass
class DataConfig:
    """Where the samples come from, how they are split and what is done to them."""

    registry: ClassVar[Registry] = SOURCES
    name: str = setting("image_folder", f"{SOURCES.listing}.")
    root: str | None = setting(None, "Folder or file; relative paths are looked up under the data directory (TLRESEARCH_DATA).")
    dataset: str | None = setting(None, "Class name of torchvision.datasets for `name: torchvision`, such as CIFAR10; name on the hub or saved folder for `name: hf_dataset`.")
    table: str = setting("labels.csv", "Table inside `root` for `name: image_csv` and `audio_manifest`: .csv, .tsv, .txt or .jsonl.")
    delimiter: str | None = setting(None, "What separates the values of a table; null finds it by the header and the file's ending.")
    encoding: str | None = setting(None, "Encoding of a table, such as cp1252; null takes that of its byte-order mark, else UTF-8.")
    image_column: str = setting("image", "Column of `table` holding image paths relative to `root`.")
    label_column: str = setting("label", "Column of `table` holding the label; several labels are separated by ';'.")
    targets: list[str] = setting([], "Columns of numbers that are learnt instead of the label, for `task.name: regression`; of npz, what the columns of its labels are called.")
    text_column: str = setting("text", "Column holding the text; numbers, from 0, here and for `label_column` where a file has no header.")
    text_columns: list[str] = setting([], "Two columns that hold a pair of texts, such as [premise, hypothesis], instead of `text_column`; `backbone.pairs` says how they are read.")
    quotes: bool | None = setting(None, "Whether values of a text_table may stand in double quotes; null: in .csv, where a quote is a letter otherwise.")
    files: dict[str, str] = setting({}, "Files below `root`: by split (train, val, test) for text_table and conll, by class for text_lines; empty looks for train.*, val.* or dev.*, test.*.")
    max_length: int | None = setting(None, "Longest text; what is longer is cut; null takes the backbone's longest, at most 512.", unit="tokens", at_least=1)
    split_column: str | None = setting(None, "Column of `table` holding train, val or test; null splits by `split_seed`.")
    url: str | None = setting(None, "Address of a file or archive (zip, tar) that is downloaded to `root` if that is not there.")
    sha256: str | None = setting(None, "SHA-256 of what is at `url`; required for it.")
    download: bool = setting(True, "Download data that are not under the data directory yet (torchvision, hf_dataset, `url`).")
    classes: list[str] = setting([], "Keep only these classes, in this order; empty keeps all.")
    val_fraction: float = setting(0.2, "Share of the training samples held out for validation where the source has no val split.", unit="share of samples", above=0, below=1)
    test_fraction: float = setting(0.0, "Share of all samples held out for the test where the source has no test split.", unit="share of samples", at_least=0, below=1)
    split_seed: int = setting(0, "Seed of the split and of the subsets below; independent of `seed`.", at_least=0)
    group_column: str | None = setting(None, "Column of `table` (image_csv) saying what a sample is of, such as a patient: those of one group never stand in two splits.")
    group_pattern: str | None = setting(None, "The same from the names of samples, for any source: a regular expression whose first group it is, such as '(patient\\d+)'.")
    labels_per_class: int | None = setting(None, "Keep this many training samples of each class.", unit="samples", at_least=1)
    train_fraction: float = setting(1.0, "Keep this share of the training samples of each class.", unit="share of samples", above=0, at_most=1)
    on_error: Literal["raise", "skip"] = setting("raise", "An unreadable sample: stop with an error, or skip and count it.")
    image_size: int | None = setting(None, "Side of the square network input; null takes the backbone's own.", unit="pixels", at_least=8, at_most=4096)
    seconds: float | None = setting(None, "Length every sound is cut or padded with silence to; null takes the backbone's own, or keeps the lengths.", unit="seconds", above=0)
    orientation: Literal["exif", "stored"] = setting("exif", "How photos are turned, in training and in everything made from the run: as their EXIF orientation says and every viewer shows them, or as their pixels are stored.")
    resize: int | None = setting(None, "Length the shorter edge of an image is brought to before the crop; null keeps the backbone's proportion to `image_size`.", unit="pixels", at_least=8, at_most=4096)
    augment: Literal["none", "flip", "crop_flip", "randaugment", "trivial"] = setting("none", "Random augmentation of the training images.")
    transforms: list[TransformConfig] = setting([], "Transforms of the whole training images, one after another, with their masks or boxes; instead of `augment`.")
    eval_transforms: list[TransformConfig] = setting([], "The same of the images of validation and test (labels only); a served model does not have them.")
    sampling: Literal["uniform", "balanced"] = setting("uniform", "Training samples of an epoch: each once, or every class equally often (one class per sample only).")
    mixup: float = setting(0.0, "Alpha of mixup (Zhang et al. 2018); 0 is off.", at_least=0)
    cutmix: float = setting(0.0, "Alpha of CutMix (Yun et al. 2019); 0 is off.", at_least=0)
    batch_size: int = setting(32, "Samples of one training batch, over all devices together: two devices take half of it each.", unit="samples", at_least=1)
    eval_batch_size: int = setting(128, "Batch size of validation and test on each device.", unit="samples", at_least=1)
    workers: int = setting(0, "Loader processes; 0 loads in the main process.", unit="processes", at_least=0)
    shift: dict[str, dict[str, Any]] = setting({}, "Further test sets by name: what differs from this section (root, classes, options.test, ...), `split` (train, val, test, all), and `corruptions: {kinds, severities}`; see docs/domain_shift.md.")
    options: dict[str, Any] = setting({}, "Further arguments of the data source: of sounds, masks and boxes (see their pages), or of your own (dotted path).")


@dataclass
class BackboneConfig:
    """The pretrained network without its head."""

    registry: ClassVar[Registry] = BACKBONES
    name: str = setting("torchvision/resnet18", f"{BACKBONES.listing}.")
    weights: str | None = setting("default", "Enum name such as IMAGENET1K_V1, 'default', null (random), a local file, or a URL.")
    weights_sha256: str | None = setting(None, "SHA-256 the weights file must have; required for a URL.")
    weights_prefix: str | None = setting(None, "What stands in front of the names of the backbone's tensors in a weights file, such as `teacher.module.`; where there is only one such prefix it is found.")
    checkpoint: str | None = setting(None, "An earlier run of ours to start from, instead of `weights`: its MLflow run id, or latest:<run name>.")
    granularity: Literal["stage", "block"] = setting("stage", "How finely the backbone is cut: coarse stages, or single blocks.")
    pairs: Literal["joint", "concat", "cosine"] | None = setting(None, "How a pair of texts (`data.text_columns`) is read: joint as one input (cross-encoder); concat and cosine each by itself (bi-encoder), and the head gets both vectors, their difference and product, or their cosine.")
    in_channels: int | None = setting(None, "Input channels, if not those of the weights: 1 sums the first convolution over its inputs, more repeat it in turn, scaled to the same response.", at_least=1)
    side: int | None = setting(None, "Side of the square images that an nn.Module by dotted path takes; null is 224.", unit="pixels", at_least=8, at_most=4096)
    options: dict[str, Any] = setting({}, "Further arguments of the model's constructor.")


@dataclass
class LossConfig(PartConfig):
    """What is learnt from, instead of the task's own loss."""

    registry: ClassVar[Registry] = LOSSES
    name: str = setting("", f"{LOSSES.listing}.")


@dataclass
class MetricConfig(PartConfig):
    """A metric beside those of the task."""

    registry: ClassVar[Registry] = METRICS
    name: str = setting("", "Dotted path of a metric of torchmetrics; the number of classes need not be given.")
    label: str | None = setting(None, "What it is called in results; null makes it from the name: cohen_kappa.")
    direction: Literal["min", "max"] | None = setting(None, "Whether less or more is better; null takes what the metric says.")


@dataclass
class TaskConfig:
    """What is learnt on top of the backbone."""

    registry: ClassVar[Registry] = TASKS
    name: str = setting("classification", f"{TASKS.listing}.")
    dropout: float = setting(0.0, "Dropout in front of the head's linear layer.", unit="probability", at_least=0, below=1)
    label_smoothing: float = setting(0.0, "Label smoothing of the cross entropy (multi-class only).", unit="probability", at_least=0, below=1)
    class_weights: Literal["none", "balanced"] = setting("none", "Weight the loss by inverse class frequency.")
    loss: LossConfig | None = setting(None, "Loss; null is the task's own.")
    metrics: list[MetricConfig] = setting([], "Metrics beside those of the task, of validation and test.")
    teacher: str | None = setting(None, "A finished classification run this one learns from too (knowledge distillation): its id, the beginning of it or name, or latest:<run name>.")
    distill_alpha: float = setting(0.5, "Share of the teacher's part in the loss; 1 learns from the teacher alone.", unit="share of the loss", above=0, at_most=1)
    temperature: float = setting(4.0, "What the logits of teacher and student are divided by in the teacher's part of the loss.", above=0)
    options: dict[str, Any] = setting({}, "Further arguments of the task: of segmentation and detection (see their pages), or of your own (dotted path).")


@dataclass
class PlateauConfig:
    """Ends a phase when a validation metric stops improving."""

    metric: str = setting("val/loss", "Metric that is watched.")
    patience: int = setting(2, "Epochs without improvement before the phase ends.", unit="epochs", at_least=1)
    min_delta: float = setting(0.0, "Smallest change that counts as improvement.", at_least=0)
    mode: Literal["min", "max"] | None = setting(None, "Whether the metric should fall or rise; null takes what the task says of it.")


@dataclass
class PhaseConfig:
    """A stretch of training with one set of trained parameters and their rates."""

    name: str | None = setting(None, "Name in tables and plots; null makes one.")
    unfreeze_depth: int | str | None = setting(None, "Stages trained, counted from the head: 0 to the number of stages, or 'all'.", unit="stages", at_least=0)
    stages: list[str] = setting([], "Train exactly these stages, by name or number, instead of a depth.")
    parameters: list[str] = setting([], "Train exactly the parameters whose names match these patterns ('*' is any text; @norm, @bias, @lora), instead of a depth.")
    head: bool = setting(True, "Whether the head is trained too.")
    epochs: int | None = setting(None, "Length of the phase; with `until`, its longest length.", unit="epochs", at_least=1)
    fraction: float | None = setting(None, "Length as a share of `freeze.epochs`, instead of `epochs`.", unit="share of epochs", above=0, at_most=1)
    until: PlateauConfig | None = setting(None, "End early when a metric stops improving.")
    at_end: Literal["keep", "restore_best"] = setting("keep", "Weights handed to the next phase: the last ones, or the best so far by `until.metric`.")
    lr: float | None = setting(None, "Base rate of the phase; null takes optimizer.lr.", above=0)
    layer_lr_decay: float | None = setting(None, "Rate factor per stage towards the input; null takes optimizer.layer_lr_decay.", above=0, at_most=1)
    stage_lrs: dict[str, float] = setting({}, "Explicit rate of single stages by name ('head' too), instead of the decayed rate.")
    weight_decay: float | None = setting(None, "Weight decay of the phase; null takes optimizer.weight_decay.", at_least=0)
    warmup_epochs: float | None = setting(None, "Linear warm-up; null takes scheduler.warmup_epochs.", unit="epochs", at_least=0)
    rate: Literal["restart", "continue"] = setting("restart", "Start the rate schedule anew, or go on along that of the phase before.")
    optimizer_state: Literal["keep", "reset"] = setting("keep", "Optimizer moments at the start of the phase.")
    frozen_norm: Literal["eval", "train"] | None = setting(None, "Norm layers of frozen stages; null takes freeze.frozen_norm.")


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022), for `schedule: lora` and phases with `parameters: ['@lora']`."""

    rank: int = setting(8, "Inner width of an adapter.", at_least=1)
    alpha: float = setting(16.0, "An adapter's output is multiplied by alpha / rank.", above=0)
    dropout: float = setting(0.0, "Dropout in front of each adapter.", unit="probability", at_least=0, below=1)
    targets: list[str] = setting([], "Patterns of the names of adapted layers ('*' is any text); empty takes all linear layers, else all convolutions.")


@dataclass
class FreezeConfig:
    """Which stages train when: a preset by name, or the phases themselves."""

    registry: ClassVar[Registry] = PRESETS
    schedule: str = setting("linear_probe", f"{PRESETS.listing}.")
    epochs: int = setting(10, "Length of the whole schedule.", unit="epochs", at_least=1)
    unfreeze_depth: int | str | None = setting(None, "Stages trained, counted from the head, for `schedule: depth`: 0 to the number of stages, or 'all'.", unit="stages", at_least=0)
    probe_epochs: int | None = setting(None, "Length of the linear probe of `schedule: lp_ft`; null is half.", unit="epochs", at_least=1)
    stages: list[str] = setting([], "Stages trained by `schedule: surgical`, by name or number.")
    frozen_norm: Literal["eval", "train"] = setting("eval", "Norm layers of frozen stages: use and keep their statistics, or follow the batches.")
    lora: LoraConfig = setting(LoraConfig, "Low-rank adapters.")
    phases: list[PhaseConfig] = setting([], "The phases of `schedule: phases`.")
    options: dict[str, Any] = setting({}, "Arguments of a schedule by dotted path; they may stand beside `schedule` too.")


@dataclass
class OptimizerConfig:
    """The optimizer; one parameter group per stage and decay split, from start to end."""

    registry: ClassVar[Registry] = OPTIMIZERS
    name: str = setting("adamw", f"{OPTIMIZERS.listing}.")
    lr: float = setting(1.0e-3, "Base rate: that of the head.", above=0)
    layer_lr_decay: float = setting(1.0, "Rate factor per stage towards the input, the last stage being the first to be multiplied; 1 is off.", above=0, at_most=1)
    weight_decay: float = setting(0.0, "Weight decay.", at_least=0)
    decay_norm_and_bias: bool = setting(False, "Whether norm weights and biases decay too.")
    options: dict[str, Any] = setting({}, "Further arguments of the optimizer; they may stand beside `name` too.")


@dataclass
class SchedulerConfig:
    """How the rate moves within a phase."""

    registry: ClassVar[Registry] = SCHEDULERS
    name: str = setting("cosine", f"Course of the rate after the warm-up: {SCHEDULERS.listing}.")
    warmup_epochs: float = setting(0.0, "Linear warm-up at the start of each phase.", unit="epochs", at_least=0)
    interval: Literal["epoch", "batch"] = setting("epoch", "How often a scheduler by dotted path steps.")
    options: dict[str, Any] = setting({}, "Further arguments of the scheduler; they may stand beside `name` too.")


@dataclass
class RegularizeConfig:
    """Regularisers that belong to fine-tuning."""

    l2_sp: float = setting(0.0, "Strength of L2-SP: pull of the backbone towards its pretrained weights (Li et al. 2018).", at_least=0)
    ema: float = setting(0.0, "Decay per step of an exponential moving average of the weights, used for validation and test; 0 is off.", at_least=0, below=1)
    stochastic_depth: float | None = setting(None, "Drop probability of the deepest residual block, rising linearly with depth; null keeps the backbone's.", unit="probability", at_least=0, below=1)


@dataclass
class EarlyStoppingConfig:
    """Ends the whole run when a validation metric stops improving."""

    metric: str = setting("val/loss", "Metric that is watched.")
    patience: int = setting(3, "Epochs without improvement before the run ends.", unit="epochs", at_least=1)
    min_delta: float = setting(0.0, "Smallest change that counts as improvement.", at_least=0)
    mode: Literal["min", "max"] | None = setting(None, "Whether the metric should fall or rise; null takes what the task says of it.")


@dataclass
class CallbackConfig(PartConfig):
    """A callback of Lightning."""

    registry: ClassVar[Registry] = CALLBACKS
    name: str = setting("", "Dotted path of a callback of Lightning.")


@dataclass
class LoggerConfig(PartConfig):
    """A logger of Lightning."""

    registry: ClassVar[Registry] = LOGGERS
    name: str = setting("", "Dotted path of a logger of Lightning.")


@dataclass
class TrainerConfig:
    """How the training loop runs."""

    monitor: str = setting("", "Metric that says which epoch is best, such as val/loss; empty takes the task's own: val/accuracy, of numbers val/mae.")
    mode: Literal["min", "max"] | None = setting(None, "Whether `monitor` should fall or rise; null takes what the task says of it.")
    select: Literal["last", "best"] = setting("last", "Weights that are kept and tested: of the last epoch, or of the best by `monitor`.")
    early_stopping: EarlyStoppingConfig | None = setting(None, "Stop the run early; null never does.")
    accelerator: str = setting("auto", "Lightning accelerator: auto, cpu, gpu (cuda, mps).")
    devices: int = setting(1, "Devices, or processes on the CPU.", unit="devices", at_least=1)
    strategy: str = setting("auto", "How several devices work together: auto or ddp (each holds all weights), fsdp (each holds a part of weights, gradients and moments).")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"] = setting("auto", "Number format of the training step; auto times 32-true and bf16-mixed on this machine and takes the faster one.")
    memory_format: Literal["auto", "contiguous", "channels_last"] = setting("auto", "Order of image tensors in memory; auto times both.")
    gradient_clip: float | None = setting(None, "Largest norm of the gradient; null does not clip.", above=0)
    gradient_checkpointing: bool = setting(False, "Keep only what passes between stages, and run each stage again in the backward pass: less memory, about a third more time, the same result.")
    accumulate: int = setting(1, "Batches whose gradients make one step.", unit="batches", at_least=1)
    deterministic: bool = setting(True, "Use deterministic algorithms, so that a run repeats bit for bit.")
    threads: int | None = setting(None, "Threads of one process; null leaves torch's choice.", unit="threads", at_least=1)
    callbacks: list[CallbackConfig] = setting([], "Callbacks of Lightning, called behind the freeze schedule.")
    loggers: list[LoggerConfig] = setting([], "Loggers of Lightning beside MLflow.")
    on_oom: Literal["fail", "halve"] = setting("fail", "Out of memory: fail with a clear line, or go on from the last checkpoint with half the batch and twice `accumulate`, so that a step is made of as many samples.")
    checkpoint_every: int = setting(1, "Epochs between two checkpoints a killed run resumes from; 0 writes none.", unit="epochs", at_least=0)
    checkpoint_seconds: float = setting(5.0, "Least time between two checkpoints; they also take at most 1 % of a run's time. 0 writes one whenever it is due.", unit="seconds", at_least=0)


@dataclass
class CacheConfig:
    """Frozen stages run once: their output is kept on disk and shared by epochs, seeds, trials and later runs."""

    enabled: bool = setting(True, "Keep activations in front of the first trained stage, where inputs are not random.")
    max_gb: float = setting(20.0, "Bound on all kept activations; the least recently used go first.", unit="10^9 bytes", above=0)
    views: int = setting(0, "Augmented views kept of each training sample: epoch e shows view e modulo this. An approximation of fresh augmentation; 0 draws a new view in every epoch and keeps none.", unit="views", at_least=0)
    precision: Literal["auto", "32-true", "bf16-mixed"] = setting("auto", "Number format of frozen stages run ahead; auto takes trainer.precision, and the faster one where that is auto too.")
    memory_format: Literal["auto", "contiguous", "channels_last"] = setting("auto", "Order of image tensors in frozen stages run ahead; auto times both.")


@dataclass
class TrackingConfig:
    """Where and how much is recorded in MLflow."""

    uri: str | None = setting(None, "MLflow tracking URI; null takes MLFLOW_TRACKING_URI, else a local SQLite store.")
    experiment: str | None = setting(None, "MLflow experiment; null takes MLFLOW_EXPERIMENT_NAME, else the folder the YAML lies in.")
    figures: bool = setting(True, "Log learning curves, confusion matrix, wrongly classified samples and the schedule.")
    model: bool = setting(True, "Log the trained model as an MLflow model that predicts from raw inputs.")
    weights: bool = setting(True, "Keep the trained weights, so that later runs can start from them.")
    checkpoint: bool = setting(True, "Keep the state of training after the last epoch, about three times the trained weights, so that a longer run can go on from it (`continue`).")
    system_metrics: bool = setting(True, "Log processor, memory and disk use.")
    tags: dict[str, str] = setting({}, "Tags of your own.")


@dataclass
class ExperimentConfig:
    """One experiment: everything a run needs to start, and to start again."""

    name: str = setting("experiment", "Name of the run; the YAML's own name unless set.")
    description: str = setting("", "Free text shown in MLflow; Markdown.")
    data: DataConfig = setting(DataConfig, "Data.")
    backbone: BackboneConfig = setting(BackboneConfig, "Backbone.")
    task: TaskConfig = setting(TaskConfig, "Task.")
    freeze: FreezeConfig = setting(FreezeConfig, "Freeze schedule.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "Optimizer.")
    scheduler: SchedulerConfig = setting(SchedulerConfig, "Rate schedule.")
    regularize: RegularizeConfig = setting(RegularizeConfig, "Regularisers.")
    trainer: TrainerConfig = setting(TrainerConfig, "Training loop.")
    cache: CacheConfig = setting(CacheConfig, "Activation cache.")
    tracking: TrackingConfig = setting(TrackingConfig, "Tracking.")
    seed: int = setting(0, "Seed of head, order, augmentation and dropout.", at_least=0)
    continues: str | None = setting(None, "A finished run of ours to go on from, with more epochs: its id, the beginning of it, or its name. On the command line it is called `continue`.")
    seeds: list[int] = setting([], "Seeds of a group: one run each under one parent with mean and interval; empty runs `seed` alone.")
    reference: ReferenceConfig | None = setting(None, "The published numbers this experiment is held against by `tlresearch reproduce`.")
    variants: dict[str, dict[str, Any]] = setting({}, "Variants of a published protocol by name: what differs from the above, `reference` included.")
