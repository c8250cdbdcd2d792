"""A page in the browser to make a classifier without code: name classes, add pictures, try, correct, export."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.studio.project import AddResult, Project
from clipadapter.studio.selection import select_for_labelling

if TYPE_CHECKING:
    from clipadapter.encoders import Encoder
    from clipadapter.studio.page import Page

__all__ = ["AddResult", "Project", "build_page", "select_for_labelling"]


def build_page(
    project: str | Path,
    *,
    unlabelled: str | Path | None = None,
    encoder: str | Encoder | Sequence[str | Encoder] = "auto",
    head: str = "auto",
    quality: str | None = None,
    **params: Any,
) -> Page:
    """Build the studio of a project as a `gradio.Blocks`. Its method ``launch`` serves it, also in a Space of the Hub.

    No other process can open the project until this process ends or ``page.session.close()`` is called.

    Args:
        project: folder with one folder of pictures per class; made if missing.
        unlabelled: folder of pictures to label, which is not changed.
        encoder: a URI, or an open encoder; or several. Class text comes from the first that has a text tower.
        head: a registered name of a head that is fitted to features quickly.
        quality: how much of a picture the model looks at: "fast", "standard" or "best" (see `FewShotClassifier`). None
            for what was chosen on the page of this project before, or else "standard".
        params: further parameters of `FewShotClassifier`, such as ``cache``, ``device`` or ``templates``.

    Raises:
        MissingExtraError: if Gradio is not installed.
        InputError: if the folder can't be used, is open in another studio, or the head is a slow one.
        EncoderUnavailableError: if the weights of the encoder are not available.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = build_page(folder, encoder="toy", cache=None)
    ...     page.session.close()
    >>> page.analytics_enabled
    False
    """
    require("gradio", "studio", "The studio")
    from clipadapter.studio.page import Page
    from clipadapter.studio.session import Session, check_head

    check_head(head)  # before the folder of the project is made
    opened = Project(project, unlabelled)
    try:
        session = Session(opened, encoder, head, quality, **params)
    except BaseException:
        opened.close()
        raise

    async def make_page() -> Page:
        return Page(session)

    try:
        asyncio.get_running_loop()
    except RuntimeError:  # without a loop, Gradio opens one for each lock it makes and closes none
        return asyncio.run(make_page())
    return Page(session)
