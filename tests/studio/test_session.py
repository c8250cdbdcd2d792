import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clipadapter.errors import ClipAdapterError, ImageError, InputError, StoreError
from clipadapter.studio import Project
from clipadapter.studio.pictures import Upload
from clipadapter.studio.session import QUEUE_PICTURES, Session


def noisy(colour, seed, size=12):
    """An upload of a noisy picture of a colour; no two seeds give the same one."""
    rng = np.random.default_rng(seed)
    pixels = np.array(Image.new("RGB", (size, size), colour), np.int64) + rng.integers(-60, 60, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return Upload(f"{colour}.png", file.getvalue())


@pytest.fixture
def session(tmp_path):
    """Of a project with the classes red and blue, and no picture. Tests change what its encoder computes."""
    opened = Session(Project(tmp_path / "p"), "toy", "tip-adapter", quality="fast", cache=None)
    for name in ("red", "blue"):
        opened.project.add_class(name)
    settle(opened)
    yield opened
    opened.close()


def settle(session):
    session.notify_change()
    assert session.wait_until_idle(30), session.state
    return session.state


def test_predictions_are_explained_by_labelled_pictures(session):
    for name in ("red", "blue"):
        session.project.add_pictures(name, [noisy(name, i) for i in range(5)])
    state = settle(session)
    assert state.model.shot_count == 10 and state.model.held_out.accuracy == 1.0
    assert state.revision == session.project.contents.revision
    assert state.curve.points[0].shots_per_class == 0 and not state.curve.is_on_test
    assert state.activity == state.error == ""
    prediction = session.predict(Image.open(io.BytesIO(noisy("red", 9).data)))
    assert prediction.top[0][0] == "red" and prediction.shot_count == 10 and "leads 'blue'" in prediction.details[0]
    assert prediction.reason.startswith("All 5 most similar pictures are labelled “red”.")
    assert prediction.nearest[0].label == "red" and prediction.nearest[0].similarity > prediction.nearest[-1].similarity
    first = session.project.contents.classes["red"][0]
    assert session.predict(first.path).labelled_as == "red"
    assert session.predict(first.path).unlike is None
    unlike = session.predict(Image.new("RGB", (9, 9), "green"))
    assert unlike.top[0][0] in ("red", "blue") and "than" in unlike.unlike
    session.project.rename_class("red", "rot")
    assert session.predict(first.path.parent.parent / "rot" / first.path.name).top  # while the next fit is not there


def test_a_picture_that_can_not_be_read_is_reported(session, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        session.predict(tmp_path / "x.jpg")
    (session.project.root / "red" / "broken.jpg").write_bytes(b"no picture")
    session.project.refresh()
    session.project.add_pictures("red", [noisy("red", 0)])
    session.project.add_pictures("blue", [noisy("blue", 0)])
    state = settle(session)
    assert state.unreadable == {"red/broken.jpg": "not an image"} and state.model.shot_count == 2


def test_the_queue_does_not_change_until_it_is_used_up(session):
    session.project.add_pictures(None, [noisy(colour, i) for i in range(6) for colour in ("red", "blue")])
    queue = settle(session).queue
    assert len(queue) == len(set(queue)) == QUEUE_PICTURES
    assert session.state.guesses[queue[0]][0] in ("red", "blue") and len(session.state.guesses) == 12
    for i, key in enumerate(queue):
        assert session.pending_queue() == queue[i:]
        session.project.label_pictures([key], session.state.guesses[key][0])
        settle(session)
    assert len(session.pending_queue()) == 4 and not set(session.pending_queue()) & set(queue)


def test_skipped_pictures_come_back_after_all_others(session):
    session.project.add_pictures(None, [noisy("red", i) for i in range(3)])
    first, second, third = settle(session).queue
    session.skip_picture(first)
    assert session.pending_queue() == (second, third)
    session.skip_picture(second)
    session.skip_picture(third)
    settle(session)
    assert set(session.pending_queue()) == {first, second, third}


def test_classes_can_be_added_and_removed_while_it_learns(session):
    for i in range(12):
        name = f"class {i}"
        session.project.add_class(name)
        session.project.add_pictures(name, [noisy("red", i + 50)])
        session.notify_change()
        if i % 3 == 2:
            session.project.remove_class(name)
            session.notify_change()
    state = settle(session)
    assert state.error == "" and list(state.model.class_names) == list(session.project.contents.classes)
    while session.project.undo():
        session.notify_change()
    assert settle(session).model is None and session.state.error == ""


def test_features_are_computed_once_even_if_a_picture_is_moved(session):
    batch_sizes = []
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (batch_sizes.append(len(pixels)), encode(pixels))[1]
    session.project.add_pictures("red", [noisy("red", 0), noisy("red", 1)])
    session.project.add_pictures("blue", [noisy("blue", 0)])
    settle(session)
    assert sum(batch_sizes) == 3
    session.project.rename_class("red", "rouge")
    session.project.label_pictures([session.project.contents.classes["blue"][0].key], "rouge")
    settle(session)
    session.project.undo()
    settle(session)
    assert sum(batch_sizes) == 3


def test_the_curve_is_measured_on_test_pictures_if_there_are_any(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in ("red", "blue"):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(noisy(name, i + 10 * count).data)
    session = Session(Project(tmp_path), "toy", "tip-adapter", cache=None)
    state = settle(session)
    assert (
        state.curve.is_on_test
        and state.curve.points[-1].shots_per_class == 3
        and state.curve.points[-1].accuracy == 1.0
    )
    session.close()


def test_an_error_is_reported_and_the_next_change_is_learned(session):
    def broken(pixels):
        raise StoreError("the disk is full")

    encode, session.encoder.encode_pixels = session.encoder.encode_pixels, broken
    session.project.add_pictures("red", [noisy("red", 0)])
    assert settle(session).error == "the disk is full"
    session.encoder.encode_pixels = encode
    session.project.add_pictures("blue", [noisy("blue", 0)])
    assert settle(session).error == "" and session.state.model.shot_count == 2


def test_a_change_stops_the_current_computation(session):
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (time.sleep(0.05), encode(pixels))[1]
    session.project.add_pictures(None, [noisy("red", i) for i in range(200)])
    session.notify_change()
    session.project.add_pictures("red", [noisy("red", 1000)])
    session.project.add_pictures("blue", [noisy("blue", 1000)])
    session.notify_change()
    end = time.monotonic() + 5
    while (session.state.model is None or not session.state.model.shot_count) and time.monotonic() < end:
        time.sleep(0.01)
    assert session.state.model.shot_count == 2 and len(session.state.guesses) < 200  # before the pool was through
    assert session.wait_until_idle(30) and len(session.state.guesses) == 200


@pytest.mark.parametrize("head", ["coop", "transclip", "prolip"])
def test_a_slow_head_is_refused(tmp_path, head):
    with Project(tmp_path / "p") as project, pytest.raises(InputError, match="again after every picture"):
        Session(project, "toy", head)


def test_closing_ends_the_thread_and_releases_the_project(tmp_path):
    before = threading.active_count()
    Session(Project(tmp_path / "p"), "toy", cache=None).close()
    assert threading.active_count() == before
    Project(tmp_path / "p").close()


def test_a_model_is_saved_only_after_the_last_change_is_learned(session, monkeypatch):
    monkeypatch.setattr("clipadapter.studio.session.FIT_TIMEOUT_SECONDS", 0.2)
    for name in ("red", "blue"):
        session.project.add_pictures(name, [noisy(name, 0)])
    settle(session)
    session.save_model()
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (time.sleep(0.5), encode(pixels))[1]
    session.project.add_pictures("red", [noisy("red", 1)])
    session.notify_change()
    with pytest.raises(InputError, match="not learned yet .* takes long: save again"):
        session.save_model()

    def broken(pixels):
        raise StoreError("the disk is full")

    assert session.wait_until_idle(30)
    session.encoder.encode_pixels = broken
    session.project.add_pictures("red", [noisy("red", 2)])
    settle(session)
    with pytest.raises(InputError, match="not learned yet .the disk is full"):
        session.save_model()


def test_a_model_is_saved_beside_the_project_or_where_a_person_says(session, tmp_path):
    root = session.project.root
    for name in ("red", "blue"):
        session.project.add_pictures(name, [noisy(name, 0)])
    session.notify_change()
    assert session.save_model() == root.with_name(f"{root.name}-model") == session.default_model_folder
    assert session.state.is_saved(session.project.contents)
    for text, folder in (("mine", root.parent / "mine"), (f" {tmp_path}/a/b ", tmp_path / "a" / "b")):
        assert session.save_model(text) == folder and (folder / "config.json").is_file()
    session.project.add_class("green")
    assert not session.state.is_saved(session.project.contents)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("text")
    for text, reason in (
        ("", "needs a folder"),
        ("a\0b", "needs a folder"),
        (str(root / "model"), "inside the project"),
        (f"{tmp_path}/a/../{root.relative_to(tmp_path)}/red", "inside the project"),
        (str(tmp_path / "thesis"), "holds other files than a model"),
        (str(tmp_path / "thesis" / "thesis.tex"), "is a file"),
        ("x" * 300, "can't write"),
        ("~nobody-with-this-name/x", "there is no folder"),
    ):
        with pytest.raises(ClipAdapterError, match=reason):
            session.save_model(text)
    assert sorted(path.name for path in (tmp_path / "thesis").iterdir()) == ["thesis.tex"]
