"""Small networks, each with one difficulty."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(F.relu(self.norm(self.conv(x))), self.drop, training=self.training)


class Toy(nn.Module):
    """A net whose stages are known by hand: stem, blocks.0, blocks.1."""

    def __init__(self, *, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.blocks = nn.Sequential(Residual(4, drop=drop), Residual(4, drop=drop))
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Shared(Toy):
    """The first block runs again after the second."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(self.blocks[0](x).mean((2, 3)))


class InPlace(nn.Module):
    """An activation in place behind each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3)
        self.two = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(F.relu(self.one(x), inplace=True))
        return self.head(x.relu_().mean((2, 3)))


class Preactivated(nn.Module):
    """Begins with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(x))


class LongSkip(nn.Module):
    """The first layer's output is used at the end again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.four = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        return self.head(self.four(self.three(self.two(one)) + one).mean((2, 3)))


class Containers(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(Residual(4), Residual(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.blocks(self.stem(x))).mean((2, 3)))


class KeepsSize(Toy):
    """The batch size and an unused token; the size is read at the start and used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.blocks[1].register_parameter("mask", nn.Parameter(torch.ones(2)))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        x = self.blocks(self.stem(x))
        return self.head(x.reshape(size, 4, -1).mean(2))


class Branches(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if x.sum() > 0 else -x)


class OtherInTraining(Toy):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if self.training else x)
