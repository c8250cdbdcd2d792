import pytest

from clipadapter.data import (
    class_prompts,
    clean_name,
    get_templates,
    list_templates,
    read_class_names,
    read_descriptions,
)
from clipadapter.data.prompts import TEMPLATES
from clipadapter.errors import DataError, InputError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("water_lilly", "water lilly"),
        ("AnnualCrop", "Annual Crop"),
        ("HerbaceousVegetation", "Herbaceous Vegetation"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("iPhone", "iPhone"),
        ("BMW X5", "BMW X5"),
        ("McLaren", "McLaren"),
        ("Sony PlayStation", "Sony PlayStation"),
        ("T-shirt", "T-shirt"),
        ("Faces_easy", "Faces easy"),
        ("__a__b ", "a b"),
        ("écran_plat", "écran plat"),
        ("_", "_"),
    ],
)
def test_names_become_words(name, clean):
    assert clean_name(name) == clean


def test_templates_by_name_or_text_have_one_place_for_the_name():
    assert all(template.count("{}") == 1 for texts in TEMPLATES.values() for template in texts)
    assert list_templates() == sorted(TEMPLATES) and len(get_templates("imagenet7")) == 7
    assert get_templates("default") == ("a photo of a {}.",)
    assert get_templates("oxford_pets") == ("a photo of a {}, a type of pet.",)
    assert get_templates("a {}!") == ("a {}!",)
    assert get_templates(["a {}!", "a {0} {}"]) == ("a {}!", "a {0} {}")
    with pytest.raises(UnknownNameError, match=r"no template set is called 'imagnet'\. Did you mean 'imagenet'"):
        get_templates("imagnet")
    with pytest.raises(InputError, match=r"'a photo of a cat' has 0 placeholders .* write \{\} once"):
        get_templates("a photo of a cat")
    with pytest.raises(InputError, match="has 2 placeholders"):
        get_templates("{} and {}")
    with pytest.raises(InputError, match="no template was given"):
        get_templates([])


def test_prompts_keep_class_order_and_keys_and_names_must_be_unique_and_not_empty():
    prompts = class_prompts(["water_lilly", "AnnualCrop"], ["a {}.", "the {}."])
    assert list(prompts.items()) == [
        ("water_lilly", ["a water lilly.", "the water lilly."]),
        ("AnnualCrop", ["a Annual Crop.", "the Annual Crop."]),
    ]
    assert class_prompts(["{}", "%s"], "x {}") == {"{}": ["x {}"], "%s": ["x %s"]}
    for names in (["a", "a"], ["a", " "]):
        with pytest.raises(InputError, match="unique and not empty"):
            class_prompts(names)


def test_descriptions_stand_instead_of_templates():
    prompts = class_prompts(
        ["water_lilly", "cup", "ant"], descriptions={"water lilly": ["it floats", "it blooms"], "cup": ("it holds",)}
    )
    assert prompts == {"water_lilly": ["it floats", "it blooms"], "cup": ["it holds"], "ant": ["a photo of a ant."]}
    with pytest.raises(UnknownNameError, match=r"no class is called 'cupp'\. Did you mean 'cup'"):
        class_prompts(["cup", "ant"], descriptions={"cupp": ["x"]})
    for wrong in ([], "a text"):
        with pytest.raises(InputError, match="'cup' must be a list of at least one sentence"):
            class_prompts(["cup"], descriptions={"cup": wrong})
    for many in ({"a cup": ["x"] * 1001}, {"a cup": ["x"] * 600, "a_cup": ["x"] * 401}):
        with pytest.raises(InputError, match="'a_cup' has 1,001 descriptions, but at most 1,000 are encoded"):
            class_prompts(["a_cup"], descriptions=many)


def test_json_files_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"café": ["one", "two"]}', "utf-8")
    assert read_descriptions(path) == {"café": ["one", "two"]}
    path.write_text('{"n1": "tabby cat"}', "utf-8")
    assert read_class_names(path) == {"n1": "tabby cat"}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_descriptions, '{"cup": "one"}', "'cup' must be a list of at least one sentence"),
        (read_descriptions, '{"cup": []}', "'cup' must be a list"),
        (read_descriptions, '{"cup": ["x", 1]}', "'cup' must be a list"),
        (read_descriptions, '{"a": 1,\n oops}', r"a\.json, line 2, character 2: not JSON"),
        (read_descriptions, "{}", 'expected {"class"'),
        (read_class_names, '["a"]', "expected .* got list"),
        (read_class_names, "3", "expected .* got int"),
        (read_class_names, '{"n1": 7}', "'n1' must have a string as its name, got 7"),
        (read_class_names, b'{"n1": "caf\xe9"}', "not UTF-8"),
        (read_class_names, None, "can't be opened: No such file"),
    ],
)
def test_json_files_of_another_form_are_refused(tmp_path, read, text, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read(path)
