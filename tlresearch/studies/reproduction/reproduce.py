"""A published experiment run again: every variant with every seed, and a verdict on each published number."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tlresearch.base.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    MissingFileError,
    TrackingError,
    UserError,
    WeightsError,
    one_line,
)
from tlresearch.base.paths import SHIPPED, find_yaml, is_yaml, yaml_name
from tlresearch.config import checks
from tlresearch.config.load import Loaded, Overrides, load_variants, override_texts, revise
from tlresearch.config.published_schema import ReferenceConfig
from tlresearch.config.schema import ExperimentConfig
from tlresearch.run.recorded import present_data, present_weights
from tlresearch.run.results import pin_checkpoint
from tlresearch.show import markdown
from tlresearch.show.terminal import show
from tlresearch.studies.reproduction.repeat import Repetition, repeat_run
from tlresearch.studies.reproduction.scoreboard import Reproduction, Row, as_record, counts, scoreboard
from tlresearch.studies.reproduction.verdict import compared_value, judge
from tlresearch.studies.seeds import GroupResult, alone, fit_group, recorded_group
from tlresearch.tasks.watched import directed
from tlresearch.tracking.family import open_family
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.records import Record, Runs
from tlresearch.tracking.run import JournalRun

log = logging.getLogger(__name__)

PUBLISHED = "tlresearch.published"
"""Tag of the run that holds a reproduction's verdict: the experiment and what was overridden."""
VERDICT = "tlresearch.verdict"
"""Tag with the counts of its verdicts."""
PAGE = Path("REPRODUCED.md")

_NOT_HERE = (DataError, WeightsError, MissingExtraError, MissingFileError)
_NOT_PROTOCOL = ("tracking.", "cache.", "description", "trainer.accelerator", "trainer.threads")
"""Overrides that do not change what is computed."""


def reproduce(
    what: str | Path | Record,
    overrides: Overrides = (),
    *,
    variants: Sequence[str] = (),
    again: bool = False,
    anyway: bool = False,
    console: Console | None = None,
) -> Reproduction | Repetition:
    """Runs a published experiment and compares its numbers with the published ones; or repeats a recorded run.

    Of an experiment, what has been run before with the same settings is not run again: an interrupted reproduction
    goes on. A run is repeated as it was, and compared metric by metric and epoch by epoch.

    Args:
        what: Name under ``experiments/`` or path of a YAML file with a `reference`; or a run, its id, the beginning of
            its id, or its name.
        overrides: Values by full key, of an experiment; verdicts then say that they were overridden.
        variants: Only these variants; all unless given.
        again: Run everything anew.
        anyway: Of a run: go on although data or weights have changed since.
        console: Where progress is shown.

    Raises:
        ConfigError: With every problem of the file, before anything runs.
        UserError: If it has no reference or no such variant, or the store cannot be used.
    """
    if isinstance(what, Record):
        run: str | Record = what
        reason = f"{what.title} is no experiment"
    elif _is_experiment(str(what)):
        return reproduce_published(what, overrides, variants=variants, again=again, console=console)
    else:
        run, reason = str(what), f"there is no experiment '{what}'"
    # An override that names the store says where the run is found.
    if variants or again or any(not text.startswith("tracking.uri=") for text in override_texts(overrides)):
        raise UserError(
            f"reproduce: {reason}, and a recorded run is repeated as it was: "
            "it takes no overrides, --variant or --again"
        )
    return repeat_run(run, anyway=anyway, console=console)


def _is_experiment(text: str) -> bool:
    """Tells the name of an experiment, a wrong one too, from the id or name of a run."""
    return "/" in text or is_yaml(text, "experiments")


def reproduce_published(
    experiment: str | Path,
    overrides: Overrides = (),
    *,
    variants: Sequence[str] = (),
    again: bool = False,
    slow: bool = True,
    console: Console | None = None,
) -> Reproduction:
    """Runs a published experiment and compares its numbers with the published ones.

    Args:
        experiment: Name under ``experiments/`` or path of a YAML file with a `reference`.
        overrides: Values by full key; verdicts then say that they were overridden.
        variants: Only these variants; all unless given.
        again: Run everything anew.
        slow: Whether variants marked as slow are run; without, they show what was recorded earlier.
        console: Where progress is shown.
    """
    path = find_yaml(str(experiment), "experiments")
    name = yaml_name(path, "experiments")
    found = _with_reference(path, overrides)
    if not found:
        raise UserError(f"{name}: has no `reference`: nothing to reproduce; run it with: tlresearch run {name}")
    unknown = [variant for variant in variants if variant not in found]
    if unknown:
        raise UserError(f"{name}: there is no variant '{unknown[0]}' with a reference; it has {', '.join(found)}")
    wanted = {variant: loaded for variant, loaded in found.items() if not variants or variant in variants}
    changed = tuple(text for text in override_texts(overrides) if not text.startswith(_NOT_PROTOCOL))
    return _Reproducer(name, changed, again=again, slow=slow, console=console).run(wanted)


def reproduce_all(
    folder: Path | None = None,
    *,
    again: bool = False,
    slow: bool = False,
    page: Path = PAGE,
    console: Console | None = None,
) -> list[Reproduction]:
    """Reproduces every experiment of a folder that has a reference, and writes the page with all verdicts.

    Args:
        folder: Searched with its subfolders; ``None`` is that of the current folder, else what ships with tlresearch.
        again: Run everything anew.
        slow: Run also what is marked as slow.
        page: File the verdicts are written to, after each experiment.
        console: Where progress and tables are shown.

    Raises:
        ConfigError: With the problems of every file, before anything runs.
        UserError: If no experiment has a reference, or the store cannot be used.
    """
    folder = folder or next(place for place in (Path("experiments"), SHIPPED / "experiments") if place.is_dir())
    paths = sorted(folder.rglob("*.yaml"))
    problems = []
    published = []
    for path in paths:
        try:
            published += [path] if _with_reference(path, ()) else []
        except ConfigError as error:
            problems += [f"{path}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems, str(folder))
    if not published:
        raise UserError(f"{folder}: none of its {len(paths)} experiments has a `reference`")
    results = []
    for path in published:
        results.append(reproduce_published(path, again=again, slow=slow, console=console))
        if console is not None:
            show(console, results[-1].page)
        page.write_text(markdown.render(scoreboard(results, collect(sys.argv))))
    return results


class _Reproducer:
    """Runs the variants of one experiment under one MLflow run, opened when the first of them starts or is judged."""

    def __init__(
        self, name: str, overrides: tuple[str, ...], *, again: bool, slow: bool, console: Console | None
    ) -> None:
        self.name, self.overrides = name, overrides
        self.again, self.slow, self.console = again, slow, console
        digest = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8] if overrides else "as written"
        self._tag = f"{name} {digest}"
        self._opened = contextlib.ExitStack()
        self._run: JournalRun | None = None

    def run(self, variants: Mapping[str, Loaded[ExperimentConfig]]) -> Reproduction:
        """Runs them."""
        with alone(self._tag, f"the reproduction of {self.name}"), self._opened:
            rows = [row for variant, loaded in variants.items() for row in self._variant(variant, loaded)]
            if self._run is None:
                return Reproduction(self.name, tuple(rows))
            result = Reproduction(self.name, tuple(rows), self._run.run_id, self._run.url)
            self._run.log_dict(as_record(result), "reproduction.json")
            self._run.log_text(markdown.render(result.page), "reproduction.md")
            self._run.set_tags({VERDICT: counts(rows)})
        return result

    def _variant(self, variant: str, loaded: Loaded[ExperimentConfig]) -> list[Row]:
        left_out = _reference(loaded).slow and not self.slow
        try:
            runs = Runs(loaded.config.tracking.uri)
            group = recorded_group(loaded, runs) if left_out or not self.again else None
            if group is None and left_out:
                return self._not_run(variant, loaded, "marked as slow: give --slow, or name the experiment")
            if group is None:
                if self.console is not None:
                    self.console.print(f"[bold]{self.name}[/bold]  {variant}", highlight=False)
                _gather(loaded, runs)
                parent = self._parent(loaded, runs).run_id
                group = fit_group(
                    loaded, name=variant, parent=parent, again=self.again, runs=runs, console=self.console
                )
            self._parent(loaded, runs)
            return self._judged(variant, loaded, group)
        except _NOT_HERE as error:
            return self._not_run(variant, loaded, one_line(error))
        except TrackingError:
            raise
        except Exception as error:
            # One broken variant must not end a night of reproductions; its traceback is in MLflow and in the log.
            log.exception("%s: variant %s failed", self.name, variant)
            return [
                replace(row, verdict="failed")
                for row in self._not_run(variant, loaded, f"{type(error).__name__}: {one_line(error)}")
            ]

    def _judged(self, variant: str, loaded: Loaded[ExperimentConfig], group: GroupResult) -> list[Row]:
        trainer, reference = directed(loaded.config).trainer, _reference(loaded)
        rows = []
        for number in reference.numbers:
            values = [
                compared_value(number, run.history, run.metrics, monitor=trainer.monitor, mode=trainer.mode or "max")
                for run in group.runs
            ]
            found = judge(number, values)
            row = Row(
                variant=variant,
                number=number,
                reference=reference,
                verdict=found.word,
                ours=found.ours,
                difference=found.difference,
                seconds=group.seconds,
                overrides=self.overrides,
                run_id=group.run_id,
                commit=group.commit,
                date=f"{datetime.datetime.fromtimestamp(group.started, datetime.UTC):%Y-%m-%d}",
                hardware=group.hardware,
            )
            rows.append(row)
        return rows

    def _not_run(self, variant: str, loaded: Loaded[ExperimentConfig], reason: str) -> list[Row]:
        reference = _reference(loaded)
        return [
            Row(variant, number, reference, "not run", reason=reason, overrides=self.overrides)
            for number in reference.numbers
        ]

    def _parent(self, loaded: Loaded[ExperimentConfig], runs: Runs) -> JournalRun:
        """Opens the run that holds the verdict: that of an earlier reproduction, unless everything is run anew."""
        if self._run is not None:
            return self._run
        earlier = [] if self.again else runs.tagged(PUBLISHED, self._tag, limit=1)
        run = open_family(
            loaded.config,
            loaded.config.tracking,
            f"{self.name.rpartition('/')[2]} reproduced",
            params={"reproduce.experiment": self.name, "reproduce.overrides": " ".join(self.overrides)},
            tags={PUBLISHED: self._tag, "tlresearch.source": _reference(loaded).source.title},
            run_id=earlier[0].run_id if earlier else None,
        )
        self._run = self._opened.enter_context(run)
        return run


def _gather(loaded: Loaded[ExperimentConfig], runs: Runs) -> None:
    """Loads weights and data once, and downloads them where they can be, before any run is opened.

    Raises:
        UserError: If they are not here and cannot be had; the text names them.
    """
    lacking = checks.missing(loaded.config)
    if lacking:
        raise MissingFileError("; ".join(lacking))
    seeds = loaded.config.seeds
    config = pin_checkpoint(revise(loaded, {"seed": seeds[0]} if seeds else {}), runs).config
    present_data(config, present_weights(config, runs))


def _with_reference(path: Path, overrides: Overrides) -> dict[str, Loaded[ExperimentConfig]]:
    return {
        variant: loaded
        for variant, loaded in load_variants(path, overrides).items()
        if loaded.config.reference is not None
    }


def _reference(loaded: Loaded[ExperimentConfig]) -> ReferenceConfig:
    if loaded.config.reference is None:
        raise ValueError("only experiments with a reference are reproduced.")
    return loaded.config.reference
