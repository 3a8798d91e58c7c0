"""Faults outside of the run's code, told in one line: too little memory, or a data loader process that died."""

from __future__ import annotations

import contextlib
import gc
import re
import traceback
from collections.abc import Iterator

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from tlresearch.base.errors import RunFailedError, UserError
from tlresearch.config.schema import ExperimentConfig
from tlresearch.finetuning.resume import RunFolder
from tlresearch.run.training import BatchWatch, settle
from tlresearch.tracking.base import Run

OUT_OF_MEMORY = "tlresearch.out_of_memory"
"""Tag of a run: the batch size for which memory was too small, and the one with which the run went on."""

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.IGNORECASE)
_LOADER = re.compile(r"DataLoader worker \(pid\(?s?\)?,? ?[\d, ]+\) (?P<end>[^\n]*)")
_IN_WORKER = "in DataLoader worker process"


class OutOfMemoryError(RunFailedError):
    """There is not enough memory for this run."""


class SmallerBatchError(OutOfMemoryError):
    """There is not enough memory for this batch size; the run folder holds a smaller size for the next start."""


@contextlib.contextmanager
def named(config: ExperimentConfig, folder: RunFolder, run: Run) -> Iterator[BatchWatch]:
    """Turns such a fault into an error that names the cure.

    With ``trainer.on_oom: halve`` a smaller batch size is written to the run folder for the next start, and recorded
    as a tag.

    Yields:
        A watch, to be told whether training or evaluation batches are being computed.

    Raises:
        SmallerBatchError: If memory ran out, and the run can go on with smaller batches.
        OutOfMemoryError: If memory ran out, and the run cannot go on.
        RunFailedError: If a loader process died.
        UserError: If a loader process raised it, such as for a damaged file.
    """
    watch = BatchWatch()
    try:
        yield watch
    except UserError as error:
        if _IN_WORKER not in str(error):
            raise
        # torch raises the error again with the loader process's traceback as its text; our sentence is the end of it.
        raise UserError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
    except Exception as error:
        if out_of_memory(error):
            raise _smaller(watch, config, folder, run) from error
        end = _loader_end(error)
        if end is None:
            raise
        raise RunFailedError(
            f"a data loader process died ({end}): is there memory for data.workers={config.data.workers}? "
            "data.workers=0 loads in the main process"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or in main memory."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or is_oom_error(error)
        or (isinstance(error, (RuntimeError, OSError)) and bool(_MEMORY.search(str(error))))
    )


def _loader_end(error: BaseException) -> str | None:
    """Returns how a loader process ended, if the error says so; otherwise `None`."""
    match = _LOADER.search(str(error))
    if match is not None:
        return match["end"].split(". ")[0].rstrip(". ")
    # If the process dies while a batch is fetched, the socket through which its memory is shared is gone.
    fetching = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return "exited unexpectedly" if fetching and isinstance(error, (OSError, EOFError)) else None


def release(error: BaseException) -> None:
    """Frees the memory of tensors in the frames of an error, so that the next start can use it."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()
    if torch.cuda.is_available():
        garbage_collection_cuda()


def halved(config: ExperimentConfig, *, training: bool = True, evaluation: bool = True) -> dict[str, int]:
    """Returns settings for smaller batches with as many samples per step as before; empty if there are none.

    The training batch is divided by its smallest factor, and ``trainer.accumulate`` is multiplied by it. The
    evaluation batch, which does not change the result, is halved.
    """
    batch, evaluated = config.data.batch_size, config.data.eval_batch_size
    smaller: dict[str, int] = {}
    if training and batch > 1:
        factor = next(n for n in range(2, batch + 1) if batch % n == 0)
        # The smallest factor, so that samples per step stay exactly the same and memory shrinks no more than needed.
        smaller |= {"data.batch_size": batch // factor, "trainer.accumulate": config.trainer.accumulate * factor}
    if evaluation and evaluated > 1:
        smaller["data.eval_batch_size"] = -(-evaluated // 2)
    return smaller


def _smaller(watch: BatchWatch, config: ExperimentConfig, folder: RunFolder, run: Run) -> OutOfMemoryError:
    config = settle(config, folder.read().get("settings", {}))
    evaluating = watch.batches == "evaluation"
    key = "data.eval_batch_size" if evaluating else "data.batch_size"
    # The message names the batch size of this start, which an earlier fault may have lowered.
    now = f"{key}={config.data.eval_batch_size if evaluating else config.data.batch_size}"
    halve = config.trainer.on_oom == "halve"
    smaller = halved(config, training=not evaluating, evaluation=watch.batches != "training") if halve else {}
    if not smaller:
        cure = "lower it" if halve or evaluating else "lower it and raise trainer.accumulate as much"
        automatic = "" if halve else f" (trainer.on_oom=halve does {'it' if evaluating else 'both'})"
        return OutOfMemoryError(f"out of memory with {now}: {cure}{automatic}, or set trainer.precision=bf16-mixed")
    folder.write(settings={**folder.read().get("settings", {}), **smaller})
    listing = " ".join(f"{key}={value}" for key, value in smaller.items())
    text = f"out of memory with {now}: going on with {listing}"
    run.set_tags({OUT_OF_MEMORY: text, **{f"resolved.{key}": str(value) for key, value in smaller.items()}})
    return SmallerBatchError(text)
