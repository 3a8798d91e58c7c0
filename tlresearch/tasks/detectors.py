"""Detection heads: torchvision's detectors without their backbone, over feature maps of any image backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.ssd import SSD
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from tlresearch.backbones.pyramid import FeatureMap
from tlresearch.data.plane import CROWD
from tlresearch.tasks.sparing import sparing

SURE = 0.5
"""Probability above which a pixel belongs to its object."""

Maps = dict[str, Tensor]
Detections = list[dict[str, Tensor]]
"""For each image: boxes ``(n, 4)``, their scores ``(n,)`` and class numbers ``labels`` ``(n,)``, surest first."""


Head = TypeVar("Head", bound="DetectionHead")


class _Given(nn.Module):
    """Stands where a detector has its backbone: gives the maps that are there already."""

    def __init__(self, out_channels: int | list[int] = 0) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.maps: Maps = {}

    def forward(self, _: Tensor) -> Maps:
        return self.maps


class _AsTheyAre(nn.Module):
    """Stands where a detector resizes and normalises: images are batched, framed and normalised already."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(self, detections: Detections, *_: Any) -> Detections:
        return detections


class DetectionHead(nn.Module):
    """A neck and a detector of torchvision.

    Args:
        neck: From the backbone's maps to those the detector looks at.
        detector: A detector of torchvision; its backbone and transform are put out of action.
        side: Side of the input in pixels.
    """

    def __init__(self, neck: nn.Module, detector: nn.Module, side: int) -> None:
        super().__init__()
        self.neck = neck
        self.detector = detector
        self.detector.backbone = _Given()
        self.detector.transform = _AsTheyAre()
        self.side = side

    def forward(self, maps: Maps) -> Maps:
        """Returns the maps that the detector looks at; losses and detections are made from them."""
        found: Maps = self.neck(maps)
        return found

    def losses(self, maps: Maps, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns the detector's losses by name.

        Args:
            maps: What `forward` returned.
            targets: For each image boxes with the class number last, ``(n, 5)``, see `BoxTargets`.
        """
        every = [self.as_given(target) for target in targets]
        learnt = []
        for leaves in every:
            real = leaves["marks"] == 0
            learnt.append({name: leaf[real] for name, leaf in leaves.items() if name != "marks"})
            learnt[-1]["labels"] += self._first
        with sparing(self.detector, every):
            losses: dict[str, Tensor] = self._run(maps, learnt)
        return losses

    def as_given(self, target: Tensor) -> dict[str, Tensor]:
        """Returns a target's boxes with their classes, ``labels``, and ``marks``; see `BoxTargets`."""
        marks = target[:, 5].long() if target.shape[1] > 5 else torch.zeros(len(target), dtype=torch.int64)
        return {"boxes": target[:, :4], "labels": target[:, 4].long(), "marks": marks.to(target.device)}

    @torch.no_grad()
    def detections(self, maps: Maps) -> Detections:
        """Returns what is detected in each image, with our class numbers."""
        found: Detections = self._run(maps, None)
        return [{**one, "labels": one["labels"] - self._first} for one in found]

    @property
    def _first(self) -> int:
        # All of torchvision's detectors number from 1 in their data; 0 is the background.
        return 1

    def _run(self, maps: Maps, targets: Any) -> Any:
        first = next(iter(maps.values()))
        # Matching and suppression of boxes need more than bfloat16.
        with torch.autocast(first.device.type, enabled=False):
            self.detector.backbone.maps = {name: leaf.float() for name, leaf in maps.items()}  # type: ignore[union-attr]
            # Of the images nothing but their size is looked at.
            images = [torch.empty(0, self.side, self.side, device=first.device) for _ in range(len(first))]
            parts = [self.detector, *(getattr(self.detector, name, None) for name in ("rpn", "roi_heads"))]
            modes = [(part, part.training) for part in parts if isinstance(part, nn.Module)]
            try:
                # Only the flag, which says whether losses or detections are wanted: layers keep their own mode.
                for part, _ in modes:
                    part.training = targets is not None
                return self.detector(images, targets)
            finally:
                for part, mode in modes:
                    part.training = mode
                self.detector.backbone.maps = {}  # type: ignore[union-attr]


class InstanceHead(DetectionHead):
    """A detector that also says which pixels of a box are its object's; targets are those of `InstanceTargets`."""

    def as_given(self, target: Tensor) -> dict[str, Tensor]:
        """Returns masks with their classes and the boxes around them."""
        # The last pixel belongs to the object, so the box ends behind it.
        boxes = masks_to_boxes(target != 0) + torch.tensor([0, 0, 1, 1], device=target.device)
        planes = target.flatten(1).long()
        labels = planes.abs().amax(dim=1) - 1 if len(target) else planes.new_zeros(0)
        marks = CROWD * (planes < 0).any(dim=1).long()
        return {"boxes": boxes.float(), "labels": labels, "masks": (target != 0).to(torch.uint8), "marks": marks}

    @torch.no_grad()
    def detections(self, maps: Maps) -> Detections:
        """Returns what is detected in each image, with ``masks``, bool ``(n, side, side)``."""
        return [
            {**one, "masks": paste_masks_in_image(one["masks"], one["boxes"], (self.side, self.side))[:, 0] > SURE}
            for one in super().detections(maps)
        ]


class _Pyramid(nn.Module):
    """A feature pyramid network over some of the maps.

    Args:
        maps: The maps, finest first.
        width: Channels of every level.
        extra: Makes the levels beyond the coarsest map.
    """

    def __init__(self, maps: Sequence[FeatureMap], width: int, extra: Any) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        self.fpn = FeaturePyramidNetwork([found.channels for found in maps], width, extra_blocks=extra)

    def forward(self, maps: Maps) -> Maps:
        found: Maps = self.fpn({name: maps[name] for name in self.names})
        return found


class _Reduced(nn.Module):
    """Maps as they are, and further ones of half the size each: what SSD looks at.

    Args:
        maps: The maps, finest first.
        extra: Channels of the further maps.
    """

    def __init__(self, maps: Sequence[FeatureMap], extra: Sequence[int]) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        channels = [maps[-1].channels, *extra]
        self.blocks = nn.ModuleList(
            nn.Sequential(Conv2dNormActivation(before, after // 2, 1), Conv2dNormActivation(after // 2, after, 3, 2))
            for before, after in zip(channels, extra, strict=False)
        )

    def forward(self, maps: Maps) -> Maps:
        found = {name: maps[name] for name in self.names}
        x = maps[self.names[-1]]
        for number, block in enumerate(self.blocks):
            x = block(x)
            found[f"extra{number}"] = x
        return found


def faster_rcnn(
    maps: Sequence[FeatureMap], classes: int, side: int, *, width: int, anchor_scale: float
) -> DetectionHead:
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid; anchors of 8 times each level's stride, and 3 ratios.

    It learns from 128 regions per image out of 1000 proposals, where torchvision takes 512 out of 2000 for COCO's
    large images: less work for small data sets and images.
    """
    return _two_stages(FasterRCNN, DetectionHead, maps, classes, side, width, anchor_scale)


def mask_rcnn(maps: Sequence[FeatureMap], classes: int, side: int, *, width: int, anchor_scale: float) -> InstanceHead:
    """Mask R-CNN (He et al. 2017): Faster R-CNN with a mask of 28 x 28 points in each box, from `width` channels."""
    head = _two_stages(MaskRCNN, InstanceHead, maps, classes, side, width, anchor_scale)
    regions: Any = head.detector.roi_heads
    regions.mask_head = MaskRCNNHeads(width, [width] * 4, 1)
    regions.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
    return head


def _two_stages(
    detector: Callable[..., nn.Module],
    head: Callable[[nn.Module, nn.Module, int], Head],
    maps: Sequence[FeatureMap],
    classes: int,
    side: int,
    width: int,
    anchor_scale: float,
) -> Head:
    used = _from_stride(maps, 4)
    names = [found.name for found in used]
    strides = [found.stride for found in used]
    sizes = tuple((8 * anchor_scale * stride,) for stride in (*strides, 2 * strides[-1]))
    masks = {"mask_roi_pool": MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2)}
    whole = detector(
        _Given(width),
        num_classes=classes + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=128,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        **(masks if detector is MaskRCNN else {}),
    )
    return head(_Pyramid(used, width, LastLevelMaxPool()), whole, side)


def retinanet(maps: Sequence[FeatureMap], classes: int, side: int, *, width: int, anchor_scale: float) -> DetectionHead:
    """RetinaNet (Lin et al. 2017); anchors of 4 times each level's stride, 3 sizes and 3 ratios."""
    used = _from_stride(maps, 8)
    sizes = tuple(tuple(4 * anchor_scale * stride * 2 ** (third / 3) for third in range(3)) for stride in _five(used))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    detector = RetinaNet(_Given(width), num_classes=classes + 1, anchor_generator=anchors)
    return DetectionHead(_Pyramid(used, width, LastLevelP6P7(width, width)), detector, side)


def fcos(maps: Sequence[FeatureMap], classes: int, side: int, *, width: int, anchor_scale: float) -> DetectionHead:
    """FCOS (Tian et al. 2019), without anchors; a level looks for boxes of 4 to 8 times its stride."""
    used = _from_stride(maps, 8)
    sizes = tuple((anchor_scale * stride,) for stride in _five(used))
    detector = FCOS(
        _Given(width), num_classes=classes + 1, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    )
    return DetectionHead(_Pyramid(used, width, LastLevelP6P7(width, width)), detector, side)


def ssd(maps: Sequence[FeatureMap], classes: int, side: int, *, width: int, anchor_scale: float) -> DetectionHead:
    """SSD (Liu et al. 2016): the maps from stride 8 on and two further ones, with boxes of 4 or 6 shapes at each."""
    used = _from_stride(maps, 8)
    extra = [2 * width, width]
    channels = [found.channels for found in used] + extra
    scales = [min(1.0, scale * anchor_scale) for scale in _scales(len(channels) + 1)]
    boxes = DefaultBoxGenerator([[2, 3] for _ in channels], scales=scales)
    detector = SSD(_Given(channels), boxes, (side, side), num_classes=classes + 1)
    return DetectionHead(_Reduced(used, extra), detector, side)


DETECTORS: Mapping[str, Callable[..., DetectionHead]] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
    "ssd": ssd,
}
INSTANCE_DETECTORS: Mapping[str, Callable[..., InstanceHead]] = {"mask_rcnn": mask_rcnn}
"""Those that give masks of objects too."""


def native(detector: nn.Module, side: int) -> DetectionHead:
    """The head of a torchvision detector whose neck is the last stage of its backbone."""
    return DetectionHead(nn.Identity(), detector, side)


def native_instances(detector: nn.Module, side: int) -> InstanceHead:
    """The head of torchvision's Mask R-CNN."""
    return InstanceHead(nn.Identity(), detector, side)


def _from_stride(maps: Sequence[FeatureMap], stride: int) -> list[FeatureMap]:
    used = [found for found in maps if found.stride >= stride]
    return used or list(maps[-1:])


def _five(used: Sequence[FeatureMap]) -> list[int]:
    """Strides of the maps and of the two levels beyond the coarsest."""
    last = used[-1].stride
    return [*(found.stride for found in used), 2 * last, 4 * last]


def _scales(count: int) -> list[float]:
    """Shares of the image's side that default boxes have, from the finest map on."""
    return [0.07 + (1.05 - 0.07) * number / (count - 1) for number in range(count)]
