"""Names in tables: one line each, and not wider than a terminal, however long they are."""

import pytest

from clipadapter.utils.formatting import (
    MAX_NAME_LETTERS,
    describe_classes,
    describe_shots,
    format_count,
    format_list,
    html_table,
    shorten_name,
    table,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_list("abcdefg", limit=2), "a, b and 5 more"),
        (format_count(1, "new picture"), "1 new picture"),
        (format_count(2, "new picture"), "2 new pictures"),
        (describe_classes(["cat", "cow", "dog", "hen"]), "4 classes (cat, cow, dog and 1 more)"),
        (describe_shots({"cat": 4, "dog": 4}, 8), "4 per class"),
        (describe_shots({"cat": 4, "dog": 5}, 9), "4 to 5 per class, 9 in total"),
        (table(["class", "all"], [["cat", 12], ["zebra", 3]]), "class  all\ncat     12\nzebra    3"),
        (table(["", "loss"], [["a model", "0.300"], ["b", "2.055"]]), "          loss\na model  0.300\nb        2.055"),
    ],
)
def test_counts_names_and_numbers_are_text_for_people(text, expected):
    assert text == expected


def test_long_names_keep_their_beginning_and_end():
    first, second = (shorten_name(f"{'a' * 200} {i}") for i in (1, 2))
    assert first != second
    assert (len(first), first[:4], first[-3:]) == (MAX_NAME_LETTERS, "aaaa", "a 1")
    assert shorten_name("a" * MAX_NAME_LETTERS) == "a" * MAX_NAME_LETTERS


@pytest.mark.parametrize("name", ["two\nlines", "two\r\nlines", "two\tlines", "two\x1b[2Jlines", "two\u2028lines"])
def test_names_are_one_line_of_printable_text(name):
    line = shorten_name(name)
    assert line.isprintable() and line.startswith("two\\") and line.endswith("lines")


def test_a_long_name_makes_no_other_column_start_beyond_the_screen():
    lines = table(["class", "pictures"], [["a" * 400, 3], ["cat", 12]]).splitlines()
    assert [len(line) for line in lines] == [MAX_NAME_LETTERS + 2 + len("pictures")] * 3


def test_the_last_column_has_complete_sentences():
    sentence = "a sentence that says what a head does " * 4
    assert sentence.rstrip() in table(["head", "summary"], [["knn", sentence]])


def test_a_table_in_a_notebook_shows_thumbnails_and_escapes_all_else():
    shown = html_table(["<b>"], [[["", '"']]])
    assert shown.count("<img") == 1 and "&lt;b&gt;" in shown and "base64,&quot;" in shown


def test_long_names_are_shortened_in_notebooks():
    assert "a" * 100 not in html_table(["class", "shots"], [["a" * 400, 3]])
    assert "10 classes" + " and a dog" * 20 in html_table(["", ""], [["fitted to", "10 classes" + " and a dog" * 20]])


def test_numbers_are_right_aligned_beside_empty_cells():
    lines = table(["", "ahead by"], [["this model", ""], ["zero-shot", "+66.7"], ["linear-probe", "-1.1"]]).splitlines()
    assert [line[-5:] for line in lines[2:]] == ["+66.7", " -1.1"]
