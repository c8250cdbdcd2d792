import json

import pytest

from clipadapter.data.sentences import get_domain, list_domains


def test_a_folder_becomes_a_file_that_compare_reads(noisy_squares, run, tmp_path):
    file = tmp_path / "sentences.json"
    result = run("sentences", noisy_squares, "--domain", "textures", "--out", file)
    assert result.exit_code == 0, result.stderr
    assert ["classes", "3"] in [line.split() for line in result.stdout.splitlines()]
    assert f"clipadapter compare {noisy_squares} --descriptions {file}" in result.stderr
    made = json.loads(file.read_text(encoding="utf-8"))
    assert made["red"] == [sentence.format("red") for sentence in get_domain("textures").sentences]
    line = ("compare", noisy_squares, "--encoder", "toy", "--heads", "timo", "--shots", 2, "--no-cache")
    assert run(*line, "--descriptions", file, "--out", tmp_path / "study").exit_code == 0


def test_without_a_file_the_json_is_printed(noisy_squares, run):
    result = run("sentences", noisy_squares)
    assert list(json.loads(result.stdout)) == ["blue", "green", "red"]
    assert result.stderr == ""


def test_names_come_from_a_list_and_the_command_line(run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("onion soup\n\n  pizza \n", encoding="utf-8")
    made = json.loads(run("sentences", names, "--class", "café", "--domain", "food").stdout)
    assert list(made) == ["onion soup", "pizza", "café"]
    assert made["pizza"][0] == "a photo of pizza, a type of food."


def test_names_come_from_a_model(noisy_squares, run, tmp_path):
    model = tmp_path / "model"
    assert run("fit", noisy_squares, "--out", model, "--encoder", "toy", "--no-cache").exit_code == 0
    result = run("sentences", model, "--out", tmp_path / "s.json")
    assert result.exit_code == 0, result.stderr
    assert list(json.loads((tmp_path / "s.json").read_text())) == ["blue", "green", "red"]
    assert "clipadapter compare shots/ --descriptions" in result.stderr


def test_an_edited_file_is_not_replaced_unless_asked(run, tmp_path):
    file = tmp_path / "sentences.json"
    file.write_text("edited")
    line = ("sentences", "--class", "cup", "--out", file)
    refused = run(*line)
    assert refused.exit_code == 1
    assert "sentences.json exists, and may have been edited: give another --out, or --overwrite" in refused.stderr
    assert file.read_text() == "edited"
    assert run(*line, "--overwrite").exit_code == 0
    assert "cup" in json.loads(file.read_text())


def test_domains_are_listed(run):
    lines = run("sentences", "--list-domains").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [domain.name for domain in list_domains()]
    assert json.loads(run("sentences", "--list-domains", "--json").stdout)[0]["name"] == "actions"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--class", "cup", "--domain", "foods"), "no domain is called 'foods'. Did you mean 'food'?"),
        ((), "there are no class names: give a folder with pictures, a model, a .txt file, or --class NAME"),
        (("nowhere",), "there is no folder or file 'nowhere'"),
        (("--class", "cup", "--class", "cup"), "class names must be unique"),
        (("--class", "cup", "--out", "cup.txt"), "does not end with .json"),
        (("--class", "cup", "--class-names", "names.json"), "--class-names renames the classes of pictures"),
        (("--class", ""), "--class needs a name, but got an empty text"),
        (("cups.txt", "--class", "mug"), "the class 'mug' is in cups.txt already: leave --class 'mug' out"),
        (("names.md",), "names.md holds no class names that can be read: give a text file that ends with .txt"),
        (("photo.jpg",), "or the folder of a saved model"),
        (("empty.txt",), "empty.txt has no class names: write one name per line"),
    ],
)
def test_faults_are_one_line(line, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty.txt", "names.md", "photo.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "cups.txt").write_text("cup\nmug\n", encoding="utf-8")
    result = run("sentences", *line)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
