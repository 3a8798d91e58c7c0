"""The least a sweep can cost in bare PyTorch: images decoded once, frozen stages run once, nothing recorded."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.models import get_model_weights
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.loops.same import WEIGHT_DECAY, Order, new_head
from benchmarks.loops.spec import Outcome, Point, Spec, main
from tlresearch.backbones.build import build_backbone
from tlresearch.config.schema import BackboneConfig


def run(spec: Spec) -> Outcome:
    """Runs the trials."""
    precision = spec.precision[0]
    memory_format = torch.channels_last if spec.precision[1] == "channels_last" else torch.contiguous_format
    backbone = build_backbone(BackboneConfig(name=f"torchvision/{spec.model}", weights=spec.weights))
    transform = get_model_weights(spec.model)["IMAGENET1K_V1"].transforms()

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()

    def arranged(batch: Tensor) -> Tensor:
        return batch.contiguous(memory_format=memory_format) if batch.ndim == 4 else batch

    began = time.time()
    data = {split: _decoded(Path(spec.data) / split, transform) for split in ("train", "val")}
    stages = nn.ModuleList(copy.deepcopy(stage).to(memory_format=memory_format) for stage in backbone.stages)
    prefixes: dict[int, dict[str, Tensor]] = {}

    def at(boundary: int) -> dict[str, Tensor]:
        """Activations at a boundary, from the nearest one in front of it."""
        if boundary not in prefixes:
            start = max([known for known in prefixes if known < boundary], default=0)
            source = prefixes.get(start) or {split: images for split, (images, _) in data.items()}
            prefix = nn.Sequential(*stages[start:boundary]).eval()
            with torch.inference_mode(), autocast():
                prefixes[boundary] = {
                    split: torch.cat([prefix(arranged(part)).float() for part in whole.split(64)])
                    for split, whole in source.items()
                }
            prefixes[boundary] = {split: whole.clone() for split, whole in prefixes[boundary].items()}
        return prefixes[boundary]

    def trial(point: Point) -> float:
        boundary = len(stages) - point.depth
        inputs = at(boundary)
        suffix = copy.deepcopy(nn.Sequential(*stages[boundary:]))
        network = nn.Sequential(suffix, new_head(backbone.out_features, int(data["train"][1].max()) + 1))
        optimizer = torch.optim.AdamW(network.parameters(), lr=point.lr, weight_decay=WEIGHT_DECAY, fused=True)
        targets, wanted = data["train"][1], data["val"][1]
        order = Order(len(targets), spec.batch)
        accuracy = 0.0
        for epoch in range(spec.epochs):
            network.train()
            order.set_epoch(epoch)
            for indices in torch.tensor(list(order)).split(spec.batch):
                optimizer.zero_grad()
                with autocast():
                    scores = network(arranged(inputs["train"][indices]))
                    loss = nn.functional.cross_entropy(scores, targets[indices])
                loss.backward()
                optimizer.step()
            network.eval()
            with torch.inference_mode(), autocast():
                scores = torch.cat([network(arranged(part)) for part in inputs["val"].split(64)])
            accuracy = float((scores.argmax(1) == wanted).float().mean())
        return accuracy

    seconds, accuracies = [], []
    for point in spec.points:
        started = time.time()
        accuracies.append(trial(point))
        seconds.append(time.time() - started)
    return Outcome(time.time() - began, seconds, accuracies, spec.precision)


def _decoded(folder: Path, transform: Any) -> tuple[Tensor, Tensor]:
    files = ImageFolder(folder)

    def load(path: str) -> Tensor:
        image: Tensor = transform(pil_to_tensor(Image.open(path).convert("RGB")))
        return image

    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(load, [path for path, _ in files.samples]))
    return torch.stack(images), torch.tensor(files.targets)


if __name__ == "__main__":
    main(run)
