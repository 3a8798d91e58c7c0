"""The one reader of tables: what it reads whatever its form, and what it refuses by file, line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tlresearch.base.errors import DataError
from tlresearch.data.rows import Label, check_labels, clean, numbered, read_rows

TABLE = [("a.png", "cat"), ("b.png", "dog"), ("c.png", "cat")]


def write(path: Path, delimiter: str = ",", encoding: str = "utf-8", header: str = "image,label") -> Path:
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in TABLE)]
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def labels(path: Path, **options: Any) -> list[Label]:
    return read_rows(path, ["image", "label"], **options).labels("label")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", [".csv", ".CSV", ".tsv", ".Txt"])
def test_delimiter_and_marked_encoding_are_found(delimiter: str, encoding: str, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"t{ending}", delimiter, encoding)
    rows = read_rows(path, ["image", "label"])
    assert rows.texts("image") == ["a.png", "b.png", "c.png"]
    assert rows.labels("label") == ["cat", "dog", "cat"]
    assert list(rows.lines) == [2, 3, 4]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "cp1252", "mac-roman"])
def test_an_encoding_without_a_mark_is_refused_until_it_is_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("image,label\na.png,café\nb.png,œuf".encode(encoding))
    with pytest.raises(DataError, match=r"t\.csv.*data\.encoding"):
        labels(path)
    assert labels(path, encoding=encoding) == ["café", "œuf"]
    with pytest.raises(DataError, match=r"data\.encoding: Python knows no encoding 'excel'"):
        labels(path, encoding="excel")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system(ends: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"image,label{ends}a.png,x{ends}{ends}b.png,y{ends}".encode())
    assert labels(path) == ["x", "y"]


def test_quotes_hold_delimiters_line_ends_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,label,note\n"one, two\nthree\n""four""",x,5" disk\n"a\u2028b\x85c",y,\n')
    rows = read_rows(path, ["text", "label"])
    assert rows.columns["text"] == ['one, two\nthree\n"four"', "a\u2028b\x85c"]
    assert list(rows.lines) == [2, 5]
    tabs = tmp_path / "t.tsv"
    tabs.write_text('text\tlabel\n"wait\tx\nshe said "no"\ty\n')
    assert read_rows(tabs, ["text", "label"]).columns["text"] == ['"wait', 'she said "no"']


def test_a_value_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"text,label\n{'word ' * 100_000},x\n")
    assert len(read_rows(path, ["text"]).columns["text"][0]) == 500_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('image,label,note\na,x,\nb,y,"see\nc,x,ok\n', r"line 3, column 'note': a quote opens and is not closed"),
        ('image,label\na,"x" y\n', r"line 2, column 'label': a quote opens"),
        ("image,label,label\na,x,y\n", r"line 1: column 'label' stands 2 times"),
        ("image,label\na,x\nb,y,z\n", r"line 3 has 3 values, but the header has 2 columns"),
        ("image,label\na,x\nb\n", r"line 3 has 1 values.*column 'label' is missing"),
        ("image,labels\na,x\n", r"no column 'label' \(did you mean 'labels'\?\); the columns are 'image', 'labels'"),
        ("image,label\n", r"has no rows"),
        ("", r"has no rows"),
        ("image,label\na,x\nb, \n", r"rows with nothing in column 'label' \(1\): line 3"),
        ("image,label\na,1\nb,2\nc,1.0\n", r"one number in two spellings \(1\): '1' and '1.0'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        labels(path)
    assert str(path) in str(caught.value)


def test_a_quote_that_swallows_rows_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,label,note\na,x,"see\nb,y,ok\nc,x,it"\nd,y,ok\n')
    assert len(read_rows(path, ["image", "label"]).lines) == 2
    assert "values in quotes hold lines that look like rows (lines 2 to 4)" in caplog.text


def test_empty_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,label\na,x\n , \n,\nb,y,,\n")
    rows = read_rows(path, ["image", "label"])
    assert rows.labels("label") == ["x", "y"]
    assert rows.passed == {"empty rows": 2}


@pytest.mark.parametrize("label", ["NA", "None", "null", "007", "1e3", "-", "True", "#N/A", "nan"])
def test_labels_stay_as_they_are(label: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"image,label\na,{label}\nb,other\n")
    assert labels(path) == [label, "other"]


def test_labels_that_look_alike_are_one() -> None:
    alike = ["hot dog", " hot dog\u00a0", "hot\u202fdog", "\ufeffhot dog"]
    assert {clean(label) for label in alike} == {"hot dog"}
    assert clean("cafe\u0301") == clean("café")


def test_numbers_of_json_are_labels_by_their_value(tmp_path: Path) -> None:
    path = tmp_path / "t.JSONL"
    values: list[Any] = [1, 1.0, 2, "2", True, [1, "x"]]
    path.write_text("\n".join(json.dumps({"image": f"{n}", "label": value}) for n, value in enumerate(values)))
    assert labels(path) == ["1", "1", "2", "2", "True", ["1", "x"]]
    for nothing in ("NaN", "null", '""', '"\u00a0"'):
        path.write_text(f'{{"image": "a", "label": "x"}}\n\n{{"image": "b", "label": {nothing}}}')
        with pytest.raises(DataError, match=r"rows with nothing in column 'label' \(1\): line 3"):
            labels(path)
    path.write_text('{"image": "a", "label": "x", "label": "y"}')
    with pytest.raises(DataError, match=r"line 1 is not JSON: the key 'label' stands in it twice"):
        labels(path)


def test_measured_numbers_are_no_classes() -> None:
    with pytest.raises(DataError, match=r"here: the labels are decimal numbers \(0\.5, 1\.5, 2\.5, …\), 20 different"):
        check_labels("here", [f"{n}.5" for n in range(20)])
    check_labels("here", [f"{n / 2}" for n in range(1, 11)] * 4)  # stars, in halves
    check_labels("here", [f"v{n}.5" for n in range(20)])


def test_several_labels_of_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image;label\na;x\n".replace(";", ",") + "b,x; y\nc,\n")
    classes, matrix = numbered(labels(path))
    assert classes == ("x", "y")
    assert matrix.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_columns_by_number(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a;x\nb;y\n")
    assert read_rows(path, ["0", "1"], delimiter=";").labels("1") == ["x", "y"]
    with pytest.raises(DataError, match=r"data\.delimiter: is one character"):
        read_rows(path, ["0", "1"], delimiter=";;")


@pytest.mark.parametrize(
    ("content", "separator"),
    [("sep=;\nimage;label\na.png;ham, egg\n", ";"), ('\ufeffSEP=,\r\nimage,label\r\na.png,"ham, egg"\r\n', ",")],
)
def test_a_line_by_which_excel_says_the_delimiter_is_none_of_the_table(
    content: str, separator: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content, newline="")
    rows = read_rows(tmp_path / "t.csv", ["image", "label"])
    assert (rows.columns, rows.lines) == ({"image": ["a.png"], "label": ["ham, egg"]}, [3])


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull fetches that"),
        (b"\n<!DOCTYPE html><html>", "a web page, such as that of a login"),
        (b"PK\x03\x04" + bytes(40), "save the workbook as CSV"),
        (b"\x1f\x8b" + bytes(40), "compressed by gzip"),
    ],
)
def test_what_lies_under_the_name_of_a_table_is_named(content: bytes, cure: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv is no text: .*{cure}"):
        read_rows(tmp_path / "t.csv", ["image"])
