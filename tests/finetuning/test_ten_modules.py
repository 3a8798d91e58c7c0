"""Eleven LightningModules as public projects have them: the callback in one line, two phases, an exact resume.

Each is rebuilt from the structure of a project, with layers small enough for a test; no code is theirs.
"""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import torchmetrics
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from transformers import BertConfig, BertForSequenceClassification

from tests.finetuning.foreign import QUIET, StopAt, StoppedError, copy, digest, make_trainer, moved
from tlresearch import FreezeSchedule

pytestmark = [pytest.mark.filterwarnings(rule) for rule in (*QUIET, "ignore:Found .* in eval mode")]


def images(channels: int = 3, size: int = 32, count: int = 16) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def labels(classes: int = 2, count: int = 16) -> Tensor:
    return torch.arange(count) % classes


def batches(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), 4, shuffle=True)


class DigitsOfATemplate(L.LightningModule):
    """ashleve/lightning-hydra-template: a network, an optimizer and a scheduler handed in, metrics as attributes."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], scheduler: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net, self.criterion = net, nn.CrossEntropyLoss()
        self.train_acc = torchmetrics.Accuracy("multiclass", num_classes=2)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        scores = self.net(batch[0].flatten(1))
        self.train_acc(scores.argmax(1), batch[1])
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        loss: Tensor = self.criterion(scores, batch[1])
        return loss

    def configure_optimizers(self) -> Any:
        return {"optimizer": self.hparams["optimizer"](params=self.parameters())}


def digits_of_a_template() -> L.LightningModule:
    layers: list[nn.Module] = []
    for wide in (16, 16, 16):
        layers += [nn.LazyLinear(wide), nn.BatchNorm1d(wide), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(16, 2))
    net(torch.zeros(2, 64))
    return DigitsOfATemplate(net, partial(torch.optim.Adam, lr=1e-3))


class Scenes(L.LightningModule):
    """torchgeo/torchgeo `ClassificationTask`: a timm model, AdamW over all parameters, metrics in a collection."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("resnet10t", num_classes=2, drop_rate=0.2)
        self.criterion = nn.CrossEntropyLoss()
        self.train_metrics = torchmetrics.MetricCollection([torchmetrics.Accuracy("multiclass", num_classes=2)])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        scores = self.model(batch[0])
        self.train_metrics(scores, batch[1])
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)  # type: ignore[arg-type]
        loss: Tensor = self.criterion(scores, batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(16 + 8, 8, 3, padding=1), nn.Conv2d(8 + 3, 8, 3, padding=1)])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for block, skip in zip(self.blocks, features[-2::-1], strict=True):
            x = F.relu(block(torch.cat([F.interpolate(x, scale_factor=2), skip], 1)))
        return x


class UNetEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.layer1(x)
        return [x, first, self.layer2(first)]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = UNetEncoder(), Decoder(), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return scores


class Roads(L.LightningModule):
    """qubvel-org/segmentation_models.pytorch's examples: encoder, decoder and head in one model, dice loss, cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.model = UNet()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        masks = self.model(batch[0] - self.mean).sigmoid()
        return 1 - 2 * (masks * batch[1]).sum() / (masks + batch[1]).sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, T_max=8, eta_min=1e-5), "interval": "step"},
        }


class Things(L.LightningModule):
    """Lightning-Universe/lightning-bolts `FasterRCNN`: torchvision's detector, whose losses are added up."""

    def __init__(self) -> None:
        super().__init__()
        body: Any = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        )
        body.out_channels = 16
        self.model = FasterRCNN(
            body, 2, min_size=64, max_size=64, box_detections_per_img=4, rpn_pre_nms_top_n_train=20,
            rpn_post_nms_top_n_train=10, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss: Tensor = sum(self.model(inputs, targets).values())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.005)


def boxes() -> DataLoader[Any]:
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    rows = [(image, target) for image in images(size=64, count=8)]
    return DataLoader(rows, 4, shuffle=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))  # type: ignore[arg-type]


class Pose(L.LightningModule):
    """paninski-lab/lightning-pose `HeatmapTracker`: backbone and upsampling in two groups, rate by steps."""

    def __init__(self) -> None:
        super().__init__()
        network = torchvision.models.resnet18(weights=None)
        self.backbone = nn.Sequential(*list(network.children())[:5])
        self.upsampling_layers = nn.Sequential(nn.PixelShuffle(2), nn.ConvTranspose2d(16, 2, 3, 2, 1, 1))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.upsampling_layers(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.backbone.parameters(), "name": "backbone", "lr": 1e-4},
            {"params": self.upsampling_layers.parameters(), "name": "upsampling"},
        ]
        optimizer = torch.optim.Adam(groups, lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": MultiStepLR(optimizer, milestones=[1], gamma=0.5)}


class Sentences(L.LightningModule):
    """Lightning-AI/tutorials `GLUETransformer`: a transformers model, groups with and without decay, linear warm-up."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(input_ids=batch[0], labels=batch[1]).loss
        return loss

    def configure_optimizers(self) -> Any:
        plain = ("bias", "LayerNorm.weight")
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not any(k in n for k in plain)], "weight_decay": 0.01},
            {"params": [p for n, p in named if any(k in n for k in plain)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=2e-3, eps=1e-8)
        course = LambdaLR(optimizer, lambda step: min(1.0, step / 2) * max(0.0, 1 - step / 10))
        return [optimizer], [{"scheduler": course, "interval": "step", "frequency": 1}]


class Writer(L.LightningModule):
    """karpathy/nanoGPT's network as Lightning projects wrap it: embeddings tied to the head, blocks in a list."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True) for _ in range(2)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(20, 16),
                "wpe": nn.Embedding(8, 16),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(16),
            }
        )
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        (text,) = batch
        parts: Any = self.transformer
        x = parts["drop"](parts["wte"](text) + parts["wpe"](torch.arange(text.shape[1])))
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        for block in parts["h"]:
            x = block(x, src_mask=mask, is_causal=True)
        scores = self.lm_head(parts["ln_f"](x))
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), text[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = list(self.parameters())
        groups = [
            {"params": [p for p in weights if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


class Commands(L.LightningModule):
    """NVIDIA-NeMo/NeMo `EncDecClassificationModel`: preprocessor, augmentation, blocks, decoder; one cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessor = nn.Module()
        self.preprocessor.register_buffer("window", torch.hann_window(64))
        self.spec_augmentation = nn.Dropout1d(0.1)
        blocks = [nn.Sequential(nn.Conv1d(33, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))]
        blocks += [nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))]
        self.encoder = nn.Module()
        self.encoder.encoder = nn.Sequential(*blocks)
        self.decoder = nn.Linear(16, 2)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        window: Any = self.preprocessor.window
        spectrum = torch.stft(batch[0], 64, 32, window=window, return_complex=True).abs()
        encoder: Any = self.encoder.encoder
        return F.cross_entropy(self.decoder(encoder(self.spec_augmentation(spectrum)).mean(-1)), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 1e-2, total_steps=8), "interval": "step"}]


def small_resnet() -> nn.Sequential:
    network = torchvision.models.resnet18(weights=None)
    return nn.Sequential(*list(network.children())[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TwoViews(L.LightningModule):
    """lightly-ai/lightly `SimCLR`: backbone and projection head, a contrastive loss of two views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_resnet()
        self.projection_head = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        views = [batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(2)]
        first, second = (F.normalize(self.projection_head(self.backbone(view)), dim=1) for view in views)
        return F.cross_entropy(first @ second.T / 0.5, torch.arange(len(first)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [CosineAnnealingLR(optimizer, 2)]


class StudentAndTeacher(L.LightningModule):
    """lightly-ai/lightly `BYOL`: a teacher without gradients follows the student by a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_resnet()
        self.projection_head = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16))
        self.prediction_head = nn.Linear(16, 16)
        self.backbone_momentum = copying.deepcopy(self.backbone).requires_grad_(False)
        self.projection_head_momentum = copying.deepcopy(self.projection_head).requires_grad_(False)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            for student, teacher in zip(self.backbone.parameters(), self.backbone_momentum.parameters(), strict=True):
                teacher.lerp_(student, 0.01)
        answer = self.prediction_head(self.projection_head(self.backbone(batch[0])))
        target = self.projection_head_momentum(self.backbone_momentum(batch[0]))
        return -F.cosine_similarity(answer, target.detach()).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


class Masked(L.LightningModule):
    """facebookresearch/mae as Lightning projects have it: fixed positions, tokens of its own, encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        make = partial(nn.TransformerEncoderLayer, 16, 2, 32, 0.0, batch_first=True)
        self.patch_embed = nn.Conv2d(3, 16, 8, 8)
        self.pos_embed = nn.Parameter(torch.rand(1, 16, 16), requires_grad=False)
        self.blocks = nn.ModuleList(make() for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.decoder_blocks = nn.ModuleList([make()])
        self.decoder_pred = nn.Linear(16, 192)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x = self.patch_embed(batch[0]).flatten(2).transpose(1, 2) + self.pos_embed
        kept = torch.rand(x.shape[:2]) < 0.5
        x = torch.where(kept[..., None], x, self.mask_token)
        for block in self.blocks:
            x = block(x)
        for block in self.decoder_blocks:
            x = block(self.norm(x))
        patches = F.unfold(batch[0], 8, stride=8).transpose(1, 2)
        return (self.decoder_pred(x) - patches).square().mean(-1)[~kept].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)


TOKENS = torch.randint(0, 20, (16, 8), generator=torch.Generator().manual_seed(1))
SOUNDS = torch.randn(16, 512, generator=torch.Generator().manual_seed(1))
MODULES: dict[str, tuple[Callable[[], L.LightningModule], Callable[[], DataLoader[Any]], dict[str, Any]]] = {
    "lightning-hydra-template": (
        digits_of_a_template,
        lambda: batches(images(1, 8), labels()),
        {
            "stages": {"first": ["net.0", "net.1"], "second": ["net.3", "net.4"], "third": ["net.6", "net.7"]},
            "head": "net.9",
        },
    ),
    "torchgeo": (
        Scenes,
        lambda: batches(images(), labels()),
        {"stages": [["model.conv1", "model.bn1"], "model.layer*"], "head": "model.fc"},
    ),
    "segmentation_models.pytorch": (
        Roads,
        lambda: batches(images(), (images(1) > 0.5).float()),
        {"stages": ["model.encoder.layer*", "model.decoder"], "head": "model.segmentation_head"},
    ),
    "lightning-bolts": (Things, boxes, {"stages": ["model.backbone.*"], "head": ["model.rpn", "model.roi_heads"]}),
    "lightning-pose": (
        Pose,
        lambda: batches(images(), images(2)),
        {"stages": [["backbone.0", "backbone.1"], "backbone.4"], "head": "upsampling_layers"},
    ),
    "tutorials (GLUE)": (
        Sentences,
        lambda: batches(TOKENS, labels()),
        {
            "stages": ["model.bert.embeddings", "model.bert.encoder.layer.*", "model.bert.pooler"],
            "head": "model.classifier",
        },
    ),
    "nanoGPT": (
        Writer,
        lambda: batches(TOKENS),
        {"stages": ["transformer.wpe", "transformer.h.*"], "head": ["transformer.ln_f", "lm_head"]},
    ),
    "NeMo": (Commands, lambda: batches(SOUNDS, labels()), {"stages": ["encoder.encoder.*"], "head": "decoder"}),
    "lightly SimCLR": (
        TwoViews,
        lambda: batches(images()),
        {"stages": [["backbone.0", "backbone.1"], "backbone.4"], "head": "projection_head"},
    ),
    "lightly BYOL": (
        StudentAndTeacher,
        lambda: batches(images()),
        {"stages": [["backbone.0", "backbone.1"], "backbone.4"], "head": ["projection_head", "prediction_head"]},
    ),
    "mae": (
        Masked,
        lambda: batches(images()),
        {
            "stages": [["patch_embed", "pos_embed"], "blocks.*", "norm"],
            "head": ["mask_token", "decoder_blocks", "decoder_pred"],
        },
    ),
}
"""What trains it, on what, and all that the callback is told."""


def build(name: str) -> L.LightningModule:
    torch.manual_seed(0)
    return MODULES[name][0]()


class Start(L.Callback):
    """Weights at the start of each epoch."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.taken.append(copy(pl_module))


@pytest.mark.parametrize("name", MODULES)
def test_two_phases_and_an_exact_resume(name: str, tmp_path: Path) -> None:
    _, data, where = MODULES[name]
    ends = []
    steps = math.ceil(len(data().dataset) / 4)  # type: ignore[arg-type]
    for part in ("unbroken", "resumed"):
        start, path = Start(), None
        if part == "resumed":
            path = tmp_path / "last.ckpt"
            keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
            with pytest.raises(StoppedError):
                make_trainer(None, [FreezeSchedule("lp_ft", **where), keep, StopAt(steps + 1)], max_epochs=2).fit(
                    build(name), data()
                )
            torch.manual_seed(99)
        module, plan = build(name), FreezeSchedule("lp_ft", **where)
        keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
        callbacks = [plan, start, *([keep] if path else [])]
        # The template's checkpoints hold its optimizer's factory among the hyperparameters, which is no plain data.
        safe = name != "lightning-hydra-template"
        make_trainer(None, callbacks, max_epochs=2).fit(module, data(), ckpt_path=path, weights_only=safe)
        if part == "unbroken":
            first, both = (moved(start.taken[0], now) for now in (start.taken[1], copy(module)))
            _check_moved(plan, module, first, both)
        ends.append(digest(module))
    assert ends[0] == ends[1]


def _check_moved(plan: FreezeSchedule, module: L.LightningModule, first: set[str], both: set[str]) -> None:
    names = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}
    for index, part in enumerate(plan.parts.modules):
        for parameter in part.parameters():
            name = names[id(parameter)]
            if index < len(plan.parts.modules) - 1:
                assert name not in first, "moved while frozen"
            if parameter.requires_grad:
                assert name in both, "never trained"
