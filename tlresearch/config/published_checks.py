"""What a reference must say, and what it must not contradict. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from tlresearch.config.published_schema import NumberConfig, ReferenceConfig, SourceConfig
from tlresearch.config.schema import ExperimentConfig


def reference_problems(config: ExperimentConfig) -> Iterator[str]:
    """Yields one line per problem of the seeds and the reference."""
    if len(set(config.seeds)) < len(config.seeds) or any(seed < 0 for seed in config.seeds):
        yield f"seeds: must be different whole numbers from 0, but got {config.seeds}"
    # Of variants each must have one, which is checked for each with its own values in place.
    if config.reference is not None and not config.variants:
        yield from _reference(config.reference, config)


def _reference(reference: ReferenceConfig, config: ExperimentConfig) -> Iterator[str]:
    yield from _source(reference.source)
    if not reference.numbers:
        yield "reference.numbers: is empty; name at least one metric with its published value and a tolerance"
    if not reference.needs:
        yield "reference.needs: is empty; say which data and weights it needs and how to get them"
    for index, number in enumerate(reference.numbers):
        yield from _number(f"reference.numbers[{index}]", number, config)


def _source(source: SourceConfig) -> Iterator[str]:
    if not source.title:
        yield "reference.source.title: is needed"
    places = {"repository": source.repository, "path": source.path, "commit": source.commit}
    given = [key for key, value in places.items() if value]
    if given and len(given) < len(places):
        lacking = ", ".join(key for key in places if key not in given)
        yield f"reference.source: with {' and '.join(given)} it needs {lacking}, so that the number can be looked up"
    if source.commit and not re.fullmatch(r"[0-9a-f]{7,40}", source.commit):
        yield f"reference.source.commit: must be 7 to 40 hexadecimal digits, but got '{source.commit}'"
    if bool(source.paper) != bool(source.table):
        yield "reference.source: a paper needs the table or figure of the number, and a table its paper"
    if not given and not source.paper:
        yield "reference.source: needs repository, path and commit, or paper and table"


def _number(key: str, number: NumberConfig, config: ExperimentConfig) -> Iterator[str]:
    if not re.fullmatch(r"(val|test)/\w+", number.metric):
        yield f"{key}.metric: must be val/<name> or test/<name>, but got '{number.metric}'"
    for name in ("value", "tolerance"):
        value = getattr(number, name)
        if value is None or not math.isfinite(value):
            yield f"{key}.{name}: is needed, a number"
    if not number.reason:
        yield f"{key}.reason: is needed: why differences up to the tolerance are noise"
    if isinstance(number.select, str) and number.select not in ("last", "best"):
        yield f"{key}.select: must be last, best or the number of an epoch, but got '{number.select}'"
    if isinstance(number.select, int) and not config.freeze.phases and number.select > config.freeze.epochs:
        yield f"{key}.select: must be at most freeze.epochs ({config.freeze.epochs}), but got {number.select}"
    if number.metric.startswith("test/") and number.select != config.trainer.select:
        yield (
            f"{key}.select: the test split is evaluated once, with the weights that trainer.select keeps "
            f"({config.trainer.select}), but the number is of {number.select}"
        )
