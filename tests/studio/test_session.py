import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import ImageError, InputError, StoreError
from clipadapter.studio import Project
from clipadapter.studio._pictures import Upload
from clipadapter.studio._session import BATCH, Session


def noisy(colour, seed, size=12):
    """A picture of a colour that is no other one."""
    rng = np.random.default_rng(seed)
    pixels = np.array(Image.new("RGB", (size, size), colour), np.int64) + rng.integers(-60, 60, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return Upload(f"{colour}.png", file.getvalue())


@pytest.fixture
def session(tmp_path):
    """Of a project with the classes red and blue, and no picture."""
    opened = Session(Project(tmp_path / "p"), "toy", cache=None)
    for name in ("red", "blue"):
        opened.project.add_class(name)
    settled(opened)
    yield opened
    opened.close()


def settled(session):
    session.changed()
    assert session.wait(30), session.state
    return session.state


def test_a_picture_is_answered_for_before_any_shot(session):
    said = session.answer(Image.new("RGB", (9, 9), "red"))
    assert said.top[0][0] == "red" and said.shots == 0 and said.nearest == ()


def test_one_class_is_none(tmp_path):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    session.project.add_class("red")
    assert settled(session).learned is None
    with pytest.raises(InputError, match="name two classes first"):
        session.answer(Image.new("RGB", (9, 9), "red"))
    with pytest.raises(InputError, match="nothing to save yet"):
        session.save()
    session.close()


def test_shots_are_learned_from_and_say_why(session):
    for name in ("red", "blue"):
        session.project.add(name, [noisy(name, i) for i in range(4)])
    state = settled(session)
    assert (
        state.learned.shots == 8
        and state.learned.held_out == 1.0
        and state.revision == session.project.contents.revision
    )
    assert [point.shots for point in state.points][0] == 0 and not state.on_test and state.doing == state.error == ""
    said = session.answer(Image.open(io.BytesIO(noisy("red", 9).data)))
    assert said.top[0][0] == "red" and said.shots == 8 and "leads 'blue'" in said.sentences[0]
    assert said.nearest[0].label == "red" and said.nearest[0].similarity > said.nearest[-1].similarity
    first = session.project.contents.classes["red"][0]
    assert session.answer(first.path).among == "red"
    session.project.rename_class("red", "rot")
    assert session.answer(first.path.parent.parent / "rot" / first.path.name).top  # while the next fit is not there


def test_a_picture_that_cannot_be_read_is_told(session, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        session.answer(tmp_path / "x.jpg")
    (session.project.root / "red" / "broken.jpg").write_bytes(b"no picture")
    session.project.refresh()
    session.project.add("red", [noisy("red", 0)])
    session.project.add("blue", [noisy("blue", 0)])
    state = settled(session)
    assert state.unreadable == {"red/broken.jpg": "not an image"} and state.learned.shots == 2


def test_the_queue_holds_still_until_it_is_used_up(session):
    session.project.add_unlabelled([noisy(colour, i) for i in range(6) for colour in ("red", "blue")])
    queue = settled(session).queue
    assert len(queue) == len(set(queue)) == BATCH
    assert session.state.guesses[queue[0]][0] in ("red", "blue") and len(session.state.guesses) == 12
    for i, key in enumerate(queue):
        assert session.queue() == queue[i:]
        session.project.label([key], session.state.guesses[key][0])
        settled(session)
    assert len(session.queue()) == 4 and not set(session.queue()) & set(queue)


def test_what_is_skipped_comes_back_when_nothing_else_is_left(session):
    session.project.add_unlabelled([noisy("red", i) for i in range(3)])
    first, second, third = settled(session).queue
    session.skip(first)
    assert session.queue() == (second, third)
    session.skip(second)
    session.skip(third)
    settled(session)
    assert set(session.queue()) == {first, second, third}


def test_classes_may_come_and_go_while_it_learns(session):
    for i in range(12):
        name = f"class {i}"
        session.project.add_class(name)
        session.project.add(name, [noisy("red", i + 50)])
        session.changed()
        if i % 3 == 2:
            session.project.remove_class(name)
            session.changed()
    state = settled(session)
    assert state.error == "" and list(state.learned.names) == list(session.project.contents.classes)
    while session.project.undo():
        session.changed()
    assert settled(session).learned is None and session.state.error == ""


def test_features_are_made_once_even_if_a_picture_is_moved(session):
    made = []
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (made.append(len(pixels)), encode(pixels))[1]
    session.project.add("red", [noisy("red", 0), noisy("red", 1)])
    session.project.add("blue", [noisy("blue", 0)])
    settled(session)
    assert sum(made) == 3
    session.project.rename_class("red", "rouge")
    session.project.label([session.project.contents.classes["blue"][0].key], "rouge")
    settled(session)
    session.project.undo()
    settled(session)
    assert sum(made) == 3


def test_the_model_is_one_like_any_other(session):
    for name in ("red", "blue"):
        session.project.add(name, [noisy(name, i) for i in range(3)])
    session.changed()
    folder = session.save()  # waits for the fit
    model = FewShotClassifier.load(folder, cache=None)
    assert model.class_names_ == ("blue", "red") and len(model.support_) == 6
    assert model.predict([Image.new("RGB", (9, 9), "red")]) == ["red"]


def test_test_pictures_measure_if_there_are_some(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in ("red", "blue"):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(noisy(name, i + 10 * count).data)
    session = Session(Project(tmp_path), "toy", cache=None)
    state = settled(session)
    assert state.on_test and state.points[-1].shots == 3 and state.points[-1].accuracy == 1.0
    session.close()


def test_what_goes_wrong_is_told_and_the_next_change_goes_on(session):
    def broken(pixels):
        raise StoreError("the disk is full")

    encode, session.encoder.encode_pixels = session.encoder.encode_pixels, broken
    session.project.add("red", [noisy("red", 0)])
    assert settled(session).error == "the disk is full"
    session.encoder.encode_pixels = encode
    session.project.add("blue", [noisy("blue", 0)])
    assert settled(session).error == "" and session.state.learned.shots == 2


def test_a_change_overtakes_what_is_being_computed(session):
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (time.sleep(0.05), encode(pixels))[1]
    session.project.add_unlabelled([noisy("red", i) for i in range(200)])
    session.changed()
    session.project.add("red", [noisy("red", 1000)])
    session.project.add("blue", [noisy("blue", 1000)])
    session.changed()
    end = time.monotonic() + 5
    while (session.state.learned is None or not session.state.learned.shots) and time.monotonic() < end:
        time.sleep(0.01)
    assert session.state.learned.shots == 2 and len(session.state.guesses) < 200  # before the pool was through
    assert session.wait(30) and len(session.state.guesses) == 200


@pytest.mark.parametrize("head", ["coop", "transclip", "prolip"])
def test_a_slow_head_is_refused(tmp_path, head):
    with Project(tmp_path / "p") as project, pytest.raises(InputError, match="anew after every picture"):
        Session(project, "toy", head)


def test_closing_ends_the_thread_and_lets_others_in(tmp_path):
    before = threading.active_count()
    Session(Project(tmp_path / "p"), "toy", cache=None).close()
    assert threading.active_count() == before
    Project(tmp_path / "p").close()


def test_no_older_model_is_saved_for_a_newer_one(session, monkeypatch):
    monkeypatch.setattr("clipadapter.studio._session.PATIENCE", 0.2)
    for name in ("red", "blue"):
        session.project.add(name, [noisy(name, 0)])
    settled(session)
    session.save()
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (time.sleep(1), encode(pixels))[1]
    session.project.add("red", [noisy("red", 1)])
    session.changed()
    with pytest.raises(InputError, match="not learned yet .* takes long: save again"):
        session.save()

    def broken(pixels):
        raise StoreError("the disk is full")

    assert session.wait(30)
    session.encoder.encode_pixels = broken
    session.project.add("red", [noisy("red", 2)])
    settled(session)
    with pytest.raises(InputError, match="not learned yet .the disk is full"):
        session.save()
