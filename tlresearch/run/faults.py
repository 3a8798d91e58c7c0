"""What ends a run from outside, told in one line: memory that does not suffice, a data loader process that died."""

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
"""Tag of a run: which batches it had no memory for, and how it went on."""

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.IGNORECASE)
_LOADER = re.compile(r"DataLoader worker \(pid\(?s?\)?,? ?[\d, ]+\) (?P<end>[^\n]*)")
_IN_WORKER = "in DataLoader worker process"


class OutOfMemoryError(RunFailedError):
    """There is not enough memory for this run."""


class SmallerBatchError(OutOfMemoryError):
    """There is not enough memory for this batch size; the run folder asks for a smaller one, with which to go on."""


@contextlib.contextmanager
def named(config: ExperimentConfig, folder: RunFolder, run: Run) -> Iterator[BatchWatch]:
    """Turns what ends a run from outside into an error that says what helps.

    With ``trainer.on_oom: halve`` the run folder keeps a smaller batch size for the next start, and the run a tag.

    Yields:
        Whoever computes batches tells it which.

    Raises:
        SmallerBatchError: If the run can go on with smaller batches.
        OutOfMemoryError: If it cannot.
        RunFailedError: If a loader process died.
        UserError: What a loader process found wrong.
    """
    watch = BatchWatch()
    try:
        yield watch
    except UserError as error:
        if _IN_WORKER not in str(error):
            raise
        # What follows in the text is the traceback of the other process, and the sentence at its end.
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
    """Whether memory ran out, on a GPU or outside."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or is_oom_error(error)
        or (isinstance(error, (RuntimeError, OSError)) and bool(_MEMORY.search(str(error))))
    )


def _loader_end(error: BaseException) -> str | None:
    """How a loader process ended, if that is what an error is about."""
    said = _LOADER.search(str(error))
    if said is not None:
        return said["end"].split(". ")[0].rstrip(". ")
    # A batch that is fetched just then: the socket through which its memory is handed over is gone.
    fetching = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return "exited unexpectedly" if fetching and isinstance(error, (OSError, EOFError)) else None


def release(error: BaseException) -> None:
    """Lets go of what the frames of an error hold, so that its memory can be used again."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    if torch.cuda.is_available():
        garbage_collection_cuda()


def halved(config: ExperimentConfig, *, training: bool = True, evaluation: bool = True) -> dict[str, int]:
    """Returns settings with smaller batches, of which as many samples as before make one step; empty if there are none.

    The training batch is divided by its smallest factor and ``trainer.accumulate`` multiplied by it; evaluation, whose
    result does not depend on it, takes half its batch.
    """
    batch, evaluated = config.data.batch_size, config.data.eval_batch_size
    smaller: dict[str, int] = {}
    if training and batch > 1:
        factor = next(n for n in range(2, batch + 1) if batch % n == 0)
        smaller |= {"data.batch_size": batch // factor, "trainer.accumulate": config.trainer.accumulate * factor}
    if evaluation and evaluated > 1:
        smaller["data.eval_batch_size"] = -(-evaluated // 2)
    return smaller


def _smaller(watch: BatchWatch, config: ExperimentConfig, folder: RunFolder, run: Run) -> OutOfMemoryError:
    config = settle(config, folder.read().get("settings", {}))
    evaluating = watch.batches == "evaluation"
    key = "data.eval_batch_size" if evaluating else "data.batch_size"
    now = f"{key}={config.data.eval_batch_size if evaluating else config.data.batch_size}"
    halve = config.trainer.on_oom == "halve"
    smaller = halved(config, training=not evaluating, evaluation=watch.batches != "training") if halve else {}
    if not smaller:
        cure = "lower it" if halve or evaluating else "lower it and raise trainer.accumulate as much"
        other = "" if halve else f" (trainer.on_oom=halve does {'it' if evaluating else 'both'})"
        return OutOfMemoryError(f"out of memory with {now}: {cure}{other}, or set trainer.precision=bf16-mixed")
    folder.write(settings={**folder.read().get("settings", {}), **smaller})
    went = " ".join(f"{key}={value}" for key, value in smaller.items())
    text = f"out of memory with {now}: going on with {went}"
    run.set_tags({OUT_OF_MEMORY: text, **{f"resolved.{key}": str(value) for key, value in smaller.items()}})
    return SmallerBatchError(text)
