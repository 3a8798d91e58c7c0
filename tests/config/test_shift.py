"""`data.shift`: what each entry becomes, and mistakes by their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy import toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.config.shift import shifted_sets


def text(shift: str, **more: str) -> str:
    return toy_text(data=f"{{name: digits, labels_per_class: 5, augment: flip, shift: {shift}}}", **more)


def test_an_entry_is_the_data_section_with_what_differs_and_all_samples() -> None:
    config = load_text(text("{other: {classes: ['1', '2'], split: all}, same: {split: val}}")).config
    other, same = shifted_sets(config.data)
    assert (other.name, other.split, other.changed) == ("other", "all", True)
    assert other.data.classes == ["1", "2"]
    assert (other.data.labels_per_class, other.data.augment, other.data.shift) == (None, "none", {})
    assert other.data.batch_size == config.data.batch_size
    assert (same.split, same.changed) == ("val", False)


def test_corruptions_are_a_set_for_each_kind_and_severity() -> None:
    config = load_text(text("{bad: {corruptions: {kinds: [contrast, pixelate], severities: [1, 5]}}}")).config
    names = [one.name for one in shifted_sets(config.data)]
    assert names == ["bad_contrast_1", "bad_contrast_5", "bad_pixelate_1", "bad_pixelate_5"]
    every = load_text(text("{bad: {corruptions: {kinds: [contrast]}}}")).config
    assert [one.severity for one in shifted_sets(every.data)] == [1, 2, 3, 4, 5]


def test_dotted_keys_reach_into_the_options_of_a_source() -> None:
    george = "{options.test: {speaker: [george]}}"
    values = f"{{name: digits, options: {{pattern: p, test: {{speaker: [theo]}}}}, shift: {{george: {george}}}}}"
    config = load_text(toy_text(data=values)).config
    (found,) = shifted_sets(config.data)
    assert found.data.options == {"pattern": "p", "test": {"speaker": ["george"]}}
    assert config.data.options["test"] == {"speaker": ["theo"]}


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ("{a: {rot: x}}", r"data\.shift\[a\]\.rot: unknown key \(did you mean 'root'\?\)"),
        ("{a: {split: tets}}", r"data\.shift\[a\]\.split: must be one of train, val, test, all, but got 'tets'"),
        ("{a: {}}", r"data\.shift\[a\]: says nothing"),
        ("{a/b: {split: all}}", r"data\.shift\[a/b\]: a name is made of letters"),
        (
            "{a: {corruptions: {kinds: [contrst]}}}",
            r"corruptions\.kinds: 'contrst' is unknown \(did you mean 'contrast'",
        ),
        (
            "{a: {corruptions: {kinds: [contrast], severities: [0]}}}",
            r"corruptions\.severities: 0 is unknown; known: 1, 2",
        ),
        ("{a: {corruptions: [contrast]}}", r"data\.shift\[a\]\.corruptions: must be \{kinds"),
        ("{a: {shift: {b: {split: all}}}}", r"data\.shift\[a\]\.shift: a shifted set has none of its own"),
        ("{a: {name: image_folder}}", r"data\.shift\[a\]\.root: is needed"),
    ],
)
def test_mistakes_are_named_by_their_key(shift: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_text(text(shift))


def test_a_folder_that_is_not_here_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    values = f"{{name: image_folder, root: {tmp_path}/here, shift: {{far: {{root: {tmp_path}/gone}}}}}}"
    with pytest.raises(ConfigError, match=r"data\.shift\[far\]\.root: .*gone does not exist"):
        load_text(toy_text(data=values))


def test_a_variant_replaces_the_sets_of_the_experiment() -> None:
    loaded = load_text(text("{a: {split: all}}"), {"data.shift": {"b": {"split": "val"}}})
    assert list(loaded.config.data.shift) == ["b"]
    assert load_text(loaded.recorded).config == loaded.config
