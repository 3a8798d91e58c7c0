"""Time and memory of a training step of ResNet-50 at every unfreeze depth, and the share of full fine-tuning.

Gradient flow stops at the boundary, so both fall with depth. Run it with ``python benchmarks/depth_cost.py``; with
``--write`` the table replaces the one in `depth_cost.md`. Each depth is measured in a process of its own, because
the peak of a process's memory never falls.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MODEL = "resnet50"
STAGES = 5


@dataclass(frozen=True)
class Cost:
    """What a step costs at a depth: seconds of the fastest step, peak memory beyond the loaded network, parameters."""

    depth: int
    seconds: float
    memory: int
    parameters: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every depth and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed")
    parser.add_argument("--batch", type=int, default=8, help="samples of a batch")
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--write", action="store_true", help="write benchmarks/depth_cost.md")
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.depth is not None:
        cost = measure(options.depth, options.batch, options.size, options.steps, options.threads)
        print(json.dumps(asdict(cost)))
        return 0
    shared = [f"--{name}={getattr(options, name)}" for name in ("steps", "batch", "size", "threads")]
    costs = []
    for depth in range(STAGES + 1):
        command = [sys.executable, __file__, f"--depth={depth}", *shared]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        costs.append(Cost(**json.loads(done.stdout.splitlines()[-1])))
    text = table(costs, options.batch, options.size, options.steps, options.threads)
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text)
    return 0


def measure(depth: int, batch: int, size: int, steps: int, threads: int) -> Cost:
    """Measures one depth in this process."""
    import torch
    from torch import nn

    from tlresearch.backbones.vision import build_torchvision
    from tlresearch.config.schema import OptimizerConfig
    from tlresearch.finetuning import param_groups
    from tlresearch.finetuning.optimizers import build_optimizer
    from tlresearch.finetuning.parts import staged_parts
    from tlresearch.finetuning.schedule import Phase

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone = build_torchvision(MODEL, weights=None)
    count = len(backbone.stages)
    assert count == STAGES
    head = nn.Linear(backbone.out_features, 10)
    phase = Phase("p", stages=tuple(range(count - depth, count)), rates=(1e-3,) * (count + 1), epochs=1)
    parts = staged_parts(backbone, head)
    trained = param_groups.apply_phase(phase, parts)
    param_groups.apply_modes(phase, parts)
    optimizer = build_optimizer(OptimizerConfig(name="sgd", lr=1e-3, options={"momentum": 0.9}), backbone, head)
    inputs, targets = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    with torch.no_grad():
        backbone(inputs[:2, :, :64, :64])  # libraries that load at first use
    before, seconds = _peak(), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(backbone(inputs)), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return Cost(depth, min(seconds[1:]), _peak() - before, trained)


def table(costs: Sequence[Cost], batch: int, size: int, steps: int, threads: int) -> str:
    """Returns the figures and what they were taken on as Markdown."""
    full = costs[-1]
    rows = [
        f"| {'all' if cost is full else cost.depth} | {cost.parameters:,} | {cost.seconds:.2f} | "
        f"{cost.seconds / full.seconds:.0%} | {cost.memory / 2**20:,.0f} | {cost.memory / full.memory:.0%} |"
        for cost in costs
    ]
    return "\n".join(
        [
            "# A training step of ResNet-50 by unfreeze depth",
            "",
            f"Batch {batch}, {size} x {size} pixels, SGD with momentum, float32; the fastest of {steps} steps after "
            "one that is not counted. Memory is the peak of the process above that with the network loaded. Without an "
            "activation cache, which leaves out the frozen stages' forward pass too.",
            "",
            f"{_processor()}, {threads} threads, {platform.system()}, torch {_torch()}. Load average at the end "
            f"{os.getloadavg()[0]:.1f}: times are to be trusted where it is near the number of threads.",
            "",
            "| depth | trained parameters | s per step | of all | MiB | of all |",
            "| ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )


def _peak() -> int:
    kilobyte = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _torch() -> str:
    from importlib.metadata import version

    return version("torch").partition("+")[0]


if __name__ == "__main__":
    sys.exit(main())
