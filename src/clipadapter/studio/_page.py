"""The page: Gradio's part of the studio. What it knows is in the session, and can be drawn anew at any time."""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import colab_check, get_upload_folder, is_hosted_notebook
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clipadapter.errors import ClipAdapterError
from clipadapter.files import printable
from clipadapter.studio._acts import Acts
from clipadapter.studio._guard import NothingForeign
from clipadapter.studio._panels import PANELS, Panels, asset
from clipadapter.studio._project import OWN
from clipadapter.studio._session import Session
from clipadapter.studio._tab import Tab, told

TICK = 0.7
"""Seconds between two looks for what another tab, or the computing thread, has changed."""
TABS = 500
"""Open pages that are remembered; older ones begin anew at their next look."""
LARGEST = "200mb"
"""File that may be sent."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
Out = Any


class Page(gr.Blocks):  # type: ignore[misc, unused-ignore]
    """The studio of one project; `launch` serves it.

    Args:
        session: closed by whoever opened it.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(title=f"{printable(session.project.root.name)} · clipadapter studio", analytics_enabled=False)
        self.session = session
        self._draw = Panels(session)
        self._acts = Acts(session, get_upload_folder)
        self._tabs: OrderedDict[str, Tab] = OrderedDict()
        self._guard = threading.Lock()
        with self:
            self._lay_out()

    def launch(self, *args: Any, **given: Any) -> Any:
        """As Gradio's, with this page's style; nothing is served but the page, and nobody is told of it.

        Names of other hosts are refused on the loopback address: a foreign page could have its name point there.
        """
        usual: dict[str, Any] = {
            "theme": gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
            "head": f"<style>{asset('studio.css')}</style>",
            "allowed_paths": [str(self.session.project.root / OWN / "export")],
            "footer_links": [],
            "run_history": False,
            "max_file_size": LARGEST,
            "enable_monitoring": False,
            "ssr_mode": False,
            "quiet": True,
        }
        host = given.get("server_name") or os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK[0]
        tunnel = given.get("share") or os.environ.get("GRADIO_SHARE") or colab_check() or is_hosted_notebook()
        guards = [Middleware(NothingForeign)]
        if host in LOOPBACK and not tunnel:
            guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK]))
        usual["app_kwargs"] = {"middleware": guards}
        return super().launch(*args, **{**usual, **given})

    def _lay_out(self) -> None:
        script = asset("studio.js")
        plain: dict[str, Any] = {"js_on_load": script, "apply_default_css": False, "render": False}
        parts = {name: gr.HTML(elem_id=f"cs-{name}", **plain) for name in PANELS}
        parts["bar"].render()
        with gr.Row():
            with gr.Column(scale=1, min_width=330):
                with gr.Row():
                    new = gr.Textbox(
                        label="New class",
                        placeholder="tabby cat",
                        max_lines=1,
                        scale=3,
                        min_width=160,
                        elem_id="cs-new",
                    )
                    add = gr.Button("Add class", scale=1, min_width=110)
                parts["classes"].render()
            with gr.Column(scale=1, min_width=330):
                tried = gr.Image(
                    label="Try a picture",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=240,
                    buttons=[],
                    elem_id="cs-try",
                )
                parts["answer"].render()
                parts["queue"].render()
                parts["good"].render()
                with gr.Row():
                    save = gr.Button("Save the model", min_width=140)
                    export = gr.Button("Export to ONNX", min_width=140)
                took = gr.Markdown(elem_id="cs-took")
                file = gr.File(label="Take it away", interactive=False, visible=False)
        panels = [parts[name] for name in PANELS]
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "studio",  # one after the other: what a tab is sent comes in the order it was drawn in
            "concurrency_limit": 1,
        }
        self.load(self._begin, None, panels, **quiet)
        gr.Timer(TICK).tick(self._look, None, [took, *panels], **quiet)
        for part in panels:
            part.act(self._do, None, panels, **quiet)
        gr.on([new.submit, add.click], self._add_class, new, [new, *panels], **quiet)
        tried.change(self._try, tried, panels, **quiet)
        slow: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "files", "concurrency_limit": 1}
        save.click(self._save, None, [took, file], **slow)
        export.click(self._export, None, [took, file], **slow)

    def _tab(self, request: gr.Request) -> Tab:
        with self._guard:
            tab = self._tabs.setdefault(str(request.session_hash), Tab())
            self._tabs.move_to_end(str(request.session_hash))
            while len(self._tabs) > TABS:
                self._tabs.popitem(last=False)
        return tab

    def _drawn(self, tab: Tab) -> list[Out]:
        self._acts.ask_again(tab)
        changed = self._draw.changed(tab)
        return [changed.get(name, gr.skip()) for name in PANELS]

    def _begin(self, request: gr.Request) -> list[Out]:
        with self._guard:
            self._tabs.pop(str(request.session_hash), None)
        self.session.project.refresh()
        self.session.changed()
        return self._drawn(self._tab(request))

    def _look(self, request: gr.Request) -> list[Out]:
        tab = self._tab(request)
        now = (self.session.state.number, self.session.project.contents.revision)
        took: Out = gr.skip()
        if tab.unsaved not in (None, self._learned()):
            took, tab.unsaved = "", None
        same = tab.seen == now and not self._acts.outdated(tab)
        return [took, *([gr.skip() for _ in PANELS] if same else self._drawn(tab))]

    def _do(self, request: gr.Request, event: gr.EventData) -> list[Out]:
        tab = self._tab(request)
        self._acts.do(tab, event._data)
        return self._drawn(tab)

    def _add_class(self, text: str, request: gr.Request) -> list[Out]:
        tab = self._tab(request)
        self._acts.do(tab, {"do": "add-class", "text": text})
        return [gr.skip() if tab.note.bad else "", *self._drawn(tab)]

    def _try(self, path: str | None, request: gr.Request) -> list[Out]:
        tab = self._tab(request)
        self._acts.ask(tab, None if path is None else Path(path))
        return self._drawn(tab)

    def _learned(self) -> tuple[int, int]:
        """Numbers of what is there and of what was learned from."""
        return self.session.project.contents.revision, self.session.state.revision

    def _taken(self, tab: Tab, done: str, path: Path, offered: str | Path) -> list[Out]:
        tab.unsaved = None
        text = f"{done}. `clipadapter predict {printable(path)} photo.jpg` asks it."
        if names := self.session.by_name_alone():
            some = told([f"`{name.replace('`', chr(39))}`" for name in names])  # as code: names are no Markdown
            known = "has no picture: known by its name" if len(names) == 1 else "have no picture: known by their names"
            text += f" {some} {known} alone."
        return [text, gr.File(str(offered), visible=True)]

    def _not_taken(self, tab: Tab, error: ClipAdapterError) -> list[Out]:
        tab.unsaved = self._learned()
        return [str(error), gr.File(visible=False)]

    def _save(self, request: gr.Request) -> list[Out]:
        tab = self._tab(request)
        try:
            folder = self.session.save()
        except ClipAdapterError as error:
            return self._not_taken(tab, error)
        (folder.parent / "export").mkdir(exist_ok=True)
        packed = shutil.make_archive(str(folder.parent / "export" / "model"), "zip", folder)
        return self._taken(tab, "Saved", folder, packed)

    def _export(self, request: gr.Request) -> list[Out]:
        tab = self._tab(request)
        try:
            path = self.session.export()
        except ClipAdapterError as error:
            return self._not_taken(tab, error)
        return self._taken(tab, "Exported", path, path)
