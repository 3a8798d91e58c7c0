"""Exports a trained run: writes its model in other formats, measures them, and refuses those with other answers."""

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
"""Folder of the exported artifacts, and prefix of their metrics."""
METADATA = "model.json"
TOKENIZER = "tokenizer.json"
CALIBRATION = 100
"""Number of training samples that determine the scales of static int8."""


def export_run(
    run: str | Record,
    forms: Sequence[Form],
    *,
    out: Path | None = None,
    tolerance: float | None = None,
    changed: float | None = None,
    samples: int | None = None,
) -> Export:
    """Writes the model of a run in other forms, and keeps those whose answers agree with the model's.

    Args:
        run: The run, or its id, the beginning of its id, or its name.
        forms: The forms to write.
        out: The folder; `None` for ``exports/<name>-<beginning of the id>``.
        tolerance: Largest difference of a probability; `None` for that of the number format (`TOLERANCES`).
        changed: Largest share of changed answers; `None` for that of the number format.
        samples: Number of samples of the split, evenly spread, for measuring; `None` for all, or
            `ScoresPredictor.most`.

    Raises:
        UserError: If the run has no model that can be exported, or its data is missing.
    """
    recorded = load(run)
    folder = out or Path("exports") / f"{recorded.name.replace('/', '-')}-{recorded.short}"
    with _opened(recorded, samples) as model:
        folder.mkdir(parents=True, exist_ok=True)
        baseline = model.measured(original(model.model), model.answers, model.source)
        shipped: list[Shipped] = []
        with tempfile.TemporaryDirectory() as scratch:
            for form in forms:
                log.info("export: %s", form.name)
                target = Path(scratch) / form.file
                measured, reason = None, ""
                try:
                    measured = model.write(form, target)
                    reason = measured.beyond(_limit(form, tolerance, changed))
                except UserError as error:
                    if len(forms) == 1:  # with several, the others are still written, and the page names this one
                        raise
                    reason = str(error).removeprefix("export: ")
                _place(target, folder / form.file, keep=not reason)
                shipped.append(Shipped(form, folder / form.file, measured, reason))
    reads, count = model.model.reads, len(model.rows)
    result = Export(recorded.run_id, recorded.name, reads, model.split, count, baseline, tuple(shipped), folder)
    _write_metadata(result, model.metadata)
    _record(recorded, result)
    return result


def forms_of(formats: Sequence[str], int8: Sequence[str], half: Sequence[str]) -> list[Form]:
    """Returns the forms of a command line: each format in float32, and in the other number formats that it supports.

    Raises:
        UserError: If int8 is requested without ONNX, or bf16 only for ONNX.
    """
    if int8 and "onnx" not in formats:
        raise UserError("export: --int8 is computed by ONNX Runtime; add --to onnx")
    if "bf16" in half and set(formats) == {"onnx"}:
        raise UserError("export: ONNX Runtime computes nothing in bf16 on a processor; use --half fp16")
    forms: list[Form] = []
    for to in dict.fromkeys(formats):
        numbers = [
            "fp32",
            *(n for n in half if (to, n) != ("onnx", "bf16")),
            *([f"int8-{way}" for way in int8] if to == "onnx" else []),
        ]
        forms += [Form(to, number) for number in dict.fromkeys(numbers)]  # type: ignore[arg-type]
    return forms


@dataclass(frozen=True)
class _Model:
    """The model of a run, with the samples on which its forms are measured.

    Attributes:
        model: The model.
        source: Its folder.
        metadata: Information for users of the exported files.
        data: The data.
        split: The split of the samples.
        rows: Positions of the samples.
        answers: Answers of the model itself.
    """

    model: Exportable
    source: Path
    metadata: Mapping[str, str]
    data: Data
    split: SplitName
    rows: Sequence[int]
    answers: Answers

    def measured(self, run: Runner, form_answers: Answers, path: Path) -> Measured:
        """Measures a form and compares its answers with those of the model."""
        return measure(self.model, run, form_answers, self.answers, self.data, self.split, self.rows, size(path))

    def write(self, form: Form, target: Path) -> Measured:
        """Writes a form and measures it."""
        if form.numbers in DTYPES:
            write(self.model, form, self.source, target, self.metadata)
        else:
            self._quantize(form, target)
        run = runner(self.model, form, target, _read)
        return self.measured(run, answers(run, self.data, self.split, self.rows), target)

    def _quantize(self, form: Form, target: Path) -> None:
        # int8 starts from the float32 file of ONNX, which may be one of the requested forms.
        plain = target.with_name(Form("onnx").file)
        temporary = not plain.exists()
        if temporary:
            write(self.model, Form("onnx"), self.source, plain, self.metadata)
        if form.numbers == "int8-dynamic":
            quantize_dynamic(plain, target)
        else:
            part, front = self.data.splits["train"], self.model.front
            quantize_static(plain, target, (front.arrays([part.raw(row)]) for row in _spread(len(part), CALIBRATION)))
        if temporary:
            plain.unlink()


def _read(folder: Path) -> Exportable:
    """Reads the folder of a stored model, or of its export as safetensors."""
    return Exportable(rebuild(folder))


@contextmanager
def _opened(run: RecordedRun, samples: int | None) -> Iterator[_Model]:
    """Opens the model of a run.

    Raises:
        UserError: If it has no model, or a model whose task cannot be exported or whose code is not trusted.
    """
    with run.model() as source:
        try:
            model = _read(source)
        except ValueError as error:
            raise UserError(f"export: {run.title}: {error}") from None
        data = present_data(run.config, model.predictor.backbone)
        recorded = run.origin.inputs
        if recorded and recorded.data != data.fingerprint.digest:
            log.warning("the data has changed since the run: the forms are measured on the present data")
        split: SplitName = "test" if "test" in data.splits else "val"
        rows = _spread(len(data.splits[split]), samples or model.predictor.most)
        own_answers = answers(original(model), data, split, rows)
        yield _Model(model, source, _metadata(run, model), data, split, rows, own_answers)


def _limit(form: Form, difference: float | None, changed: float | None) -> Tolerance:
    default = TOLERANCES[form.numbers]
    return Tolerance(
        default.changed if changed is None else changed, default.difference if difference is None else difference
    )


def _place(written: Path, target: Path, *, keep: bool) -> None:
    """Replaces the result of an earlier export by the new file; removes it only, if the new form is refused."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if keep:
        # Copied, not moved: a later int8 form starts from the float32 file.
        (shutil.copytree if written.is_dir() else shutil.copy)(written, target)


def _spread(count: int, most: int | None) -> list[int]:
    """Returns the positions of at most `most` samples, evenly spread over all."""
    if most is None or most >= count:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _metadata(run: Record, model: Exportable) -> dict[str, str]:
    return {
        "reads": model.reads,
        "classes": json.dumps(list(model.predictor.classes)),
        "kind": model.predictor.kind,
        "input": "; ".join(f"{name}: {description}" for name, description in model.front.inputs.items()),
        "output": "; ".join(f"{name}: {description}" for name, description in model.predictor.outputs.items()),
        "inside": model.inside,
        **model.front.metadata(),
        "run": run.run_id,
        "name": run.name,
        "data": run.tags.get("tlresearch.data", ""),
        "weights": run.tags.get("tlresearch.weights", ""),
    }


def _write_metadata(result: Export, metadata: Mapping[str, str]) -> None:
    """Writes metadata and measurements to the folder, and a script that predicts without tlresearch."""
    content: dict[str, Any] = {**metadata, "classes": json.loads(metadata["classes"])}
    if "preprocessing" in content:
        content["preprocessing"] = json.loads(metadata["preprocessing"])
    tokenizer = content.pop("tokenizer", None)
    if tokenizer is not None:
        (result.folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    content["measured"] = {"split": result.split, "samples": result.samples, "original": asdict(result.original)}
    content["measured"] |= {s.form.file: asdict(s.measured) for s in result.forms if s.measured and not s.refused}
    (result.folder / METADATA).write_text(json.dumps(content, indent=1))
    if any(shipped.form.to == "onnx" and not shipped.refused for shipped in result.forms):
        shutil.copy(str(standalone.__file__), result.folder / "predict.py")


def _record(run: Record, result: Export) -> None:
    """Adds the kept files and the measurements to the run."""
    rows = {"original": result.original} | {s.form.name.replace(" ", "-"): s.measured for s in result.forms}
    metrics: dict[str, float] = {}
    for row, measured in rows.items():
        if measured is not None:
            values = {"size_mb": measured.size / 1e6, "latency_ms": measured.latency}
            values |= {"per_second": measured.throughput, "changed": measured.changed}
            values |= {"max_difference": measured.difference}
            values |= {f"{result.split}_{key}": value for key, value in measured.metrics.items()}
            metrics |= {f"{FOLDER}/{row}/{key}": value for key, value in values.items()}
    files = {f"{FOLDER}/{shipped.form.file}": shipped.path for shipped in result.forms if not shipped.refused}
    texts = [file for file in (METADATA, TOKENIZER) if (result.folder / file).exists()]
    files |= {f"{FOLDER}/{file}": result.folder / file for file in texts}
    run.add(files=files, metrics=metrics)
