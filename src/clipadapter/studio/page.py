"""The page of the studio, made with Gradio. All state is in the session, so the page can be drawn at any time."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import gradio as gr
from gradio.utils import colab_check, get_upload_folder, is_hosted_notebook
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clipadapter.errors import ClipAdapterError
from clipadapter.rendering.html import read_asset
from clipadapter.runtime.model_folder import CARD_FILE, CONFIG_FILE, list_own_files
from clipadapter.studio.actions import Actions, Note, Tab
from clipadapter.studio.panels import PACKAGE, PANELS, Panels
from clipadapter.studio.pictures import STUDIO_FOLDER
from clipadapter.studio.project import EXPORT_FOLDER, studio_path
from clipadapter.studio.session import Session
from clipadapter.utils.files import encodable, folder_without_links, printable, quote_path
from clipadapter.utils.formatting import format_list

POLL_SECONDS = 0.7  # time between two checks for changes by another tab or by the computing thread
MAX_TABS = 500  # tabs in memory; a tab that was dropped starts again at its next check
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
FETCH_PATH_PATTERN = re.compile(r"/(file=(https?|ftp):|proxy=)", re.IGNORECASE)
"""Paths for which Gradio would fetch from another host."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
Update = Any  # new value of a Gradio component, or `gr.skip` for none


class Page(gr.Blocks):  # type: ignore[misc, unused-ignore]
    """The studio of one project; `launch` serves it."""

    def __init__(self, session: Session) -> None:
        super().__init__(title=f"{printable(session.project.root.name)} · clipadapter studio", analytics_enabled=False)
        self.session = session
        self._panels = Panels(session)
        self._actions = Actions(session, get_upload_folder)
        self._may_choose_folder = False
        # By session. For a `gr.State` each tab would keep a connection open, of which a browser has six, and a tab that
        # lost it would lose its state an hour after it was loaded.
        self._tab_of = lru_cache(MAX_TABS)(lambda session_hash: Tab())
        with self:
            self._lay_out()

    def launch(self, *args: Any, **options: Any) -> Any:
        """Serve the page as `gradio.Blocks.launch` does, with our style, without telemetry and without other files.

        On the loopback address, requests that name another host are refused: a foreign page could have its own name
        point there.
        """
        host = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME") or LOOPBACK_HOSTS[0]
        has_tunnel = options.get("share") or os.environ.get("GRADIO_SHARE") or colab_check() or is_hosted_notebook()
        middleware = [Middleware(refuse_foreign_requests)]
        # Anybody who can open the page could write a model anywhere: only a person at this machine may choose where.
        self._may_choose_folder = host in LOOPBACK_HOSTS and not has_tunnel
        if self._may_choose_folder:
            middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_HOSTS]))
        defaults: dict[str, Any] = {
            "theme": gr.themes.Default(
                primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
            ),
            "head": f"<style>{read_asset(PACKAGE, 'studio.css')}</style>",
            "allowed_paths": [str(folder_without_links(self.session.project.root, STUDIO_FOLDER, EXPORT_FOLDER))],
            "footer_links": [],
            "run_history": False,
            "max_file_size": "200mb",
            "enable_monitoring": False,
            "ssr_mode": False,
            "quiet": True,
            "app_kwargs": {"middleware": middleware},
        }
        return super().launch(*args, **{**defaults, **options})

    def _lay_out(self) -> None:
        script = str(read_asset(PACKAGE, "studio.js"))
        parts = {
            name: gr.HTML(elem_id=f"cs-{name}", js_on_load=script, apply_default_css=False, render=False)
            for name in PANELS
        }
        gr.HTML(self._panels.render_help(), elem_id="cs-help", apply_default_css=False)
        parts["status"].render()
        with gr.Row(elem_id="cs-columns"):
            with gr.Column(scale=1, min_width=330):
                with gr.Row():
                    new_class = gr.Textbox(
                        label="New class", placeholder="tabby cat", max_lines=1, scale=3, elem_id="cs-new"
                    )
                    add = gr.Button("Add class", scale=1, min_width=110, elem_id="cs-add")
                parts["classes"].render()
            with gr.Column(scale=1, min_width=330):
                tried = gr.Image(label="Try a picture", type="filepath", height=240, buttons=[], elem_id="cs-try")
                pass_file_on(tried)
                parts["prediction"].render()
                parts["queue"].render()
            with gr.Column(scale=1, min_width=330):
                parts["accuracy"].render()
                parts["quality"].render()
                with gr.Column(elem_id="cs-save-group"):
                    folder = gr.Textbox(
                        label="Save the model to this folder",
                        max_lines=1,
                        interactive=False,
                        buttons=["copy"],
                        elem_id="cs-folder",
                    )
                    with gr.Row():
                        save = gr.Button("Save the model", min_width=140, elem_id="cs-save")
                        export = gr.Button("Export to ONNX", min_width=140, elem_id="cs-export")
                    save_result = gr.Markdown(elem_id="cs-saved")
                    download = gr.DownloadButton("Download", visible=False, elem_id="cs-download")
        panels = [parts[name] for name in PANELS]
        hidden: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "studio",  # one at a time: a tab gets its updates in the order they were rendered in
            "concurrency_limit": 1,
        }
        self.load(self._load_page, None, [folder, *panels], **hidden)
        gr.Timer(POLL_SECONDS).tick(self._poll, None, panels, **hidden)
        for part in panels:
            part.act(self._perform, None, panels, **hidden)
        gr.on([new_class.submit, add.click], self._add_class, new_class, [new_class, *panels], **hidden)
        tried.change(self._try_picture, tried, panels, **hidden)
        slow: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "files", "concurrency_limit": 1}
        save.click(self._save, folder, [folder, save_result, download], **slow)
        export.click(self._export, None, [save_result, download], **slow)

    # ---- Events ----

    def _tab(self, request: gr.Request) -> Tab:
        return self._tab_of(str(request.session_hash))

    def _load_page(self, request: gr.Request) -> list[Update]:
        self.session.project.refresh()
        self.session.notify_change()
        tab = self._tab(request)
        tab.panel_digests.clear()  # the browser shows no panel yet
        folder = gr.Textbox(encodable(self.session.default_model_folder), interactive=self._may_choose_folder)
        return [folder, *self._render(tab)]

    def _poll(self, request: gr.Request) -> list[Update]:
        tab = self._tab(request)
        versions = (self.session.state.version, self.session.project.contents.revision)
        is_unchanged = tab.rendered_versions == versions and not self._actions.is_prediction_outdated(tab)
        return [gr.skip() for _ in PANELS] if is_unchanged else self._render(tab)

    def _perform(self, request: gr.Request, event: gr.EventData) -> list[Update]:
        tab = self._tab(request)
        self._actions.perform(tab, event._data)
        return self._render(tab)

    def _add_class(self, text: str, request: gr.Request) -> list[Update]:
        tab = self._tab(request)
        self._actions.perform(tab, {"action": "add-class", "text": text})
        return [gr.skip() if tab.note.is_error else "", *self._render(tab)]

    def _try_picture(self, path: str | None, request: gr.Request) -> list[Update]:
        tab = self._tab(request)
        self._actions.try_picture(tab, None if path is None else Path(path))
        return self._render(tab)

    def _save(self, folder: str, request: gr.Request) -> list[Update]:
        try:
            saved = self.session.save_model(folder if self._may_choose_folder else None)
        except ClipAdapterError as error:
            return [gr.skip(), *self._report(request, Note.of_error(error))]
        archive = studio_path(self.session.project.root, EXPORT_FOLDER, "model.zip")
        archive.parent.mkdir(exist_ok=True)
        _write_archive(saved, archive)
        return [encodable(saved), *self._report(request, Note(f"Saved: {printable(saved)}"), "Saved", saved, archive)]

    def _export(self, request: gr.Request) -> list[Update]:
        try:
            path = self.session.export_model()
        except ClipAdapterError as error:
            return self._report(request, Note.of_error(error))
        self.allowed_paths.append(str(path))  # not before: a file of that name may be another person's
        return self._report(request, Note(f"Exported: {printable(path)}"), "Exported", path, path)

    def _report(
        self, request: gr.Request, note: Note, verb: str = "", path: Path | None = None, file: Path | None = None
    ) -> list[Update]:
        """Text and button below the model, which was written to a path, and can be downloaded as a file."""
        tab = self._tab(request)
        tab.show(note)
        tab.rendered_versions = (-1, -1)  # at the next poll: another queue of events renders panels in order
        if path is None or file is None:
            return ["", gr.DownloadButton(visible=False)]
        text = f"{verb}. Use it with {_as_code(f'clipadapter predict {quote_path(path)} photo.jpg')}."
        if names := self.session.classes_without_pictures():
            listed = format_list([_as_code(name) for name in names], 3)
            has = "has" if len(names) == 1 else "have"
            text += f" {listed} {has} no pictures: the model knows only the class name."
        label = f"Download {file.name} ({file.stat().st_size / 1e6:.1f} MB)"
        return [text, gr.DownloadButton(label, str(file), visible=True)]

    def _render(self, tab: Tab) -> list[Update]:
        self._actions.update_prediction(tab)
        changed = self._panels.render_changed(tab)
        return [changed.get(name, gr.skip()) for name in PANELS]


def _write_archive(folder: Path, path: Path) -> None:
    """Write the files of a model as a ZIP file. Other files in its folder are left out."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name in [CONFIG_FILE, CARD_FILE, *list_own_files(folder)]:
            if (folder / name).is_file():
                archive.write(folder / name, name)


def _as_code(text: str) -> str:
    """Return Markdown that shows a text as code, whatever signs it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def pass_file_on(component: Any) -> None:
    """Let a Gradio image give the uploaded file as it is.

    Gradio would open it with Pillow, which reads no HEIC, and write pictures of other modes than RGB anew.
    """
    decode = component.preprocess

    def preprocess(payload: Any) -> Any:
        is_file = payload is not None and payload.path and not (payload.url or "").startswith("data:")
        return payload.path if is_file else decode(payload)

    component.preprocess = preprocess


def refuse_foreign_requests(app: ASGIApp) -> ASGIApp:
    """ASGI middleware that refuses requests to fetch from another host, and uploads from pages of other hosts."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        reason = ""
        if scope["type"] == "http" and FETCH_PATH_PATTERN.search(scope["path"]):
            reason = "files of other hosts are not fetched"
        # Without this, any page that a person visits could fill the disk with uploads.
        elif scope["type"] == "http" and scope["method"] not in SAFE_METHODS and _is_foreign(Headers(scope=scope)):
            reason = "pages of other hosts may not send anything"
        respond = PlainTextResponse(reason, 403) if reason else app
        await respond(scope, receive, send)

    return handle


def _is_foreign(headers: Headers) -> bool:
    """Whether a page of another host sent a request. Clients that are no browsers send none of these headers.

    Browsers send ``Sec-Fetch-Site`` over HTTPS and to this machine only. Elsewhere, the host in ``Origin`` must be the
    requested host. A proxy passes that on as ``X-Forwarded-Host``, which a page can't set without a preflight request.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("cross-site", "same-site")
    hosts = {headers.get("host"), headers.get("x-forwarded-host")}
    return origin is not None and origin.partition("://")[2].lower() not in {host.lower() for host in hosts if host}
