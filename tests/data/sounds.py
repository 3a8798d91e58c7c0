"""Sound files for tests: tones whose pitch says their class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

PITCHES = {"low": 300.0, "high": 2000.0}


def save_tone(path: Path, pitch: float = 440.0, seconds: float = 0.2, rate: int = 8000, channels: int = 1) -> Path:
    """Writes a tone that fades; its phase follows from the file's name, so that no two files are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * time + sum(map(ord, path.name))) * np.exp(-time)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


def save_classes(root: Path, count: int = 5, splits: Sequence[str] = (), seconds: float = 0.2) -> Path:
    """Writes ``count`` tones of each class, of slightly different lengths, below each split."""
    for split in splits or [""]:
        for name, pitch in PITCHES.items():
            for number in range(count):
                save_tone(
                    root / split / name / f"{split}{number}.wav", pitch * (1 + 0.01 * number), seconds + 0.01 * number
                )
    return root
