"""A page in the browser on which a person teaches a classifier: name classes, drop pictures, try, correct, export."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.studio._adding import Added
from clipadapter.studio._project import Project
from clipadapter.studio._suggest import margins, suggest

if TYPE_CHECKING:
    from clipadapter.encoders import Encoder
    from clipadapter.studio._page import Page

__all__ = ["Added", "Project", "build", "margins", "suggest"]


def build(
    project: str | Path,
    *,
    unlabelled: str | Path | None = None,
    encoder: str | Encoder = "auto",
    head: str = "auto",
    **params: Any,
) -> Page:
    """The studio of a project, as a `gradio.Blocks`; its ``launch`` serves it, also in a Space of the Hub.

    Nobody else can open the project until the process ends, or ``page.session.close()`` is called.

    Args:
        project: folder with one folder of pictures a class; made if missing.
        unlabelled: folder of pictures to label, which stays as it is.
        encoder: a URI, or an open encoder.
        head: a registered name; one that is fitted to features in a moment.
        params: further parameters of `FewShotClassifier`, such as ``cache``, ``device`` or ``templates``.

    Raises:
        MissingExtraError: if Gradio is not installed.
        InputError: if the folder can't be used, is open in another studio, or the head is a slow one.
        EncoderUnavailableError: if the encoder's weights can't be had.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = build(folder, encoder="toy", cache=None)
    ...     page.session.close()
    >>> page.analytics_enabled
    False
    """
    require("gradio", "studio", "The studio")
    from clipadapter.studio._page import Page
    from clipadapter.studio._session import Session

    opened = Project(project, unlabelled)
    try:
        session = Session(opened, encoder, head, **params)
    except BaseException:
        opened.close()
        raise
    return _in_a_loop(lambda: Page(session))


def _in_a_loop(make: Callable[[], Page]) -> Page:
    """Gradio opens an event loop for each lock that it makes while none is running, and closes none of them."""

    async def run() -> Page:
        return make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    return make()
