"""The parts that have a short name, kind by kind: all that is known of each stands here and nowhere else. No torch.

Error texts, `tlresearch config`, the page of options and what is built are made from these registries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tlresearch.config.courses import Constant, Cosine, Exponential, Linear, OneCycle, Step
from tlresearch.config.parts import Part, Registry
from tlresearch.config.setting import setting

# One option per line, whatever its length: read as a table.
# fmt: off
SOURCES = Registry("data source", {
    name: Part(takes=None)
    for name in (
        "image_folder", "image_csv", "npz", "torchvision", "digits", "audio_folder", "audio_manifest", "text_table",
        "text_lines", "conll", "hf_dataset", "masks", "coco", "voc", "instance_masks",
    )
}, own="a torch Dataset, a data set of Hugging Face, a LightningDataModule, or a function that returns a table", fills=("root", "preprocessing"))
"""What reads them, and their further options, stand in `tlresearch.data.build.SOURCES`."""
FILE_SOURCES = tuple(name for name in SOURCES.names if name not in ("torchvision", "digits", "hf_dataset"))
"""Sources that read files of the user's."""

BACKBONES = Registry("backbone", {
    "torchvision/": Part("tlresearch.backbones.build.build_vision", None),
    "timm/": Part("tlresearch.backbones.timm_models.build_timm", None),
    "hf/": Part("tlresearch.backbones.transformers.build_transformer", None),
    "log_mel/": Part("tlresearch.backbones.build.build_log_mel", None),
    "small_cnn": Part("tlresearch.backbones.small_cnn.build_small_cnn", None),
    "mnist_cnn": Part("tlresearch.backbones.mnist_cnn.build_mnist_cnn", None),
    "word_cnn": Part("tlresearch.backbones.word_cnn.build_word_cnn", None),
    "speech_embedding": Part("tlresearch.backbones.speech_embedding.build_speech_embedding", None),
}, own="an nn.Module or of a function that returns one", fills=("end",))


@dataclass
class Sgd:
    """Arguments of stochastic gradient descent."""

    momentum: float | None = setting(None, "Momentum; null is none.", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov momentum.")

    def problems(self) -> Iterator[str]:
        """Yields what no single field can say."""
        if self.nesterov and not self.momentum:
            yield "nesterov: needs optimizer.momentum above 0"


@dataclass
class Adam:
    """Arguments of Adam and AdamW."""

    betas: list[float] = setting([], "Averaging coefficients; empty is the optimizer's default.")

    def problems(self) -> Iterator[str]:
        """Yields what no single field can say."""
        if self.betas and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            yield f"betas: must be two numbers in [0, 1), but got {self.betas}"


@dataclass
class RmsProp:
    """Arguments of RMSprop."""

    momentum: float | None = setting(None, "Momentum; null is none.", at_least=0, below=1)


@dataclass
class Adadelta:
    """Arguments of Adadelta."""

    rho: float | None = setting(None, "Averaging coefficient; null is the optimizer's default.", at_least=0, below=1)


OPTIMIZERS = Registry("optimizer", {
    "sgd": Part("torch.optim.SGD", Sgd),
    "adam": Part("torch.optim.Adam", Adam),
    "adamw": Part("torch.optim.AdamW", Adam),
    "rmsprop": Part("torch.optim.RMSprop", RmsProp),
    "adadelta": Part("torch.optim.Adadelta", Adadelta),
    "adagrad": Part("torch.optim.Adagrad"),
}, own="an optimizer", gives="torch.optim.Optimizer", fills=("params", "lr", "weight_decay"))

SCHEDULERS = Registry("scheduler", {
    "constant": Part("tlresearch.config.courses.Constant", Constant),
    "cosine": Part("tlresearch.config.courses.Cosine", Cosine),
    "linear": Part("tlresearch.config.courses.Linear", Linear),
    "step": Part("tlresearch.config.courses.Step", Step),
    "exponential": Part("tlresearch.config.courses.Exponential", Exponential),
    "one_cycle": Part("tlresearch.config.courses.OneCycle", OneCycle),
}, own="a scheduler of torch", fills=("optimizer", "max_lr", "total_steps", "T_max"))

@dataclass
class Focal:
    """Arguments of the focal loss."""

    gamma: float = setting(2.0, "Exponent; 0 is cross entropy.", at_least=0)


LOSSES = Registry("loss", {
    "cross_entropy": Part(of=("classification", "tokens", "segmentation")),
    "focal": Part("tlresearch.tasks.losses.Focal", Focal, of=("classification", "segmentation")),
    "dice": Part("tlresearch.tasks.losses.Dice", of=("segmentation",)),
    "combined": Part("tlresearch.tasks.losses.Combined", of=("segmentation",)),
}, own="a class whose objects take outputs and targets, or of a function that does", fills=("weight", "pos_weight", "ignore_index"), gets=2)

METRICS = Registry("metric", {}, own="a metric of torchmetrics", gives="torchmetrics.Metric", fills=("num_classes", "num_labels", "num_outputs", "task", "ignore_index"))

TRANSFORMS = Registry("transform", {}, own="a transform of torchvision or albumentations, or of a function of an image", gets=1)

CALLBACKS = Registry("callback", {}, own="a callback of Lightning", gives="lightning.pytorch.callbacks.Callback")

LOGGERS = Registry("logger", {}, own="a logger of Lightning", gives="lightning.pytorch.loggers.Logger")

TASKS = Registry("task", {
    "classification": Part("tlresearch.tasks.classification.ClassificationTask", None),
    "regression": Part("tlresearch.tasks.regression.RegressionTask", None),
    "tokens": Part("tlresearch.tasks.tokens.TokensTask", None),
    "speech_recognition": Part("tlresearch.tasks.speech.SpeechRecognitionTask", None),
    "segmentation": Part("tlresearch.tasks.segmentation.SegmentationTask", None),
    "detection": Part("tlresearch.tasks.detection.DetectionTask", None),
    "instances": Part("tlresearch.tasks.detection.InstancesTask", None),
}, own="a class derived from tlresearch.tasks.base.Task", by_signature=False)
"""Each is a class, which says everything else about itself; see `tlresearch.tasks.base.Task`."""

PRESETS = Registry("schedule", {
    "linear_probe": Part("tlresearch.finetuning.presets.linear_probe"),
    "full": Part("tlresearch.finetuning.presets.full"),
    "depth": Part("tlresearch.finetuning.presets.depth"),
    "lp_ft": Part("tlresearch.finetuning.presets.lp_ft"),
    "gradual": Part("tlresearch.finetuning.presets.gradual"),
    "top_down": Part("tlresearch.finetuning.presets.top_down"),
    "surgical": Part("tlresearch.finetuning.presets.surgical"),
    "norm_only": Part("tlresearch.finetuning.presets.norm_only"),
    "bias_only": Part("tlresearch.finetuning.presets.bias_only"),
    "lora": Part("tlresearch.finetuning.presets.lora"),
    "scratch": Part("tlresearch.finetuning.presets.scratch"),
    "none": Part("tlresearch.finetuning.presets.none"),
    "phases": Part("tlresearch.finetuning.presets.phases"),
}, own="a function that returns phases", key="schedule", fills=("freeze", "stages"))

SAMPLERS = Registry("sampler", {
    "tpe": Part("optuna.samplers.TPESampler", None),
    "random": Part("optuna.samplers.RandomSampler", None),
    "gp": Part("optuna.samplers.GPSampler", None),
    "qmc": Part("optuna.samplers.QMCSampler", None),
    "grid": Part("optuna.samplers.GridSampler", None),
    "cmaes": Part("optuna.samplers.CmaEsSampler", None),
    "nsgaii": Part("optuna.samplers.NSGAIISampler", None),
    "brute_force": Part("optuna.samplers.BruteForceSampler", None),
}, own="a sampler of Optuna", gives="optuna.samplers.BaseSampler", fills=("seed",))

PRUNERS = Registry("pruner", {
    "none": Part("optuna.pruners.NopPruner", None),
    "median": Part("optuna.pruners.MedianPruner", None),
    "hyperband": Part("optuna.pruners.HyperbandPruner", None),
    "successive_halving": Part("optuna.pruners.SuccessiveHalvingPruner", None),
    "percentile": Part("optuna.pruners.PercentilePruner", None),
    "patient": Part("optuna.pruners.PatientPruner", None),
    "threshold": Part("optuna.pruners.ThresholdPruner", None),
    "wilcoxon": Part("optuna.pruners.WilcoxonPruner", None),
}, own="a pruner of Optuna", gives="optuna.pruners.BasePruner")
