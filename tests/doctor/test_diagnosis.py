import hashlib
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.doctor import diagnose
from clipadapter.errors import DataError, MissingExtraError, install_command


def diagnose_folder(root, encoder="toy", **options):
    return diagnose(load_dataset(root), FewShotClassifier(encoder, cache=None, **options))


def names(finding):
    return [picture.name for picture in finding.pictures]


def test_a_set_without_faults_has_no_findings_and_a_moved_picture_is_a_wrong_label(scenes, draw):
    diagnosis = diagnose_folder(scenes)
    assert diagnosis.findings == ()
    assert (diagnosis.n_pictures, diagnosis.n_classes, diagnosis.n_checked_labels) == (24, 3, 24)
    assert diagnosis.splits == ("train", "test")
    draw(50, "red").save(scenes / "train" / "blue" / "red.png")
    (finding,) = diagnose_folder(scenes).of_kind("wrong-label")
    assert names(finding) == ["train/blue/red.png"]
    assert finding.classes == ("blue", "red")


def test_copies_are_found_between_splits_and_labels_and_within(scenes):
    shutil.copy(scenes / "train" / "red" / "0.png", scenes / "test" / "red" / "copy.png")
    Image.open(scenes / "train" / "blue" / "1.png").save(scenes / "train" / "blue" / "copy.jpg", quality=70)
    Image.open(scenes / "train" / "green" / "2.png").resize((88, 73)).save(scenes / "train" / "red" / "copy.png")
    diagnosis = diagnose_folder(scenes)
    copies = [(finding.kind, *names(finding)) for finding in diagnosis.findings if len(finding.pictures) > 1]
    severe = [("conflict", "train/green/2.png", "train/red/copy.png"), ("leak", "train/red/0.png", "test/red/copy.png")]
    assert copies == [*severe, ("duplicate", "train/blue/1.png", "train/blue/copy.jpg")]
    assert diagnosis.n_severe == 2


def test_unreadable_files_are_findings_and_nothing_on_disk_changes(scenes):
    def state():
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in scenes.rglob("*") if path.is_file()}

    (scenes / "train" / "blue" / "a.png").touch()
    (scenes / "train" / "red" / "z.jpg").write_bytes(b"hello")
    shutil.copy(scenes / "train" / "red" / "0.png", scenes / "test" / "red" / "copy.png")
    before, diagnosis = state(), diagnose_folder(scenes)
    messages = [finding.message for finding in diagnosis.of_kind("unreadable")]
    assert messages == ["train/blue/a.png: file is empty", "train/red/z.jpg: not an image"]
    assert diagnosis.n_checked_labels == 25
    diagnosis.to_html(scenes.parent / "doctor.html")
    assert state() == before


def test_pictures_without_labels_are_refused(tmp_path, draw):
    draw(0).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="have no label"):
        diagnose_folder(tmp_path)


@pytest.mark.parametrize("module", ["imagehash", "cleanlab.filter"])
def test_a_missing_library_is_an_error_before_anything_is_computed(monkeypatch, scenes, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    model = FewShotClassifier("no such encoder")
    with pytest.raises(MissingExtraError, match=re.escape(install_command("doctor"))):
        diagnose(load_dataset(scenes), model)


def test_the_suspected_labels_of_shots_depend_neither_on_test_pictures_nor_on_the_order(scenes, draw):
    draw(999, "red").save(scenes / "train" / "blue" / "red.png")
    draw(998, "blue").save(scenes / "train" / "green" / "blue.png")
    dataset = load_dataset(scenes)
    shuffled = replace(dataset, samples=dataset.samples[::-1])
    model = FewShotClassifier(encoder="toy", cache=None)
    alone, *others = (
        {finding.message for finding in diagnose(data, model).findings if finding.kind.endswith("-label")}
        for data in (dataset.split("train"), dataset, shuffled)
    )
    assert len(alone) == 2
    for messages in others:
        assert {message for message in messages if message.startswith("train/")} == alone
