import json

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


def test_domains_are_listed(run):
    lines = run("sentences", "--list-domains").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [domain.name for domain in list_domains()]
    assert json.loads(run("sentences", "--list-domains", "--json").stdout)[0]["name"] == "actions"
