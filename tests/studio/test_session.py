import io
import threading
import time

import pytest
from PIL import Image

from clipadapter.errors import ClipAdapterError, ImageError, InputError, StoreError
from clipadapter.studio import Project
from clipadapter.studio.session import QUEUE_PICTURES, Session

from .conftest import fill, noisy, pending, settle


@pytest.fixture
def session(open_session):
    """Of a project with the classes red and blue, and no picture. Tests change what its encoder computes."""
    opened = open_session("tip-adapter")
    fill(opened, 0)
    return opened


def broken(pixels):
    raise StoreError("the disk is full")


def test_predictions_are_explained_by_labelled_pictures(session):
    state = fill(session, 5)
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
    session.project.rename_class("red", "rot")  # the picture is moved
    assert settle(session).unreadable == {"rot/broken.jpg": "not an image"}


def test_the_queue_does_not_change_until_it_is_used_up(session):
    session.project.add_pictures(None, [noisy(colour, i) for i in range(6) for colour in ("red", "blue")])
    queue = settle(session).queue
    assert len(queue) == len(set(queue)) == QUEUE_PICTURES
    assert session.state.guesses[queue[0]][0] in ("red", "blue") and len(session.state.guesses) == 12
    for i, key in enumerate(queue):
        assert pending(session) == queue[i:]
        session.project.label_pictures([key], session.state.guesses[key][0])
        settle(session)
    assert len(pending(session)) == 4 and not set(pending(session)) & set(queue)


def test_the_smaller_the_margin_of_a_picture_the_more_uncertain_it_is(session, monkeypatch):
    given = []
    select = "clipadapter.studio.session.select_for_labelling"
    monkeypatch.setattr(select, lambda features, uncertainty, *rest: (given.append(uncertainty), [0])[1])
    session.project.add_class("green")
    session.project.add_pictures(None, [noisy(colour, 5) for colour in ("red", "blue", "green")])
    fill(session)
    p = session.state.model.probabilities(session._features.matrix(session.project.contents.unlabelled))
    highest, second, _ = zip(*(sorted(row, reverse=True) for row in p.tolist()), strict=True)
    assert given[-1] == pytest.approx([1 - (a - b) for a, b in zip(highest, second, strict=True)])


def test_skipped_pictures_come_back_after_all_others(session):
    session.project.add_pictures(None, [noisy("red", i) for i in range(3)])
    first, second, third = settle(session).queue
    session.skip_picture(first)
    assert pending(session) == (second, third)
    session.skip_picture(second)
    session.skip_picture(third)
    settle(session)
    assert set(pending(session)) == {first, second, third}


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
    assert state.error == "" and list(state.model.text.labels) == list(session.project.contents.classes)
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
    last = state.curve.points[-1]
    assert state.curve.is_on_test and last.shots_per_class == 3 and last.accuracy == 1.0
    session.close()


def test_an_error_is_reported_and_the_next_change_is_learned(session):
    encode, session.encoder.encode_pixels = session.encoder.encode_pixels, broken
    session.project.add_pictures("red", [noisy("red", 0)])
    assert settle(session).error == "the disk is full"
    session.encoder.encode_pixels = encode
    session.project.add_pictures("blue", [noisy("blue", 0)])
    assert settle(session).error == "" and session.state.model.shot_count == 2


def test_a_change_stops_the_current_computation(session):
    encode, may_go_on, has_begun = session.encoder.encode_pixels, threading.Semaphore(0), threading.Event()

    def wait_and_encode(pixels):
        if len(pixels) > 2:  # of the pictures without a label
            has_begun.set()
            may_go_on.acquire(timeout=30)
        return encode(pixels)

    session.encoder.encode_pixels = wait_and_encode
    session.project.add_pictures(None, [noisy("red", i) for i in range(40)])
    session.notify_change()
    assert has_begun.wait(30)
    for name in ("red", "blue"):
        session.project.add_pictures(name, [noisy(name, 1000)])
    session.notify_change()
    may_go_on.release()
    end = time.monotonic() + 30
    while (session.state.model is None or not session.state.model.shot_count) and time.monotonic() < end:
        time.sleep(0.01)
    assert session.state.model.shot_count == 2 and len(session.state.guesses) < 40  # before the pool was through
    may_go_on.release(9)
    assert session.wait_until_idle(30) and len(session.state.guesses) == 40


def test_closing_ends_the_thread_and_releases_the_project(tmp_path):
    before = threading.active_count()
    Session(Project(tmp_path / "p"), "toy", cache=None).close()
    assert threading.active_count() == before
    Project(tmp_path / "p").close()


def test_a_model_is_saved_only_after_the_last_change_is_learned(session, monkeypatch):
    monkeypatch.setattr("clipadapter.studio.session.FIT_TIMEOUT_SECONDS", 0.2)
    fill(session, 1)
    session.save_model()
    encode = session.encoder.encode_pixels
    session.encoder.encode_pixels = lambda pixels: (time.sleep(0.5), encode(pixels))[1]
    session.project.add_pictures("red", [noisy("red", 1)])
    session.notify_change()
    with pytest.raises(InputError, match="not learned yet .* takes long: save again"):
        session.save_model()

    assert session.wait_until_idle(30)
    session.encoder.encode_pixels = broken
    session.project.add_pictures("red", [noisy("red", 2)])
    settle(session)
    with pytest.raises(InputError, match="not learned yet .the disk is full"):
        session.save_model()


def test_a_model_is_saved_beside_the_project_or_where_a_person_says(session, tmp_path):
    root = session.project.root
    fill(session, 1)
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
