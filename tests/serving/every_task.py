"""An untrained network of every task with its data, and its logged model: what a served model reads and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.backbones.speech_models import save_speech
from tests.backbones.text_models import save_model
from tests.data.sounds import save_classes
from tests.dense import boxes_text, masks_text, save_boxes, save_masks
from tests.toy import toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import load_text
from tlresearch.config.schema import ExperimentConfig, TrackingConfig
from tlresearch.data.base import Data
from tlresearch.data.build import build_data
from tlresearch.finetuning.presets import build_schedule
from tlresearch.run.results import _log_predictor
from tlresearch.serving.stored import load_predictor, save_predictor
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, needed_end
from tlresearch.tracking.run import open_run


@dataclass(frozen=True)
class Made:
    """Config, data and an untrained task."""

    config: ExperimentConfig
    data: Data
    task: Task

    def predictor(self, folder: Path) -> Any:
        """Stores the network and rebuilds it."""
        folder.mkdir()
        save_predictor(folder, self.config, self.task, self.data)
        return load_predictor(folder)

    def log(self, name: str) -> str:
        """Logs the model in a run of this name, and returns the run's id."""
        with open_run(TrackingConfig(system_metrics=False), experiment="e", name=name, params={}, tags={}) as run:
            _log_predictor(run, self.config, self.task, self.data, 0)
        return run.run_id


def make(text: str) -> Made:
    """Builds what an experiment names."""
    config = load_text(text).config
    backbone = build_backbone(config.backbone, needed_end(config.task))
    data = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
    return Made(config, data, build_task(config, backbone, data, build_schedule(config, backbone.stage_names)).eval())


def text(folder: Path) -> str:
    """Classes of texts over a tiny BERT."""
    save_model(folder / "bert", "bert", weights=True)
    rows = [f"a {word} film {'very ' * n}\t{word}" for n in range(8) for word in ("good", "bad")]
    (folder / "texts.tsv").write_text("\n".join(rows))
    data = f"{{name: text_table, root: {folder}/texts.tsv, text_column: '0', label_column: '1', test_fraction: 0.2}}"
    return toy_text(data=data, backbone=f"{{name: 'hf/{folder}/bert', options: {{pooling: mean}}}}")


def numbers(folder: Path) -> str:
    """A number of small images, with its interval, from arrays."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        images = generator.integers(0, 256, (count, 16, 16), dtype=np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": 1000 + images.mean(axis=(1, 2))}
    np.savez(folder / "numbers.npz", **arrays)
    return toy_text(
        data=f"{{name: npz, root: {folder}/numbers.npz, targets: [level], batch_size: 8}}",
        task="{name: regression, options: {loss: quantile}}",
    )


def pairs(folder: Path, how: str) -> str:
    """Pairs of texts over a tiny BERT: a class of those that are read together, else a number."""
    save_model(folder / "bert", "bert", weights=True)
    texts = ("a good film", "the film not bad", "paris", "anna went to paris")
    rows = [f"{a}\t{b}\t{float(a == b)}\t{a == b}" for a in texts for b in texts for _ in range(2)]
    (folder / "pairs.tsv").write_text("\n".join(rows))
    learnt = "label_column: '3'" if how == "joint" else "targets: ['2']"
    return toy_text(
        data=f"{{name: text_table, root: {folder}/pairs.tsv, text_columns: ['0', '1'], {learnt}, test_fraction: 0.2, "
        "batch_size: 8}",
        backbone=f"{{name: 'hf/{folder}/bert', pairs: {how}, options: {{pooling: mean}}}}",
        task="{name: classification}" if how == "joint" else "{name: regression}",
    )


def tokens(folder: Path) -> str:
    """Named entities over a tiny BERT."""
    save_model(folder / "bert", "bert", weights=True)
    sentence = "{0}\tB-per\nwent\tO\nto\tO\nparis\tB-loc\n\nthe\tO\nfilm\tO\nin\tO\nparis\tB-loc\n"
    (folder / "tags.conll").write_text("\n".join(sentence.format(name) for name in ("anna", "annas") * 8))
    return toy_text(
        data=f"{{name: conll, root: {folder}/tags.conll, test_fraction: 0.3, max_length: 12}}",
        backbone=f"{{name: 'hf/{folder}/bert'}}",
        task="{name: tokens}",
        trainer="{monitor: val/f1}",
    )


def sounds(folder: Path, transcripts: bool = False) -> str:
    """Classes of sounds, or what is said in them, over a tiny wav2vec 2.0."""
    save_speech(folder / "model", "wav2vec2")
    save_classes(folder / "tones", count=4)
    said = ", options: {transcripts: {low: 'bo o', high: tee}}" if transcripts else ""
    return toy_text(
        data=f"{{name: audio_folder, root: '{folder}/tones'{said}, batch_size: 4}}",
        backbone=f"{{name: 'hf/{folder}/model', options: {{layerdrop: 0.3}}}}",
        task="{name: speech_recognition}" if transcripts else "{name: classification}",
        trainer="{monitor: val/loss, mode: min}",
    )


def masks(folder: Path) -> str:
    """Masks of squares and discs."""
    return masks_text(save_masks(folder / "masks", count=8))


def boxes(folder: Path) -> str:
    """Boxes of squares and discs."""
    root = save_boxes(folder / "boxes", count=8)
    return boxes_text(root, task="{name: detection, options: {detector: ssd}}")


EVERY: dict[str, Callable[[Path], str]] = {
    "text": text,
    "numbers": numbers,
    "joint pairs": lambda folder: pairs(folder, "joint"),
    "separate pairs": lambda folder: pairs(folder, "concat"),
    "tokens": tokens,
    "sounds": sounds,
    "recognition": lambda folder: sounds(folder, transcripts=True),
    "masks": masks,
    "boxes": boxes,
}
