import io
import os
from html.parser import HTMLParser

import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipadapter.studio import Project
from clipadapter.studio.actions import Actions, Tab
from clipadapter.studio.panels import PANELS, Panels, suggest_next_step
from clipadapter.studio.session import Session

ATTACKS = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
HOSTILE = ['<img src=x onerror="alert(1)">', '"><script>alert(1)</script>', "${alert(1)}", "{{7*7}}", "'\"&<b>"]


class Person:
    """Sends what the page sends, from one tab."""

    def __init__(self, session, uploads):
        self.session, self.project, self.uploads, self.tab = session, session.project, uploads, Tab()
        self.actions, self.panels, self.upload_count = Actions(session, lambda: str(uploads)), Panels(session), 0

    def do(self, action, class_name=None, **data):
        """Perform an action; gives its note."""
        data |= {} if class_name is None else {"class": class_name}
        self.actions.perform(self.tab, {"action": action, **data})
        return self.tab.note

    def add_classes(self, *names):
        for name in names:
            self.do("add-class", text=name)

    def send(self, data, name="picture.png"):
        """What the page sends for a file, whose bytes are in the folder of uploads."""
        self.upload_count += 1
        path = self.uploads / f"{self.upload_count}.bin"
        path.write_bytes(data)
        return {"path": str(path), "name": name}

    def upload(self, class_name, *pictures):
        return self.do("upload", class_name, files=[self.send(data) for data in pictures])

    def try_picture(self, path):
        self.actions.try_picture(self.tab, path)

    def settle(self):
        assert self.session.wait_until_idle(30)

    def draw(self):
        """The panels that changed."""
        return self.panels.render_changed(self.tab)

    def keys(self, name):
        return [one.key for one in self.project.contents.classes[name]]


@pytest.fixture
def person(tmp_path):
    (tmp_path / "uploads").mkdir()
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    yield Person(session, tmp_path / "uploads")
    session.close()


def test_each_action_reports_its_result(person, png):
    assert person.do("add-class", text=" cat ").text == "Added the class 'cat'."
    person.add_classes("dog")
    files = [person.send(png("red")), person.send(b"x", "x.txt"), person.send(png("red"), "twice.png")]
    note = person.do("upload", "cat", files=files)
    assert note.is_error and note.text == (
        "Added 1 picture to 'cat'. 1 picture already there. Rejected: x.txt (not an image)."
    )
    note = person.upload("dog", png("red"))
    assert note.text == "1 picture not added: already in 'cat'." and note.offers[0][:2] == ("Move to 'dog'", "dog")
    note = person.do("move-pictures", "dog", pictures=list(note.offers[0][2]))
    assert note.text == "Moved 1 picture to 'dog'." and person.keys("cat") == []
    assert person.do("add-class", text="CAT").text.startswith("There is a class 'cat' already")
    assert person.do("undo").text == "Undone: labelling 1 picture 'dog'."
    assert person.do("remove-class", "cat").text.startswith("Removed the class 'cat' with 1 picture")
    # Notes are valid Unicode.
    assert person.do("rename-class", "\ud800", text="x").text.encode()
    assert person.do("upload", "", files=[person.send(b"x", "\udce9.jpg")]).text.encode()


def test_many_pictures_are_moved_and_removed_in_one_step(person, png):
    person.add_classes("cat", "dog")
    person.upload("cat", *(png("red", i) for i in range(3)))
    person.upload("", *(png("blue", i) for i in range(3)))
    keys = [*person.keys("cat")[:2], *(one.key for one in person.project.contents.unlabelled)]
    assert person.do("move-pictures", "dog", pictures=keys).text == "Moved 5 pictures to 'dog'."
    note = person.do("remove-pictures", pictures=person.keys("dog")[:4])
    assert note.text == "Removed 4 pictures. Undo brings them back." and not note.is_error
    assert len(person.keys("cat")) == len(person.keys("dog")) == 1
    person.do("undo")
    person.do("undo")
    assert len(person.keys("cat")) == len(person.project.contents.unlabelled) == 3


def test_only_uploaded_files_are_read_and_all_of_them_are_removed(person, png, tmp_path):
    person.add_classes("cat")
    secret, link = tmp_path / "secret.png", person.uploads / "link.png"
    secret.write_bytes(png("blue"))
    link.symlink_to(secret)
    for path in (secret, person.uploads / ".." / "secret.png", link, "", "\0", person.uploads, "/etc/passwd"):
        note = person.do("upload", "cat", files=[{"path": str(path), "name": "x"}])
        assert note.text == "Rejected: x (was not uploaded)."
    assert secret.is_file() and person.keys("cat") == []
    person.upload("cat", png("red"))
    assert len(person.keys("cat")) == 1 and list(person.uploads.iterdir()) == [link]


def test_keys_of_pictures_are_not_used_as_paths(person):
    person.add_classes("cat")
    for key in ("../secret.png", "/etc/passwd", ".studio/journal.jsonl", ""):
        for name in ("label-picture", "remove-pictures", "move-pictures"):
            note = person.do(name, "cat", picture=key, pictures=[key])
            assert note.is_error and "does not exist any more" in note.text
    assert person.do("move-pictures", "gone", pictures=[]).text.startswith("There is no class 'gone'")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ACTIONS = [name.removeprefix("_do_").replace("_", "-") for name in vars(Actions) if name.startswith("_do_")]
FIELDS = ("class", "text", "picture", "pictures", "files", "renaming", "unlabelled", "quality", "on")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40 * ATTACKS)
@given(
    VALUES
    | st.fixed_dictionaries({"action": st.sampled_from([*ACTIONS, "unknown"])}, optional=dict.fromkeys(FIELDS, VALUES))
)
def test_no_request_raises_an_error(person, data):
    person.tab = Tab()
    person.actions.perform(person.tab, data)
    assert isinstance(person.tab.note.text, str)
    person.draw()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = set(), "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_names_are_escaped_in_the_page(person, png):
    for i, name in enumerate(HOSTILE):
        person.add_classes(name)
        person.do("upload", name, files=[person.send(png("red", i), name), person.send(b"no", f"{name}.txt")])
    person.upload("", png("blue", 50))
    person.settle()
    picture = person.project.contents.classes[HOSTILE[0]][0]
    person.do("open", picture=picture.key, renaming=HOSTILE[1])
    person.tab.prediction = person.session.predict(picture.path)
    changed = person.draw()
    assert set(changed) == set(PANELS)
    page = Tags()
    page.feed("".join(changed.values()))
    assert not page.tags & {"script", "iframe", "object"} and "onerror" not in page.attributes
    for name in HOSTILE[2:]:
        assert name in page.text


def test_only_changed_panels_are_rendered(person, png):
    person.settle()
    assert set(person.draw()) == set(PANELS)
    assert person.draw() == {}
    person.add_classes("cat")
    person.settle()
    assert set(person.draw()) == {"status", "classes"}
    # The status changes after every upload and rejected name: without it, a card would show 'Sending' for ever.
    person.upload("cat", png("red"))
    person.settle()
    for _ in range(2):
        for action, data in (
            ("upload", {"class_name": "cat", "files": [person.send(b"x", "x.txt")]}),
            ("upload-failed", {"text": "x.txt: too large"}),
            ("add-class", {"text": "cat"}),
        ):
            person.draw()
            person.do(action, **data)
            assert set(person.draw()) == {"status"}
    assert (person.tab.upload_count, person.tab.rejected_name_count) == (5, 2)


def test_a_tab_closes_a_class_and_a_picture_that_were_removed(person, png):
    person.add_classes("cat")
    person.upload("cat", png("red"))
    person.do("open", "cat", picture=person.keys("cat")[0], renaming="cat")
    assert person.tab.open_picture and person.tab.open_class == person.tab.renamed_class == "cat"
    person.do("remove-class", "cat")
    person.draw()
    assert (person.tab.open_picture, person.tab.open_class, person.tab.renamed_class) == ("", "", "")


def test_the_prediction_of_the_tried_picture_is_updated_after_each_fit(person, png, tmp_path):
    actions, tab = person.actions, person.tab
    (tmp_path / "tried.png").write_bytes(png("red"))
    person.settle()
    person.try_picture(tmp_path / "tried.png")
    assert tab.prediction is None and tab.note.text.startswith("A prediction needs two classes")
    assert not actions.is_prediction_outdated(tab)
    person.add_classes("red", "blue")
    person.settle()
    assert actions.is_prediction_outdated(tab)
    actions.update_prediction(tab)
    assert tab.prediction.shot_count == 0 and not actions.is_prediction_outdated(tab)
    person.upload("red", png("red", 1))
    person.settle()
    actions.update_prediction(tab)
    assert tab.prediction.shot_count == 1 and tab.prediction.details

    def neighbours():
        return person.panels._values(tab, person.session.state, person.project.contents)["nearest"]

    assert [one.label for one, _ in neighbours()] == ["red"]
    person.do("remove-pictures", pictures=person.keys("red"))
    assert neighbours() == []  # the prediction is that of before
    person.do("undo")
    person.do("remove-class", "blue")
    person.settle()
    actions.update_prediction(tab)
    assert tab.prediction is None
    person.try_picture(None)
    person.do("undo")
    person.settle()
    assert not actions.is_prediction_outdated(tab) and tab.note.text == "Undone: removing the class 'blue'."


def test_a_tried_picture_stays_when_the_same_file_is_added_to_a_class(person, png):
    """Gradio stores equal uploads in one file, and the file of an upload into a class is removed."""
    person.add_classes("red", "blue")
    person.settle()
    file = person.uploads / "tried.png"
    file.write_bytes(png("red"))
    person.try_picture(file)
    person.do("upload", "blue", files=[{"path": str(file), "name": "tried.png"}])
    person.settle()
    person.actions.update_prediction(person.tab)
    assert person.tab.prediction.labelled_as == "blue"
    person.try_picture(None)
    assert list(person.uploads.iterdir()) == []


def test_each_state_of_a_project_has_its_own_next_step(person, png):
    steps = []

    def look(**known):
        steps.append(suggest_next_step(person.project.contents, **known))

    look()
    for name in ("cat", "dog"):
        person.add_classes(name)
        look()
    for name, pictures in (("cat", [0]), ("dog", range(10, 14)), ("cat", range(20, 23))):
        person.upload(name, *(png("red", i) for i in pictures))
        look()
    look(is_saved=True)
    look(has_guess=True)
    assert len({step.text for step in steps}) == 8 and all(step.text.count(".") <= 2 for step in steps)
    assert [f"{step.button} {step.class_name}".strip() for step in steps] == (
        ["add-class", "add-class", "upload cat", "upload dog", "upload cat", "save", "download", "label"]
    )


def test_unlabelled_pictures_are_shown_by_predicted_class_on_request(person, png):
    person.add_classes("red", "blue")
    for name in ("red", "blue"):
        person.upload(name, *(png(name, i) for i in range(2)))
        person.upload("", *(png(name, 10 + i) for i in range(2)))
    person.settle()
    assert "cs-group" not in person.draw()["queue"]
    person.do("open", unlabelled="all")
    state = person.session.state
    groups = person.panels._values(person.tab, state, person.project.contents)["groups"]
    assert [(name, len(pictures)) for name, pictures in groups] == [("blue", 2), ("red", 2)]
    for picture, probability in groups[1][1]:
        assert state.guesses[picture.key] == ("red", probability) and 0.5 <= probability <= 1


@pytest.mark.filterwarnings("ignore::clipadapter.errors.DataWarning")  # of the fit, which the command prints at its end
def test_pictures_of_phones_and_animations_are_added_and_the_note_says_what_is_read(person):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    heic, gif = io.BytesIO(), io.BytesIO()
    pillow_heif.from_pillow(frames[0]).save(heic)
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    person.add_classes("cat", "dog")
    files = [person.send(heic.getvalue(), "IMG_1.HEIC"), person.send(gif.getvalue(), "a.gif")]
    assert person.do("upload", "cat", files=files).text == (
        "Added 2 pictures to 'cat'. Pictures with several pages or frames, of which the first is read: 1 (a.gif)."
    )
    assert {path.suffix.lower() for path in (person.project.root / "cat").iterdir()} == {".heic", ".gif"}
    tried = person.uploads / "IMG_2.HEIC"
    tried.write_bytes(heic.getvalue())
    person.settle()
    person.try_picture(tried)
    assert person.tab.note.text == "" and person.tab.prediction is not None
