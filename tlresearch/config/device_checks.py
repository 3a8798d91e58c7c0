"""What several devices ask of an experiment. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from tlresearch.base.errors import nearest
from tlresearch.config.schema import ExperimentConfig

STRATEGIES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def device_problems(config: ExperimentConfig) -> Iterator[str]:
    """Yields one line per problem, each beginning with the key it is about."""
    trainer, batch = config.trainer, config.data.batch_size
    if trainer.accelerator not in ACCELERATORS:
        near = nearest(trainer.accelerator, ACCELERATORS)
        yield f"trainer.accelerator: '{trainer.accelerator}' is unknown{near}; known: {', '.join(ACCELERATORS)}"
    if trainer.strategy not in STRATEGIES:
        near = nearest(trainer.strategy, STRATEGIES)
        yield f"trainer.strategy: '{trainer.strategy}' is unknown{near}; known: {', '.join(STRATEGIES)}"
    if trainer.devices >= 1 and batch % trainer.devices:
        yield (
            f"data.batch_size: is shared by all devices and must be a multiple of trainer.devices ({trainer.devices}), "
            f"but got {batch}"
        )
    if trainer.strategy != "fsdp":
        return
    if trainer.devices == 1:
        yield "trainer.strategy: fsdp shares the weights between several devices; set trainer.devices to their number"
    if config.regularize.ema:
        yield "regularize.ema: there is no average of weights that are shared by fsdp; set it to 0, or use ddp"
    if config.regularize.l2_sp:
        yield "regularize.l2_sp: there is no distance of weights that are shared by fsdp; set it to 0, or use ddp"
