import json
import shutil

import pytest

from clipadapter.data.sets import get_set, layouts

from ...data.stand_in import make_stand_in


@pytest.fixture
def root(tmp_path):
    return make_stand_in("dtd", tmp_path)


def test_json_before_or_after_the_subcommand(root, run):
    after = run("data", "list", "--json", "-q", "--root", root)
    before = run("data", "--json", "-q", "list", "--root", root)
    assert before.stdout == after.stdout
    assert (before.stderr, after.stderr) == ("", "")
    found = {one["name"]: one for one in json.loads(after.stdout)}
    assert found["dtd"]["ready"]
    assert found["dtd"]["prompts"] == ["{} texture."]
    assert found["imagenet"]["missing"] == [str(root / "imagenet/images/train"), str(root / "imagenet/images/val")]


def test_the_root_comes_from_the_environment_and_a_name_works_like_a_folder(root, tmp_path, run, monkeypatch):
    monkeypatch.setenv("CLIPADAPTER_DATA", str(root))
    assert run("data", "list").stderr == f"root: {root}\n"
    result = run("scan", "dtd")
    assert result.stdout.splitlines()[-1].split() == ["total", "18", "9", "9"]
    result = run("fit", "dtd", "--out", tmp_path / "model", "--encoder", "toy", "--head", "zero-shot")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "model/config.json").read_text())["class_names"] == ["kind_0", "kind_1", "kind_2"]


def test_info_lists_the_problems_of_an_incomplete_data_set(root, run):
    shutil.rmtree(root / "dtd/images/kind_1")
    found = json.loads(run("data", "info", "dtd", "--root", root, "--json").stdout)
    assert not found["ready"]
    assert "12 of its 36 pictures are missing" in found["problems"][0]


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
