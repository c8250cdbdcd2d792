import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.data import load_dataset
from clipadapter.errors import InputError
from clipadapter.studio.project import normalize_class_name, safe_folder_name


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
        ("nul.txt", "nul_.txt"),
        ("com1", "com1_"),
        ("test", "test_"),
        ("Train", "Train_"),
        ("valid", "valid_"),
        ("what?", "what_"),
    ],
)
def test_a_folder_has_the_name_of_its_class_where_that_is_safe(name, folder):
    assert safe_folder_name(name) == folder


@given(st.text(max_size=300))
def test_a_folder_name_is_one_visible_path_component(text):
    folder = safe_folder_name(text)
    assert folder not in ("", ".", "..") and not folder.startswith(".")
    assert not set(folder) & set('/\\:*?"<>|\0\n')
    assert len(folder.encode()) <= 110 and folder == folder.strip(" ") and not folder.endswith(".")


@given(st.text(max_size=300))
def test_a_class_name_is_one_line_of_composed_letters_or_an_error(text):
    try:
        name = normalize_class_name(text)
    except InputError:
        return
    assert name and name == name.strip() and len(name) <= 120
    assert name == unicodedata.normalize("NFC", name)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    assert normalize_class_name(name) == name


def test_long_class_names_get_different_folders():
    one, two = "x" * 119 + "a", "x" * 119 + "b"
    assert safe_folder_name(one) != safe_folder_name(two)


def test_no_two_folders_differ_only_by_case():
    assert safe_folder_name("cat", ["Cat", "cat-2"]) == "cat-3"


@pytest.mark.parametrize("text", ["", "  \n", "\0", "x" * 121])
def test_an_empty_or_long_class_name_is_an_error(text):
    with pytest.raises(InputError):
        normalize_class_name(text)


def test_a_used_class_name_is_an_error_in_any_case():
    with pytest.raises(InputError, match="a class 'Cat' already"):
        normalize_class_name(" cat ", ["dog", "Cat"])


def test_no_class_name_is_read_as_a_part_of_a_data_set(tmp_path, png):
    for name in ("train", "test"):
        place = tmp_path / safe_folder_name(name)
        place.mkdir()
        (place / "1.png").write_bytes(png("red"))
    assert load_dataset(tmp_path).splits == ("all",)


def test_two_forms_of_an_accent_are_the_same_name():
    composed, apart = "caf\u00e9", "cafe\u0301"
    with pytest.raises(InputError, match="already"):
        normalize_class_name(composed, [apart])
    assert safe_folder_name(composed, [apart]) == f"{composed}-2"
