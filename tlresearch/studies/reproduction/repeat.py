"""Repeats a recorded run from its record alone, and says how exactly: identical, within tolerance, or different."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.config.parts import identities
from tlresearch.finetuning.callback import EpochReport, Listener, RunPrunedError
from tlresearch.run.fit import Role, fit
from tlresearch.run.recorded import RecordedRun, load
from tlresearch.show import markdown
from tlresearch.show.elements import Badge, Cell, Column, Facts, Section, Table, Text, Tone
from tlresearch.show.page import Page, Shown
from tlresearch.tracking.records import Record
from tlresearch.understand.comparison.agreement import TOLERANCE, Agreement, Verdict, agreements, overall, read_history
from tlresearch.understand.comparison.differences import (
    Difference,
    differences,
    input_differences,
    part_differences,
)

REPRODUCES = "tlresearch.reproduces"
REPRODUCED_BY = "tlresearch.reproduced_by"
RESULT = "tlresearch.reproduction"

_APART = ("train", "val", "test")  # the rest is summed up by its first word
_TONES: dict[Verdict, Tone] = {"identical": "good", "within tolerance": "warning", "differs": "bad"}


@dataclass(frozen=True)
class Repetition(Shown):
    """A run and its repetition.

    Attributes:
        old: Id of the run that was repeated.
        new: Id of its repetition.
        name: Name of the run.
        verdict: The worst verdict of all metrics.
        metrics: How well each metric agrees, over every epoch.
        differences: In what code, data, weights, versions, hardware and computation differ.
        not_recorded: What one of them did not record, so that nothing can be said about it.
        url: Address of the repetition in the MLflow UI.
    """

    old: str
    new: str
    name: str
    verdict: Verdict
    metrics: tuple[Agreement, ...]
    differences: tuple[Difference, ...]
    not_recorded: tuple[str, ...]
    url: str

    @property
    def exit_code(self) -> int:
        """0 if every metric is identical or within tolerance, else 1."""
        return int(self.verdict == "differs")

    @property
    def page(self) -> Page:
        """The verdict metric by metric, and what differs between the two runs."""
        table = Table(
            (
                Column("metric"),
                Column("epochs", align="right"),
                Column("verdict"),
                Column("largest difference", align="left"),
            ),
            tuple(_rows(self.metrics)),
        )
        linked = f"Run {self.new} repeats run {self.old}; they are linked in both directions."
        return Page(
            self.name,
            (
                Section("", (Text(f"{linked}\n{self._meaning()}."), table)),
                Section(
                    "Code, data, weights, parts, packages, hardware, precision, threads", (Facts(tuple(self._facts())),)
                ),
            ),
            badges=(Badge(self.verdict, _TONES[self.verdict]),),
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        """What differs between the two runs, by kind."""
        for difference in self.differences:
            yield difference.kind, difference.text
        for part in self.not_recorded:
            yield "not recorded", f"{part}: nothing can be said"
        if not self.differences and not self.not_recorded:
            yield "the same", "code, data, weights, packages, hardware, precision and threads"

    def _meaning(self) -> str:
        same = sum(part.verdict == "identical" for part in self.metrics)
        near = sum(part.verdict == "within tolerance" for part in self.metrics)
        text = f"{same} of {len(self.metrics)} metrics are the same in every epoch, bit for bit"
        return text if same == len(self.metrics) else f"{text}; {near} more are within tolerance ({TOLERANCE})"


def _rows(metrics: Sequence[Agreement]) -> Iterator[tuple[Cell | str, ...]]:
    """One row per metric of a split, and one for all rates and the like."""
    groups: dict[str, list[Agreement]] = {}
    for metric in metrics:
        first = metric.name.partition("/")[0]
        groups.setdefault(metric.name if first in _APART else f"{first}/…", []).append(metric)
    order = {name: number for number, name in enumerate((*_APART, "selected"))}
    for name, parts in sorted(groups.items(), key=lambda item: order.get(item[0].partition("/")[0], len(order))):
        verdict = overall(parts)
        worst = next(part for part in parts if part.verdict == verdict)
        title = name if len(parts) == 1 else f"{name} ({len(parts)})"
        epochs = str(max(part.points for part in parts))
        yield title, epochs, Cell(verdict, tone=_TONES[verdict]), _largest(worst)


def _largest(metric: Agreement) -> str:
    if metric.verdict == "identical":
        return ""
    if metric.old is None or metric.new is None:
        return f"only the {'new' if metric.old is None else 'old'} run has epoch {metric.step}"
    return f"{metric.old:.6g} -> {metric.new:.6g} ({metric.new - metric.old:+.2g}) in epoch {metric.step}"


def repeat_run(run: str | Record, *, anyway: bool = False, console: Console | None = None) -> Repetition:
    """Repeats a run and compares every metric of every epoch; the new run is linked to the old one and back.

    The configuration is the recorded one, whatever became of the YAML. What had been chosen for the machine (threads,
    number format) is set to what it was. The repetition of a trial does not look at the test split either.

    Args:
        run: The run, or its id, the beginning of its id, or its name.
        anyway: Go on although data or weights have changed since.
        console: Where the plan and progress are shown.

    Raises:
        UserError: If the run is not there or still running, or data or weights are missing or (unless `anyway`)
            have changed; the text names the files.
    """
    old = load(run, anyway=anyway)
    if old.state == "running":
        raise UserError(f"{old.title} has not ended: let it end, or run its command again to continue it")
    loaded = old.as_it_was(anyway=anyway)
    if console is not None:
        console.print(f"[bold]repeats {old.name}[/bold]  run {old.short}, from its record alone", highlight=False)
    _check_inputs(old, anyway=anyway, console=console)
    history = read_history(old)
    role = Role(
        f"{old.name} repeated",
        tags={REPRODUCES: old.run_id},
        listener=_until(old, history),
        test=any(metric.startswith(("test/", "shift/")) for metric in history),
        repeats=old.run_id,
    )
    result = fit(loaded, role=role, console=console)

    new = old.runs.get(result.run_id)
    metrics = agreements(history, read_history(new), whole=old.state in ("finished", "pruned"))
    repetition = Repetition(
        old=old.run_id,
        new=new.run_id,
        name=old.name,
        verdict=overall(metrics),
        metrics=metrics,
        differences=differences(old.origin, new.origin),
        not_recorded=tuple(dict.fromkeys([*old.origin.not_recorded, *new.origin.not_recorded])),
        url=result.url,
    )
    content = {**asdict(repetition), "tolerance": TOLERANCE}
    texts = {"reproduction.json": json.dumps(content, indent=1), "reproduction.md": markdown.render(repetition.page)}
    new.add(tags={RESULT: repetition.verdict}, texts=texts)
    earlier = [part for part in old.tags.get(REPRODUCED_BY, "").split(", ") if part]
    old.add(tags={REPRODUCED_BY: ", ".join([*earlier, new.run_id])})
    return repetition


def _check_inputs(old: RecordedRun, *, anyway: bool, console: Console | None) -> None:
    """Says before training whether data and weights are still the same."""
    recorded = old.origin.inputs
    if recorded is None:
        if console is not None:
            console.print("  the run recorded no data and weights to compare with", style="yellow")
        return
    changed = [
        *input_differences(recorded, old.inputs),
        *part_differences(old.origin.parts, identities(old.config)),
    ]
    lines = "\n".join(f"  {change.kind}: {change.text}" for change in changed)
    if changed and not anyway:
        raise UserError(f"{old.title} was computed from something else than is here now; --anyway goes on:\n{lines}")
    if console is not None:
        samples = f"  data and weights are the same ({len(recorded.files)} samples, {recorded.weights})"
        console.print(lines or samples, highlight=False, markup=False, soft_wrap=True)


def _until(old: Record, history: dict[str, dict[int, float]]) -> Listener | None:
    """Stops where a pruner stopped the run that is repeated."""
    if old.state != "pruned":
        return None
    last = max(step for points in history.values() for step in points)

    def stop(report: EpochReport) -> None:
        if report.epoch >= last:
            raise RunPrunedError(f"after epoch {report.epoch}, as the run that is repeated")

    return stop
