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


@pytest.fixture
def actions(tmp_path):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    (tmp_path / "uploads").mkdir()
    yield Actions(session, lambda: str(tmp_path / "uploads"))
    session.close()


@pytest.fixture
def upload_file(actions, tmp_path):
    """A function that writes bytes into the folder of uploads, and returns what the page would send for the file."""

    def write(data, name="picture.png"):
        path = tmp_path / "uploads" / f"{len(list((tmp_path / 'uploads').iterdir()))}.bin"
        path.write_bytes(data)
        return {"path": str(path), "name": name}

    return write


def perform(actions, tab=None, **data):
    tab = tab or Tab()
    actions.perform(tab, data)
    return tab


def test_each_action_reports_its_result(actions, upload_file, png):
    assert perform(actions, action="add-class", text=" cat ").note.text == "Added the class 'cat'."
    perform(actions, action="add-class", text="dog")
    files = [upload_file(png("red")), upload_file(b"x", "x.txt"), upload_file(png("red"), "twice.png")]
    note = perform(actions, action="upload", **{"class": "cat"}, files=files).note
    assert note.is_error and note.text == (
        "Added 1 picture to 'cat'. 1 picture already there. Rejected: x.txt (not an image)."
    )
    note = perform(actions, action="upload", **{"class": "dog"}, files=[upload_file(png("red"))]).note
    assert note.text == "1 picture not added: already in 'cat'." and note.offers[0][:2] == ("Move to 'dog'", "dog")
    note = perform(actions, action="move-pictures", **{"class": "dog"}, pictures=list(note.offers[0][2])).note
    assert note.text == "Moved 1 picture to 'dog'." and actions.project.contents.classes["cat"] == ()
    assert perform(actions, action="add-class", text="CAT").note.text.startswith("There is a class 'cat' already")
    assert perform(actions, action="undo").note.text == "Undone: labelling 1 picture 'dog'."
    assert perform(actions, action="remove-class", **{"class": "cat"}).note.text.startswith(
        "Removed the class 'cat' with 1 picture"
    )


def test_only_uploaded_files_are_read_and_all_of_them_are_removed(actions, upload_file, png, tmp_path):
    perform(actions, action="add-class", text="cat")
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("blue"))
    (tmp_path / "uploads" / "link.png").symlink_to(secret)
    paths = [str(secret), str(tmp_path / "uploads" / ".." / "secret.png"), str(tmp_path / "uploads" / "link.png")]
    for path in [*paths, "", "\0", str(tmp_path / "uploads"), "/etc/passwd"]:
        note = perform(actions, action="upload", **{"class": "cat"}, files=[{"path": path, "name": "x"}]).note
        assert note.text == "Rejected: x (was not uploaded)."
    assert secret.is_file() and actions.project.contents.classes["cat"] == ()
    file = upload_file(png("red"))
    perform(actions, action="upload", **{"class": "cat"}, files=[file])
    assert len(actions.project.contents.classes["cat"]) == 1 and sorted((tmp_path / "uploads").iterdir()) == [
        tmp_path / "uploads" / "link.png"
    ]


def test_keys_of_pictures_are_not_used_as_paths(actions, upload_file, png):
    perform(actions, action="add-class", text="cat")
    for key in ("../secret.png", "/etc/passwd", ".studio/journal.jsonl", ""):
        for name in ("label-picture", "remove-pictures", "move-pictures"):
            note = perform(actions, action=name, **{"class": "cat"}, picture=key, pictures=[key]).note
            assert note.is_error and "does not exist any more" in note.text
    assert perform(actions, action="move-pictures", **{"class": "gone"}, pictures=[]).note.text.startswith(
        "There is no class 'gone'"
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ACTIONS = [
    "add-class",
    "rename-class",
    "remove-class",
    "upload",
    "upload-failed",
    "label-picture",
    "move-pictures",
    "remove-pictures",
    "add-tried-picture",
    "skip-picture",
    "set-quality",
    "learn-unlabelled",
    "undo",
    "open",
    "unknown",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40 * ATTACKS)
@given(
    data=VALUES
    | st.fixed_dictionaries(
        {"action": st.sampled_from(ACTIONS)},
        optional=dict.fromkeys(
            ("class", "text", "picture", "pictures", "files", "renaming", "unlabelled", "quality", "on"), VALUES
        ),
    )
)
def test_no_request_raises_an_error(actions, data):
    tab = Tab()
    actions.perform(tab, data)
    assert isinstance(tab.note.text, str)
    Panels(actions.session).render_changed(tab)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = set(), "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_names_are_escaped_in_the_page(actions, upload_file, png):
    tab = Tab()
    for i, name in enumerate(HOSTILE):
        perform(actions, action="add-class", text=name)
        perform(
            actions,
            tab,
            action="upload",
            **{"class": name},
            files=[upload_file(png("red", i), name), upload_file(b"no", f"{name}.txt")],
        )
    perform(actions, tab, action="upload", **{"class": ""}, files=[upload_file(png("blue", 50))])
    actions.session.wait_until_idle(30)
    perform(
        actions, tab, action="open", picture=actions.project.contents.classes[HOSTILE[0]][0].key, renaming=HOSTILE[1]
    )
    tab.prediction = actions.session.predict(actions.project.contents.classes[HOSTILE[0]][0].path)
    changed = Panels(actions.session).render_changed(tab)
    assert set(changed) == set(PANELS)
    page = Tags()
    page.feed("".join(changed.values()))
    assert not page.tags & {"script", "iframe", "object"} and "onerror" not in page.attributes
    for name in HOSTILE[2:]:
        assert name in page.text


def test_only_changed_panels_are_rendered(actions):
    tab, panels = Tab(), Panels(actions.session)
    actions.session.wait_until_idle(30)
    assert set(panels.render_changed(tab)) == set(PANELS)
    assert panels.render_changed(tab) == {}
    perform(actions, tab, action="add-class", text="cat")
    actions.session.wait_until_idle(30)
    assert set(panels.render_changed(tab)) == {"status", "classes"}


def test_a_tab_closes_a_class_and_a_picture_that_were_removed(actions, upload_file, png):
    perform(actions, action="add-class", text="cat")
    perform(actions, action="upload", **{"class": "cat"}, files=[upload_file(png("red"))])
    tab = perform(
        actions,
        action="open",
        picture=actions.project.contents.classes["cat"][0].key,
        renaming="cat",
        **{"class": "cat"},
    )
    assert tab.open_picture and tab.open_class == tab.renamed_class == "cat"
    perform(actions, action="remove-class", **{"class": "cat"})
    Panels(actions.session).render_changed(tab)
    assert (tab.open_picture, tab.open_class, tab.renamed_class) == ("", "", "")


def test_the_prediction_of_the_tried_picture_is_updated_after_each_fit(actions, upload_file, png, tmp_path):
    tab = Tab()
    (tmp_path / "tried.png").write_bytes(png("red"))
    actions.session.wait_until_idle(30)
    actions.try_picture(tab, tmp_path / "tried.png")
    assert (
        tab.prediction is None
        and tab.note.text.startswith("A prediction needs two classes")
        and not actions.is_prediction_outdated(tab)
    )
    for name in ("red", "blue"):
        perform(actions, action="add-class", text=name)
    actions.session.wait_until_idle(30)
    assert actions.is_prediction_outdated(tab)
    actions.update_prediction(tab)
    assert tab.prediction.shot_count == 0 and not actions.is_prediction_outdated(tab)
    perform(actions, action="upload", **{"class": "red"}, files=[upload_file(png("red", 1))])
    actions.session.wait_until_idle(30)
    actions.update_prediction(tab)
    assert tab.prediction.shot_count == 1 and tab.prediction.details
    perform(actions, action="remove-class", **{"class": "blue"})
    actions.session.wait_until_idle(30)
    actions.update_prediction(tab)
    assert tab.prediction is None
    actions.try_picture(tab, None)
    perform(actions, action="undo")
    actions.session.wait_until_idle(30)
    assert not actions.is_prediction_outdated(tab) and tab.note.text == ""


def test_the_status_panel_changes_after_every_upload_and_rejected_name(actions, upload_file, png):
    """Also if no other panel changes: without it, a card would show 'Sending' for ever."""
    tab, panels = Tab(), Panels(actions.session)
    perform(actions, tab, action="add-class", text="cat")
    perform(actions, tab, action="upload", **{"class": "cat"}, files=[upload_file(png("red"))])
    actions.session.wait_until_idle(30)
    for data in (
        {"action": "upload", "class": "cat", "files": [upload_file(b"x", "x.txt")]},
        {"action": "upload", "class": "cat", "files": [upload_file(b"x", "x.txt")]},
        {"action": "upload-failed", "text": "x.txt: too large"},
        {"action": "add-class", "text": "cat"},
        {"action": "add-class", "text": "cat"},
    ):
        panels.render_changed(tab)
        perform(actions, tab, **data)
        assert set(panels.render_changed(tab)) == {"status"}
    assert (tab.upload_count, tab.rejected_name_count) == (4, 2)


def test_each_state_of_a_project_has_its_own_next_step(actions, upload_file, png):
    steps = [suggest_next_step(actions.project.contents)]
    for name in ("cat", "dog"):
        perform(actions, action="add-class", text=name)
        steps.append(suggest_next_step(actions.project.contents))
    for i, name in enumerate(("cat", "dog")):
        perform(
            actions,
            action="upload",
            **{"class": name},
            files=[upload_file(png("red", 10 * i + j)) for j in range(1 + 3 * i)],
        )
        steps.append(suggest_next_step(actions.project.contents))
    perform(actions, action="upload", **{"class": "cat"}, files=[upload_file(png("blue", j)) for j in range(3)])
    steps.append(suggest_next_step(actions.project.contents))
    steps.append(suggest_next_step(actions.project.contents, is_saved=True))
    steps.append(suggest_next_step(actions.project.contents, has_guess=True))
    assert len({step.text for step in steps}) == 8 and all(step.text.count(".") <= 2 for step in steps)
    assert [(step.button, step.class_name) for step in steps] == [
        ("add-class", ""),
        ("add-class", ""),
        ("upload", "cat"),
        ("upload", "dog"),
        ("upload", "cat"),
        ("save", ""),
        ("download", ""),
        ("label", ""),
    ]


def test_many_pictures_are_moved_and_removed_in_one_step(actions, upload_file, png):
    for name in ("cat", "dog"):
        perform(actions, action="add-class", text=name)
    perform(actions, action="upload", **{"class": "cat"}, files=[upload_file(png("red", i)) for i in range(3)])
    perform(actions, action="upload", **{"class": ""}, files=[upload_file(png("blue", i)) for i in range(3)])
    contents = actions.project.contents
    keys = [one.key for one in (*contents.classes["cat"][:2], *contents.unlabelled)]
    assert perform(actions, action="move-pictures", **{"class": "dog"}, pictures=keys).note.text == (
        "Moved 5 pictures to 'dog'."
    )
    dogs = [one.key for one in actions.project.contents.classes["dog"]]
    note = perform(actions, action="remove-pictures", pictures=dogs[:4]).note
    assert note.text == "Removed 4 pictures. Undo brings them back." and not note.is_error
    assert [len(each) for each in actions.project.contents.classes.values()] == [1, 1]
    perform(actions, action="undo")
    perform(actions, action="undo")
    assert len(actions.project.contents.classes["cat"]) == 3 and len(actions.project.contents.unlabelled) == 3


def test_unlabelled_pictures_are_shown_by_predicted_class_on_request(actions, upload_file, png):
    for name in ("red", "blue"):
        perform(actions, action="add-class", text=name)
        perform(actions, action="upload", **{"class": name}, files=[upload_file(png(name, i)) for i in range(2)])
    for name in ("red", "blue"):
        files = [upload_file(png(name, 10 + i)) for i in range(2)]
        perform(actions, action="upload", **{"class": ""}, files=files)
    actions.session.wait_until_idle(30)
    tab, panels = Tab(), Panels(actions.session)
    assert "cs-group" not in panels.render_changed(tab)["queue"]
    perform(actions, tab, action="open", unlabelled="all")
    groups = panels._values(tab, actions.session.state, actions.project.contents)["groups"]
    assert [(name, len(pictures)) for name, pictures in groups] == [("blue", 2), ("red", 2)]
    for key, _, percent in groups[1][1]:
        assert actions.session.state.guesses[key][0] == "red" and 50 <= percent <= 100


def test_a_tried_picture_stays_when_the_same_file_is_added_to_a_class(actions, png, tmp_path):
    """Gradio stores equal uploads in one file, and the file of an upload into a class is removed."""
    for name in ("red", "blue"):
        perform(actions, action="add-class", text=name)
    actions.session.wait_until_idle(30)
    file, tab = tmp_path / "uploads" / "tried.png", Tab()
    file.write_bytes(png("red"))
    actions.try_picture(tab, file)
    perform(actions, action="upload", **{"class": "blue"}, files=[{"path": str(file), "name": "tried.png"}])
    actions.session.wait_until_idle(30)
    actions.update_prediction(tab)
    assert tab.prediction.labelled_as == "blue"
    actions.try_picture(tab, None)
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.filterwarnings("ignore::clipadapter.errors.DataWarning")  # of the fit, which the command prints at its end
def test_pictures_of_phones_and_animations_are_added_and_the_note_says_what_is_read(actions, upload_file, tmp_path):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    heic, gif = io.BytesIO(), io.BytesIO()
    pillow_heif.from_pillow(frames[0]).save(heic)
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    perform(actions, action="add-class", text="cat")
    files = [upload_file(heic.getvalue(), "IMG_1.HEIC"), upload_file(gif.getvalue(), "a.gif")]
    note = perform(actions, action="upload", **{"class": "cat"}, files=files).note
    assert note.text == (
        "Added 2 pictures to 'cat'. Pictures with several pages or frames, of which the first is read: 1 (a.gif)."
    )
    assert {path.suffix.lower() for path in (actions.project.root / "cat").iterdir()} == {".heic", ".gif"}
    perform(actions, action="add-class", text="dog")
    tab, tried = Tab(), tmp_path / "uploads" / "IMG_2.HEIC"
    tried.write_bytes(heic.getvalue())
    actions.session.wait_until_idle(30)
    actions.try_picture(tab, tried)
    assert tab.note.text == "" and tab.prediction is not None


def test_notes_are_valid_unicode(actions, upload_file):
    tab = perform(actions, action="rename-class", text="x", **{"class": "\ud800"})
    assert tab.note.is_error and tab.note.text.encode()
    tab = perform(actions, action="upload", **{"class": ""}, files=[upload_file(b"x", "\udce9.jpg")])
    assert tab.note.text.encode()
