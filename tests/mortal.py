"""The program of a process that has imported everything, and forks for each experiment: a child may kill itself.

    python -W ignore -m tests.mortal

A request is a line of JSON on the standard input (see `Request`), the answer a line on the standard output (`Answer`).
This process never starts the GPU, since a child that is forked afterwards could not use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 120
"""Seconds after which a child is ended."""


@dataclass(frozen=True)
class Request:
    """An experiment, or a command of tlresearch, in a process of its own.

    Attributes:
        home: TLRESEARCH_HOME; the answer is written there too.
        text: The experiment as YAML; empty for a command.
        overrides: Values by full key.
        kill_in_epoch: The child kills itself in front of the first training step of this epoch.
        arguments: Words of the command.
        environment: Variables of the child.
    """

    home: str
    text: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    kill_in_epoch: int | None = None
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of it.

    Attributes:
        code: Exit code; that of a child ended by a signal is negative.
        said: Traceback of an error.
        epochs: Epochs in which the child trained.
        device: Where it trained: ``cuda`` or ``cpu``.
        metrics: As of the run's result.
        history: As of the run's result.
        weights: SHA-256 of the weights that training could change.
    """

    code: int
    said: str = ""
    epochs: Sequence[int] = ()
    device: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, float]] = ()
    weights: str = ""


class Children:
    """Asks the program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, request: Request) -> Answer:
        """Has a child do it, and waits for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def started() -> Iterator[Children]:
    """Starts the program, and ends it."""
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.mortal"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Children(process)
        assert process.stdin is not None
        process.stdin.close()


def digest(task: Any) -> str:
    """SHA-256 of the weights that training could change."""
    total = hashlib.sha256()
    for name, tensor in sorted(task.changing_state().items()):
        total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _serve() -> None:
    import lightning.pytorch  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import tlresearch.commands.predict
    import tlresearch.run.fit  # noqa: F401

    for line in sys.stdin:
        request = Request(**json.loads(line))
        file = Path(request.home) / "answer.json"
        file.unlink(missing_ok=True)
        process = os.fork()
        if process == 0:
            _become(request, file)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        content = json.loads(file.read_text()) if file.is_file() else {}
        print(json.dumps({**content, "code": code}), flush=True)


def _become(request: Request, file: Path) -> None:
    """Does it, in this child; does not return."""
    signal.alarm(LONGEST)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the answer's line is the parent's
    os.environ |= {"TLRESEARCH_HOME": request.home, **request.environment}
    code = 1
    try:
        if request.text:
            content, code = _run(request), 0
        else:
            from tlresearch.cli import main

            content, code = {}, main(list(request.arguments))
    except BaseException:
        content = {"said": traceback.format_exc()}
    file.write_text(json.dumps(content))
    sys.stderr.flush()
    os._exit(code)


def _run(request: Request) -> dict[str, Any]:
    from tlresearch.config.load import load_text
    from tlresearch.run.fit import fit
    from tlresearch.tasks.base import Task

    epochs: list[int] = []
    devices: set[str] = set()
    plain = Task.training_step

    def counted(self: Task, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == request.kill_in_epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        devices.add(self.device.type)
        if self.current_epoch not in epochs:
            epochs.append(self.current_epoch)
        return plain(self, batch, batch_idx)

    Task.training_step = counted  # type: ignore[method-assign]
    result = fit(load_text(request.text, request.overrides))
    return {
        "epochs": epochs,
        "device": ",".join(sorted(devices)),
        "metrics": result.metrics,
        "history": result.history,
        "weights": digest(result.task),
    }


if __name__ == "__main__":
    _serve()
