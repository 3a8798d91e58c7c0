"""The loop a user writes today: Lightning's BaseFinetuning, Optuna, MLFlowLogger, torchvision's ImageFolder."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights

from benchmarks.loops.same import WEIGHT_DECAY, Order, new_head
from benchmarks.loops.spec import Outcome, Spec, main
from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig

WORKERS = 2


class Frozen(BaseFinetuning):
    """Freezes every layer in front of the depth, batch norm too."""

    def __init__(self, trained: set[str]) -> None:
        super().__init__()
        self.trained = trained

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Freezes the layers without a trained parameter."""
        for name, layer in pl_module.network.named_modules():  # type: ignore[union-attr]
            own = [f"{name}.{parameter}" for parameter, _ in layer.named_parameters(recurse=False)]
            if own and not any(parameter in self.trained for parameter in own):
                self.freeze(layer, train_bn=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the statistics of frozen batch norms, which Lightning would let drift."""
        for layer in pl_module.network.modules():  # type: ignore[union-attr]
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Any) -> None:
        """Nothing is unfrozen later."""


class Classifier(L.LightningModule):
    """A pretrained network with a new head."""

    def __init__(self, spec: Spec, lr: float, classes: int) -> None:
        super().__init__()
        self.network = get_model(spec.model, weights=None)
        self.network.load_state_dict(torch.load(spec.weights, weights_only=True), strict=False)
        head = self.network.classifier[-1] if hasattr(self.network, "classifier") else self.network.fc
        new = new_head(head.in_features, classes)
        if hasattr(self.network, "classifier"):
            self.network.classifier = new  # without dropout, as in the other loops
        else:
            self.network.fc = new
        self.lr = lr
        self.loss, self.accuracy = MeanMetric(), MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Takes a batch into the metrics."""
        images, labels = batch
        scores = self.network(images)
        self.loss.update(nn.functional.cross_entropy(scores, labels), weight=len(labels))
        self.accuracy.update(scores, labels)
        self.log_dict({"val/loss": self.loss, "val/accuracy": self.accuracy}, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad], lr=self.lr, weight_decay=WEIGHT_DECAY
        )


def run(spec: Spec) -> Outcome:
    """Runs the trials one after another in this process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(spec.home)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = build_backbone(BackboneConfig(name=f"torchvision/{spec.model}", weights=None))
    stages = [[name for name, _ in stage.named_parameters()] for stage in backbone.stages]
    seconds = []
    began = time.time()

    def objective(trial: optuna.Trial) -> float:
        started = time.time()
        point = spec.points[trial.number]
        trained = {name for stage in stages[len(stages) - point.depth :] for name in stage}
        trained |= {"fc.weight", "classifier.weight"}
        transform = get_model_weights(spec.model)["IMAGENET1K_V1"].transforms()
        sets = [ImageFolder(Path(spec.data) / split, transform) for split in ("train", "val")]
        L.seed_everything(0, verbose=False)
        options: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": WORKERS > 0}
        train = DataLoader(sets[0], batch_size=spec.batch, sampler=Order(len(sets[0]), spec.batch), **options)
        val = DataLoader(sets[1], batch_size=64, **options)
        model = Classifier(spec, point.lr, len(sets[0].classes))
        logger = MLFlowLogger("benchmark", f"trial {trial.number}", tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        trainer = L.Trainer(
            max_epochs=spec.epochs,
            logger=logger,
            callbacks=[Frozen(trained)],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=10,
            default_root_dir=folder,
        )
        trainer.fit(model, train, val)
        seconds.append(time.time() - started)
        return float(trainer.callback_metrics["val/accuracy"])

    study = optuna.create_study(storage=f"sqlite:///{folder / 'optuna.db'}", direction="maximize")
    study.optimize(objective, n_trials=len(spec.points))
    return Outcome(time.time() - began, seconds, [float(trial.value or 0.0) for trial in study.trials], ["32-true"])


if __name__ == "__main__":
    main(run)
