import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.data import load_dataset
from clipadapter.errors import InputError
from clipadapter.studio._names import checked_name, folder_name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("tabby cat", "tabby cat"),
        ("Tüpfel 貓 🐈", "Tüpfel 貓 🐈"),
        ("a/b\\c", "a_b_c"),
        ("..", "_"),
        ("../../etc/passwd", "__.._etc_passwd"),
        (".hidden", "_hidden"),
        ("dots...", "dots"),
        ("CON", "CON_"),
        ("nul.txt", "nul.txt_"),
        ("com1", "com1_"),
        ("test", "test_"),
        ("Train", "Train_"),
        ("valid", "valid_"),
        ("what?", "what_"),
    ],
)
def test_a_folder_is_called_like_the_class_where_that_is_safe(name, folder):
    assert folder_name(name) == folder


@given(st.text(max_size=300))
def test_a_folder_is_one_visible_safe_component(text):
    folder = folder_name(text)
    assert folder not in ("", ".", "..") and not folder.startswith(".")
    assert not set(folder) & set('/\\:*?"<>|\0\n')
    assert len(folder.encode()) <= 110 and folder == folder.strip(" ") and not folder.endswith(".")


@given(st.text(max_size=300))
def test_a_name_is_one_line_of_composed_letters_or_refused(text):
    try:
        name = checked_name(text)
    except InputError:
        return
    assert name and name == name.strip() and len(name) <= 120
    assert name == unicodedata.normalize("NFC", name)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    assert checked_name(name) == name


def test_long_names_keep_apart():
    one, two = "x" * 119 + "a", "x" * 119 + "b"
    assert folder_name(one) != folder_name(two)


def test_folders_that_differ_by_capitals_only_are_not_made():
    assert folder_name("cat", ["Cat", "cat-2"]) == "cat-3"


@pytest.mark.parametrize("text", ["", "  \n", "\0", "x" * 121])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(InputError):
        checked_name(text)


def test_a_name_that_is_taken_is_refused_whatever_its_capitals():
    with pytest.raises(InputError, match="a class 'Cat' already"):
        checked_name(" cat ", ["dog", "Cat"])


def test_no_name_makes_a_data_set_read_a_class_as_a_part(tmp_path, png):
    for name in ("train", "test"):
        place = tmp_path / folder_name(name)
        place.mkdir()
        (place / "1.png").write_bytes(png("red"))
    assert load_dataset(tmp_path).splits == ("all",)


def test_names_that_differ_only_in_how_accents_are_written_are_one():
    composed, apart = "caf\u00e9", "cafe\u0301"
    with pytest.raises(InputError, match="already"):
        checked_name(composed, [apart])
    assert folder_name(composed, [apart]) == f"{composed}-2"
