"""Memory and time of a full fine-tuning step with and without `trainer.gradient_checkpointing`.

    python -m benchmarks.gradient_checkpointing --write

Each way is measured in a process of its own, because the peak of a process's memory never falls. Random weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.contest import arguments, surroundings, write
from benchmarks.depth_cost import _peak

MODELS = ("mobilenet_v2", "resnet50", "vit_b_16")


def main() -> None:
    """Measures every model in both ways and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="torchvision models, separated by commas")
    parser.add_argument("--batch", type=int, default=16, help="samples of a batch")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--one", help="measure this model in this process: model,on or model,off")
    options = parser.parse_args()
    if options.one:
        model, way = options.one.split(",")
        print(json.dumps(measure(model, options.batch, options.steps, recomputing=way == "on")))
        return
    rows = []
    for model in options.models.split(","):
        found = {}
        for way in ("off", "on"):
            command = [sys.executable, "-m", "benchmarks.gradient_checkpointing", f"--one={model},{way}"]
            command += [f"--batch={options.batch}", f"--steps={options.steps}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        off, on = found["off"], found["on"]
        rows.append(
            f"| {model} | {off['stages']} | {off['memory'] / 2**20:,.0f} | {on['memory'] / 2**20:,.0f} | "
            f"{on['memory'] / off['memory']:.0%} | {off['seconds']:.2f} | {on['seconds']:.2f} | "
            f"{on['seconds'] / off['seconds']:.0%} |"
        )
    text = [
        "# A step of full fine-tuning with gradient checkpointing",
        "",
        f"Batch {options.batch}, 224 x 224 pixels, SGD, float32, the fastest of {options.steps} steps after one that "
        "is not counted. Memory is the peak of the process above that with the network loaded.",
        "",
        "| model | stages | MiB without | with | of it | s per step without | with | of it |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


def measure(model: str, batch: int, steps: int, *, recomputing: bool) -> dict[str, float]:
    """Measures one model in this process."""
    import torch
    from torch import nn

    from tlresearch.backbones.vision import build_torchvision

    torch.manual_seed(0)
    backbone = build_torchvision(model, weights=None)
    head = nn.Linear(backbone.out_features, 10)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=1e-3)
    inputs, targets = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
    with torch.no_grad():
        backbone(inputs[:2])  # libraries that load at first use
    backbone.recomputing = recomputing
    before, seconds = _peak(), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(head(backbone(inputs)), targets))
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return {"stages": len(backbone.stages), "seconds": min(seconds[1:]), "memory": _peak() - before}


if __name__ == "__main__":
    main()
