"""Tests of the target, the task and the ignored columns of tables: the rules in docs/data.md."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.data import load_text as load
from support.data import message as message_of

from fastmlp.data.dataset import Dataset
from fastmlp.data.load import Source, load_data, load_source
from fastmlp.errors import ConfigError, DataError

message = partial(message_of, DataError)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def note(data: Dataset) -> str:
    """Return the note about the target."""
    (found,) = [text for text in data.notes if text.startswith("target: ")]
    return found


def numbers(rows: int, *columns: str, header: str = "") -> str:
    """Return a table with some columns, each given as an expression of the row number i."""
    lines = [",".join(str(eval(column, {"i": i})) for column in columns) for i in range(rows)]  # noqa: S307
    return "\n".join([header, *lines] if header else lines) + "\n"


NAMED = {
    "label": ("a,label,b\n1,x,2\n3,y,4\n", "column 2 'label', classification; 2 features"),
    "CLASS": ("a,CLASS,b\n1,x,2\n3,y,4\n", "column 2 'CLASS', classification; 2 features"),
    "target": ("target,a,b\n1,1,2\n0,3,4\n", "column 1 'target', classification; 2 features"),
    "outcome": ("a,b,outcome\n1,5,1\n1,6,0\n", "column 3 'outcome', classification; 2 features"),
    "y": ("y,a\n1.5,2\n2.5,3\n", "column 1 'y', regression; 1 feature"),
    "species": ("species,a,b\nx,1,2\ny,3,4\n", "column 1 'species', classification; 2 features"),
    "survived": ("id,Survived,b\n5,1,2\n7,0,4\n", "column 2 'Survived', classification; 2 features"),
    "quality of wine": ("quality;a;b\n5;0,5;1\n6;0,7;2\n", "column 1 'quality', classification; 2 features"),
    "a label before other names": ("quality,label,b\n5,1,2\n7,0,4\n", "column 2 'label', classification; 2 features"),
    "the last one": ("a,b,mpg\n1,5,18.5\n1,6,20\n", "column 3 'mpg', regression; 2 features"),
    "the last one, text": ("a,b,kind\n1,5,x\n1,6,y\n", "column 3 'kind', classification; 2 features"),
    "Booleans": ("a,b,paid\n1,5,True\n1,6,False\n", "column 3 'paid', classification; 2 features"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_target_of_a_table_with_header(file: Path, kind: str) -> None:
    text, expected = NAMED[kind]
    assert note(load(file, text)) == f"target: {expected}"


WITHOUT_HEADER = {
    "text last": (numbers(20, "i / 2", "i % 3", "'abc'[i % 3]"), "column 3, classification; 2 features"),
    "text first": (numbers(20, "'abc'[i % 3]", "i / 2", "i % 3"), "column 1, classification; 2 features"),
    "whole numbers last": (numbers(20, "i / 3", "i / 7", "i % 3"), "column 3, classification; 2 features"),
    "whole numbers first": (numbers(20, "i % 3", "i / 3", "i / 7"), "column 1, classification; 2 features"),
    "many whole numbers": (numbers(60, "i % 30", "i / 3", "i / 7"), "column 1, regression; 2 features"),
}


@pytest.mark.parametrize("kind", WITHOUT_HEADER)
def test_target_of_a_table_without_header(file: Path, kind: str) -> None:
    text, expected = WITHOUT_HEADER[kind]
    assert note(load(file, text)) == f"target: {expected}"


UNCLEAR = {
    "two names": "label,a,target\n1,2,0\n0,3,1\n",
    "whole numbers at both ends": numbers(20, "i % 3", "i / 3", "i % 2"),
    "no whole numbers": numbers(20, "i / 3 + 0.1", "i / 7 + 0.1", "i / 9 + 0.1"),
    "too many whole numbers": numbers(300, "i * 7", "i / 3 + 0.1", "i / 9 + 0.1"),
    "text in the middle": numbers(20, "i / 3 + 0.1", "'abc'[i % 3]", "i / 9 + 0.1"),
    "two columns of text": numbers(20, "'abc'[i % 3]", "i / 9 + 0.1", "'de'[i % 2]"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_target_that_is_not_clear_is_asked_for(file: Path, kind: str) -> None:
    file.write_text(UNCLEAR[kind])
    with pytest.raises(DataError) as caught:
        load_data(file)
    assert caught.value.settings == ("target",)
    assert note(load_data(file, target="last")).startswith("target: column 3")


def pixels(side: int = 8, rows: int = 40) -> tuple[list[int], list[list[str]]]:
    """Return labels, and rows of random pixels as text."""
    rng = np.random.default_rng(0)
    return [row % 10 for row in range(rows)], rng.integers(0, 256, (rows, side * side)).astype(str).tolist()


@pytest.mark.parametrize(
    ("header", "first"),
    [
        (None, True),
        (None, False),
        (["digit", *(f"pixel{i}" for i in range(64))], True),
        ([*(f"pixel{i}" for i in range(1, 65)), "digit"], False),
        (["label", *(f"{i}x{j}" for i in range(1, 9) for j in range(1, 9))], True),
        (["label", *map(str, range(64))], True),
        ([*(f"px_{i}" for i in range(64)), "digit"], False),
    ],
)
def test_pixels_and_a_label_at_either_end(file: Path, header: list[str] | None, first: bool) -> None:
    labels, images = pixels()
    rows = [[str(label), *image] if first else [*image, str(label)] for label, image in zip(labels, images, strict=True)]
    data = load(file, "\n".join(",".join(row) for row in ([header] if header else []) + rows))
    assert data.image_shape == (8, 8, 1)
    assert data.y.tolist() == labels
    assert data.x.dtype == np.uint8
    assert data.x.astype(str).tolist() == images


def test_pixels_are_classified_also_into_many_classes(file: Path) -> None:
    _, images = pixels(rows=94)
    data = load(file, "\n".join(",".join([str(row % 47), *image]) for row, image in enumerate(images)))
    assert len(data.classes) == 47


def test_pixels_without_a_label_are_an_error(file: Path) -> None:
    _, images = pixels()
    file.write_text("\n".join([",".join(f"pixel{i}" for i in range(64)), *map(",".join, images)]))
    assert "all columns are pixels; add a column with the labels" in message(load_data, file)


GIVEN = {
    "name": ({"target": "b"}, [2, 5], [[1, 3], [4, 6]]),
    "other case": ({"target": "B"}, [2, 5], [[1, 3], [4, 6]]),
    "number": ({"target": "2"}, [2, 5], [[1, 3], [4, 6]]),
    "integer": ({"target": 2}, [2, 5], [[1, 3], [4, 6]]),
    "first": ({"target": "first"}, [1, 4], [[2, 3], [5, 6]]),
    "last": ({"target": "last"}, [3, 6], [[1, 2], [4, 5]]),
    "last of the columns that are left": ({"target": "last", "drop": ["c"]}, [2, 5], [[1], [4]]),
    "drop by name": ({"target": "a", "drop": ["b"]}, [1, 4], [[3], [6]]),
    "drop by number": ({"target": "a", "drop": [3]}, [1, 4], [[2], [5]]),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_given_target(file: Path, kind: str) -> None:
    options, y, x = GIVEN[kind]
    data = load(file, "a,b,c\n1,2,3\n4,5,6\n", task="regression", **options)
    assert data.y.ravel().tolist() == y
    assert data.x.tolist() == x


def test_a_name_comes_before_a_number(file: Path) -> None:
    data = load(file, "2,first,0,3,a\n7,8,9,1,2\n6,5,4,3,2\n", target="2", task="regression", header=True)
    assert data.y.ravel().tolist() == [7, 6]
    assert load_data(file, target="first", task="regression", header=True).y.ravel().tolist() == [8, 5]


WRONG = {
    "unknown name": ({"target": "bb"}, "unknown column 'bb'; did you mean 'b'?", "target"),
    "number": ({"target": "4"}, "target 4, but the table has 3 columns", "target"),
    "zero": ({"target": "0"}, "target 0, but the table has 3 columns", "target"),
    "dropped": ({"target": "a", "drop": ["a"]}, "target and drop are the same column, a", "target"),
    "weight": ({"target": "a", "weight": "a"}, "target and weight are the same column, a", "target"),
    "unknown dropped": ({"drop": ["id"]}, "unknown column 'id'", "drop"),
    "unknown treatment": ({"missing": "mode"}, "missing must be one of drop, mean, median, not 'mode'", "missing"),
    "task": ({"task": "clustering"}, "unknown task 'clustering'", ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_options(file: Path, kind: str) -> None:
    options, expected, setting = WRONG[kind]
    file.write_text("a,b,c\n1,2,3\n4,5,6\n")
    with pytest.raises((ConfigError, DataError)) as caught:
        load_data(file, **options)  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert setting in (*caught.value.settings, "")


@pytest.mark.parametrize("option", ["target", "drop", "missing", "delimiter", "header"])
def test_options_of_tables_are_refused_for_other_data(option: str) -> None:
    value = {"drop": ["a"], "header": True}.get(option, "a")
    text = message_of(ConfigError, load_data, "digits", **{option: value})
    assert text.startswith(f"{option} is for tables such as .csv files, not for 'digits'")


def test_a_table_without_header_has_no_names(file: Path) -> None:
    file.write_text("1,2,3\n4,5,6\n")
    text = message(load_data, file, target="mpg")
    assert text.endswith("unknown column 'mpg'; the file has no header, so set target to the number of a column, first or last")


def test_only_a_target(file: Path) -> None:
    file.write_text("a,b\n1,2\n4,5\n")
    assert "no features besides the target, column 1 'a'" in message(load_data, file, target="a", drop=["b"])
    assert "no columns are left" in message(load_data, file, drop=["a", "b"])


TASKS = {
    "20 whole numbers": (numbers(40, "i % 20", "i", header="y,a"), "classification"),
    "21 whole numbers": (numbers(42, "i % 21", "i", header="y,a"), "regression"),
    "whole numbers as floats": (numbers(40, "i % 3 + 0.0", "i", header="y,a"), "classification"),
    "fractions": (numbers(40, "i % 3 / 2", "i", header="y,a"), "regression"),
    "text": (numbers(40, "'abc'[i % 3]", "i", header="y,a"), "classification"),
    "Booleans": (numbers(40, "i % 2 == 0", "i", header="y,a"), "classification"),
    "-1 and 1": (numbers(40, "i % 2 * 2 - 1", "i", header="y,a"), "classification"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_task(file: Path, kind: str) -> None:
    text, task = TASKS[kind]
    assert f", {task}; " in note(load(file, text))


def test_a_given_task_is_used(file: Path) -> None:
    assert load(file, TASKS["20 whole numbers"][0], task="regression").y.dtype == np.float32
    assert len(load(file, TASKS["21 whole numbers"][0], task="classification").classes) == 21


def test_targets_that_do_not_fit_the_task(file: Path) -> None:
    file.write_text("a,kind\n1,x\n2,7\n")
    assert f"{file}: line 2, column 2 'kind': 'x' is not a number; correct it" in message(load_data, file, task="regression")
    file.write_text("a,b\n1,1\n2,1.5\n")
    assert f"{file}: line 3, column 2 'b': the label 1.5 is not an integer" in message(load_data, file, task="classification")
    file.write_text("a,b\n1,1\n2,1e39\n")
    assert f"{file}: line 3, column 2 'b': 1e+39 is not a finite float32 number" in message(load_data, file, task="regression")


def test_text_without_repetitions_is_no_target(file: Path) -> None:
    file.write_text(numbers(150, "i / 2", "f'car {i}'", header="mpg,name"))
    assert "the target, column 2 'name', has 150 distinct values in 150 rows" in message(load_data, file)


def test_a_fault_among_numbers_is_no_label(file: Path) -> None:
    file.write_text(numbers(50, "i / 2", "i % 3 if i != 30 else 'O'", header="a,label"))
    assert f"{file}: line 32, column 2 'label': 'O' is not a number" in message(load_data, file)


CLASSES = {
    "1 to 3": ("1,2,3,1", ("1", "2", "3"), [0, 1, 2, 0]),
    "-1 and 1": ("-1,1,1,-1", ("-1", "1"), [0, 1, 1, 0]),
    "gaps": ("10,200,30,10", ("10", "30", "200"), [0, 2, 1, 0]),
    "text": ("fig,plum, fig,date", ("date", "fig", "plum"), [1, 2, 1, 0]),
    "large integers": ("9007199254740993,3,3,3", ("3", "9007199254740993"), [1, 0, 0, 0]),
    "Booleans": ("true,false,true,true", ("False", "True"), [1, 0, 1, 1]),
    "floats": ("1.0,2.0,1.0,2.0", ("1", "2"), [0, 1, 0, 1]),
    "large": ("1099511627776,3,3,3", ("3", "1099511627776"), [1, 0, 0, 0]),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_are_the_values_that_occur(file: Path, kind: str) -> None:
    cells, classes, y = CLASSES[kind]
    data = load(file, "a,label\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells.split(","))))
    assert data.classes == classes
    assert data.y.tolist() == y


INDEX = {
    "empty name": (",label,a\n0,x,1.5\n1,y,2.5\n", [1.5, 2.5]),
    "empty name, other numbers": (",label,a\n17,x,1.5\n5,y,2.5\n", [1.5, 2.5]),
    "Unnamed: 0": ("Unnamed: 0,label,a\n0,x,1.5\n1,y,2.5\n", [1.5, 2.5]),
    "names of rows": (",a,label\nMazda,1.5,x\nFiat,2.5,y\n", [1.5, 2.5]),
    "empty name, target last": (",a,label\n0,1.5,x\n1,2.5,y\n", [1.5, 2.5]),
    "before a label": (numbers(12, "i", "'xy'[i % 2]", "i / 2", header="nr,label,a"), [i / 2 for i in range(12)]),
    "without header": (numbers(12, "i", "i / 2", "'xy'[i % 2]"), [i / 2 for i in range(12)]),
}


@pytest.mark.parametrize("kind", INDEX)
def test_an_index_is_ignored_with_a_note(file: Path, kind: str) -> None:
    text, x = INDEX[kind]
    data = load(file, text)
    assert data.x.ravel().tolist() == x
    assert any("(row index)" in one for one in data.notes)


NO_INDEX = {
    "a feature that counts": numbers(12, "i", "i / 2", "'xy'[i % 2]", header="day,a,label"),
    "starts at 1": numbers(12, "i + 1", "'xy'[i % 2]", header="day,label"),
    "not in order": numbers(12, "11 - i", "'xy'[i % 2]", header="day,label"),
    "the only feature": numbers(12, "i", "i % 2", header="day,label"),
    "before a number": numbers(30, "i", "i / 3", "i % 2", header="day,demand,x").replace("day,demand,x", "day,target,x"),
}


@pytest.mark.parametrize("kind", NO_INDEX)
def test_other_columns_are_no_index(file: Path, kind: str) -> None:
    data = load(file, NO_INDEX[kind])
    assert data.encoding is not None
    assert data.encoding.columns[0].name == "day"


def test_an_empty_column_at_the_end_is_ignored(file: Path) -> None:
    data = load(file, "label,a,\nx,1,\ny,2,\n")
    assert data.x.tolist() == [[1], [2]]
    assert "ignored: empty column 3" in data.notes


def test_one_dropped_column_need_not_be_a_list(file: Path) -> None:
    for drop in ("a", 1, ["a"], [1]):
        assert load(file, "a,b,label\n1,2,x\n3,4,y\n", drop=drop).x.tolist() == [[2], [4]]


@pytest.mark.parametrize("label", ["inf", "1e300"])
def test_labels_are_integers_that_can_be_represented(file: Path, label: str) -> None:
    file.write_text(f"a,label\n1,0\n2,{label}\n")
    assert f"{file}: line 3, column 2 'label': the label " in message(load_data, file, task="classification")


def test_stratified_splits_of_a_regression_are_refused(file: Path) -> None:
    from fastmlp.data.splits import training_rows

    file.write_text(numbers(40, "i % 7 / 2", "i", header="y,a"))
    source = Source(str(file), fit_rows=lambda y: training_rows(y, 0.2, 0.2, stratify=True))
    assert "stratify needs class labels" in message_of(ConfigError, load_source, source)


FORMATS = {
    "a;label\n1,5;x\n2,5;y\n": "format: delimiter semicolon, decimal comma",
    "1.5\tx\n2.5\ty\n1.5\tx\n": "format: delimiter tab, no header",
    "a,label\n1,x\n": "",
}


@pytest.mark.parametrize("text", FORMATS)
def test_an_unusual_format_is_told(file: Path, text: str) -> None:
    notes = [one for one in load(file, text).notes if one.startswith("format: ")]
    assert notes == ([FORMATS[text]] if FORMATS[text] else [])


def test_a_named_target_that_counts_is_the_target(file: Path) -> None:
    assert note(load(file, numbers(30, "i", "i / 3", header="y,a"))) == "target: column 1 'y', regression; 1 feature"


def test_the_first_column_is_not_the_index(file: Path) -> None:
    assert (
        note(load(file, ",label,a\n0,x,1.5\n1,y,2.5\n", target="first"))
        == "target: column 2 'label', classification; 1 feature"
    )


def test_small_integers_with_other_names_are_not_pixels(file: Path) -> None:
    rng = np.random.default_rng(0)
    header = ",".join(f"feature_{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(65))
    rows = [",".join(map(str, row)) for row in rng.integers(0, 3, (40, 65))]
    data = load(file, "\n".join([header, *rows]))
    assert note(data) == "target: column 65 'feature_cm', classification; 64 features"
    assert data.image_shape is None


def test_labels_at_both_ends_of_pixels_without_header_are_asked_for(file: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [",".join(map(str, [i % 3, *row, i % 4])) for i, row in enumerate(rng.integers(0, 256, (40, 63)))]
    file.write_text("\n".join(rows))
    assert "it is not clear which column is the target" in message(load_data, file)
