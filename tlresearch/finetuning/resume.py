"""A killed run goes on: its folder, its lock, and the checkpoint written after each epoch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from tlresearch.config.paths import home


class RunFolder:
    """The folder of one unfinished run, found again by what the run is.

    The same recorded config (and parent) leads to the same folder, so the command that was killed finds the MLflow
    run and the checkpoint it left. A folder that another living process holds is not shared: the second run gets
    one of its own.

    Args:
        identity: What makes the run the same run: the recorded config, and the parent's id for a trial.
    """

    def __init__(self, identity: str) -> None:
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = home() / "unfinished" / key
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self.path = self.path.with_name(f"{key}-{os.getpid()}")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lies, if there is one."""
        return self.path / "last.ckpt"

    def read(self) -> dict[str, Any]:
        """Returns what `write` kept, or nothing if the file is missing or was cut off while being written."""
        try:
            content = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, **content: str) -> None:
        """Keeps what the next start needs: the MLflow run and what it was computed from."""
        replace(self.path / "run.json", json.dumps(content).encode())

    def forget(self) -> None:
        """Drops a checkpoint that must not be gone on with."""
        self.checkpoint.unlink(missing_ok=True)

    def finish(self) -> None:
        """Removes the folder: the run has ended and MLflow holds its result."""
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()


class EpochCheckpoint(Checkpoint):
    """Writes the whole state of training after an epoch, atomically.

    Epoch ends suffice for an exact resume: order, augmentation and dropout are functions of seed, epoch and step,
    so that the epoch a run was killed in is repeated as it was.

    Args:
        path: The file; replaced in one step.
        every: Epochs between two checkpoints.
        before: Called before writing, so that nothing of the epochs a checkpoint holds is still unrecorded.
    """

    def __init__(self, path: Path, every: int, before: Callable[[], object]) -> None:
        self.path = path
        self.every = every
        self.before = before

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes after every other callback: Lightning runs checkpoints last."""
        if (trainer.current_epoch + 1) % self.every == 0 or trainer.should_stop:
            self.before()
            temporary = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(temporary, weights_only=False)  # the optimizer too
            if trainer.is_global_zero:
                os.replace(temporary, self.path)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint without unpickling anything; ``None`` if there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a cut-off zip file raises whatever its broken part leads to
        return None
    return content if isinstance(content, dict) else None


def replace(path: Path, content: bytes) -> None:
    """Writes a file in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
