"""What freezing callbacks of Lightning projects do: Lightning's, finetuning-scheduler's and ours, on one small module.

    python benchmarks/freezing.py

prints a Markdown table; a library that is not installed is left out. The numbers are those of issues of Lightning.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

UNFREEZE = 2  # epoch
EPOCHS = 5
STEPS = 7  # of an epoch
Weights = dict[str, Tensor]


class Photos(L.LightningModule):
    """A backbone with batch norm and dropout, and a head."""

    def __init__(self, *, every_parameter: bool, one_cycle: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Linear(64, 2)
        self.every_parameter = every_parameter
        self.one_cycle = one_cycle

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Logs what finetuning-scheduler watches."""
        self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Makes the optimizer as the callback's documentation asks for: over all parameters, or those that train."""
        weights = [weight for weight in self.parameters() if self.every_parameter or weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.01)
        if not self.one_cycle:
            return optimizer
        course = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS * EPOCHS)
        return [optimizer], [{"scheduler": course, "interval": "step"}]


def lightnings(folder: Path) -> list[L.Callback]:
    """Lightning's callback, with batch norm frozen as far as it can be."""
    return [BackboneFinetuning(UNFREEZE, train_bn=False), ModelCheckpoint(folder, save_last=True)]


def finetuning_scheduler(folder: Path) -> list[L.Callback]:
    """finetuning-scheduler with an explicit schedule of two phases."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

    folder.mkdir(exist_ok=True, parents=True)
    schedule = folder / "schedule.yaml"
    schedule.write_text(
        f"0:\n  params: [head.weight, head.bias]\n  max_transition_epoch: {UNFREEZE}\n"
        f"1:\n  params: ['backbone.*']\n  max_transition_epoch: {EPOCHS}\n"
    )
    return [
        FinetuningScheduler(ft_schedule=str(schedule), epoch_transitions_only=True),
        FTSCheckpoint(folder, save_last=True, monitor="val_loss"),
    ]


def tlresearchs(folder: Path) -> list[L.Callback]:
    """Ours."""
    from tlresearch import FreezeSchedule

    freeze = FreezeSchedule("lp_ft", probe_epochs=UNFREEZE, stages=["backbone"], head="head")
    return [freeze, ModelCheckpoint(folder, save_last=True)]


KINDS: Mapping[str, tuple[str, Callable[[Path], list[L.Callback]], bool]] = {
    "Lightning": ("lightning", lightnings, False),
    "finetuning-scheduler": ("finetuning_scheduler", finetuning_scheduler, True),
    "tlresearch": ("tlresearch", tlresearchs, True),
}
"""By name: the package, the callbacks, and whether the optimizer gets all parameters."""


class Watch(L.Callback):
    """What a training does: weights at each epoch's start, groups and modes at each step."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.weights: list[Weights] = []
        self.groups: list[int] = []
        self.dropout: list[bool] = []
        self.differences: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copies the weights."""
        self.weights.append({name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()})

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Looks at groups and modes."""
        if trainer.global_step == self.stop:
            raise KeyError("stop")
        self.groups.append(len(trainer.optimizers[0].param_groups))
        self.dropout.append(pl_module.backbone[3].training)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares the ranks."""
        if trainer.world_size > 1:
            worst = 0.0
            for tensor in pl_module.parameters():
                both = [torch.zeros_like(tensor) for _ in range(2)]
                torch.distributed.all_gather(both, tensor.detach())
                worst = max(worst, float((both[0] - both[1]).abs().max()))
            self.differences.append(worst)


def train(kind: str, folder: Path, *, stop: int | None = None, resume: bool = False, **options: Any) -> Watch:
    """Trains once, to the end or until it is stopped; one row of weights more is those of the end."""
    _, callbacks, every = KINDS[kind]
    watch = Watch(stop)
    module = Photos(every_parameter=every, one_cycle=options.pop("one_cycle", False))
    images = torch.rand(52, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(52) % 2)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=[*callbacks(folder), watch], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        **options,
    )  # fmt: skip
    torch.manual_seed(7)
    path = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 8), ckpt_path=path)
    except KeyError:
        if stop is None:
            raise
    watch.weights.append({name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
    return watch


def moved(before: Weights, after: Weights, part: str) -> int:
    """Number of tensors of a part that have changed."""
    return sum(not torch.equal(before[name], after[name]) for name in before if part in name)


def measure(kind: str, folder: Path) -> list[str]:
    """The answers for one library, in the order of `ROWS`."""
    whole = train(kind, folder / "whole")
    frozen = whole.weights[0], whole.weights[UNFREEZE]
    train(kind, folder / "stopped", stop=STEPS * (UNFREEZE + 2) + 2)
    resumed = train(kind, folder / "stopped", resume=True)
    again = moved(resumed.weights[0], resumed.weights[-1], "backbone.0")
    equal = not moved(whole.weights[-1], resumed.weights[-1], "")
    try:
        train(kind, folder / "cycle", one_cycle=True)
        cycle = "trained"
    except Exception as error:  # whatever it leads to is the answer
        cycle = type(error).__name__
    return [
        f"{moved(*frozen, 'backbone.1.weight') + moved(*frozen, 'backbone.1.bias')} of 2",
        f"{moved(*frozen, 'running')} of 2",
        "on" if any(whole.dropout[: STEPS * UNFREEZE]) else "off",
        f"{again} of 2",
        "yes" if equal else "no",
        f"{whole.groups[0]}, then {whole.groups[-1]}" if whole.groups[0] != whole.groups[-1] else f"{whole.groups[0]}",
        cycle,
        ranks(kind, folder / "ranks"),
    ]


ROWS = (
    "weights of frozen batch norm that learn (13902, 20629, 21531)",
    "running statistics of frozen batch norm that move (15062)",
    "dropout in the frozen backbone",
    "backbone weights that train after a resume behind the unfreezing (21901)",
    "resumed equals unbroken, bit for bit",
    "groups of the optimizer (17283)",
    "OneCycleLR of the module",
    "largest difference between two ranks (20340)",
)


def ranks(kind: str, folder: Path) -> str:
    """Trains on two ranks in processes of their own."""
    out = folder.with_suffix(".json")
    done = subprocess.run(
        [sys.executable, __file__, "--ranks", kind, str(folder), str(out)],
        capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ),
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip().splitlines()[-1].partition(":")[0]
    return f"{max(json.loads(out.read_text())):.3g}"


def main(arguments: Sequence[str]) -> int:
    """Prints the table."""
    warnings.simplefilter("ignore")
    for library in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if arguments[:1] == ["--ranks"]:
        watch = train(arguments[1], Path(arguments[2]), devices=2, strategy="ddp")
        if os.environ.get("LOCAL_RANK", "0") == "0":
            Path(arguments[3]).write_text(json.dumps(watch.differences))
        return 0
    installed = [kind for kind, (package, _, _) in KINDS.items() if importlib.util.find_spec(package)]
    answers = {}
    for kind in installed:
        with tempfile.TemporaryDirectory() as folder:
            answers[kind] = measure(kind, Path(folder))
    print("| | " + " | ".join(installed) + " |\n| --- |" + " --- |" * len(installed))
    for index, row in enumerate(ROWS):
        print(f"| {row} | " + " | ".join(answers[kind][index] for kind in installed) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
