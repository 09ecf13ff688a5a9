"""Tests of the encoding of tables: one-hot encoding, missing values, and columns that are matched by their names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.data import load_text as load
from support.data import message as message_of

from fastmlp.data.load import Source, load_data, load_source
from fastmlp.data.tables.encoding import Column, TableEncoding
from fastmlp.data.tables.load import load_features
from fastmlp.data.tables.target import TableOptions
from fastmlp.errors import DataError

message = partial(message_of, DataError)
TEXT = "size,color,label\n1,red,a\n2,blue,b\n3,red,a\n"
GAPS = "size,color,label\n1,red,a\n?,blue,b\n3,,a\n8,red,a\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


def encoding_of(file: Path, text: str, **options: object) -> TableEncoding:
    found = load(file, text, **options).encoding
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------ fitting


def test_text_is_encoded_one_hot(file: Path) -> None:
    data = load(file, TEXT)
    assert data.encoding is not None
    assert data.encoding.feature_names == ["size", "color=blue", "color=red"]
    assert data.x.tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]
    assert data.encoding.decode(data.x) == {"size": [1, 2, 3], "color": ["red", "blue", "red"]}


def test_booleans_are_numbers(file: Path) -> None:
    assert load(file, "wet,label\ntrue,a\nfalse,b\n").x.tolist() == [[1], [0]]


@pytest.mark.parametrize("count", [100, 101])
def test_a_column_has_at_most_100_texts(file: Path, count: int) -> None:
    file.write_text("name,label\n" + "".join(f"n{row},{row % 2}\n" for row in range(count)))
    if count == 100:
        assert load_data(file).x.shape == (100, 100)
    else:
        with pytest.raises(DataError, match="column 1 'name' has 101 distinct texts, such as 'n0'") as caught:
            load_data(file)
        assert caught.value.settings == ("drop",)


def test_the_encoding_is_fitted_to_the_rows_that_are_given(file: Path) -> None:
    """The training split, so that nothing is learned from the other rows."""
    file.write_text("size,color,label\n1,red,a\n5,blue,b\n3,red,a\n,green,b\n")
    seen: list[list[int]] = []

    def rows(y: np.ndarray) -> np.ndarray:
        seen.append(y.tolist())
        return np.array([2, 0])

    data = load_source(Source(str(file), table=TableOptions(missing="mean"), fit_rows=rows))
    assert seen == [[0, 1, 0, 1]]
    assert data.encoding is not None
    assert data.encoding.feature_names == ["size", "color=red"]
    assert data.x.tolist() == [[1, 1], [5, 0], [3, 1], [2, 0]]


@pytest.mark.parametrize("text", ["a,label\n1,x\n1e39,y\n", "a,label\n1,x\n-inf,y\n"])
def test_numbers_must_be_finite(file: Path, text: str) -> None:
    file.write_text(text)
    assert f"{file}: line 3, column 1 'a': " in message(load_data, file)
    assert "is not a finite float32 number" in message(load_data, file)


def test_faults_among_numbers_are_named(file: Path) -> None:
    file.write_text("a,label\n" + "".join(f"{row if row != 30 else '3O'},{row % 2}\n" for row in range(50)))
    assert f"{file}: line 32, column 1 'a': '3O' is not a number" in message(load_data, file)


# ------------------------------------------------------------------------------------------------ missing values


def test_missing_values_are_an_error_that_names_columns_and_counts(file: Path) -> None:
    file.write_text(GAPS)
    with pytest.raises(DataError) as caught:
        load_data(file)
    expected = f"{file}: missing values: column 1 'size' has 1, column 2 'color' has 1 (the first one in line 3); "
    assert str(caught.value) == expected + "set missing to drop, mean or median, or drop columns"
    assert caught.value.settings == ("missing", "drop")


MISSING = {
    "drop": ([[1, 1], [8, 1]], [0, 3]),
    "mean": ([[1, 0, 1], [4, 1, 0], [3, 0, 0], [8, 0, 1]], None),
    "median": ([[1, 0, 1], [3, 1, 0], [3, 0, 0], [8, 0, 1]], None),
}


@pytest.mark.parametrize("missing", MISSING)
def test_missing_values(file: Path, missing: str) -> None:
    x, rows = MISSING[missing]
    data = load(file, GAPS, missing=missing)
    assert data.x.tolist() == x
    assert (None if data.source_rows is None else data.source_rows.tolist()) == rows
    assert ("dropped 2 rows with missing values" in data.notes) == (missing == "drop")


def test_missing_targets(file: Path) -> None:
    file.write_text("a,label\n1,x\n2,\n3,y\n4,NA\n")
    for missing in (None, "mean"):
        text = message(load_data, file, missing=missing)
        assert text.startswith(f"{file}: missing values: the target, column 2 'label', has 2 (the first one in line 3);")
    assert load_data(file, missing="drop").x.tolist() == [[1], [3]]


def test_missing_values_of_dropped_columns_do_not_matter(file: Path) -> None:
    data = load(file, GAPS, drop=["color"], missing="drop")
    assert data.x.tolist() == [[1], [3], [8]]


def test_a_column_without_values(file: Path) -> None:
    text = "a,b,label\n1,,x\n2,,y\n"
    file.write_text(text)
    assert "column 2 'b' has 2" in message(load_data, file)
    assert "every row has missing values" in message(load_data, file, missing="drop")
    assert load_data(file, missing="mean").x.tolist() == [[1, 0], [2, 0]]


# ------------------------------------------------------------------------------------------------ other tables


SAME = {
    "the same": "size,color\n1,red\n2,blue\n3,red\n",
    "other order": "color,size\nred,1\nblue,2\nred,3\n",
    "label": "label,color,size\na,red,1\nb,blue,2\na,red,3\n",
    "other columns": "id,color,size,name\n7,red,1,x\n8,blue,2,y\n9,red,3,z\n",
    "index": ",size,color\n0,1,red\n1,2,blue\n2,3,red\n",
    "semicolons": "color;size\nred;1\nblue;2\nred;3\n",
    "numbers as floats": "size,color\n1.0,red\n2.0,blue\n3.0,red\n",
}


@pytest.mark.parametrize("kind", SAME)
def test_columns_are_matched_by_name(file: Path, kind: str) -> None:
    encoding = encoding_of(file, TEXT)
    file.write_text(SAME[kind])
    assert load_features(file, encoding, 3).x.tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]


def test_ignored_columns_are_told(file: Path) -> None:
    encoding = encoding_of(file, TEXT)
    file.write_text(SAME["other columns"])
    assert load_features(file, encoding, 3).notes == ("ignored: column 1 'id', column 4 'name'",)


NOT_MATCHED = {
    "a column is missing": ("size,label\n1,a\n", "missing columns that the model needs: 'color'"),
    "another name": ("Size,color\n1,red\n", "missing columns that the model needs: 'size'"),
    "no header": ("1,red\n2,blue\n3,red\n1,blue\n", "the file has no header, but the model's columns have names"),
    "text for numbers": ("size,color\nbig,red\n", "line 2, column 1 'size': 'big' is not a number"),
    "missing values": (
        "size,color\n1,red\n,red\n",
        "missing values: column 1 'size' has 1 (the first one in line 3)",
    ),
}


@pytest.mark.parametrize("kind", NOT_MATCHED)
def test_tables_that_do_not_match_are_refused(file: Path, kind: str) -> None:
    encoding = encoding_of(file, TEXT)
    text, expected = NOT_MATCHED[kind]
    file.write_text(text)
    assert expected in message(load_features, file, encoding, 3)


def test_unknown_texts_count_as_none_and_are_told(file: Path) -> None:
    encoding = encoding_of(file, TEXT)
    file.write_text("size,color\n1,green\n2,blue\n3,green\n")
    found = load_features(file, encoding, 3)
    assert found.x.tolist() == [[1, 0, 0], [2, 1, 0], [3, 0, 0]]
    assert found.notes == ("2 values of column 2 'color' do not occur in the training split and are encoded as zeros: 'green'",)


def test_numbers_for_text_are_unknown_texts(file: Path) -> None:
    encoding = encoding_of(file, TEXT)
    file.write_text("size,color\n1,5\n2,6\n")
    assert load_features(file, encoding, 3).x.tolist() == [[1, 0, 0], [2, 0, 0]]


def test_missing_values_are_replaced_by_those_of_the_training_data(file: Path) -> None:
    encoding = encoding_of(file, GAPS, missing="mean")
    file.write_text("color,size\nred,\n,100\n")
    found = load_features(file, encoding, 3)
    assert found.x.tolist() == [[4, 0, 1], [100, 0, 0]]
    assert not found.incomplete.any()


def test_rows_that_would_have_been_left_out_are_incomplete(file: Path) -> None:
    encoding = encoding_of(file, GAPS, missing="drop")
    file.write_text("color,size\nred,\nred,5\n,7\n")
    assert load_features(file, encoding, 3).incomplete.tolist() == [True, False, True]


WITHOUT_HEADER = "1,red,a\n2,blue,b\n3,red,a\n4,blue,b\n"
POSITIONS = {
    "the same columns": WITHOUT_HEADER,
    "features alone": "1,red\n2,blue\n3,red\n4,blue\n",
    "features alone, other values": "1,red\n2,red\n",
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_columns_without_names_are_matched_by_position(file: Path, kind: str) -> None:
    encoding = encoding_of(file, WITHOUT_HEADER, target="last")
    file.write_text(POSITIONS[kind])
    assert load_features(file, encoding, 3).x[0].tolist() == [1, 0, 1]


def test_another_number_of_columns_without_names_is_refused(file: Path) -> None:
    encoding = encoding_of(file, WITHOUT_HEADER, target="last")
    file.write_text("1\t2\t3\t4\n2\t3\t4\t5\n")
    text = message(load_features, file, encoding, 3)
    assert "4 columns, but the training data had 3 without names, of which 2 are features" in text


def test_pixels_need_no_header(file: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 64))
    header = ",".join(["label", *(f"pixel{i}" for i in range(64))])
    encoding = encoding_of(
        file, "\n".join([header, *(f"{row % 2},{','.join(map(str, image))}" for row, image in enumerate(images))])
    )
    np.savetxt(file, images, "%d", ",")
    assert np.array_equal(load_features(file, encoding, 64).x, images)


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "a,b\n1,2\n3,4\n", "a,b,label\n1,2,x\n3,4,y\n", "label,a,b\nx,1,2\ny,3,4\n"])
def test_tables_for_models_that_were_not_trained_on_a_table(file: Path, text: str) -> None:
    file.write_text(text)
    assert load_features(file, None, 2).x.tolist() == [[1, 2], [3, 4]]


def test_wrong_tables_for_models_that_were_not_trained_on_a_table(file: Path) -> None:
    file.write_text("a,b,label\n1,2,x\n3,4,y\n")
    assert "3 columns, but the model takes 5 features, or 6 columns with a label" in message(load_features, file, None, 5)
    file.write_text("a,b\n1,x\n3,y\n")
    assert "line 2, column 2 'b': 'x' is not a number" in message(load_features, file, None, 2)


UNUSUAL = {
    "a category that looks like a number": ("code,label\n01,a\n1A,b\n01,a\n", "code\n01\n01\n"),
    "a category that looks like a Boolean": ("code,label\nTrue,a\nmaybe,b\nTrue,a\n", "code\nTrue\nTrue\n"),
    "times": ("code,label\n08:00,a\n12:00,b\n08:00,a\n", "code\n08:00\n08:00\n"),
    "a category that looks like a time": ("code,label\n10:00,a\nnoon,b\n10:00,a\n", "code\n10:00\n10:00\n"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_categories_do_not_depend_on_the_other_rows(file: Path, kind: str) -> None:
    text, other = UNUSUAL[kind]
    encoding = encoding_of(file, text)
    file.write_text(other)
    found = load_features(file, encoding, 2)
    assert found.x.tolist() == [[1, 0]] * 2
    assert not found.notes


def test_the_header_is_known_from_the_training_data(file: Path) -> None:
    encoding = encoding_of(file, "country,2019,2020,label\nFR,1,2,x\nDE,3,4,y\n", header=True)
    file.write_text("country,2019,2020\nFR,1,2\n")
    assert load_features(file, encoding, 4).x.tolist() == [[0, 1, 1, 2]]
    encoding = encoding_of(file, "2019,2020,2021\n1,2,x\n3,4,y\n", header=True)
    file.write_text("2020,2019\n5,6\n")
    assert load_features(file, encoding, 2).x.tolist() == [[6, 5]]
    encoding = encoding_of(file, "1,red,x\n2,blue,y\n3,red,x\n4,blue,y\n", target="last")
    file.write_text("1,red\n")
    assert load_features(file, encoding, 3).x.tolist() == [[1, 0, 1]]


def test_the_delimiter_is_known_from_the_training_data(file: Path) -> None:
    encoding = encoding_of(file, "a b label\n1 2 x\n3 4 y\n", delimiter="space")
    file.write_text("a b\n5 6\n")
    assert load_features(file, encoding, 2).x.tolist() == [[5, 6]]


def test_one_column(file: Path) -> None:
    encoding = encoding_of(file, "a,label\n1,x\n3,y\n")
    file.write_text("a\n5\n6\n")
    assert load_features(file, encoding, 1).x.tolist() == [[5], [6]]


def test_columns_without_a_name(file: Path) -> None:
    text = "a,,label\n1,2,x\n3,4,y\n"
    encoding = encoding_of(file, text)
    assert encoding.feature_names == ["a", "column 2"]
    assert load_features(file, encoding, 2).x.tolist() == [[1, 2], [3, 4]]


def test_the_target_is_dropped_by_name_also_if_it_is_text_of_digits(file: Path) -> None:
    text = "a,label\n1,01\n2,02\n3,1A\n"
    encoding = encoding_of(file, text)
    file.write_text(text.replace("1A", "01"))
    data = load_source(Source(str(file), encoding=encoding, table=TableOptions(task="classification")))
    assert data.classes == ("01", "02")


def test_every_row_incomplete(file: Path) -> None:
    encoding = encoding_of(file, GAPS, missing="drop")
    file.write_text("size,color,label\n,red,a\n,blue,b\n")
    assert "every row has missing values" in message(load_source, Source(str(file), encoding=encoding))


@pytest.mark.parametrize(("cell", "place"), [("0", "line 3"), ("", "line 3"), ("-1", "line 3"), ("inf", "line 3")])
def test_weights_are_checked_with_their_line(file: Path, cell: str, place: str) -> None:
    file.write_text(f"a,w,label\n1,1,x\n2,{cell},y\n3,1,x\n")
    text = message(load_data, file, weight="w")
    assert f"{file}: {place}, column 2 'w': the sample weight is " in text


def test_color_images_are_not_pixels(file: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, 3 * 64))
    data = load(file, "\n".join(f"{row % 2},{','.join(map(str, one))}" for row, one in enumerate(rows)))
    assert data.image_shape is None
    assert data.x.dtype == np.float32


def test_integers_that_are_not_pixels_are_float(file: Path) -> None:
    assert load(file, "a,b,label\n1,2,x\n0,255,y\n").x.dtype == np.float32


@pytest.mark.parametrize(("value", "dtype"), [("255", np.uint8), ("256", np.float32), ("0.5", np.float32)])
def test_pixels_are_bytes(file: Path, value: str, dtype: type) -> None:
    data = load(file, f"label,pixel0,pixel1,pixel2,pixel3\nx,1,2,3,4\ny,5,6,7,{value}\n")
    assert data.x.dtype == dtype
    assert data.x[1, 3] == float(value)


def test_the_features_alone_of_a_table_whose_target_is_first(file: Path) -> None:
    encoding = encoding_of(file, "T,2,red\nF,3,blue\nT,4,red\nF,5,blue\n", target="first")
    file.write_text("2,red\n3,blue\n2,red\n")
    assert load_features(file, encoding, 3).x.tolist() == [[2, 0, 1], [3, 1, 0], [2, 0, 1]]


def test_no_row_of_a_table_of_categories_is_taken_for_a_header(file: Path) -> None:
    encoding = encoding_of(file, "a,b,x\nc,d,y\na,d,x\nc,b,y\n", target="last")
    for text, rows in (("a,b\nc,d\n", 2), ("a,b\n", 1)):
        file.write_text(text)
        assert len(load_features(file, encoding, 4).x) == rows


def test_the_target_of_a_table_for_a_model_of_a_data_frame(file: Path) -> None:
    encoding = TableEncoding((Column("a", 0), Column("b", 1)), "", header=True, n_columns=2)
    file.write_text("price,a,b\n1.5,2,3\n2.5,4,5\n")
    data = load_source(Source(str(file), encoding=encoding, table=TableOptions(task="regression")))
    assert data.y.ravel().tolist() == [1.5, 2.5]
    assert "target: column 1 'price', regression" in data.notes


def test_an_infinite_value_is_not_part_of_the_mean(file: Path) -> None:
    file.write_text("a,label\n1,x\n,y\ninf,x\n")
    assert f"{file}: line 4, column 1 'a': inf is not a finite" in message(load_data, file, missing="mean")


def test_rows_without_a_weight_are_dropped(file: Path) -> None:
    file.write_text("a,w,label\n1,1,x\n2,,y\n3,1,x\n")
    assert "the sample weight is missing" in message(load_data, file, weight="w")
    assert load_data(file, weight="w", missing="drop").x.tolist() == [[1], [3]]


def test_remedies_for_the_target(file: Path) -> None:
    file.write_text("a,label\n" + "".join(f"{row / 2},{row % 3 if row != 30 else 'T/S'}\n" for row in range(50)))
    assert message(load_data, file).endswith("'T/S' is not a number; correct it, or set task to 'classification'")
    assert len(load_data(file, task="classification").classes) == 4
    text = message(load_data, file, task="regression")
    assert text.endswith("'T/S' is not a number; correct it, or use another target or task 'classification'")
