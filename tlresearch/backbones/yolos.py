"""YOLOS of transformers in stages, and its own head for the user's classes, trained by DETR's matching loss.

Fang et al., "You Only Look at One Sequence: Rethinking Transformer in Vision through Object Detection" (NeurIPS 2021).
Tokens that look for objects run through a plain vision transformer beside the patches of the image; a box and its class
are read off each. Layers, heads, matching loss and decoding are those of transformers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from tlresearch.backbones.base import WeightsRecord
from tlresearch.backbones.pyramid import FeatureMap, PyramidBackbone
from tlresearch.backbones.text import FOLDER, Recipe
from tlresearch.backbones.transformers_stage import ModelStage
from tlresearch.backbones.weights import load_tensors
from tlresearch.modality.image import Preprocessing

YOLOS = "yolos"
"""`model_type` of its ``config.json``."""
LEAST = 0.05
"""Detections below this score are not given, as torchvision's detectors have it."""
_MIDDLE = "vit.encoder.interpolation"


def yolos_backbone(
    network: nn.Module,
    stages: Mapping[str, nn.Module],
    *,
    missing: set[str] | None,
    weights: WeightsRecord,
    place: str,
    revision: str | None,
) -> PyramidBackbone:
    """Makes the backbone of a loaded model; its head starts from the weights where shapes agree.

    Args:
        network: A `YolosForObjectDetection`.
        stages: What `cut_yolos` gave.
        missing: Names of the tensors that were not loaded; ``None`` where all of them are random.
        weights: Where the weights came from.
        place: Folder, or name on the hub, for the preprocessing.
        revision: Revision on the hub.
    """
    config: Any = network.config
    heads = ("class_labels_classifier.", "bbox_predictor.")
    state = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if missing is not None and name.startswith(heads) and name not in missing
    }
    last = FeatureMap("tokens", config.hidden_size, config.patch_size)
    return PyramidBackbone(
        stages,
        maps={len(stages) - 1: last},
        preprocessing=yolos_preprocessing(place, revision, config),
        weights=weights,
        native_head=partial(_native_head, config, state),
        spatial=False,
        save_files=partial(_save, config),
    )


def cut_yolos(network: nn.Module) -> dict[str, nn.Module]:
    """Cuts a `YolosForObjectDetection` without its heads into ``embeddings``, ``layer_0`` and so on.

    The positions that are added again between layers are one parameter: it belongs to the embeddings and trains with
    them. The norm behind the last layer belongs to that layer.
    """
    vit: Any = network.vit
    middle = [_MIDDLE] if vit.config.use_mid_position_embeddings else []
    stages: dict[str, nn.Module] = {"embeddings": Embeddings(network, "vit.embeddings", *middle)}
    for number in range(vit.config.num_hidden_layers):
        stages[f"layer_{number}"] = Layer(network, number)
    return stages


class Embeddings(ModelStage):
    """Patches of an image and the tokens that look for objects, with their positions."""

    def forward(self, images: Tensor) -> Tensor:
        """Turns images ``(batch, C, side, side)`` into hidden states ``(batch, 1 + patches + tokens, width)``."""
        hidden: Tensor = self.get_submodule("vit.embeddings")(images)
        return hidden


class Layer(ModelStage):
    """One layer, and what follows it: positions that are added again or, behind the last, the norm.

    Args:
        network: The whole model.
        number: Number of the layer.
    """

    def __init__(self, network: nn.Module, number: int) -> None:
        config: Any = network.config
        last = number == config.num_hidden_layers - 1
        super().__init__(network, f"vit.encoder.layer.{number}", *(["vit.layernorm"] if last else []))
        self._number, self._last = number, last
        middle = network.get_submodule(_MIDDLE) if config.use_mid_position_embeddings and not last else None
        object.__setattr__(self, "_middle", middle)  # past the registry: it is the embeddings'

    def forward(self, hidden: Tensor) -> Tensor:
        """Gives the next hidden states; the last layer those of the tokens alone, ``(batch, tokens, width)``."""
        tokens = self.config.num_detection_tokens
        hidden = self.get_submodule(f"vit.encoder.layer.{self._number}")(hidden)
        if self._last:
            ended: Tensor = self.get_submodule("vit.layernorm")(hidden)
            return ended[:, -tokens:]
        middle: Any = self._middle
        if middle is None:
            return hidden
        # Detection brings every image to a square.
        side = math.isqrt(hidden.shape[1] - 1 - tokens) * self.config.patch_size
        positions: Tensor = middle((side, side))[self._number]
        return hidden + positions

    def extra_repr(self) -> str:
        """See `ModelStage`."""
        return f"{super().extra_repr()}, layer {self._number}"


class YolosDetector(nn.Module):
    """The heads of YOLOS as a detector of torchvision's kind, which `DetectionHead` runs.

    Args:
        config: The model's settings.
        classes: Number of classes; in targets and detections they are numbered from 1.
    """

    def __init__(self, config: Any, classes: int) -> None:
        super().__init__()
        import transformers

        small = copy.deepcopy(config)
        small.num_labels = classes
        small.num_hidden_layers, small.use_mid_position_embeddings, small.auxiliary_loss = 1, False, False
        network = transformers.YolosForObjectDetection(small)  # for its heads, initialised as it does
        self.config = small
        self.class_labels_classifier = network.class_labels_classifier
        self.bbox_predictor = network.bbox_predictor
        self.backbone: nn.Module = nn.Identity()
        self._loss = network.loss_function
        self._decode = transformers.YolosImageProcessor().post_process_object_detection

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """Returns the loss by name where there are targets, else the detections of each image.

        Args:
            images: Of them nothing but the size is looked at; the tokens are what the backbone gives.
            targets: ``boxes`` ``(n, 4)`` in pixels, as corners, and ``labels`` of each image.
        """
        (tokens,) = self.backbone(images).values()
        logits, boxes = self.class_labels_classifier(tokens), self.bbox_predictor(tokens).sigmoid()
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        if targets is not None:
            given = [
                {"class_labels": target["labels"] - 1, "boxes": _shares(target["boxes"], size)}
                for target, size in zip(targets, sizes, strict=True)
            ]
            loss, _, _ = self._loss(logits, given, logits.device, boxes, self.config, None, None)
            return {"matched": loss}
        outputs = _Outputs(logits, boxes)
        found = []
        for one, size in zip(self._decode(outputs, threshold=LEAST, target_sizes=sizes), sizes, strict=True):
            order = one["scores"].argsort(descending=True, stable=True)
            corners = clip_boxes_to_image(one["boxes"], size)
            found.append({"boxes": corners[order], "scores": one["scores"][order], "labels": one["labels"][order] + 1})
        return found


class _Outputs:
    """What transformers decodes: class scores and boxes of every token."""

    def __init__(self, logits: Tensor, pred_boxes: Tensor) -> None:
        self.logits = logits
        self.pred_boxes = pred_boxes


def _shares(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners in pixels as centre, width and height in shares of the image."""
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1) / boxes.new_tensor([width, height, width, height])


def _native_head(config: Any, state: Mapping[str, Tensor], classes: int, *, masks: bool = False) -> nn.Module:
    """The heads for a number of classes; `masks` are none of theirs."""
    detector = YolosDetector(config, classes)
    # The last layer of the classes has another size; random weights, and those of another task, have no head.
    load_tensors(detector, state, "the head of YOLOS", required=(), other_shapes=detector.state_dict())
    return detector


def yolos_preprocessing(place: str, revision: str | None, config: Any) -> Preprocessing:
    """What images must look like: the shorter side the model was made for, mean and spread of its processor."""
    import transformers

    kind: Any = transformers.YolosImageProcessor
    try:
        processor = kind.from_pretrained(place, revision=revision)
    except (OSError, ValueError):  # a folder with nothing but config.json
        processor = kind()
    side = min(config.image_size)
    return Preprocessing(side, side, mean=tuple(processor.image_mean), std=tuple(processor.image_std))


def _save(config: Any, folder: Path) -> Recipe:
    config.save_pretrained(folder)
    return Recipe(name=f"hf/{FOLDER}", options={})
