"""What a project looks like, as HTML; all text that a person may have named is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clipadapter.files import printable
from clipadapter.studio._learning import Point
from clipadapter.studio._pictures import Picture
from clipadapter.studio._reading import Contents
from clipadapter.studio._session import Session, State
from clipadapter.studio._tab import Tab
from clipadapter.studio._thumbnails import Thumbnails

PANELS = ("bar", "classes", "queue", "answer", "good")
SMALL, MIDDLE, LARGE = 72, 88, 360
"""Longest sides of the pictures on the page."""
FEW, MANY = 8, 400
"""Pictures of a class that are shown: of each, and of the one that is opened."""
AT_ONCE = 240
"""Pictures of all classes that are shown, however many classes there are, but for one of each."""
KEYS = 9
"""Classes that have a number key."""


class Panels:
    """Draws the panels of a page.

    Args:
        session: whose project.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._thumbnails = Thumbnails()

    def changed(self, tab: Tab) -> dict[str, str]:
        """HTML of the panels that do not look any more as the tab shows them."""
        state, contents = self.session.state, self.session.project.contents
        self._forget(tab, contents)
        found = {}
        for name in PANELS:
            html = _environment().get_template(f"{name}.html").render(getattr(self, f"_{name}")(tab, state, contents))
            digest = blake2b(html.encode(), digest_size=16).digest()
            if tab.sent.get(name) != digest:
                found[name], tab.sent[name] = html, digest
        tab.seen = (state.number, contents.revision)
        return found

    def _forget(self, tab: Tab, contents: Contents) -> None:
        """What a tab had opened may be gone."""
        if tab.picked and contents.label(tab.picked) is None:
            tab.picked = ""
        tab.opened = tab.opened if tab.opened in contents.classes else ""
        tab.renaming = tab.renaming if tab.renaming in contents.classes else ""

    def _bar(self, tab: Tab, state: State, contents: Contents) -> Mapping[str, Any]:
        return {
            "next": advice(contents),
            "facts": _facts(contents, state),
            "encoder": self.session.encoder.info.name,
            "doing": state.doing,
            "share": state.share,
            "error": state.error,
            "note": tab.note,
            "uploads": tab.uploads,
            "misnamed": tab.misnamed,
            "undo": self.session.project.undoable,
        }

    def _classes(self, tab: Tab, state: State, contents: Contents) -> Mapping[str, Any]:
        doubtful = state.learned.doubtful if state.learned is not None else {}
        few = max(1, min(FEW, AT_ONCE // max(len(contents.classes), 1)))
        cards = []
        for name, each in contents.classes.items():
            readable = [one for one in each if one.key not in state.unreadable]
            bad = [one for one in each if one.key in state.unreadable]
            newest = sorted(readable, key=lambda one: -one.stamp[3])
            some = newest[: MANY if name == tab.opened else few]
            cards.append(
                {
                    "name": name,
                    "count": len(readable),
                    "more": len(readable) - len(some),
                    "opened": name == tab.opened,
                    "renaming": name == tab.renaming,
                    "pictures": [
                        (one.key, url, doubtful.get(one.key, ""), i + 1)
                        for i, (one, url) in enumerate(zip(some, self._urls(some, SMALL), strict=True))
                    ],
                    "unreadable": [(printable(one.path.name), state.unreadable[one.key]) for one in bad],
                    "picked": self._picked(tab, name, contents, doubtful),
                }
            )
        return {"cards": cards, "names": list(contents.classes)}

    def _picked(self, tab: Tab, name: str, contents: Contents, doubtful: Mapping[str, str]) -> dict[str, str] | None:
        if not tab.picked or contents.label(tab.picked) != name:
            return None
        picture = contents.picture(tab.picked)
        url = self._urls([picture], LARGE)[0]
        return {
            "key": picture.key,
            "url": url,
            "file": printable(picture.path.name),
            "called": doubtful.get(picture.key, ""),
        }

    def _queue(self, tab: Tab, state: State, contents: Contents) -> Mapping[str, Any]:
        queue = [contents.picture(key) for key in self.session.queue() if contents.has(key)]
        first = queue[0] if queue else None
        return {
            "waiting": len(contents.pool),
            "names": list(contents.classes),
            "keys": KEYS,
            "first": first.key if first else "",
            "large": self._urls(queue[:1], LARGE)[0] if queue else "",
            "guess": state.guesses.get(first.key) if first else None,
            "rest": self._urls(queue[1:], SMALL),
            "doing": state.doing,
        }

    def _answer(self, tab: Tab, state: State, contents: Contents) -> Mapping[str, Any]:
        near = [one for one in tab.answer.nearest if contents.has(one.key)] if tab.answer else []
        urls = self._urls([contents.picture(one.key) for one in near], MIDDLE)
        return {
            "answer": tab.answer,
            "near": list(zip(near, urls, strict=True)),
            "names": list(contents.classes),
            "ready": state.learned is not None,
        }

    def _good(self, tab: Tab, state: State, contents: Contents) -> Mapping[str, Any]:
        learned = state.learned
        return {"learned": learned, "points": state.points, "on_test": state.on_test, "line": plot(state.points)}

    def _urls(self, pictures: Sequence[Picture], side: int) -> list[str]:
        return self._thumbnails.urls(pictures, side)


def advice(contents: Contents) -> str:
    """What to do next, in one sentence."""
    classes = contents.classes
    empty = [name for name, each in classes.items() if not each]
    if not classes:
        return "Name your first class below, after what its pictures show, such as “tabby cat”, and press Enter."
    if len(classes) == 1:
        return "Name a second class: a picture is told to be of one of your classes."
    if len(empty) == len(classes):
        return "Drop a few pictures into each class; by their names alone you can try a picture already."
    if empty:
        return f"Drop a few pictures into “{empty[0]}” too."
    if min(map(len, classes.values())) < 4:
        return "Try a picture; four or more of each class make it better."
    return "Try pictures, correct what is wrong, and take the model away when it is good."


def plot(points: Sequence[Point], width: float = 300, height: float = 120) -> list[tuple[float, float, str]]:
    """Points of the learning curve at equal distances, as (x, y, words).

    >>> plot([Point(0, 0.5, 0.5, 0.5), Point(1, 1.0, 1.0, 1.0)], 100, 50)
    [(0.0, 25.0, 'names alone: 50 %'), (100.0, 0.0, '1 a class: 100 %')]
    """
    step = width / max(len(points) - 1, 1)
    return [
        (i * step, round(height * (1 - one.accuracy), 1), f"{_shots(one.shots)}: {100 * one.accuracy:.0f} %")
        for i, one in enumerate(points)
    ]


def _shots(shots: float) -> str:
    return f"{shots:.2g} a class" if shots else "names alone"


def _facts(contents: Contents, state: State) -> str:
    shots = sum(map(len, contents.classes.values()))
    parts = [f"{len(contents.classes)} classes", f"{shots} labelled", f"{len(contents.pool)} to label"]
    learned = state.learned
    if learned is not None and learned.held_out is not None:
        parts.append(f"{100 * learned.held_out:.0f} % of held-out pictures right")
    return " · ".join(parts)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("clipadapter.studio"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> str:
    """A style sheet or script."""
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
