import hashlib
import shutil

import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.doctor import diagnose
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import DataError, InputError, MissingExtraError


def look_at(root, encoder="toy", **options):
    return diagnose(load_dataset(root), FewShotClassifier(encoder, cache=None, **options))


def kinds(found):
    return found.counts


def names(finding):
    return [picture.name for picture in finding.pictures]


def test_a_sound_set_has_no_finding(scenes):
    found = look_at(scenes)
    assert found.findings == ()
    assert (found.pictures, found.classes, found.judged, found.splits) == (24, 3, 24, ("train", "test"))


def test_a_moved_picture_is_a_wrong_label(scenes, draw):
    draw(50, "red").save(scenes / "train" / "blue" / "red.png")
    found = look_at(scenes)
    (one,) = found.of("wrong-label")
    assert names(one) == ["train/blue/red.png"]
    assert one.classes == ("blue", "red")


def test_copies_are_found_across_parts_labels_and_within(scenes):
    shutil.copy(scenes / "train" / "red" / "0.png", scenes / "test" / "red" / "copy.png")
    Image.open(scenes / "train" / "blue" / "1.png").save(scenes / "train" / "blue" / "copy.jpg", quality=70)
    Image.open(scenes / "train" / "green" / "2.png").resize((88, 73)).save(scenes / "train" / "red" / "copy.png")
    found = look_at(scenes)
    assert [names(one) for one in found.of("leak")] == [["train/red/0.png", "test/red/copy.png"]]
    assert [names(one) for one in found.of("duplicate")] == [["train/blue/1.png", "train/blue/copy.jpg"]]
    assert [names(one) for one in found.of("conflict")] == [["train/green/2.png", "train/red/copy.png"]]
    assert found.severe == 2
    assert found.findings[0].kind == "conflict"


def test_files_that_cant_be_read_are_findings_and_the_others_are_looked_at(scenes):
    (scenes / "train" / "blue" / "a.png").touch()
    (scenes / "train" / "red" / "z.jpg").write_bytes(b"hello")
    found = look_at(scenes)
    assert [one.words for one in found.of("unreadable")] == [
        "train/blue/a.png: file is empty",
        "train/red/z.jpg: not an image",
    ]
    assert found.judged == 24


def test_nothing_on_disk_changes(scenes):
    def state():
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in scenes.rglob("*") if path.is_file()}

    before = state()
    (scenes / "train" / "blue" / "a.png").touch()
    shutil.copy(scenes / "train" / "red" / "0.png", scenes / "test" / "red" / "copy.png")
    planted = state()
    look_at(scenes).to_html(scenes.parent / "doctor.html")
    assert state() == planted != before


def test_names_that_mean_nothing_to_the_encoder_are_named(scenes):
    for part in ("train", "test"):
        (scenes / part / "red").rename(scenes / part / "zork")
    (one,) = look_at(scenes).of("name")
    assert one.classes[0] == "zork"


class Mute(ToyEncoder):
    """The toy without a text tower."""

    def text_tower(self):
        return None

    def encode_text(self, texts, batch_size=256):
        raise InputError("no text tower")


def test_an_encoder_without_text_tower_still_finds_what_pictures_show(scenes, draw):
    draw(50, "red").save(scenes / "train" / "blue" / "red.png")
    found = look_at(scenes, Mute())
    assert [names(one) for one in found.of("wrong-label")] == [["train/blue/red.png"]]
    assert kinds(found) == {"wrong-label": 1}


@pytest.mark.parametrize("encoder", ["toy", Mute()], ids=["toy", "mute"])
def test_a_wrong_description_is_an_error_all_the_same(scenes, encoder):
    with pytest.raises(InputError):
        look_at(scenes, encoder, descriptions={"no such class": ["a text"]})


def test_one_picture_a_class_is_looked_at(tmp_path, draw):
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        draw(1 if colour == "red" else 2, colour).save(tmp_path / colour / "1.png")
    found = look_at(tmp_path)
    assert kinds(found) == {"few-shots": 2}
    assert found.judged == 0


def test_pictures_without_labels_are_refused(tmp_path, draw):
    draw(0).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="have no label"):
        look_at(tmp_path)


@pytest.mark.parametrize("module", ["imagehash", "cleanlab.filter"])
def test_a_missing_library_is_told_before_anything_is_computed(monkeypatch, scenes, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    model = FewShotClassifier("no such encoder")
    with pytest.raises(MissingExtraError, match=r"pip install 'clipadapter\[doctor\]'"):
        diagnose(load_dataset(scenes), model)


def test_the_same_seed_gives_the_same(scenes, draw):
    draw(50, "red").save(scenes / "train" / "blue" / "red.png")
    assert look_at(scenes).to_dict() == look_at(scenes).to_dict()
