"""Backbones that read pairs of texts: both together, or each by itself with the two vectors compared at the end."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tlresearch.backbones.base import End, StagedBackbone
from tlresearch.base.errors import UserError
from tlresearch.modality.pair import JointPairs, SeparatePairs
from tlresearch.modality.text import TextPreprocessing

Comparison = Literal["concat", "cosine"]


class PairBackbone(StagedBackbone):
    """Runs the texts of pairs one by one through the stages of another backbone, and compares the vectors of each two.

    A batch of pairs is one of twice as many texts, the two of a pair one behind the other. So stages, freezing and the
    activation cache know nothing of pairs.

    Args:
        backbone: The backbone, which reads texts.
        how: ``concat`` gives both vectors, their absolute difference and their product; ``cosine`` their cosine.
    """

    def __init__(self, backbone: StagedBackbone, how: Comparison) -> None:
        assert isinstance(backbone.preprocessing, TextPreprocessing)
        super().__init__(
            dict(backbone.named_stages()),
            out_features=1 if how == "cosine" else 4 * backbone.out_features,
            preprocessing=SeparatePairs.of(backbone.preprocessing),
            weights=backbone.weights,
            way=backbone.way,
            reasons=backbone.reasons,
        )
        self.save_files = backbone.save_files
        self.how = how

    def forward(self, x: Any, start: int = 0, stop: int | None = None) -> Any:
        """Runs the stages over texts ``(2 pairs, ...)``; at the end there is a row for each pair."""
        value = super().forward(x, start, stop)
        return self.joined(value) if stop is None else value

    def joined(self, vectors: Tensor) -> Tensor:
        """Compares the two vectors of each pair.

        Args:
            vectors: ``(2 pairs, width)``.

        Returns:
            ``(pairs, 4 width)``, or ``(pairs, 1)`` of a cosine.
        """
        first, second = vectors.reshape(-1, 2, vectors.shape[-1]).unbind(dim=1)
        if self.how == "cosine":
            return functional.cosine_similarity(first, second)[:, None]
        return torch.cat([first, second, (first - second).abs(), first * second], dim=1)


def for_pairs(backbone: StagedBackbone, how: str, end: End) -> StagedBackbone:
    """Returns a backbone of texts as one of pairs.

    Args:
        backbone: The backbone; where pairs are read together, it was built for them.
        how: ``joint``, ``concat`` or ``cosine``.
        end: What the task needs at the end.

    Raises:
        UserError: If it reads no texts, or the task needs more than one vector of a pair.
    """
    if not isinstance(backbone.preprocessing, TextPreprocessing):
        raise UserError("backbone.pairs: is for backbones that read texts, such as hf/<model> or word_cnn")
    if end != "pooled":
        raise UserError("backbone.pairs: gives one vector of a pair, but the task needs a sequence; leave it out")
    if how != "joint":
        return PairBackbone(backbone, "cosine" if how == "cosine" else "concat")
    if not isinstance(backbone.preprocessing, JointPairs):
        backbone.preprocessing = JointPairs.of(backbone.preprocessing)
    return backbone
