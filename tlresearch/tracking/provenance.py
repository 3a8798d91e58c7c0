"""Provenance of a run: code, packages, hardware and command line, collected once per process."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tlresearch.base.redact import redact_assignments, redact_command

if TYPE_CHECKING:
    from tlresearch.tracking.base import Run

PACKAGES = (
    "tlresearch",
    "torch",
    "torchvision",
    "lightning",
    "mlflow",
    "optuna",
    "numpy",
    "scipy",
    "pillow",
    "torchmetrics",
    "scikit-learn",
    "safetensors",
    "timm",
    "transformers",
)
"""Packages whose version can change a result."""
VERSION = "tlresearch.version"
"""The tag that is recorded last at the beginning of a run: see `Provenance.log`."""
_LONGEST_DIFF = 4_000_000  # characters
_TIMEOUT = 10  # seconds; a repository on a slow network disk must not hold up a training


@dataclass(frozen=True)
class Code:
    """The git repository that holds the current folder.

    Attributes:
        commit: Full hash of the commit checked out; empty in a repository without one.
        branch: Its branch; empty if none is checked out.
        dirty: Whether files differ from the commit, untracked files included.
        diff: Diff of tracked files, without secrets; may be truncated.
        untracked: Untracked files, at most a hundred.
    """

    commit: str
    branch: str
    dirty: bool
    diff: str
    untracked: tuple[str, ...]


@dataclass(frozen=True)
class Hardware:
    """The machine of a run, without its name.

    Attributes:
        system: Operating system and architecture, such as ``Linux x86_64``.
        processor: Model of the processor.
        cores: Logical processors this process may use.
        memory_gb: Memory in GB (10^9 bytes).
        gpus: Model of each GPU.
    """

    system: str
    processor: str
    cores: int
    memory_gb: float
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """Everything that determined a run, except config and data.

    Attributes:
        command: Command line without secrets.
        code: The repository, or `None` outside one.
        packages: Version by package, for installed packages.
        python: Version of Python.
        hardware: The machine.
    """

    command: str
    code: Code | None
    packages: dict[str, str]
    python: str
    hardware: Hardware

    def tags(self) -> dict[str, str]:
        """Returns the short form for the table of runs; MLflow shows the commit in its own column."""
        tags = {
            "mlflow.source.name": self.command or "tlresearch",
            "mlflow.source.type": "LOCAL",
            "tlresearch.hardware": ", ".join(self.hardware.gpus) or self.hardware.processor,
            VERSION: self.packages.get("tlresearch", "unknown"),
        }
        if self.code:
            tags["mlflow.source.git.commit"] = self.code.commit
            tags["mlflow.source.git.branch"] = self.code.branch
            tags["tlresearch.code"] = "changed" if self.code.dirty else "clean"
        return {name: value for name, value in tags.items() if value}

    def environment(self) -> dict[str, object]:
        """Returns the whole record except the diff, as plain values."""
        record = asdict(self)
        if record["code"]:
            del record["code"]["diff"]
        return record

    def log(self, run: Run) -> None:
        """Writes the artifacts ``provenance/environment.json`` and ``provenance/diff.patch``, then tags.

        The tags come last, so a run that has them has the rest too: see `JournalRun.begun`.
        """
        # Through JSON, so that tuples become lists.
        run.log_dict(json.loads(json.dumps(self.environment())), "provenance/environment.json")
        if self.code and self.code.diff:
            run.log_text(self.code.diff, "provenance/diff.patch")
        run.set_tags(self.tags())


def collect(command_line: Sequence[str] | None = None) -> Provenance:
    """Collects the provenance of this process; git and hardware are asked once.

    Args:
        command_line: Words of the command; by default those of this process.
    """
    words = list(sys.argv if command_line is None else command_line)
    if words:
        # The folder of the program says something about the machine, not about the run.
        words[0] = Path(words[0]).name
    return Provenance(
        command=redact_command(words),
        code=_code(str(Path.cwd())),
        packages=dict(_packages()),
        python=platform.python_version(),
        hardware=_hardware(),
    )


@functools.cache
def _code(folder: str) -> Code | None:
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or ""
    branch = _git(folder, "symbolic-ref", "--short", "--quiet", "HEAD") or ""
    # The user's git settings may name an external diff program or colours; neither gives a patch that applies.
    diff = _git(top.strip(), "diff", "--no-ext-diff", "--no-color", "HEAD") if commit.strip() else ""
    status = _git(top.strip(), "status", "--porcelain") or ""
    untracked = tuple(line[3:] for line in status.splitlines() if line.startswith("??"))
    text = redact_assignments(diff or "")
    if len(text) > _LONGEST_DIFF:
        text = f"{text[:_LONGEST_DIFF]}\n# cut: the diff has {len(text)} characters\n"
    return Code(commit.strip(), branch.strip(), bool(status.strip()), text, untracked[:100])


def _git(folder: str, *arguments: str) -> str | None:
    # `git status` takes a lock to refresh the index; without it we cannot disturb a git command of the user.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace")


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(versions)


@functools.cache
def _hardware() -> Hardware:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=cores,
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        gpus=_gpus(),
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    if torch is not None:
        # Importing torch only for this would take seconds. Reading properties starts no CUDA context.
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(torch.cuda.get_device_properties(index).name for index in range(count))
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(answer.stdout.decode().split("\n")[:-1])
