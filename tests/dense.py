"""Small data sets of shapes: images with masks, and images with boxes in Pascal VOC's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TRAINER = "{precision: 32-true, memory_format: contiguous, checkpoint_seconds: 0, monitor: val/loss, mode: min}"


def shapes(seed: int, side: int = 32) -> tuple[np.ndarray, np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """An image of a bright square and a dark disc on noise, its mask (0, 1, 2), and their boxes."""
    generator = np.random.default_rng(seed)
    image = generator.integers(90, 150, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    size = int(generator.integers(8, 13))
    x, y = (int(v) for v in generator.integers(1, side // 2 - 2, 2))
    mask[y : y + size, x : x + size] = 1
    cx, cy = (int(v) for v in generator.integers(side - 10, side - 6, 2))
    rows, columns = np.mgrid[:side, :side]
    mask[(rows - cy) ** 2 + (columns - cx) ** 2 <= 25] = 2
    image[mask == 1] = 230
    image[mask == 2] = 20
    found = []
    for number, name in ((1, "square"), (2, "disc")):
        ys, xs = np.nonzero(mask == number)
        found.append((name, (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)))
    return image, mask, found


def save_masks(root: Path, count: int = 12, *, images: str = "images", masks: str = "masks", ending: str = "") -> Path:
    """Writes a folder of images, and one of masks whose names have an ending."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, mask, _ = shapes(seed)
        Image.fromarray(image).save(root / f"{images}/{seed}.png")
        Image.fromarray(mask).save(root / f"{masks}/{seed}{ending}.png")
    return root


def save_boxes(root: Path, count: int = 12, side: int = 32) -> Path:
    """Writes ``JPEGImages`` and ``Annotations``."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, _, found = shapes(seed, side)
        Image.fromarray(image).save(root / f"JPEGImages/{seed}.png")
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, (x0, y0, x1, y1) in found
        )
        (root / f"Annotations/{seed}.xml").write_text(f"<annotation>{objects}</annotation>")
    return root


def save_instances(root: Path) -> Path:
    """Writes ``PNGImages`` and ``PedMasks`` with two objects each, as of Penn-Fudan."""
    return save_masks(root, images="PNGImages", masks="PedMasks", ending="_mask")


def masks_text(root: Path, augment: str = "none", **sections: str) -> str:
    """A segmentation experiment over such masks, as YAML text; `sections` are added or replaced."""
    return _text(
        {
            "data": f"{{name: masks, root: {root}, test_fraction: 0.2, batch_size: 4, augment: {augment}, "
            "options: {classes: [back, square, disc]}}",
            "task": "{name: segmentation, options: {width: 8}}",
            **sections,
        }
    )


def boxes_text(root: Path, **sections: str) -> str:
    """A detection experiment over such boxes, as YAML text; `sections` are added or replaced."""
    return _text(
        {
            "data": f"{{name: voc, root: {root}, test_fraction: 0.2, batch_size: 4}}",
            "task": "{name: detection, options: {detector: fcos, width: 32}}",
            **sections,
        }
    )


def instances_text(root: Path, **sections: str) -> str:
    """An experiment over objects with their masks, as YAML text; `sections` are added or replaced."""
    return _text(
        {
            "data": f"{{name: instance_masks, root: {root}, options: {{targets: masks}}, "
            "test_fraction: 0.2, batch_size: 4}",
            "task": "{name: instances, options: {width: 8, anchor_scale: 0.25}}",
            **sections,
        }
    )


def _text(sections: dict[str, str]) -> str:
    base = {
        "backbone": "{name: small_cnn, weights: null, options: {width: 4}}",
        "freeze": "{schedule: full, epochs: 2}",
        "optimizer": "{name: adamw, lr: 0.01}",
        "trainer": TRAINER,
        "tracking": "{figures: false, model: false, system_metrics: false}",
    }
    return "\n".join(f"{key}: {value}" for key, value in {**base, **sections}.items())
