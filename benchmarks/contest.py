"""Runs loops against each other, each in a process of its own, and says on what they were measured."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from benchmarks.loops.spec import Outcome, Spec

ROOT = Path(__file__).parents[1]
WEIGHTS = {
    "mobilenet_v2": "torchvision/mobilenet_v2-tflite_ptq.pth",
    "resnet18": "torchvision/resnet18-partial_without_layer4_3x3.pth",
}
"""Weight files below TLRESEARCH_WEIGHTS; times do not depend on what is in them."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table beside the script")
    parser.add_argument("--repeats", type=int, default=1, help="how often the whole contest is run")
    return parser


def spec(model: str, **values: object) -> Spec:
    """A spec over hymenoptera photos and the real weights of a model."""
    weights = _complete(model, Path(os.environ["TLRESEARCH_WEIGHTS"]) / WEIGHTS[model])
    data = Path(os.environ["TLRESEARCH_DATA"]) / "hymenoptera_data"
    return Spec(model=model, weights=str(weights), data=str(data), batch=32, home="", **values)  # type: ignore[arg-type]


def measure(loop: str, wanted: Spec, *, keep: Path | None = None) -> Outcome:
    """Runs a loop in a fresh process, with an empty home unless one is kept."""
    home = keep or Path(tempfile.mkdtemp(prefix="tlresearch-benchmark-"))
    try:
        file = home / "spec.json"
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(replace(wanted, home=str(home)))))
        command = [sys.executable, "-m", f"benchmarks.loops.{loop}", str(file)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{loop} failed:\n{done.stderr[-3000:]}")
        outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    finally:
        if keep is None:
            shutil.rmtree(home, ignore_errors=True)
    print(f"{loop:>6}  {wanted.model}  {outcome.seconds:7.1f} s  {outcome.precision}", flush=True)
    return outcome


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times longer the one takes, with the smallest and largest of the pairs where there are several."""
    pairs = sorted(one / other for one, other in zip(slow, fast, strict=True))
    middle = pairs[len(pairs) // 2]
    return f"{middle:.2f}" if len(pairs) == 1 else f"{middle:.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f})"


def surroundings() -> str:
    """Hardware, versions, commit and load, in one paragraph."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lightning", "optuna", "mlflow"))
    commit = _git("rev-parse", "--short", "HEAD")
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--", "tlresearch") else ""
    return (
        f"{_processor()}, {os.cpu_count()} threads, {platform.system()}, Python {platform.python_version()}, "
        f"{versions}. "
        f"Commit {commit}{changed}, {datetime.date.today()}. Load average at the end {os.getloadavg()[0]:.1f}."
    )


def write(script: str, text: str, *, save: bool) -> None:
    """Prints a report, and writes it beside the script."""
    print(text)
    if save:
        Path(script).with_suffix(".md").write_text(text)


def _complete(model: str, file: Path) -> Path:
    """A file with all weights, as a downloaded one has: what is missing in ours is drawn at random."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(0)
    network = get_model(model, weights=None)
    network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    target = Path(tempfile.gettempdir()) / f"tlresearch-benchmark-{model}.pth"
    if not target.exists():
        torch.save(network.state_dict(), target)
    return target


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
