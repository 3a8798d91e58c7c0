"""Sounds: decoded, resampled, split by folder, name or manifest; what is broken is refused or counted."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.data.sounds import save_classes, save_tone
from tlresearch.base.errors import DataError, MissingExtraError
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.sound import AudioPreprocessing, decode, resample
from tlresearch.modality.values import unstack

FSDD = r"(?P<label>\d)_(?P<speaker>\w+)_(?P<take>\d+)\.wav"


def build(root: Path | str, name: str = "audio_folder", **given: Any) -> Data:
    preprocessing = given.pop("preprocessing", AudioPreprocessing())
    return build_data(DataConfig(name=name, root=str(root), **given), preprocessing=preprocessing, seed=0)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_is_mixed_to_mono_and_resampled(suffix: str, tmp_path: Path) -> None:
    time = np.arange(8000) / 8000
    left, right = np.sin(2 * np.pi * 500 * time), np.cos(2 * np.pi * 700 * time)
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, 0.4 * np.stack([left, right], axis=1), 8000)
    clip, own = decode(path.read_bytes(), 16_000)
    assert (clip.shape, clip.dtype, own) == ((16_000,), torch.float32, 8000)
    fine = np.arange(16_000) / 16_000
    wanted = 0.2 * (np.sin(2 * np.pi * 500 * fine) + np.cos(2 * np.pi * 700 * fine))
    middle = slice(500, -500)  # the filter of the resampling knows nothing beyond the ends
    np.testing.assert_allclose(clip.numpy()[middle], wanted[middle], atol=2e-3)
    assert torch.equal(
        decode(path.read_bytes(), 8000)[0], torch.from_numpy(soundfile.read(path, dtype="float32")[0].mean(1))
    )


def test_resampling_downwards_leaves_no_alias() -> None:
    tone = np.sin(2 * np.pi * 7000 * np.arange(16_000) / 16_000).astype(np.float32)  # above half of 8 kHz
    assert np.abs(resample(tone, 16_000, 8000)[200:-200]).max() < 0.02


def test_folders_and_splits(tmp_path: Path) -> None:
    data = build(save_classes(tmp_path / "given", splits=("train", "valid", "test"), count=3))
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert (data.classes, data.kind) == (("high", "low"), "binary")
    plain = build(save_classes(tmp_path / "plain"), val_fraction=0.2)
    assert {split: len(part) for split, part in plain.splits.items()} == {"train": 8, "val": 2}


def test_a_batch_is_padded_and_masked_or_of_one_length(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "s")
    data = build(root)
    batch = next(iter(make_loader(data.splits["train"], batch_size=8, shuffle=False, seed=0)))
    lengths = batch.inputs["mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    assert batch.inputs["audio"].shape == (8, max(lengths))
    for row, index in zip(unstack(batch.inputs), batch.indices.tolist(), strict=True):
        assert torch.equal(row["audio"], data.splits["train"].raw(index))
    fixed = build(root, seconds=0.22)
    batch = next(iter(make_loader(fixed.splits["train"], batch_size=8, shuffle=False, seed=0)))
    assert batch.inputs.shape == (8, 3520)
    for row, index in zip(batch.inputs, batch.indices.tolist(), strict=True):
        clip = fixed.splits["train"].raw(index)[:3520]
        assert torch.equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()


def test_short_clips_are_padded_and_normalised_over_what_is_real(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_classes(tmp_path / "s", count=4)
    save_tone(root / "low" / "tiny.wav", seconds=0.01)
    data = build(root, preprocessing=AudioPreprocessing(shortest=400, normalise=True))
    assert "1 clips are shorter than 0.025 s" in caplog.text
    part = next(part for part in data.splits.values() if "low/tiny.wav" in part.names)
    inputs = part[SampleKey(list(part.names).index("low/tiny.wav"), 0)][0]
    assert len(inputs["audio"]) == len(inputs["mask"]) == 400
    real = inputs["audio"][:160]
    assert abs(float(real.mean())) < 1e-5
    assert abs(float(real.var(correction=0)) - 1) < 1e-3
    assert not inputs["audio"][160:].any()


def test_broken_files_are_refused_or_counted_and_silence_is_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = save_classes(tmp_path / "s")
    (root / "low" / "noise.wav").write_bytes(b"RIFF not a sound")
    (root / "low" / "none.wav").write_bytes(b"")
    soundfile.write(root / "low" / "nothing.wav", np.zeros(0), 8000)
    soundfile.write(root / "low" / "silent.wav", np.zeros(1600), 8000)
    with pytest.raises(DataError, match=r"unreadable sounds \(3\).*noise.wav: not a sound.*0 bytes.*no samples"):
        build(root)
    data = build(root, on_error="skip")
    assert set(data.skipped) == {"low/noise.wav", "low/none.wav", "low/nothing.wav"}
    assert "1 clips of 14 are silent: low/silent.wav" in caplog.text
    caplog.clear()
    again = build(root, on_error="skip")  # from what is remembered of the files
    assert again.fingerprint == data.fingerprint
    assert "are silent" in caplog.text


def test_names_say_label_and_split(tmp_path: Path) -> None:
    for digit in range(3):
        for speaker in ("ann", "bob", "eve"):
            for take in range(3):
                save_tone(tmp_path / "r" / f"{digit}_{speaker}_{take}.wav", 300 + 50 * digit + take)
    takes = build(tmp_path / "r", options={"pattern": FSDD, "test": {"take": [0]}}, val_fraction=0.34)
    assert takes.classes == ("0", "1", "2")
    assert all(name.endswith("_0.wav") for name in takes.splits["test"].names)
    assert len(takes.splits["test"]) == 9
    speakers = build(
        tmp_path / "r",
        options={"pattern": FSDD, "test": {"speaker": ["eve"]}, "val": {"speaker": ["bob"], "take": [0, 1]}},
    )
    assert {split: len(part) for split, part in speakers.splits.items()} == {"train": 12, "val": 6, "test": 9}
    assert all("_bob_" in name for name in speakers.splits["val"].names)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "not an expression": ({"pattern": "("}, "is not a regular expression"),
    "no label": ({"pattern": r"\d"}, "has no group"),
    "does not fit": ({"pattern": r"(?P<label>x)\.mp3"}, "pattern does not fit"),
    "no such group": (
        {"pattern": r"(?P<label>\w+)/", "test": {"labl": ["low"]}},
        "no group 'labl' .did you mean 'label'",
    ),
    "no such value": ({"pattern": r"(?P<label>\w+)/", "test": {"label": ["deep"]}}, "values that no file has"),
    "not a list": ({"pattern": r"(?P<label>\w+)/", "test": {"label": "low"}}, "must be a list"),
    "without a pattern": ({"test": {"take": [0]}}, "which is not set"),
    "in both": (
        {"pattern": r"(?P<label>\w+)/(?P<n>\d)", "test": {"n": [0]}, "val": {"n": [0, 1]}},
        "files in both test and val",
    ),
    "unknown": ({"patern": "x"}, "has no option 'patern' .did you mean 'pattern'"),
    "not said": ({"transcripts": {"low": "deep"}}, "labels without a transcript .1.: 'high'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_named(case: str, tmp_path: Path) -> None:
    options, message = BAD[case]
    with pytest.raises(DataError, match=message):
        build(save_classes(tmp_path / "s"), options=options)


def test_mistakes_of_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no sound files"):
        build(tmp_path / "empty")
    save_tone(tmp_path / "flat" / "a.wav")
    with pytest.raises(DataError, match="outside a class folder"):
        build(tmp_path / "flat")
    with pytest.raises(DataError, match="is for images"):
        build(save_classes(tmp_path / "s"), augment="flip")
    with pytest.raises(DataError, match="gives sounds, which this backbone does not take"):
        build(tmp_path / "s", preprocessing=Preprocessing(crop=None, resize=None))
    with pytest.raises(DataError, match="gives images, which this backbone does not take"):
        build("x", name="digits")


Write = Callable[[Path, list[dict[str, str]]], Path]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(("name", "write"), [("m.csv", write_csv), ("m.jsonl", write_jsonl)])
def test_a_manifest_gives_transcripts(name: str, write: Write, tmp_path: Path) -> None:
    rows = [
        {"path": f"a/{n}.wav", "transcript": text, "split": split}
        for n, (text, split) in enumerate([("ab  a", "train"), ("b", "train"), ("a", "train"), ("ba", "holdout")])
    ]
    for row in rows:
        save_tone(tmp_path / row["path"])
    write(tmp_path / name, [{**row, "split": "val" if row["split"] == "holdout" else row["split"]} for row in rows])
    given = {"table": name, "split_column": "split", "options": {"transcript_column": "transcript"}}
    data = build(tmp_path, "audio_manifest", **given)
    assert (data.kind, data.classes) == ("transcript", (" ", "a", "b"))
    assert [target.tolist() for target in data.splits["train"].targets] == [[1, 2, 0, 1], [2], [1]]
    assert len(data.splits["val"]) == 1
    write(tmp_path / name, rows)
    with pytest.raises(DataError, match="unknown splits"):
        build(tmp_path, "audio_manifest", **given)
    write(tmp_path / name, [{**rows[0], "transcript": " "}])
    with pytest.raises(DataError, match="rows with nothing in column 'transcript'"):
        build(tmp_path, "audio_manifest", **given)
    write(tmp_path / name, [rows[0], rows[0]])
    with pytest.raises(DataError, match="listed more than once"):
        build(tmp_path, "audio_manifest", table=name, options={"transcript_column": "transcript"})
    with pytest.raises(DataError, match="no column 'lable'"):
        build(tmp_path, "audio_manifest", table=name, label_column="lable")


def test_a_manifest_gives_labels(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.wav", "label": "ab"[n % 2]} for n in range(8)]
    for number, row in enumerate(rows):
        save_tone(tmp_path / row["path"], 200 + 20 * number)
    write_csv(tmp_path / "m.csv", rows)
    data = build(tmp_path, "audio_manifest", table="m.csv", val_fraction=0.25)
    assert (data.classes, data.kind, len(data.splits["train"])) == (("a", "b"), "binary", 6)


def test_the_fingerprint_sees_transcripts_and_content(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "s")
    said = {"low": "deep", "high": "thin"}
    first = build(root, options={"transcripts": said})
    assert first.fingerprint == build(root, options={"transcripts": said}).fingerprint
    assert first.fingerprint != build(root, options={"transcripts": {**said, "high": "tall"}}).fingerprint
    save_tone(root / "low" / "0.wav", 5)
    assert first.fingerprint != build(root, options={"transcripts": said}).fingerprint
    lengths = replace(AudioPreprocessing(), seconds=1.0)
    assert repr(lengths) != repr(AudioPreprocessing())  # part of the key of stored activations


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save_classes(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"soundfile is not installed: .*extra 'speech'"):
        build(root)


def test_spoken_digits(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = build(
        data_dir / "free_spoken_digit", options={"pattern": FSDD, "test": {"take": [0, 1, 2, 3, 4]}}, seconds=1
    )
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 720, "val": 180, "test": 300}
    assert torch.bincount(torch.as_tensor(data.splits["test"].targets)).tolist() == [30] * 10
    assert "8 clips of 1200 are longer than data.seconds=1 and are cut; the longest has 2.28 s" in caplog.text


def test_a_clip_that_makes_a_batch_explode_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(6):
        save_tone(tmp_path / "ab"[number % 2] / f"{number}.wav", seconds=40.0 if number == 3 else 0.2)
    build(tmp_path)
    assert "b/3.wav lasts 40 s, and most last 0.2 s" in caplog.text
    assert "cut clips with data.seconds, or cut that one up" in caplog.text
    caplog.clear()
    build(tmp_path, seconds=0.2)
    assert "lasts 40 s" not in caplog.text
