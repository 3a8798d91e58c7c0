r"""On a GPU: is it right, and is it as fast as it should be? One command for a bare machine without a network.

    python -m benchmarks.gpu --out results

runs the tests marked ``gpu`` and the parts of `benchmarks.gpu_parts`, each in a process and a time box of its own, and
writes ``gpu.json``, ``gpu.md`` and ``log.txt``. What a part has measured is kept when it is stopped or dies. Without a
GPU, or with ``--cpu``, every part runs at tiny sizes: that tries the script and measures nothing.

A machine without a network needs Python 3.11 or later and what images for deep learning have: torch, torchvision,
lightning, torchmetrics, transformers, scikit-learn, scipy, pandas, pyarrow, matplotlib, pillow, psutil, rich, jinja2,
requests, pytest; timm gives a small ViT. The rest travels as wheels for its Python, 40 MB. Write its pins, as
``requirements/lock.txt`` has them, to ``pins.txt``: omegaconf; optuna with alembic, colorlog, sqlalchemy and mako;
mlflow, mlflow-skinny and mlflow-tracing with what they need (``pip install --dry-run --report`` on a machine with a
network lists it); for the tests also soundfile, pycocotools and, built by ``pip wheel``, seqeval. Here, then there:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels -r pins.txt
    pip install --no-index --no-deps wheels/*.whl

Nothing is downloaded: networks have random weights, and data are made.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SHARES: Mapping[str, int] = {
    "correctness": 8,
    "full-finetune": 9,
    "mixed-sweep": 6,
    "head-only": 7,
    "frozen-pass": 2,
    "text": 4,
    "boxes": 4,
}
"""The parts, in order, and how the time that is left is divided between those that are still to come."""
GRACE = 5
"""Seconds in which a part that is stopped may still say something."""


@dataclass(frozen=True)
class Ended:
    """What became of a part.

    Attributes:
        part: Its name.
        end: ``complete``, or why it is not.
        seconds: How long it ran.
        measured: What it has measured, see `benchmarks.gpu_parts.Measurement`.
        tests: Outcome by test.
        said: The end of what it printed, if it did not end well.
    """

    part: str
    end: str
    seconds: float
    measured: Sequence[dict[str, Any]] = ()
    tests: Mapping[str, str] = field(default_factory=dict)
    said: str = ""


def main() -> int:
    """Runs the parts and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES), help="parts to run")
    parser.add_argument("--seconds", type=float, default=480, help="seconds for everything")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to try the script")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    place = surroundings(cpu=options.cpu)
    print("\n".join(f"{key}: {value}" for key, value in place.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "log.txt"
    log.write_text("")
    ended: list[Ended] = []
    for number, part in enumerate(options.parts):
        left = deadline - time.monotonic()
        box = left * SHARES[part] / sum(SHARES[later] for later in options.parts[number:])
        ended.append(run(part, box, log, cpu=place["sizes"] != "full"))
        print(f"{part}: {ended[-1].end}, {ended[-1].seconds:.0f} s", flush=True)
        content = {"surroundings": place, "parts": [asdict(part) for part in ended]}
        (options.out / "gpu.json").write_text(json.dumps(content, indent=1))
        (options.out / "gpu.md").write_text(report(place, ended))
    print(report(place, ended))
    return int(any(part.end != "complete" for part in ended))


def surroundings(*, cpu: bool) -> dict[str, str]:
    """GPU, driver and versions."""
    import torch

    gpu = torch.cuda.is_available() and not cpu
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "none"
    except FileNotFoundError:
        driver = "none"
    versions = {name: importlib.metadata.version(name) for name in ("lightning", "torchvision", "transformers")}
    return {
        "GPU": torch.cuda.get_device_name() if gpu else "none",
        "driver": driver,
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        **versions,
        "processor": f"{os.cpu_count()} threads",
        "sizes": "full" if gpu else "tiny, on the CPU: this tries the script, its times mean nothing",
    }


def run(part: str, box: float, log: Path, *, cpu: bool) -> Ended:
    """Runs a part in a process group of its own, and stops it when its time is up."""
    with tempfile.TemporaryDirectory(prefix="tlresearch-gpu-") as folder:
        file, printed = Path(folder) / "measured.jsonl", Path(folder) / "printed.txt"
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1", "TMPDIR": folder}
        if part == "correctness":
            command = ["pytest", "-v", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider", "tests/test_gpu.py"]
            environment |= {"TLRESEARCH_GPU_TESTS_ON": "cpu"} if cpu else {}
        else:
            command = ["benchmarks.gpu_parts", part, str(file), *(["--cpu"] if cpu else [])]
            environment |= {"OMP_NUM_THREADS": "1"} if cpu else {}  # tiny networks gain nothing from more
        began = time.monotonic()
        with printed.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *command],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            end = _wait(process, box)
        said = printed.read_text(errors="replace")
        with log.open("a") as whole:
            whole.write(f"==== {part}\n{said}\n")
        lines = file.read_text().splitlines() if file.exists() else []
        return Ended(
            part,
            end,
            time.monotonic() - began,
            [json.loads(line) for line in lines],
            dict(re.findall(r"^tests/test_gpu\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", said, re.MULTILINE)),
            "" if end == "complete" else said[-2000:],
        )


def _wait(process: subprocess.Popen[bytes], box: float) -> str:
    """Waits for a part, stops it if need be, and says how it ended."""
    try:
        code = process.wait(box)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return f"stopped after its {box:.0f} s"
    return "complete" if code == 0 else f"ended with code {code}"


def report(place: Mapping[str, str], ended: Sequence[Ended]) -> str:
    """The results as Markdown."""
    lines = ["# On a GPU", "", *(f"- {key}: {value}" for key, value in place.items())]
    for part in ended:
        lines += ["", f"## {part.part}: {part.end}, {part.seconds:.0f} s", ""]
        if part.tests:
            counted = Counter(part.tests.values())
            lines += [", ".join(f"{count} {outcome.lower()}" for outcome, count in counted.items()), ""]
            lines += [f"- {outcome}: {name}" for name, outcome in part.tests.items() if outcome != "PASSED"]
        if part.measured:
            lines += _table(part.measured)
        if part.said:
            lines += ["", "```text", part.said.strip(), "```"]
    return "\n".join([*lines, ""])


def _table(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row per way; beside it how many times the time of each bare loop over the same subject it takes."""
    lines = [
        "| | by | s a pass | spread | a second | GPU computes | first pass and set-up, s | GPU memory, GB | "
        "times the time of |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    ways: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in measured:
        ways.setdefault((row["subject"], row["way"]), []).append(row)
    seconds = {key: [value for row in rows for value in row["seconds"]] for key, rows in ways.items()}
    for (subject, way), rows in ways.items():
        own = seconds[subject, way]
        if not own:
            lines.append(f"| {subject} | {way} | {rows[0]['error']} |" + " |" * 6)
            continue
        ratios = [
            f"{bare_way}: {_ratio(own, seconds[subject, bare_way])}"
            for (of, bare_way), bare in ways.items()
            if of == subject and bare[0]["bare"] and seconds[of, bare_way] and not rows[0]["bare"]
        ]
        lines.append(
            f"| {subject} | {way} | {median(own):.3f} | {min(own):.3f} to {max(own):.3f} | "
            f"{rows[0]['samples'] / median(own):.1f} | {_each(rows, 'busy', '.0%')} | "
            f"{_each(rows, 'warm_up', '.1f')} | {_each(rows, 'memory', '.2f', 1e-9)} | {'; '.join(ratios)} |"
        )
    return lines


def _ratio(own: Sequence[float], bare: Sequence[float]) -> str:
    return f"{median(own) / median(bare):.3f} ({min(own) / max(bare):.3f} to {max(own) / min(bare):.3f})"


def _each(rows: Sequence[Mapping[str, Any]], key: str, form: str, factor: float = 1) -> str:
    return ", ".join(format(row[key] * factor, form) for row in rows if row[key] is not None)


if __name__ == "__main__":
    raise SystemExit(main())
