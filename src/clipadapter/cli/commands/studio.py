"""``clipadapter studio``."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.options import FOLDER, Towers, encoder_options, output_options
from clipadapter.cli.output import Output
from clipadapter.errors import InputError, require

if TYPE_CHECKING:
    from clipadapter.studio.page import Page

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USER = "studio"


@click.command(epilog="Example: clipadapter studio my-pictures/ --encoder lite")
@click.argument("project", type=FOLDER, default=Path("clipadapter-studio"))
@encoder_options
@click.option("--head", metavar="NAME", default="auto", show_default=True, help="What is fitted; a quick one.")
@click.option("--unlabelled", type=FOLDER, help="Folder of pictures to label; it stays as it is.")
@click.option("--host", default=LOOPBACK[0], show_default=True, help="Address to listen on; others reach 0.0.0.0.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="By default the first free one from 7860 on.")
@click.option(
    "--password",
    envvar="CLIPADAPTER_STUDIO_PASSWORD",
    help=f"Asked for at the page, with the name '{USER}'; or set CLIPADAPTER_STUDIO_PASSWORD.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@output_options
def command(
    project: Path,
    towers: Towers,
    head: str,
    unlabelled: Path | None,
    host: str,
    port: int | None,
    password: str | None,
    browser: bool,
    out: Output,
) -> None:
    """Teach a classifier in the browser: name classes, drop pictures, try, correct, take the model away.

    PROJECT is a folder with one folder of pictures a class, as everywhere; by default clipadapter-studio where you are.
    It is made if there is none, and all that is labelled is written there at once. What the studio keeps for itself
    lies in PROJECT/.studio. Ctrl-C ends it; nothing is lost.
    """
    if host not in LOOPBACK and not password:
        out.warn(f"everybody who can reach {host} can see and change the pictures: give --password")
    page = _build(project, towers, head, unlabelled, out)
    try:
        url = _serve(page, host, port, password, browser)
        text = f"{url}\nThe pictures lie in {project}. Ctrl-C ends the studio."
        out.result({"url": url, "project": str(project)}, text)
        while True:
            threading.Event().wait(1)  # without a time to wait, Windows would not hear Ctrl-C
    except KeyboardInterrupt:
        out.note("ended; everything is on disk")
    finally:
        page.close(verbose=False)
        page.session.close()


def _build(project: Path, towers: Towers, head: str, unlabelled: Path | None, out: Output) -> Page:
    """The page, with what is sent to it kept within the project."""
    from clipadapter.studio import build_page

    uploads = project.absolute() / ".studio" / "uploads"
    # Read when Gradio is imported, or a part of a page is made.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    require("gradio", "studio", "The studio")  # before an encoder is fetched and opened for nothing
    page = build_page(
        project,
        unlabelled=unlabelled,
        encoder=towers.open(out),
        head=head,
        device=towers.device,
        backend=towers.backend,
        precision=towers.precision,
        batch_size=towers.batch_size,
        cache=towers.store,
    )
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir(parents=True, exist_ok=True)
    return page


def _serve(page: Page, host: str, port: int | None, password: str | None, browser: bool) -> str:
    """Serve the page; its address.

    Raises:
        InputError: if the address can't be listened on.
    """
    auth = (USER, password) if password else None
    try:
        name = f"[{host}]" if ":" in host else host
        _, url, _ = page.launch(
            server_name=name, server_port=port, auth=auth, inbrowser=browser, prevent_thread_lock=True, share=False
        )
    except OSError as error:
        raise InputError(f"can't listen on {host}, port {port or '7860 to 7959'}: {error}") from error
    return str(url)
