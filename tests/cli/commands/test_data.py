import json
import shutil

import pytest

from clipadapter.data.sets import get_set, layouts, list_sets

from ...data.stand_in import make_stand_in


@pytest.fixture
def root(tmp_path):
    return make_stand_in("dtd", tmp_path)


def test_list_shows_ready_and_missing_data_sets(root, run):
    result = run("data", "list", "--root", root)
    lines = {line.split()[0]: line.split() for line in result.stdout.partition("\n\n")[0].splitlines()[1:]}
    assert sorted(lines) == list_sets()
    assert lines["dtd"] == ["dtd", "47", "2820", "1128", "1692", "ready"]
    assert lines["ucf101"][-3:] == ["missing:", "UCF-101-midframes,", "split_zhou_UCF101.json"]
    assert lines["food101"][1] == "?"
    assert result.stderr == f"root: {root}\n"


def test_json_before_or_after_the_subcommand(root, run):
    after = run("data", "list", "--json", "-q", "--root", root)
    before = run("data", "--json", "-q", "list", "--root", root)
    assert before.stdout == after.stdout
    assert (before.stderr, after.stderr) == ("", "")
    found = {one["name"]: one for one in json.loads(after.stdout)}
    assert found["dtd"]["ready"]
    assert found["dtd"]["prompts"] == ["{} texture."]
    assert found["imagenet"]["missing"] == [str(root / "imagenet/images/train"), str(root / "imagenet/images/val")]


def test_the_root_comes_from_the_environment(root, run, monkeypatch):
    monkeypatch.setenv("CLIPADAPTER_DATA", str(root))
    assert run("data", "list").stderr == f"root: {root}\n"
    result = run("scan", "dtd")
    assert result.stdout.splitlines()[-1].split() == ["total", "18", "9", "9"]


def test_info_shows_everything(root, run):
    text = run("data", "info", "dtd", "--root", root).stdout
    for part in ("{} texture.", "for research", "https://arxiv.org/abs/1311.3618", "train 2820, val 1128, test 1692"):
        assert part in text
    assert f"  {root / 'dtd' / 'images'}: dtd-r1.0.1.tar.gz of https://" in text
    assert "3 classes found, but the papers have 47" in text.splitlines()
    assert "not as in the papers" in text
    missing = json.loads(run("data", "info", "eurosat", "--root", root, "--json").stdout)
    assert not missing["ready"]
    assert missing["download"] == "by torchvision's EuroSAT"


def test_info_lists_the_problems_of_an_incomplete_data_set(root, run):
    shutil.rmtree(root / "dtd/images/kind_1")
    found = json.loads(run("data", "info", "dtd", "--root", root, "--json").stdout)
    assert not found["ready"]
    assert "12 of its 36 pictures are missing" in found["problems"][0]


def test_prepare_lists_missing_files_and_fails(root, run):
    result = run("data", "prepare", "ucf101", "dtd", "--root", root)
    assert result.exit_code == 1
    assert f"  missing: {root / 'ucf101' / 'UCF-101-midframes'}" in result.stdout.splitlines()
    assert "DATASETS.md#ucf101" in result.stdout
    assert "  3 classes found, but the papers have 47" in result.stdout.splitlines()
    assert result.stderr.splitlines()[-1] == "error: not ready: ucf101, dtd"


def test_a_failed_download_does_not_stop_the_others(root, run, monkeypatch):
    import torchvision

    def dead(root, download):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", dead)
    result = run("data", "prepare", "eurosat", "ucf101", "--root", root, "--json")
    assert result.exit_code == 1
    failed, manual = json.loads(result.stdout)
    assert "the download of 'eurosat' failed (no network)" in failed["problems"][0]
    assert [one["source"] for one in manual["missing"]][1].endswith("DATASETS.md#ucf101")


def test_a_complete_data_set_is_ready(root, run, monkeypatch):
    counts = {"train": 18, "val": 9, "test": 9}
    small = get_set("dtd").model_copy(update={"n_classes": 3, "counts": counts})
    monkeypatch.setitem(layouts._sets(), "dtd", small)
    result = run("data", "prepare", "dtd", "--root", root)
    assert (result.exit_code, result.stdout) == (0, "dtd: ready\n")
    assert json.loads(run("data", "info", "dtd", "--root", root, "--json").stdout)["ready"]


@pytest.mark.parametrize("verb", ["list", "info", "prepare"])
def test_every_subcommand_has_an_example(verb, run):
    assert f"Example: clipadapter data {verb}" in run("data", verb, "--help").stdout


def test_a_data_set_name_works_like_a_folder(root, tmp_path, run, monkeypatch):
    monkeypatch.setenv("CLIPADAPTER_DATA", str(root))
    result = run("fit", "dtd", "--out", tmp_path / "model", "--encoder", "toy", "--head", "zero-shot")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "model/config.json").read_text())["class_names"] == ["kind_0", "kind_1", "kind_2"]
