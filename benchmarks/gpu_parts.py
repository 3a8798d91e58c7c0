"""The timed parts of `benchmarks.gpu`: each yields what it has measured as soon as it has.

    python -m benchmarks.gpu_parts PART FILE [--cpu]

appends each measurement to FILE as a line of JSON. Networks have random weights and data are made: times do not depend
on what is in them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loops import bare, compiled
from benchmarks.loops.watch import EpochWatch
from tlresearch import fit
from tlresearch.activations.inference import Inference
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import ActivationStore
from tlresearch.config.load import Loaded, load_text
from tlresearch.config.schema import ExperimentConfig
from tlresearch.finetuning.presets import build_schedule
from tlresearch.run.fit import Role
from tlresearch.studies.sweeps.run import run as run_sweep

HELD_OUT = 0.125
"""Share for validation: what is left fills its batches, since a smaller last one would be compiled anew."""


@dataclass(frozen=True)
class Measurement:
    """How long something took.

    Attributes:
        subject: What was computed.
        way: By which loop.
        bare: Whether that loop is what ours is held against.
        samples: Samples, or trials, of one pass.
        seconds: Seconds of each pass.
        busy: Share of a pass in which the GPU computed.
        warm_up: Seconds in front of the passes: set-up, timing, compiling, the first epoch.
        memory: Peak of the GPU's memory, in bytes.
        error: Why there are no seconds.
    """

    subject: str
    way: str
    bare: bool
    samples: int
    seconds: list[float]
    busy: float | None = None
    warm_up: float | None = None
    memory: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        networks: Backbones of the full fine-tuning, by name in the table.
        side: Side of an image, pixels.
        train: Training samples, and as many for the other parts.
        batch: Samples of a batch.
        epochs: Epochs: one warms up, one is profiled, the rest are timed.
        repeats: How often the loops take turns.
        depths: Unfreeze depths of the mixed sweep.
        rates: Learning rates at each depth.
        heads: Trials of the head-only sweeps.
        text: Options of DistilBERT's config.
        words: Longest text.
        boxes: Side of an image with boxes; `boxes_batch`: images of a batch; `boxes_width`: channels of the pyramid.
    """

    networks: Mapping[str, str]
    side: int
    train: int
    batch: int
    epochs: int
    repeats: int
    depths: int
    rates: int
    heads: tuple[int, ...]
    text: dict[str, int] = field(default_factory=dict)
    words: int = 128
    boxes: int = 512
    boxes_batch: int = 16
    boxes_width: int = 256


def size(*, gpu: bool) -> Size:
    """The size for a GPU, or one that a small CPU computes in seconds."""
    if not gpu:
        tiny = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        return Size({"small CNN": "small_cnn"}, 32, 16, 8, 3, 1, 1, 2, (3,), tiny, 12, 32, 4, 16)
    vit = "timm/vit_small_patch16_224" if _has_timm() else "torchvision/vit_b_16"
    networks = {"ResNet-50": "torchvision/resnet50", vit.partition("/")[2]: vit}
    return Size(networks, 224, 2048, 128, 5, 2, 4, 4, (100, 1000))


def _has_timm() -> bool:
    import importlib.util

    return importlib.util.find_spec("timm") is not None


class Place:
    """A folder with made data, an empty home, and the device."""

    def __init__(self, folder: Path, *, gpu: bool) -> None:
        self.folder = folder
        self.size = size(gpu=gpu)
        self.device = torch.device("cuda" if gpu else "cpu")

    def new_home(self) -> None:
        """From now on nothing is cached."""
        os.environ["TLRESEARCH_HOME"] = tempfile.mkdtemp(prefix="home-", dir=self.folder)

    def photos(self) -> Path:
        """Images as smooth as photos are, of 4 classes, as npz."""
        file = self.folder / "photos.npz"
        if not file.exists():
            arrays = {}
            for split, count in (("train", self.size.train), ("val", self.size.batch)):
                coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
                smooth = torch.nn.functional.interpolate(coarse, size=(self.size.side,) * 2, mode="bilinear")
                arrays[f"{split}_images"] = (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
                arrays[f"{split}_labels"] = np.arange(count) % 4
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return file

    def experiment(self, backbone: str, **sections: Any) -> Loaded[ExperimentConfig]:
        """An experiment over the photos; `sections` are added or replaced."""
        whole = {
            "data": {
                "name": "npz",
                "root": str(self.photos()),
                "batch_size": self.size.batch,
                "image_size": self.size.side,
                "resize": self.size.side,
            },
            "backbone": {"name": backbone, "weights": None},
            "freeze": {"schedule": "full", "epochs": self.size.epochs},
            "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01, "decay_norm_and_bias": True},
            "scheduler": {"name": "constant"},
            "trainer": {"precision": "bf16-mixed", "memory_format": "channels_last"},
            "tracking": {"figures": False, "model": False, "weights": False},
            **sections,
        }
        return load_text(json.dumps(whole))


def race(
    subject: str, loaded: Loaded[ExperimentConfig], place: Place, samples: int, *, compile_too: bool
) -> Iterator[Measurement]:
    """Epochs of an experiment by turns: our `fit` with and without deterministic algorithms, and bare loops."""

    def ours(watch: EpochWatch, **overrides: Any) -> None:
        place.new_home()
        fit(loaded, overrides, role=Role("ours", listener=watch))

    def bare_loop(watch: EpochWatch, *, compiled: bool) -> None:
        bare.train(loaded.config, place.device, watch, compiled=compiled)

    ways: dict[str, tuple[bool, Callable[[EpochWatch], None]]] = {
        "tlresearch": (False, ours),
        "tlresearch, deterministic: false": (False, lambda watch: ours(watch, **{"trainer.deterministic": False})),
        "bare PyTorch": (True, lambda watch: bare_loop(watch, compiled=False)),
    }
    if compile_too:
        ways["bare PyTorch, compiled"] = (True, lambda watch: bare_loop(watch, compiled=True))
    for _ in range(place.size.repeats):
        for way, (is_bare, loop) in ways.items():
            watch = EpochWatch(place.device)
            if place.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            error = ""
            try:
                loop(watch)
            except Exception as raised:  # the other loops go on
                traceback.print_exc()
                error = f"{type(raised).__name__}: {str(raised).splitlines()[0][:200]}"
            memory = torch.cuda.max_memory_allocated() if place.device.type == "cuda" else None
            taken = [] if error else watch.seconds
            yield Measurement(subject, way, is_bare, samples, taken, watch.busy, watch.warm_up, memory, error)


def full_finetune(place: Place) -> Iterator[Measurement]:
    """Epochs in which every weight is trained."""
    for name, backbone in place.size.networks.items():
        subject = f"{name}, {place.size.side} px"
        yield from race(subject, place.experiment(backbone), place, place.size.train, compile_too=True)


def sweep_seconds(place: Place, loaded: Loaded[ExperimentConfig], points: list[dict[str, Any]]) -> float:
    """Seconds of a sweep over given points, with the final run of the best one."""
    place.new_home()
    folder = Path(os.environ["TLRESEARCH_HOME"])
    (folder / "experiment.yaml").write_text(loaded.recorded)
    space = {"optimizer.lr": {"low": 1e-6, "high": 1.0, "log": True}}
    if "freeze.unfreeze_depth" in points[0]:
        space["freeze.unfreeze_depth"] = {"low": 0, "high": place.size.depths}
    sweep = {"experiment": str(folder / "experiment.yaml"), "space": space, "enqueue": points}
    sweep |= {"sampler": {"name": "random"}, "trials": len(points)}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    began = time.perf_counter()
    run_sweep(folder / "sweep.yaml")
    return time.perf_counter() - began


def mixed_sweep(place: Place) -> Iterator[Measurement]:
    """Depths times rates: ours, and single trials of the compiled Lightning loop, as if all took as long."""
    name, backbone = next(iter(place.size.networks.items()))
    loaded = place.experiment(backbone, freeze={"schedule": "depth", "unfreeze_depth": 0, "epochs": place.size.epochs})
    depths, rates = range(place.size.depths + 1), [1e-4 * 2**n for n in range(place.size.rates)]
    points = [{"freeze.unfreeze_depth": depth, "optimizer.lr": rate} for depth in depths for rate in rates]
    subject = f"{name}, depths 0 to {place.size.depths} x {len(rates)} rates, {place.size.epochs} epochs"
    yield Measurement(subject, "tlresearch sweep", False, len(points), [sweep_seconds(place, loaded, points)])
    for depth in sorted({0, place.size.depths // 2, place.size.depths}):
        single = compiled.trial(loaded.config, place.device, depth=depth)
        way = f"compiled Lightning loop (a trial of depth {depth}, scaled)"
        yield Measurement(subject, way, True, len(points), [single * len(points)])


def head_only(place: Place) -> Iterator[Measurement]:
    """Heads on one frozen backbone: ours, and one trial of the compiled Lightning loop, its time scaled."""
    name, backbone = next(iter(place.size.networks.items()))
    loaded = place.experiment(backbone, freeze={"schedule": "linear_probe", "epochs": place.size.epochs})
    single = compiled.trial(loaded.config, place.device, depth=0)
    for heads in place.size.heads:
        subject = f"{heads} heads on {name}, {place.size.epochs} epochs"
        points = [{"optimizer.lr": 1e-4 * 1.005**n} for n in range(heads)]
        yield Measurement(subject, "compiled Lightning loop (one trial, scaled)", True, heads, [single * heads])
        yield Measurement(subject, "tlresearch sweep", False, heads, [sweep_seconds(place, loaded, points)])


def frozen_pass(place: Place) -> Iterator[Measurement]:
    """The frozen backbone once over the images: ours with what it stores, and bare inference."""
    name, backbone = next(iter(place.size.networks.items()))
    loaded = place.experiment(backbone, freeze={"schedule": "linear_probe", "epochs": 1})
    config, subject = loaded.config, f"{name}, frozen"
    how = Inference(config.trainer.precision, config.trainer.memory_format)

    def ours() -> float:
        task, data = bare.build(config)
        task.to(place.device)
        store = ActivationStore(Path(tempfile.mkdtemp(dir=place.folder)), 10**11)
        prefix = FrozenPrefix(data, task.backbone, store, batch_size=config.data.eval_batch_size, how=how)
        schedule = build_schedule(config, task.backbone.stage_names)
        began = time.perf_counter()
        prefix.enter(schedule.phases[0])
        return time.perf_counter() - began

    passes = {way: bare.frozen_pass(config, place.device, compiled=way) for way in (False, True)}
    for run in passes.values():
        run()  # compiles
    for _ in range(place.size.repeats + 1):
        yield Measurement(subject, "tlresearch, validation and storing included", False, place.size.train, [ours()])
        for way, run in passes.items():
            began = time.perf_counter()
            run()
            seconds = [time.perf_counter() - began]
            yield Measurement(subject, f"bare PyTorch{', compiled' * way}", True, place.size.train, seconds)


def text(place: Place) -> Iterator[Measurement]:
    """Every weight of DistilBERT, on texts of made words."""
    from transformers import DistilBertConfig

    from tests.backbones.text_models import WORDS, save_tokenizer

    draw = random.Random(0)
    DistilBertConfig(**place.size.text).save_pretrained(place.folder / "distilbert")
    save_tokenizer(place.folder / "distilbert")
    file = place.folder / "texts.tsv"
    lines = [" ".join(draw.choices(WORDS[2:], k=place.size.words)) for _ in range(place.size.train)]
    file.write_text("\n".join(f"{line}\t{'ab'[n % 2]}" for n, line in enumerate(lines)))
    columns = {"text_column": "0", "label_column": "1", "max_length": place.size.words}
    loaded = place.experiment(
        f"hf/{place.folder / 'distilbert'}",
        data={
            "name": "text_table",
            "root": str(file),
            "batch_size": place.size.batch,
            "val_fraction": HELD_OUT,
            **columns,
        },
        trainer={"precision": "bf16-mixed", "memory_format": "contiguous"},
    )
    subject = f"DistilBERT, {place.size.words} tokens"
    yield from race(subject, loaded, place, round((1 - HELD_OUT) * place.size.train), compile_too=True)


def boxes(place: Place) -> Iterator[Measurement]:
    """Every weight of Faster R-CNN."""
    from tests.dense import save_boxes

    count = place.size.train // 8 if place.device.type == "cuda" else place.size.train
    root = save_boxes(place.folder / "boxes", count=count, side=place.size.boxes)
    name, backbone = next(iter(place.size.networks.items()))
    data = {"name": "voc", "root": str(root), "batch_size": place.size.boxes_batch, "image_size": place.size.boxes}
    loaded = place.experiment(
        backbone,
        data={**data, "val_fraction": HELD_OUT},
        task={"name": "detection", "options": {"detector": "faster_rcnn", "width": place.size.boxes_width}},
        trainer={
            "precision": "bf16-mixed",
            "memory_format": "channels_last",
            "monitor": "val/loss",
            "mode": "min",
        },
    )
    subject = f"Faster R-CNN, {name}, {place.size.boxes} px"
    yield from race(subject, loaded, place, round((1 - HELD_OUT) * count), compile_too=False)


PARTS: Mapping[str, Callable[[Place], Iterator[Measurement]]] = {
    "full-finetune": full_finetune,
    "mixed-sweep": mixed_sweep,
    "head-only": head_only,
    "frozen-pass": frozen_pass,
    "text": text,
    "boxes": boxes,
}


def main() -> None:
    """Runs one part in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    gpu = torch.cuda.is_available() and not options.cpu
    folder = Path(tempfile.mkdtemp(prefix="tlresearch-gpu-"))
    try:
        with options.file.open("a") as out:
            for measured in PARTS[options.part](Place(folder, gpu=gpu)):
                out.write(json.dumps(asdict(measured)) + "\n")
                out.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
