"""Detectors of transformers that find objects by tokens or queries, such as DETR and YOLOS, by one mechanism.

The network without its heads is cut like any other. Its heads are the task's head: the network's own forward runs with
what the stages gave in the place of what it would compute, and with the targets, so that heads, matching loss and
decoding are those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from tlresearch.backbones.parts import CutError
from tlresearch.backbones.pyramid import FeatureMap, PyramidBackbone
from tlresearch.backbones.stages import Division
from tlresearch.backbones.weights import load_tensors
from tlresearch.base.errors import UserError
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.values import Value

LEAST = 0.05
"""Detections below this score are not given, as torchvision's detectors have it."""
HEADS = {"class_labels_classifier", "bbox_predictor"}
"""Scores and boxes of each token or query."""
SIDE = 96
"""Largest side of the images that a detector is cut with: most take any size."""


def detector_class(config: Any) -> Any:
    """The class of a model that finds objects; ``None`` if this model finds none."""
    import transformers

    return transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING.get(type(config), None)


def split(network: Any) -> tuple[str, list[str]]:
    """Path of the part in front of the heads, and the names of the heads.

    Raises:
        UserError: If it has other heads, or layers read them to make their boxes better.
    """
    base = str(network.base_model_prefix)
    heads = [name for name, _ in network.named_children() if name != base]
    inside = {id(module) for module in network.get_submodule(base).modules()}
    shared = [layer for name in heads for layer in network.get_submodule(name).modules() if id(layer) in inside]
    if shared or set(heads) != HEADS:
        raise UserError(
            f"backbone.name: {type(network).__name__} reads its heads in front of its end too, or has others than "
            "scores and boxes; take YOLOS or DETR, or a detector over an image backbone"
        )
    return base, heads


@dataclass(frozen=True)
class TokenReader:
    """Runs a detector without its heads.

    Attributes:
        part: Path of the part in front of the heads.
        names: What the heads read of its output; ``None`` for all of it.
        last: Number of the tokens that look for objects, where they lie behind others; 0 for all tokens.
        version: What else the results depend on; stored activations are kept apart by it.
    """

    part: str
    names: tuple[str, ...] | None
    last: int
    version: str = ""

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns tensors by name, each with the samples first."""
        output = network.get_submodule(self.part)(value)
        made = {
            name: leaf
            for name, leaf in output.items()
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1 and len(leaf) == len(value)
            if self.names is None or name in self.names
        }
        if self.names is not None and set(made) != set(self.names):
            raise CutError(f"its heads read {self.names}, of which {tuple(made)} belong to samples")
        return {name: leaf[:, -self.last :] if name == "last_hidden_state" else leaf for name, leaf in made.items()}


class _Made(dict[str, Any]):
    """What the part in front of the heads would return: attributes that are not there are ``None``."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class _Given(nn.Module):
    """Stands in for the part in front of the heads."""

    made: Mapping[str, Tensor] | None = None

    def forward(self, *_: Any, **__: Any) -> _Made:
        return _Made(self.made or {})


def names_read(network: Any, reader: TokenReader, images: Tensor) -> tuple[str, ...]:
    """Names of the outputs that scores and boxes depend on.

    Raises:
        UserError: If the heads read something else, such as points in another order.
    """
    with torch.no_grad():
        made = reader(network, images)
    assert isinstance(made, dict)
    tracked = {name: leaf.detach().requires_grad_() for name, leaf in made.items()}
    base = network.get_submodule(reader.part)
    setattr(network, reader.part, _Given())
    try:
        network.get_submodule(reader.part).made = tracked
        output = network(images)
        total = output.logits.sum() + output.pred_boxes.sum()
        gradients = torch.autograd.grad(total, list(tracked.values()), allow_unused=True)
    except (AttributeError, TypeError) as error:  # of what is missing
        raise UserError(
            f"backbone.name: the heads of {type(network).__name__} read more than tensors with the samples first; take "
            "YOLOS or DETR, or a detector over an image backbone"
        ) from error
    finally:
        setattr(network, reader.part, base)
    return tuple(name for name, gradient in zip(tracked, gradients, strict=True) if gradient is not None)


class DetectorBackbone(PyramidBackbone):
    """A detector without its heads: what comes out is no map, and read by its own heads alone."""

    def __init__(self, division: Division, **arguments: Any) -> None:
        made = division.result
        assert isinstance(made, dict)
        width = next(iter(made.values())).shape[-1]
        last = {len(division.stages) - 1: FeatureMap("tokens", int(width), 1)}
        super().__init__(division.stages, maps=last, spatial=False, **arguments)
        self.way, self.reasons = division.way, division.reasons

    def step(self, number: int, stage: nn.Module, x: Value) -> Any:
        """Runs one stage; what crosses is the network's."""
        return stage(x)


class QueryDetector(nn.Module):
    """The heads of a network as a detector of torchvision's kind, which `DetectionHead` runs.

    Args:
        kind: The network's class.
        config: Its settings.
        classes: Number of classes; in targets and detections they are numbered from 1.
    """

    _network: Any
    _base: str
    _heads: list[str]

    def __init__(self, kind: Any, config: Any, classes: int) -> None:
        super().__init__()
        settings = type(config).from_dict({**config.to_dict(), "auxiliary_loss": False})
        settings.num_labels = classes
        with torch.device("meta"):
            network = kind(settings)
        base, heads = split(network)
        setattr(network, base, nn.Identity())
        for name in heads:
            head = network.get_submodule(name)
            head.to_empty(device="cpu")
            head.apply(network._init_weights)
            self.add_module(name, head)
        self.backbone: nn.Module = nn.Identity()
        # Past the registry: its heads are this module's already.
        self.__dict__.update(_network=network, _base=base, _heads=heads)
        self._decode = _processor(config).post_process_object_detection

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """Returns the loss by name where there are targets, else the detections of each image.

        Args:
            images: Of them nothing but the size is looked at; the tokens are what the backbone gives.
            targets: ``boxes`` ``(n, 4)`` in pixels, as corners, and ``labels`` of each image.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        made = self.backbone(images)
        network: Any = self._network
        for name in self._heads:  # a copy of this module has heads of its own
            setattr(network, name, self.get_submodule(name))
        given = _Given()
        given.made = made
        setattr(network, self._base, given)
        labels = None
        if targets is not None:
            labels = [
                {"class_labels": target["labels"] - 1, "boxes": _shares(target["boxes"], size)}
                for target, size in zip(targets, sizes, strict=True)
            ]
        try:
            output = network(next(iter(made.values())).new_empty(len(images), 0), labels=labels)
        finally:
            setattr(network, self._base, nn.Identity())
        if labels is not None:
            return {"matched": output.loss}
        detections = []
        for each, size in zip(self._decode(output, threshold=LEAST, target_sizes=sizes), sizes, strict=True):
            order = each["scores"].argsort(descending=True, stable=True)
            corners = clip_boxes_to_image(each["boxes"], size)
            detections.append(
                {"boxes": corners[order], "scores": each["scores"][order], "labels": each["labels"][order] + 1}
            )
        return detections


def _shares(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners in pixels as centre, width and height in shares of the image."""
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1) / boxes.new_tensor([width, height, width, height])


def native_head(kind: Any, config: Any, state: Mapping[str, Tensor], classes: int, *, masks: bool = False) -> nn.Module:
    """The heads for a number of classes, from the weights where shapes agree; `masks` are none of theirs."""
    detector = QueryDetector(kind, config, classes)
    # The last layer of the classes has another size; random weights, and those of another task, have no head.
    load_tensors(detector, state, f"the heads of {kind.__name__}", required=(), other_shapes=detector.state_dict())
    return detector


def _processor(config: Any, place: str | None = None, revision: str | None = None) -> Any:
    import transformers

    kinds: Any = transformers.IMAGE_PROCESSOR_MAPPING[type(config)]
    kind = kinds["torchvision"]
    try:
        return kind.from_pretrained(place, revision=revision) if place is not None else kind()
    except (OSError, ValueError):  # a folder with nothing but config.json
        return kind()


def detector_preprocessing(place: str, revision: str | None, config: Any) -> Preprocessing:
    """What images must look like: the shorter side the model was made for, mean and spread of its processor."""
    processor = _processor(config, place, revision)
    sides = getattr(config, "image_size", None) or [processor.size["shortest_edge"]]
    side = min([sides] if isinstance(sides, int) else sides)
    return Preprocessing(side, side, mean=tuple(processor.image_mean), std=tuple(processor.image_std))


def head_state(network: nn.Module, heads: list[str], missing: frozenset[str] | None) -> dict[str, Tensor]:
    """Weights of the heads that were loaded; ``missing`` is ``None`` where all of them are random."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if missing is not None and name.partition(".")[0] in heads and name not in missing
    }
