"""Ten public networks that are in no library we know, rebuilt small after their structure, with examples.

Each has a difficulty of its own: skips past many layers, axes in another order, sizes as numbers, parameters that are
read without a call, tokens that stand for no input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.modality.values import Value

W = 16


class ConvBlock(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(functional.relu(self.norm(self.conv1(x)), inplace=True)))


class UNet(nn.Module):
    """Ronneberger et al. 2015: what each level of the encoder gives is read again by the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([ConvBlock(3, 8), ConvBlock(8, 12), ConvBlock(12, 16)])
        self.bottom = ConvBlock(16, 24)
        self.up = nn.ModuleList([ConvBlock(24 + 16, 16), ConvBlock(16 + 12, 12), ConvBlock(12 + 8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([functional.interpolate(x, skip.shape[2:]), skip], dim=1))
        return x


class Scan(nn.Module):
    """A selective state-space layer (Gu and Dao 2023), written as a loop over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.decay = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        step, value, gate = self.project(self.norm(x)).chunk(3, dim=-1)
        keep = torch.exp(-functional.softplus(step) * self.decay.exp())
        state, out = torch.zeros_like(x[:, 0]), []
        for position in range(x.shape[1]):
            state = keep[:, position] * state + value[:, position]
            out.append(state)
        return x + torch.stack(out, dim=1) * functional.silu(gate)


class UMamba(UNet):
    """Ma et al. 2024: a U-Net with a state-space layer over the pixels of each level."""

    def __init__(self) -> None:
        super().__init__()
        self.scans = nn.ModuleList([Scan(8), Scan(12), Scan(16)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block, scan in zip(self.down, self.scans, strict=True):
            x = block(x)
            skips.append(scan(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([functional.interpolate(x, skip.shape[2:]), skip], dim=1))
        return x


class Attention(nn.Module):
    """A residual block of attention and a feed-forward layer, sequence first as OpenAI's CLIP has it."""

    def __init__(self, width: int = W, heads: int = 2) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        query = self.ln_1(x)
        other = query if memory is None else memory
        x = x + self.attn(query, other, other, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipTower(nn.Module):
    """OpenCLIP's tower for images: class token, norms at both ends, sequence first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, W, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(W))
        self.positional_embedding = nn.Parameter(torch.randn(17, W))
        self.ln_pre, self.ln_post = nn.LayerNorm(W), nn.LayerNorm(W)
        self.resblocks = nn.ModuleList(Attention() for _ in range(4))
        self.proj = nn.Parameter(torch.randn(W, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x).transpose(0, 1)
        for block in self.resblocks:
            x = block(x)
        return self.ln_post(x.transpose(0, 1)[:, 0]) @ self.proj


class EsmLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.final = nn.LayerNorm(W), nn.LayerNorm(W)
        self.qkv, self.out = nn.Linear(W, 3 * W), nn.Linear(W, W)
        self.fc = nn.Sequential(nn.Linear(W, 2 * W), nn.GELU(), nn.Linear(2 * W, W))
        self.register_buffer("frequency", 1.0 / 100 ** (torch.arange(W // 2) / (W // 2)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequency
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def rotated(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return y * cos + torch.cat([-second, first], dim=-1) * sin

        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        scores = rotated(query) @ rotated(key).transpose(1, 2) / W**0.5
        x = x + self.out(scores.masked_fill(~mask[:, None], -1e9).softmax(dim=-1) @ value)
        return x + self.fc(self.final(x))


class Esm(nn.Module):
    """ESM-2 (Lin et al. 2023): rotary positions in each layer, embeddings scaled by the share of masked tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(33, W, padding_idx=1)
        self.layers = nn.ModuleList(EsmLayer() for _ in range(4))
        self.emb_layer_norm_after = nn.LayerNorm(W)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        masked = (ids == 32) & mask
        x = self.embed_tokens(ids).masked_fill(masked[..., None], 0.0)
        x = x * (0.88 / (1 - masked.sum(-1) / mask.sum(-1)))[:, None, None] * mask[..., None]
        for layer in self.layers:
            x = layer(x, mask)
        return {"hidden": self.emb_layer_norm_after(x), "mask": mask}


class Convolve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pointwise = nn.LayerNorm(W), nn.Linear(W, 2 * W)
        self.depthwise = nn.Conv1d(W, W, 5, padding=2, groups=W)
        self.attention = Attention()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y = functional.glu(self.pointwise(self.norm(x)))
        x = x + self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return self.attention(x.transpose(0, 1), mask=bias).transpose(0, 1)


class Conformer(nn.Module):
    """Gulati et al. 2020 over spectrograms: a quarter of the frames, and one table of distances for all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
        self.project = nn.Linear(4 * 4, W)
        self.distances = nn.Embedding(64, 1)
        self.layers = nn.ModuleList(Convolve() for _ in range(4))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.subsample(frames[:, None]).transpose(1, 2).flatten(2)
        x = self.project(x)
        places = torch.arange(x.shape[1], device=x.device)
        bias = self.distances((places[:, None] - places).clamp(-31, 31) + 32)[..., 0]
        for layer in self.layers:
            x = layer(x, bias)
        return x.mean(dim=1)


class SpaceTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.space = Attention(), Attention()

    def forward(self, x: Tensor, frames: int) -> Tensor:
        batch, length, width = x.shape
        x = x.reshape(batch, frames, -1, width)
        x = self.time(x.transpose(0, 1).flatten(1, 2)).reshape(frames, batch, -1, width).transpose(0, 1)
        x = self.space(x.flatten(0, 1).transpose(0, 1)).transpose(0, 1)
        return x.reshape(batch, length, width)


class TimeSformer(nn.Module):
    """Bertasius et al. 2021 over video: attention along time, then within each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, W, (1, 8, 8), (1, 8, 8))
        self.position = nn.Parameter(torch.randn(1, 16, W))
        self.time = nn.Parameter(torch.randn(1, 4, 1, W))
        self.blocks = nn.ModuleList(SpaceTime() for _ in range(4))
        self.norm = nn.LayerNorm(W)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patches(video)
        frames = x.shape[2]
        x = x.flatten(3).permute(0, 2, 3, 1) + self.position + self.time
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, frames)
        return self.norm(x).mean(dim=1)


class FTTransformer(nn.Module):
    """Gorishniy et al. 2021 over tables: a token for each number and each category, one more that is read off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, W)), nn.Parameter(torch.randn(5, W))
        self.categories = nn.ModuleList([nn.Embedding(4, W), nn.Embedding(7, W)])
        self.cls = nn.Parameter(torch.randn(W))
        self.blocks = nn.ModuleList(Attention() for _ in range(4))
        self.norm = nn.LayerNorm(W)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        tokens = [self.cls.expand(len(numbers), 1, -1), numbers[..., None] * self.weight + self.bias]
        tokens += [table(kinds[:, column])[:, None] for column, table in enumerate(self.categories)]
        x = torch.cat(tokens, dim=1).transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[0])


class Perceiver(nn.Module):
    """Jaegle et al. 2021: latents that stand for no input look at all of it again at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(6, W)
        self.latents = nn.Parameter(torch.randn(5, 1, W))
        self.look = nn.ModuleList(Attention() for _ in range(3))
        self.think = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, values: Tensor) -> Tensor:
        memory = self.read(values).transpose(0, 1)
        x = self.latents.expand(-1, len(values), -1)
        for look, think in zip(self.look, self.think, strict=True):
            x = think(look(x, memory))
        return x.mean(dim=0)


class EdgeConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, W), nn.LayerNorm(W), nn.GELU(), nn.Linear(W, W))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x.detach(), x.detach()).topk(4, largest=False).indices
        around = torch.stack([points[rows] for points, rows in zip(x, near, strict=True)])
        middle = x[:, :, None].expand_as(around)
        return self.mlp(torch.cat([middle, around - middle], dim=-1)).amax(dim=2)


class DGCNN(nn.Module):
    """Wang et al. 2019 over points: neighbours are found anew in each layer, all layers are read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([EdgeConv(3), EdgeConv(W), EdgeConv(W), EdgeConv(W)])
        self.fuse = nn.Linear(4 * W, W)

    def forward(self, points: Tensor) -> Tensor:
        x, seen = points, []
        for conv in self.convs:
            x = conv(x)
            seen.append(x)
        return self.fuse(torch.cat(seen, dim=-1)).amax(dim=1)


class Tower(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(inside), nn.Conv1d(inside, W, 5, padding=2)
        self.weigh = nn.Conv1d(W, W, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(functional.gelu(self.norm(x)))
        pairs = x.unflatten(2, (-1, 2))
        return (pairs * self.weigh(x).unflatten(2, (-1, 2)).softmax(dim=-1)).sum(dim=-1)


class Enformer(nn.Module):
    """Avsec et al. 2021 over DNA: a tower of convolutions with pooling by attention, then a transformer, cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, W, 7, padding=3)
        self.tower = nn.ModuleList(Tower(W) for _ in range(3))
        self.transformer = nn.ModuleList(Attention() for _ in range(3))
        self.final = nn.Linear(W, W)

    def forward(self, bases: Tensor) -> Tensor:
        x = self.stem(bases.transpose(1, 2))
        for block in self.tower:
            x = block(x)
        x = x.permute(2, 0, 1)
        for layer in self.transformer:
            x = layer(x)
        return functional.gelu(self.final(x.transpose(0, 1)[:, 1:-1]))


PUBLIC: dict[str, tuple[Callable[[], nn.Module], Value]] = {
    "U-Net": (UNet, torch.zeros(2, 3, 32, 32)),
    "U-Mamba": (UMamba, torch.zeros(2, 3, 16, 16)),
    "OpenCLIP": (OpenClipTower, torch.zeros(2, 3, 32, 32)),
    "ESM-2": (Esm, {"ids": torch.randint(4, 33, (2, 12)), "mask": torch.ones(2, 12, dtype=torch.bool)}),
    "Conformer": (Conformer, torch.zeros(2, 60, 20)),
    "TimeSformer": (TimeSformer, torch.zeros(2, 3, 4, 32, 32)),
    "FT-Transformer": (FTTransformer, {"numbers": torch.zeros(2, 5), "kinds": torch.ones(2, 2, dtype=torch.int64)}),
    "Perceiver": (Perceiver, torch.zeros(2, 20, 6)),
    "DGCNN": (DGCNN, torch.zeros(2, 24, 3)),
    "Enformer": (Enformer, torch.zeros(2, 64, 4)),
}
"""Networks by name, each with what makes it and a batch of the shape that it takes."""
