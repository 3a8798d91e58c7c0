"""Resuming a killed run: its folder, its lock, and its checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tlresearch.base.errors import UserError, first_line
from tlresearch.base.files import locked, take_lock, write
from tlresearch.base.paths import home
from tlresearch.base.ranks import is_leader

log = logging.getLogger(__name__)

DIGEST = 64  # characters of a SHA-256
SHARE = 0.01  # largest share of a run's time that checkpoints may take
SHARED = "TLRESEARCH_RUN_FOLDER"
"""Environment variable in which rank 0 passes its folder to the other ranks."""


class RunFolder:
    """The folder of an unfinished run, named by a hash of the run's identity.

    The same recorded config (and parent) leads to the same folder, so the command that was killed finds the MLflow
    run and the checkpoint it left. A folder that another living process holds is not shared: the second run gets
    one of its own. Ranks above 0 of a distributed run share the folder of rank 0, which alone writes to it.

    Args:
        identity: Text that is the same for the same run: the recorded config, and the parent's id for a trial.

    Raises:
        UserError: If the home folder cannot be written.
    """

    def __init__(self, identity: str) -> None:
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = home() / "unfinished" / key
        self._lock: FileLock | None = None
        if not is_leader():
            self.path = Path(os.environ.get(SHARED, self.path))
            return
        self._lock = self._try_lock()
        if self._lock is None:
            self.path = self.path.with_name(f"{key}-{os.getpid()}")
            self._lock = self._try_lock()
        os.environ[SHARED] = str(self.path)  # the ranks that Lightning starts inherit it

    def _try_lock(self) -> FileLock | None:
        try:
            return take_lock(self.path / "lock", 0)
        except OSError as error:
            raise UserError(
                f"TLRESEARCH_HOME: {self.path} cannot be written ({error.strerror}); "
                "free space there, or set TLRESEARCH_HOME to another folder"
            ) from None

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint, which may not exist."""
        return self.path / "last.ckpt"

    def read(self) -> dict[str, Any]:
        """Returns what `write` stored; empty if the file is missing or damaged."""
        return read_folder(self.path)

    def write(self, **content: Any) -> None:
        """Adds to what the next start finds: the MLflow run, what it was computed from and how."""
        if self._lock is not None:
            write(self.path / "run.json", json.dumps(self.read() | content))

    def others(self, name: str) -> list[Path]:
        """Lists the folders of other runs with this name that no process holds: they were interrupted."""
        interrupted = []
        for file in sorted(self.path.parent.glob("*/run.json")):
            if file.parent != self.path and read_folder(file.parent).get("name") == name:
                with locked(file.parent / "lock", 0) as free:
                    interrupted += [file.parent] if free else []
        return interrupted

    def forget(self) -> None:
        """Removes a checkpoint from which the run must not continue."""
        if self._lock is not None:
            self.checkpoint.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Releases the folder. Without an error it is removed: the run has ended, and MLflow holds its result."""
        if self._lock is not None:
            os.environ.pop(SHARED, None)
            self._lock.release()
            if kind is None:
                shutil.rmtree(self.path, ignore_errors=True)


def read_folder(path: Path) -> dict[str, Any]:
    """Returns what the folder of an unfinished run stores; empty if the file is missing or damaged."""
    try:
        content = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class EpochCheckpoint(Checkpoint):
    """Writes the complete state of training after an epoch, through `SealedCheckpoints`.

    Checkpoints at the ends of epochs suffice for an exact resume: order, augmentation and dropout are functions of
    seed, epoch and step, so the epoch in which a run was killed is repeated exactly.

    Args:
        path: The file; replaced in one step.
        every: Epochs between two checkpoints.
        seconds: Minimal time between two checkpoints, and before the first. Checkpoints also take at most `SHARE` of
            the time, because the weights and moments of a large network take long to write. 0 has no limits.
        before: Called before writing; it must record everything of the epochs that the checkpoint holds, because a
            resumed run does not record them again.
        keep: Whether to write a checkpoint after the last epoch in any case, with the state in which the run ends.
    """

    def __init__(
        self, path: Path, every: int, seconds: float, before: Callable[[], object], *, keep: bool = False
    ) -> None:
        self.path = path
        self.every = every
        self.seconds = seconds
        self.before = before
        self.keep = keep
        self._written = time.monotonic()
        self._pause = seconds

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes after every other callback: Lightning runs checkpoints last."""
        due = (trainer.current_epoch + 1) % self.every == 0 or trainer.should_stop
        # All ranks must save together, and their clocks differ, so rank 0 decides.
        began = time.monotonic()
        now = began - self._written >= self._pause or (self.keep and trainer.should_stop)
        if trainer.strategy.broadcast(due and now):
            self.before()
            trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer too
            self._written = time.monotonic()
            if self.seconds:
                self._pause = max(self.seconds, (self._written - began) / SHARE)


class SealedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint in one step, with its hash, which `read_checkpoint` checks.

    A checkpoint of torch is a zip file. The hash of its bytes is written as the comment at the end of a zip file, so
    torch can still read it. If the disk fails, the run goes on: a warning is logged once, and later checkpoints are
    tried again.
    """

    _warned = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replaces the file; Lightning calls this on rank 0 only, while the other ranks wait."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        content[-2:] = DIGEST.to_bytes(2, "little")  # the last field of a zip file is the length of its comment
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a ModelCheckpoint of the user's
            write(Path(path), content, hashlib.sha256(content).hexdigest())
        except OSError as error:
            if not self._warned:
                self._warned = True
                back = "its last checkpoint" if Path(path).exists() else "its beginning"
                log.warning(
                    "no checkpoint can be written to %s (%s): the run goes on, but a kill would send it back to %s; "
                    "free space there",
                    Path(path).parent,
                    error.strerror or error,
                    back,
                )


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint without unpickling; ``None`` if there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        if hashlib.sha256(memoryview(content)[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
            raise ValueError("its content does not have its hash")
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # damage can lead to errors of any class
        # torch's own text advises to unpickle the file, which could run code in it.
        reason = "it holds more than tensors" if "weights_only" in str(error) else first_line(error)
        log.warning("the checkpoint %s is damaged (%s): the run starts from the beginning", path, reason)
        return None
