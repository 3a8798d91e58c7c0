"""Recorded runs to repeat and to verify: tiny images in a folder, weights in a file, a run and a pruned trial."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tlresearch.backbones.small_cnn import build_small_cnn
from tlresearch.config.load import load_text
from tlresearch.finetuning.callback import EpochReport, RunPrunedError
from tlresearch.run.fit import Role, fit
from tlresearch.tracking.store import connect

SPLITS = {"train": 8, "val": 4, "test": 4}  # images per class
CONFIG = """
name: base
data: {{name: image_folder, root: {folder}/images, batch_size: 8}}
backbone: {{name: small_cnn, weights: {folder}/weights.safetensors, options: {{in_channels: 1, width: 4}}}}
freeze: {{schedule: full, epochs: 3}}
optimizer: {{name: sgd, lr: 0.05}}
trainer: {{precision: 32-true, memory_format: contiguous}}
cache: {{memory_format: contiguous}}
tracking: {{figures: false, system_metrics: false}}
"""


@dataclass(frozen=True)
class Recorded:
    """A home with runs in it.

    Attributes:
        folder: Holds ``home``, ``images`` and ``weights.safetensors``.
        run: A finished run with a model.
        trial: A pruned trial of a sweep.
    """

    folder: Path
    run: str
    trial: str

    @property
    def image(self) -> Path:
        """One of the training images."""
        return self.folder / "images/train/dark/3.png"

    @property
    def weights(self) -> Path:
        """The weights the runs started from."""
        return self.folder / "weights.safetensors"

    def artifact(self, path: str, run: str = "") -> Path:
        """Where an artifact of a run lies."""
        uri = connect().client.get_run(run or self.run).info.artifact_uri
        return Path(uri.removeprefix("file://")) / path

    def text(self) -> str:
        """The experiment as YAML."""
        return CONFIG.format(folder=self.folder)


def record(folder: Path, database: Path) -> Recorded:
    """Makes data and weights and records the runs; `TLRESEARCH_HOME` must be ``folder/home``."""
    (folder / "home").mkdir()
    shutil.copy(database, folder / "home" / "mlflow.db")
    draw = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for level, name in ((0, "dark"), (90, "light")):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(level, level + 160, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    torch.manual_seed(0)
    save_file(dict(small_cnn().original_state_dict()), folder / "weights.safetensors")
    recorded = Recorded(folder, "", "")
    loaded = load_text(recorded.text())

    def prune(report: EpochReport) -> None:
        if report.epoch == 1:
            raise RunPrunedError("in a test")

    tags = {"tlresearch.study": "s", "tlresearch.trial": "0"}
    quick = {"tracking.model": False, "tracking.weights": False, "freeze.epochs": 4}
    trial = fit(loaded, quick, role=Role("00 lr", tags=tags, listener=prune))
    return Recorded(folder, fit(loaded).run_id, trial.run_id)


def small_cnn() -> Any:
    """The backbone with random weights."""
    return build_small_cnn("small_cnn", weights=None, options={"in_channels": 1, "width": 4})


def scale(file: Path, factor: float) -> None:
    """Changes every weight of a file; statistics of norm layers stay, so that nothing becomes NaN."""
    changed = {
        name: tensor if "running" in name or "num_batches" in name else tensor * factor
        for name, tensor in load_file(file).items()
    }
    save_file(changed, file)
