"""A trained run outwards: written in other formats, measured, and refused if it answers otherwise."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.data.base import Data, SplitName
from tlresearch.export import standalone
from tlresearch.export.formats import DTYPES, Form, original, runner, size, write
from tlresearch.export.measure import TOLERANCES, Tolerance, answers, measure
from tlresearch.export.network import Exportable
from tlresearch.export.outcome import Export, Shipped
from tlresearch.export.quantize import quantize_dynamic, quantize_static
from tlresearch.show.terminal import show
from tlresearch.studies.reproduction.present import present_data, recorded_config
from tlresearch.tracking.loaders import find_loader, recorded_loader
from tlresearch.tracking.manifest import add_to_ended_run, local, model_address
from tlresearch.tracking.model import model_ids
from tlresearch.tracking.records import find_run
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store, connect
from tlresearch.understand.comparison.differences import read_record

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)

FOLDER = "export"
"""Artifacts of exported runs lie there, and their metrics begin with it."""
ABOUT = "model.json"
TOKENIZER = "tokenizer.json"
CALIBRATION = 100
"""Training samples that static int8 takes its scales from."""


def export_run(
    run: str,
    forms: Sequence[Form],
    *,
    out: Path | None = None,
    tolerance: float | None = None,
    changed: float | None = None,
    samples: int | None = None,
    console: Console | None = None,
) -> Export:
    """Writes the model of a run in other formats and keeps those that answer as it does.

    Args:
        run: Run id, unique beginning of one, or run name.
        forms: What to write.
        out: The folder; `None` is ``exports/<name>-<beginning of the id>``.
        tolerance: Largest difference of a probability; `None` takes that of the number format (`TOLERANCES`).
        changed: Largest share of changed answers; `None` as above.
        samples: Measure on this many samples of the split, evenly spread; `None` takes all, or `ScoresPredictor.most`.
        console: Where the table is shown.

    Raises:
        UserError: If the run has no model that can be exported, or its data is not there.
    """
    store = connect()
    found = find_run(store, run)
    run_id, name = found.info.run_id, (found.info.run_name or "").removeprefix(PRUNED_MARK)
    config = recorded_config(store, run_id, name).config
    folder = out or Path("exports") / f"{name.replace('/', '-')}-{run_id[:8]}"
    with _model(store, found) as (source, read):
        model = read(source)
        data = present_data(config, model.predictor.backbone)
        _warn_of_changes(store, found, data)
        split: SplitName = "test" if "test" in data.splits else "val"
        rows = _spread(len(data.splits[split]), samples or model.predictor.most)
        folder.mkdir(parents=True, exist_ok=True)
        run_original = original(model)
        wanted = answers(run_original, data, split, rows)
        first = measure(model, run_original, wanted, wanted, data, split, rows, size(source))
        about = _about(found, name, model)
        shipped: list[Shipped] = []
        with tempfile.TemporaryDirectory() as scratch:
            for form in forms:
                limit = _limit(form, tolerance, changed)
                log.info("export: %s", form.name)
                target = Path(scratch) / form.file
                measured, reason = None, ""
                try:
                    _write(form, model, source, target, about, data)
                    run_form = runner(model, form, target, read)
                    given = answers(run_form, data, split, rows)
                    measured = measure(model, run_form, given, wanted, data, split, rows, size(target))
                    reason = measured.beyond(limit)
                except UserError as error:
                    if len(forms) == 1:
                        raise
                    reason = str(error).removeprefix("export: ")
                _place(target, folder / form.file, keep=not reason)
                shipped.append(Shipped(form, folder / form.file, measured, reason))
    result = Export(run_id, name, model.reads, split, len(rows), first, tuple(shipped), folder)
    _leave(result, about)
    _record(store, result)
    if console is not None:
        show(console, result.page)
    return result


def forms_of(formats: Sequence[str], int8: Sequence[str], half: Sequence[str]) -> list[Form]:
    """Returns the forms a command line asks for: each format in float32, and in every other number format it has.

    Raises:
        UserError: If int8 is asked for without ONNX, whose runtime computes in it, or bf16 with it alone.
    """
    if int8 and "onnx" not in formats:
        raise UserError("export: --int8 is computed by ONNX Runtime; add --to onnx")
    if "bf16" in half and set(formats) == {"onnx"}:
        raise UserError("export: ONNX Runtime computes nothing in bf16 on a processor; use --half fp16")
    found: list[Form] = []
    for to in dict.fromkeys(formats):
        numbers = [
            "fp32",
            *(n for n in half if (to, n) != ("onnx", "bf16")),
            *([f"int8-{way}" for way in int8] if to == "onnx" else []),
        ]
        found += [Form(to, number) for number in dict.fromkeys(numbers)]  # type: ignore[arg-type]
    return found


@contextmanager
def _model(store: Store, run: Run) -> Iterator[tuple[Path, Callable[[Path], Exportable]]]:
    """The folder of the run's model, and what reads it.

    Raises:
        UserError: If it has none, or one of a task that is not exported.
    """
    models = model_ids(run)
    name = f"run {run.info.run_id[:8]} ({run.info.run_name})"
    if not models:
        raise UserError(
            f"export: {name} kept no model, as trials and runs with tracking.model=false do not; run it again as a "
            "run of its own (of a sweep: its run named 'best')"
        )
    with local(store, model_address(store, models[-1])) as folder:
        source = folder / "artifacts" / "model"
        try:
            load = find_loader(recorded_loader(source))
        except ValueError as error:
            raise UserError(f"export: {name}: {error}") from None
        yield source, lambda place: Exportable(load(place))


def _write(form: Form, model: Exportable, source: Path, target: Path, about: Mapping[str, str], data: Data) -> None:
    if form.numbers in DTYPES:
        write(model, form, source, target, about)
        return
    plain = target.with_name(Form("onnx").file)
    made = not plain.exists()
    if made:
        write(model, Form("onnx"), source, plain, about)
    if form.numbers == "int8-dynamic":
        quantize_dynamic(plain, target)
    else:
        part = data.splits["train"]
        quantize_static(plain, target, (model.front.arrays([part.raw(row)]) for row in _spread(len(part), CALIBRATION)))
    if made:
        plain.unlink()


def _limit(form: Form, difference: float | None, changed: float | None) -> Tolerance:
    usual = TOLERANCES[form.numbers]
    return Tolerance(
        usual.changed if changed is None else changed, usual.difference if difference is None else difference
    )


def _place(made: Path, target: Path, *, keep: bool) -> None:
    """Puts what was written into its place, instead of what an earlier export left; refused, nothing stays there."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if keep:
        # Copied, since int8 starts from the float32 file.
        (shutil.copytree if made.is_dir() else shutil.copy)(made, target)


def _spread(count: int, most: int | None) -> list[int]:
    """Positions of at most `most` samples, evenly over all."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _about(run: Run, name: str, model: Exportable) -> dict[str, str]:
    return {
        "reads": model.reads,
        "classes": json.dumps(list(model.predictor.classes)),
        "kind": model.predictor.kind,
        "input": "; ".join(f"{key}: {what}" for key, what in model.front.inputs.items()),
        "output": "; ".join(f"{key}: {what}" for key, what in model.predictor.outputs.items()),
        "inside": model.inside,
        **model.front.about(),
        "run": run.info.run_id,
        "name": name,
        "data": run.data.tags.get("tlresearch.data", ""),
        "weights": run.data.tags.get("tlresearch.weights", ""),
    }


def _leave(result: Export, about: Mapping[str, str]) -> None:
    """Writes what the files are beside them, and a script that predicts without tlresearch."""
    content: dict[str, Any] = {**about, "classes": json.loads(about["classes"])}
    if "preprocessing" in content:
        content["preprocessing"] = json.loads(about["preprocessing"])
    tokenizer = content.pop("tokenizer", None)
    if tokenizer is not None:
        (result.folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    content["measured"] = {"split": result.split, "samples": result.samples, "original": asdict(result.original)}
    content["measured"] |= {s.form.file: asdict(s.measured) for s in result.forms if s.measured and not s.refused}
    (result.folder / ABOUT).write_text(json.dumps(content, indent=1))
    if any(shipped.form.to == "onnx" and not shipped.refused for shipped in result.forms):
        shutil.copy(str(standalone.__file__), result.folder / "predict.py")


def _record(store: Store, result: Export) -> None:
    """Adds the files that were kept and what was measured to the run."""
    rows = {"original": result.original} | {s.form.name.replace(" ", "-"): s.measured for s in result.forms}
    metrics: dict[str, float] = {}
    for row, measured in rows.items():
        if measured is not None:
            values = {"size_mb": measured.size / 1e6, "latency_ms": measured.latency}
            values |= {"per_second": measured.throughput, "changed": measured.changed}
            values |= {"max_difference": measured.difference}
            values |= {f"{result.split}_{key}": value for key, value in measured.metrics.items()}
            metrics |= {f"{FOLDER}/{row}/{key}": value for key, value in values.items()}
    kept = {f"{FOLDER}/{shipped.form.file}": shipped.path for shipped in result.forms if not shipped.refused}
    kept |= {f"{FOLDER}/{file}": result.folder / file for file in (ABOUT, TOKENIZER) if (result.folder / file).exists()}
    add_to_ended_run(store, result.run_id, tags={}, files=kept, metrics=metrics)


def _warn_of_changes(store: Store, run: Run, data: Data) -> None:
    inputs = read_record(store, run).inputs
    if inputs and inputs.data != data.fingerprint.digest:
        log.warning("the data has changed since the run: the forms are measured on what is there now")
