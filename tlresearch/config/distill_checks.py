"""What is wrong with a teacher's options taken together. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from tlresearch.config.schema import ExperimentConfig, TaskConfig


def distill_problems(config: ExperimentConfig) -> Iterator[str]:
    """Yields one line per problem, each beginning with the key it is about."""
    task, usual = config.task, TaskConfig()
    if task.teacher is None:
        for key in ("distill_alpha", "temperature"):
            if getattr(task, key) != getattr(usual, key):
                yield f"task.{key}: is only read together with task.teacher: the run that is learnt from"
        return
    if task.name != "classification":
        yield f"task.teacher: is only read by classification, but the task is {task.name}"
    if config.cache.views:
        yield "task.teacher: must see the images that the student sees, but cache.views keeps none; set it to 0"
