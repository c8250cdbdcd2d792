import os
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipadapter.studio import Project
from clipadapter.studio._acts import Acts
from clipadapter.studio._panels import PANELS, Panels, advice
from clipadapter.studio._pictures import Picture
from clipadapter.studio._reading import Contents
from clipadapter.studio._session import Session
from clipadapter.studio._tab import Tab

ATTACKS = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
HOSTILE = ['<img src=x onerror="alert(1)">', '"><script>alert(1)</script>', "${alert(1)}", "{{7*7}}", "'\"&<b>"]


@pytest.fixture
def acts(tmp_path):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    (tmp_path / "uploads").mkdir()
    yield Acts(session, lambda: str(tmp_path / "uploads"))
    session.close()


@pytest.fixture
def sent(acts, tmp_path):
    """A function that puts bytes where uploads are; what the page says of it."""

    def put(data, name="picture.png"):
        path = tmp_path / "uploads" / f"{len(list((tmp_path / 'uploads').iterdir()))}.bin"
        path.write_bytes(data)
        return {"path": str(path), "name": name}

    return put


def do(acts, tab=None, **data):
    tab = tab or Tab()
    acts.do(tab, data)
    return tab


def test_what_is_done_is_told(acts, sent, png):
    assert do(acts, do="add-class", text=" cat ").note.text == "There is a class 'cat' now."
    do(acts, do="add-class", text="dog")
    files = [sent(png("red")), sent(b"x", "x.txt"), sent(png("red"), "twice.png")]
    note = do(acts, do="upload", **{"class": "cat"}, files=files).note
    assert note.bad and note.text == (
        "Added 1 picture to 'cat'. 1 picture there already. Not taken: x.txt (not an image)."
    )
    note = do(acts, do="upload", **{"class": "dog"}, files=[sent(png("red"))]).note
    assert note.text == "1 picture not added, but in 'cat' already." and note.offers[0][:2] == ("Move to 'dog'", "dog")
    note = do(acts, do="move", **{"class": "dog"}, pictures=list(note.offers[0][2])).note
    assert note.text == "Moved 1 picture to 'dog'." and acts.project.contents.classes["cat"] == ()
    assert do(acts, do="add-class", text="CAT").note.text.startswith("There is a class 'cat' already")
    assert do(acts, do="undo").note.text == "Undone: labelling 1 picture 'dog'."
    assert do(acts, do="remove-class", **{"class": "cat"}).note.text.startswith(
        "Removed the class 'cat' with 1 picture"
    )


def test_only_uploads_are_read_and_none_is_kept(acts, sent, png, tmp_path):
    do(acts, do="add-class", text="cat")
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("blue"))
    (tmp_path / "uploads" / "link.png").symlink_to(secret)
    paths = [str(secret), str(tmp_path / "uploads" / ".." / "secret.png"), str(tmp_path / "uploads" / "link.png")]
    for path in [*paths, "", "\0", str(tmp_path / "uploads"), "/etc/passwd"]:
        note = do(acts, do="upload", **{"class": "cat"}, files=[{"path": path, "name": "x"}]).note
        assert note.text == "Not taken: x (was not uploaded)."
    assert secret.is_file() and acts.project.contents.classes["cat"] == ()
    file = sent(png("red"))
    do(acts, do="upload", **{"class": "cat"}, files=[file])
    assert len(acts.project.contents.classes["cat"]) == 1 and sorted((tmp_path / "uploads").iterdir()) == [
        tmp_path / "uploads" / "link.png"
    ]


def test_pictures_are_named_by_what_is_there(acts, sent, png):
    do(acts, do="add-class", text="cat")
    for key in ("../secret.png", "/etc/passwd", ".studio/journal.jsonl", ""):
        for verb in ("label", "remove"):
            note = do(acts, do=verb, **{"class": "cat"}, picture=key).note
            assert note.bad and "is not there any more" in note.text
    assert do(acts, do="move", **{"class": "gone"}, pictures=[]).note.text.startswith("There is no class 'gone'")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VERBS = [
    "add-class",
    "rename",
    "remove-class",
    "upload",
    "label",
    "move",
    "remove",
    "teach",
    "skip",
    "undo",
    "show",
    "x",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40 * ATTACKS)
@given(
    data=VALUES
    | st.fixed_dictionaries(
        {"do": st.sampled_from(VERBS)},
        optional=dict.fromkeys(("class", "text", "picture", "pictures", "files", "renaming"), VALUES),
    )
)
def test_nothing_that_a_page_can_send_breaks_anything(acts, data):
    tab = Tab()
    acts.do(tab, data)
    assert isinstance(tab.note.text, str)
    Panels(acts.session).changed(tab)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = set(), "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_what_a_person_names_is_text_and_nothing_else(acts, sent, png):
    tab = Tab()
    for i, name in enumerate(HOSTILE):
        do(acts, do="add-class", text=name)
        do(acts, tab, do="upload", **{"class": name}, files=[sent(png("red", i), name), sent(b"no", f"{name}.txt")])
    do(acts, tab, do="upload", **{"class": ""}, files=[sent(png("blue", 50))])
    acts.session.wait(30)
    do(acts, tab, do="show", picture=acts.project.contents.classes[HOSTILE[0]][0].key, renaming=HOSTILE[1])
    tab.answer = acts.session.answer(acts.project.contents.classes[HOSTILE[0]][0].path)
    found = Panels(acts.session).changed(tab)
    assert set(found) == set(PANELS)
    page = Tags()
    page.feed("".join(found.values()))
    assert not page.tags & {"script", "iframe", "object"} and "onerror" not in page.attributes
    for name in HOSTILE[2:]:
        assert name in page.text


def test_only_what_changed_is_sent(acts):
    tab, panels = Tab(), Panels(acts.session)
    acts.session.wait(30)
    assert set(panels.changed(tab)) == set(PANELS)
    assert panels.changed(tab) == {}
    do(acts, tab, do="add-class", text="cat")
    acts.session.wait(30)
    assert set(panels.changed(tab)) == {"bar", "classes"}


def test_a_tab_forgets_what_is_gone(acts, sent, png):
    do(acts, do="add-class", text="cat")
    do(acts, do="upload", **{"class": "cat"}, files=[sent(png("red"))])
    tab = do(acts, do="show", picture=acts.project.contents.classes["cat"][0].key, renaming="cat", **{"class": "cat"})
    assert tab.picked and tab.opened == tab.renaming == "cat"
    do(acts, do="remove-class", **{"class": "cat"})
    Panels(acts.session).changed(tab)
    assert (tab.picked, tab.opened, tab.renaming) == ("", "", "")


def test_what_is_said_of_a_picture_is_of_what_is_known_now(acts, sent, png, tmp_path):
    tab = Tab()
    (tmp_path / "tried.png").write_bytes(png("red"))
    acts.session.wait(30)
    acts.ask(tab, tmp_path / "tried.png")
    assert tab.answer is None and tab.note.text.startswith("name two classes first") and not acts.outdated(tab)
    for name in ("red", "blue"):
        do(acts, do="add-class", text=name)
    acts.session.wait(30)
    assert acts.outdated(tab)
    acts.ask_again(tab)
    assert tab.answer.shots == 0 and not acts.outdated(tab)
    do(acts, do="upload", **{"class": "red"}, files=[sent(png("red", 1))])
    acts.session.wait(30)
    acts.ask_again(tab)
    assert tab.answer.shots == 1 and tab.answer.sentences
    do(acts, do="remove-class", **{"class": "blue"})
    acts.session.wait(30)
    acts.ask_again(tab)
    assert tab.answer is None
    acts.ask(tab, None)
    do(acts, do="undo")
    acts.session.wait(30)
    assert not acts.outdated(tab) and tab.note.text == ""


def test_the_bar_tells_the_page_what_was_answered(acts, sent, png):
    """Also where nothing else on the page changes: a card would say for good that it is sending."""
    tab, panels = Tab(), Panels(acts.session)
    do(acts, tab, do="add-class", text="cat")
    do(acts, tab, do="upload", **{"class": "cat"}, files=[sent(png("red"))])
    acts.session.wait(30)
    for data in (
        {"do": "upload", "class": "cat", "files": [sent(b"x", "x.txt")]},
        {"do": "upload", "class": "cat", "files": [sent(b"x", "x.txt")]},
        {"do": "failed", "text": "x.txt: too large"},
        {"do": "add-class", "text": "cat"},
        {"do": "add-class", "text": "cat"},
    ):
        panels.changed(tab)
        do(acts, tab, **data)
        assert set(panels.changed(tab)) == {"bar"}
    assert (tab.uploads, tab.misnamed) == (4, 2)


def test_the_next_thing_to_do_is_said_in_one_sentence(acts, sent, png):
    said = [advice(acts.project.contents)]
    for name in ("cat", "dog"):
        do(acts, do="add-class", text=name)
        said.append(advice(acts.project.contents))
    for i, name in enumerate(("cat", "dog")):
        do(acts, do="upload", **{"class": name}, files=[sent(png("red", 10 * i + j)) for j in range(1 + 3 * i)])
        said.append(advice(acts.project.contents))
    do(acts, do="upload", **{"class": "cat"}, files=[sent(png("blue", j)) for j in range(3)])
    said.append(advice(acts.project.contents))
    assert len(set(said)) == 6 and all(text.count(".") + text.count(":") <= 2 for text in said)
    assert said[0].startswith("Name your first class") and "“dog”" in said[3]


def test_what_no_text_can_hold_is_sent_as_text(acts, sent):
    tab = do(acts, do="rename", text="x", **{"class": "\ud800"})
    assert tab.note.bad and tab.note.text.encode()
    tab = do(acts, do="upload", **{"class": ""}, files=[sent(b"x", "\udce9.jpg")])
    assert tab.note.text.encode()


def test_a_class_of_thousands_is_drawn_in_a_moment(acts):
    many = tuple(Picture(f"cat/{i}.png", Path(f"cat/{i}.png"), (0, i, 0, 0)) for i in range(12000))
    contents = Contents({"cat": many}, {"cat": "cat"})
    state = replace(acts.session.state, unreadable={one.key: "not an image" for one in many[::2]})
    panels = Panels(acts.session)
    panels._thumbnails.urls = lambda pictures, side: ["" for _ in pictures]
    start = time.process_time()
    cards = panels._classes(Tab(), state, contents)["cards"]
    assert time.process_time() - start < 0.5
    assert cards[0]["count"] == len(cards[0]["unreadable"]) == 6000


def test_a_tab_that_is_remembered_costs_next_to_nothing(acts, sent, png):
    do(acts, do="add-class", text="cat")
    do(acts, do="upload", files=[sent(png("red", i)) for i in range(8)], **{"class": "cat"})
    tab = Tab()
    shown = Panels(acts.session).changed(tab)
    assert sum(map(len, shown.values())) > 3000 and sum(map(len, tab.sent.values())) < 500
