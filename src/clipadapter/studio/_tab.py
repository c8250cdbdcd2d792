"""One view of a project: what a person has opened and was told last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipadapter.studio._answer import Answer


@dataclass(frozen=True)
class Note:
    """What came of the last thing that was done.

    Args:
        text: a sentence or two.
        bad: whether something went wrong.
        offers: (words on a button, class, keys of pictures to move there).
    """

    text: str
    bad: bool = False
    offers: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@dataclass
class Tab:
    """Belongs to one page that is open in a browser.

    Args:
        opened: the class whose pictures are all shown.
        renaming: the class whose name is being typed.
        picked: key of the picture that is shown large.
        tried: file of the picture that was tried.
        answer: what was said of it.
        asked: revision of the contents that the answer was learned from.
        note: what was told last.
        uploads: how many times files were sent, or could not be.
        misnamed: how many names of new classes were refused.
        unsaved: numbers of the contents, and of those learned from, when a model could not be saved; None if one was.
        seen: what the page shows: numbers of the state and of the contents.
        sent: digests of the panels' HTML, as the page has it; with its pictures that is a megabyte, and tabs are many.
    """

    opened: str = ""
    renaming: str = ""
    picked: str = ""
    tried: Path | None = None
    answer: Answer | None = None
    asked: int = -1
    note: Note = Note("")
    uploads: int = 0
    misnamed: int = 0
    unsaved: tuple[int, int] | None = None
    seen: tuple[int, int] = (-1, -1)
    sent: dict[str, bytes] = field(default_factory=dict)


def told(texts: Sequence[str], limit: int = 3) -> str:
    """The first few of many texts.

    >>> told(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
