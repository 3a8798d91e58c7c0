"""Takes every network of the lists apart and compares it at every boundary; writes the page of what is covered.

``python -m tests.backbones.every_network --shard 0/8`` examines an eighth and adds what it finds to a file, so that
nothing is examined twice; ``--page`` writes `docs/networks.md` from it. Each network is built with random weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.backbones.architectures import ARCHITECTURES, FURTHER, TIMM, build, example, noisy, small_config
from tests.backbones.equality import assert_equal_at_every_boundary
from tests.backbones.public_networks import PUBLIC
from tlresearch.backbones.base import Way
from tlresearch.backbones.recording import Drive
from tlresearch.backbones.stages import AsItIs, Vector, batches_like, largest_share, stages
from tlresearch.modality.values import Value

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
GROUPS = {"transformers": ARCHITECTURES, "further": FURTHER, "timm": TIMM, "public": tuple(PUBLIC)}
NETWORKS = tuple((group, name) for group, names in GROUPS.items() for name in names)
"""Every network: where it comes from, and its name there."""
NOT_CUT = {
    "funnel": "its layers share a table that is dropped out anew in training",
    "reformer": "reversible layers compute no gradient in eval mode",
    "rf_detr": "it looks for more objects in training than in evaluation",
    "fastspeech2_conformer": "it does not run in training without the durations it is to learn",
    "efficientnet": "a value that crosses a boundary within a squeeze is not met again: a fault of the cut",
    "rwkv": "its forward pass divides its own weights in eval mode",
}
"""Networks that run only as a whole; they must say so, not answer wrongly."""

DIFFERS = {
    "grounding-dino": "the gradient of a norm over its pyramid differs at one boundary, by a cause not yet found"
}
"""Networks for which the examination fails; they are not on the page."""


@dataclass(frozen=True)
class Examined:
    """How a network was taken apart.

    Attributes:
        way: The way.
        stages: Number of stages.
        share: Share of the parameters in the largest stage.
        seconds: Time for all of it.
    """

    way: Way
    stages: int
    share: float
    seconds: float


def make(group: str, name: str) -> tuple[nn.Module, Value, Drive]:
    """A network with random weights, a batch for it, and how it is run."""
    if group == "public":
        kind, value = PUBLIC[name]
        torch.manual_seed(0)
        return noisy(kind()), value, AsItIs()
    if group == "timm":
        import timm

        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0).eval()
        side = timm.data.resolve_model_data_config(network)["input_size"][-1]
        return noisy(network), torch.zeros(1, 3, side, side), Vector(network.num_features)
    network = build(small_config(name))
    return network, *example(network, name)


def examine(group: str, name: str) -> Examined:
    """Takes a network apart; what its stages give must be what it gives, at every boundary.

    Raises:
        AssertionError: If a result or a gradient differs.
    """
    start = time.perf_counter()
    network, value, drive = make(group, name)
    backbone = stages(network, value, drive=drive)
    if backbone.can_stop:
        assert_equal_at_every_boundary(network, drive, backbone, batches_like(network, drive, value)[0])
    _, share = largest_share(dict(backbone.named_stages()))
    return Examined(backbone.way, len(backbone.stage_names), round(share, 3), round(time.perf_counter() - start, 1))


def shard(part: str) -> Iterator[tuple[str, str]]:
    """Every n-th network, from the k-th on; `part` is ``k/n``."""
    first, every = map(int, part.split("/"))
    yield from NETWORKS[first::every]


def main(arguments: Sequence[str] | None = None) -> int:
    """Examines a shard, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("networks.json"), help="what was found so far")
    parser.add_argument("--shard", default="0/1", help="which part of the list: k/n")
    parser.add_argument("--group", choices=GROUPS, help="only networks from there")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop; a later call goes on")
    parser.add_argument("--page", action="store_true", help="write docs/networks.md")
    given = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = json.loads(given.results.read_text()) if given.results.is_file() else {}
    if given.page:
        PAGE.write_text(page(results), encoding="utf-8")
        return 0
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * given.minutes
    for group, name in shard(given.shard):
        key = f"{group}/{name}"
        if key in results or (given.group and group != given.group) or time.monotonic() > end:
            continue
        try:
            results[key] = asdict(examine(group, name))
        except Exception as error:  # of a foreign network; the list goes on
            results[key] = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(key, results[key], flush=True)
        given.results.write_text(json.dumps(results, indent=0, sort_keys=True))
        gc.collect()
    return 0


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page, from what was found."""
    titles = {
        "transformers": "Architectures of transformers",
        "further": "Further architectures of transformers, with configs made automatically",
        "timm": "Models of timm, one or more of every family",
        "public": "Public networks that are in none of these libraries, rebuilt small",
    }
    head = """# Networks that were taken apart

Each network below was built with random weights, small where it can be, and taken apart with `tlresearch.stages`. Run
up to every boundary and from there, it gives the results and gradients of the whole network. `make inspect` shows the
stages of yours; any network is checked in the same way when it is built ([Staged backbones](backbones.md)).

This page is written by `python -m tests.backbones.every_network --page`.

| networks | examined | cut between layers, equal at every boundary | run only as a whole |
| --- | ---: | ---: | ---: |
"""
    lines, parts = [], []
    for group, title in titles.items():
        rows = {key.partition("/")[2]: row for key, row in results.items() if key.partition("/")[0] == group}
        if not rows:
            continue
        cut = {name: row for name, row in rows.items() if row.get("way") not in (None, "children")}
        whole = sorted(set(rows) - set(cut))
        lines.append(f"| {title} | {len(rows)} | {len(cut)} | {len(whole)} |")
        parts.append(f"\n## {title}\n\n" + _listed(cut))
        if whole:
            parts.append("\nRun only as a whole, so that nothing can be stored between stages:\n\n" + _reasons(whole))
    return head + "\n".join(lines) + "\n" + "".join(parts)


def _listed(rows: dict[str, dict[str, Any]]) -> str:
    """Networks with the number of their stages."""
    names = ", ".join(f"{name} ({row['stages']})" for name, row in sorted(rows.items()))
    return textwrap.fill(f"With the number of stages: {names}.", 120, break_on_hyphens=False) + "\n"


def _reasons(names: Sequence[str]) -> str:
    return "".join(f"- {name}{': ' + NOT_CUT[name] if name in NOT_CUT else ''}\n" for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
