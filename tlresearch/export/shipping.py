"""A trained run outwards: written in other formats, measured, and refused if it answers otherwise."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlresearch.base.errors import UserError
from tlresearch.data.base import Data, SplitName
from tlresearch.export import standalone
from tlresearch.export.formats import DTYPES, Form, Runner, original, runner, size, write
from tlresearch.export.measure import TOLERANCES, Answers, Measured, Tolerance, answers, measure
from tlresearch.export.network import Exportable
from tlresearch.export.outcome import Export, Shipped
from tlresearch.export.quantize import quantize_dynamic, quantize_static
from tlresearch.run.recorded import RecordedRun, load, present_data
from tlresearch.tracking.loaders import rebuild
from tlresearch.tracking.records import Record

log = logging.getLogger(__name__)

FOLDER = "export"
"""Artifacts of exported runs lie there, and their metrics begin with it."""
ABOUT = "model.json"
TOKENIZER = "tokenizer.json"
CALIBRATION = 100
"""Training samples that static int8 takes its scales from."""


def export_run(
    run: str | Record,
    forms: Sequence[Form],
    *,
    out: Path | None = None,
    tolerance: float | None = None,
    changed: float | None = None,
    samples: int | None = None,
) -> Export:
    """Writes the model of a run in other formats and keeps those that answer as it does.

    Args:
        run: The run, or its id, the beginning of its id, or its name.
        forms: What to write.
        out: The folder; `None` is ``exports/<name>-<beginning of the id>``.
        tolerance: Largest difference of a probability; `None` takes that of the number format (`TOLERANCES`).
        changed: Largest share of changed answers; `None` as above.
        samples: Measure on this many samples of the split, evenly spread; `None` takes all, or `ScoresPredictor.most`.

    Raises:
        UserError: If the run has no model that can be exported, or its data is not there.
    """
    recorded = load(run)
    folder = out or Path("exports") / f"{recorded.name.replace('/', '-')}-{recorded.short}"
    with _opened(recorded, samples) as model:
        folder.mkdir(parents=True, exist_ok=True)
        first = model.measured(original(model.model), model.wanted, model.source)
        shipped: list[Shipped] = []
        with tempfile.TemporaryDirectory() as scratch:
            for form in forms:
                log.info("export: %s", form.name)
                target = Path(scratch) / form.file
                measured, reason = None, ""
                try:
                    measured = model.written(form, target)
                    reason = measured.beyond(_limit(form, tolerance, changed))
                except UserError as error:
                    if len(forms) == 1:
                        raise
                    reason = str(error).removeprefix("export: ")
                _place(target, folder / form.file, keep=not reason)
                shipped.append(Shipped(form, folder / form.file, measured, reason))
    reads, count = model.model.reads, len(model.rows)
    result = Export(recorded.run_id, recorded.name, reads, model.split, count, first, tuple(shipped), folder)
    _leave(result, model.about)
    _record(recorded, result)
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


@dataclass(frozen=True)
class _Model:
    """The model of a run, and what its forms are measured on.

    Attributes:
        model: The model.
        source: Its folder.
        about: What a reader of its forms needs to know.
        data: The data.
        split: The split that forms are measured on.
        rows: Positions of the samples.
        wanted: What the model itself answers to them.
    """

    model: Exportable
    source: Path
    about: Mapping[str, str]
    data: Data
    split: SplitName
    rows: Sequence[int]
    wanted: Answers

    def measured(self, run: Runner, given: Answers, place: Path) -> Measured:
        """Measures a form by its answers."""
        return measure(self.model, run, given, self.wanted, self.data, self.split, self.rows, size(place))

    def written(self, form: Form, target: Path) -> Measured:
        """Writes a form and measures it."""
        if form.numbers in DTYPES:
            write(self.model, form, self.source, target, self.about)
        else:
            self._quantize(form, target)
        run = runner(self.model, form, target, _read)
        return self.measured(run, answers(run, self.data, self.split, self.rows), target)

    def _quantize(self, form: Form, target: Path) -> None:
        plain = target.with_name(Form("onnx").file)
        made = not plain.exists()
        if made:
            write(self.model, Form("onnx"), self.source, plain, self.about)
        if form.numbers == "int8-dynamic":
            quantize_dynamic(plain, target)
        else:
            part, front = self.data.splits["train"], self.model.front
            quantize_static(plain, target, (front.arrays([part.raw(row)]) for row in _spread(len(part), CALIBRATION)))
        if made:
            plain.unlink()


def _read(folder: Path) -> Exportable:
    """Reads the folder of a model, or the safetensors that were written of it."""
    return Exportable(rebuild(folder))


@contextmanager
def _opened(run: RecordedRun, samples: int | None) -> Iterator[_Model]:
    """Opens the model of a run.

    Raises:
        UserError: If it has none, one of a task that is not exported, or one that is not trusted.
    """
    with run.model() as source:
        try:
            model = _read(source)
        except ValueError as error:
            raise UserError(f"export: {run.title}: {error}") from None
        data = present_data(run.config, model.predictor.backbone)
        recorded = run.origin.inputs
        if recorded and recorded.data != data.fingerprint.digest:
            log.warning("the data has changed since the run: the forms are measured on what is there now")
        split: SplitName = "test" if "test" in data.splits else "val"
        rows = _spread(len(data.splits[split]), samples or model.predictor.most)
        wanted = answers(original(model), data, split, rows)
        about = _about(run, model)
        yield _Model(model, source, about, data, split, rows, wanted)


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


def _about(run: Record, model: Exportable) -> dict[str, str]:
    return {
        "reads": model.reads,
        "classes": json.dumps(list(model.predictor.classes)),
        "kind": model.predictor.kind,
        "input": "; ".join(f"{key}: {what}" for key, what in model.front.inputs.items()),
        "output": "; ".join(f"{key}: {what}" for key, what in model.predictor.outputs.items()),
        "inside": model.inside,
        **model.front.about(),
        "run": run.run_id,
        "name": run.name,
        "data": run.tags.get("tlresearch.data", ""),
        "weights": run.tags.get("tlresearch.weights", ""),
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


def _record(run: Record, result: Export) -> None:
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
    run.add(files=kept, metrics=metrics)
