"""Files that people write are read, or refused with an error of the library that says where and what."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.bench import load_suite
from clipadapter.cli.options import parse_value
from clipadapter.data import load_dataset, read_class_names, read_descriptions
from clipadapter.data.sets.layouts import read_split
from clipadapter.errors import DataError
from clipadapter.uncertainty.costs import read_costs
from clipadapter.utils.parsing import MAX_DEPTH, parse_json, parse_toml, read_json, read_text

DEEP, DIGITS, HALF = "[" * 100_000 + "]" * 100_000, "9" * 5000, r'"\ud83d"'
"""Nested, long and broken, as JSON."""
DEEP_MESSAGE, DIGITS_MESSAGE, HALF_MESSAGE = (
    "lists and objects are nested more than 100 deep",
    "a number has thousands of digits",
    "has a lone surrogate",
)


READERS = {
    "descriptions": (read_descriptions, '{{"cup": [{}]}}'),
    "class names": (read_class_names, '{{"cup": {}}}'),
    "split file": (lambda path: read_split(path, path.parent), '{{"train": [["a/1.jpg", 0, {}]], "test": []}}'),
}


@pytest.mark.parametrize(
    ("value", "message"),
    [(DEEP, DEEP_MESSAGE), (DIGITS, DIGITS_MESSAGE), (HALF, HALF_MESSAGE), ("NaN", "NaN is not a number")],
    ids=["deep", "digits", "half", "nan"],
)
@pytest.mark.parametrize("reader", READERS)
def test_every_json_file_with_a_hostile_value_is_refused(tmp_path, reader, value, message):
    read, form = READERS[reader]
    path = tmp_path / "a.json"
    path.write_text(form.format(value))
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f'{{"path": "1.png", "label": {DEEP}}}', DEEP_MESSAGE),
        (f'{{"path": "1.png", "label": {DIGITS}}}', DIGITS_MESSAGE),
        (f'{{"path": "1.png", "label": {HALF}}}', HALF_MESSAGE),
        (f'{{"path": "1.png", "labels": ["a", {HALF}]}}', HALF_MESSAGE),
        (f'{{"path": "1.png", "label": "a", "split": {HALF}}}', HALF_MESSAGE),
        (f'{{"path": {HALF}, "label": "a"}}', HALF_MESSAGE),
    ],
)
def test_json_lines_with_a_hostile_value_are_refused(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"path": "0.png", "label": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert f"{path}, line 2" in str(caught.value) and str(caught.value).encode()


@pytest.mark.skipif(Path("/proc").is_dir() is False, reason="file names are text there")
def test_a_path_whose_bytes_are_no_text_may_stand_in_json_lines(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    (tmp_path / name).write_bytes(b"x")
    rows = [{"path": name, "label": "a"}, {"path": name, "label": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [path.name for path in load_dataset(tmp_path / "a.jsonl").paths] == [name, name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = " + DEEP, DEEP_MESSAGE),
        ("title = 't'\nshots = [" + DIGITS + "]", DIGITS_MESSAGE),
        ('title = "\\ud83d"', "is not TOML"),
        ("title = ", "is not TOML"),
        ("\udcff", "not UTF-8"),
        (".".join("a" * 100_000) + " = 1", DEEP_MESSAGE),
        ("[" + ".".join("a" * 100_000) + "]", DEEP_MESSAGE),
        ("x = { " + " . ".join(['"a"'] * 30_000) + " = 1 }", DEEP_MESSAGE),
        ("#" * (1 << 21), "has 2 MiB, but at most 1 MiB are read"),
    ],
    ids=["deep", "digits", "half", "nothing", "bytes", "dotted", "header", "quoted", "long"],
)
def test_a_hostile_suite_is_refused(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        load_suite(str(path))


@pytest.mark.parametrize("read", [read_class_names, lambda path: read_costs(path, ["a"]), load_suite])
@pytest.mark.parametrize("name", ["nothing/a.toml", "folder/a.toml", "nul\0/a.toml", "x" * 300 + "/a.toml"])
def test_a_file_that_can_not_be_opened_raises_an_error(tmp_path, read, name):
    (tmp_path / "folder" / "a.toml").mkdir(parents=True)
    with pytest.raises(DataError, match=r"can't be opened: \w"):
        read(f"{tmp_path}/{name}")


def test_no_more_is_read_than_the_limit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"a" * 2000)
    assert read_text(path, 2003) == "a" * 2000
    with pytest.raises(DataError, match="has 0 MiB, but at most 0 MiB"):
        read_text(path, 2002)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices as files")
def test_a_file_without_an_end_is_refused():
    with pytest.raises(DataError, match="not a regular file"):
        read_text("/dev/zero", 1 << 10)


def test_the_largest_depth_is_accepted_and_one_more_is_not():
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    assert parse_toml(f"a = {'[' * (MAX_DEPTH - 1)}{']' * (MAX_DEPTH - 1)}", "x")
    for text in ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), '{"a":' * MAX_DEPTH + "[]" + "}" * MAX_DEPTH):
        with pytest.raises(DataError, match=DEEP_MESSAGE):
            parse_json(text, "x")
    with pytest.raises(DataError, match=DEEP_MESSAGE):
        parse_toml(f"a = {'[' * MAX_DEPTH}{']' * MAX_DEPTH}", "x")
    assert parse_toml(f"{'.'.join('a' * MAX_DEPTH)} = 1", "x")
    with pytest.raises(DataError, match=DEEP_MESSAGE):
        parse_toml(f"{'.'.join('a' * (MAX_DEPTH + 1))} = 1", "x")


@pytest.mark.parametrize("quote", ['"', "'", '"""', "'''"])
def test_dots_in_texts_numbers_and_comments_of_toml_are_no_depth(quote):
    text = f"a = {quote}{'no key. ' * 200}{quote} # {'.' * 200}\nb = [{'0.5, ' * 200}]\n"
    assert parse_toml(text, "x") == {"a": "no key. " * 200, "b": [0.5] * 200}


def test_whole_characters_are_accepted_in_any_notation():
    assert parse_json(r'{"\ud83d\ude00": ["\\ud83d", "é"]}', "x") == {"\U0001f600": [r"\ud83d", "é"]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_read_as_it_was_written(value):
    assert parse_json(json.dumps(value), "x") == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    try:
        read_json(path)
    except DataError as error:
        assert str(error).encode()


def test_values_on_the_command_line_are_numbers_words_or_text():
    assert [parse_value(text) for text in ("1", "0.5", "true", "null", "x", "[1]")] == [1, 0.5, True, None, "x", "[1]"]
    assert parse_value("Infinity") == math.inf and np.isnan(parse_value("NaN"))
    assert [parse_value(text) for text in (DEEP, DIGITS, HALF)] == [DEEP, DIGITS, HALF]
