"""``clipadapter studio``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.options import LOOPBACK_HOSTS, HeadName
from clipadapter.cli.output import Output
from clipadapter.data.folders import read_folder
from clipadapter.data.load import check_layout
from clipadapter.errors import InputError, require

if TYPE_CHECKING:
    from clipadapter.studio.page import Page

USER = "studio"


@cli_command("clipadapter studio my-pictures/ --encoder lite", extra="lite,studio")
def command(
    out: Output,
    project: Path = argument(default="clipadapter-studio"),
    encoder_options: options.EncoderOptions = options_of(options.EncoderOptions, without=["quality"]),
    quality: Literal["fast", "standard", "best"] | None = option(
        "--quality",
        "How much of a picture the head auto looks at; the page has a switch for it. fast: the final feature. "
        "standard: inner layers of the same pass too. best: a second resolution and mirrored pictures too, in several "
        "times the time.",
        show_default="that of the last time, at first standard",
    ),
    head: HeadName = option("--head NAME", "Head to fit; it must be quick.", default="auto"),
    unlabelled: Path | None = option("--unlabelled", "Folder of pictures to label; it is not changed."),
    host: str = option("--host", "Address to listen on; 0.0.0.0 is open to other machines.", default=LOOPBACK_HOSTS[0]),
    port: int | None = option("--port N", "By default the first free port from 7860.", type=click.IntRange(1, 65535)),
    password: str | None = option(
        "--password",
        f"Password of the page, for the user '{USER}'; or set CLIPADAPTER_STUDIO_PASSWORD.",
        envvar="CLIPADAPTER_STUDIO_PASSWORD",
    ),
    browser: bool = option("--browser/--no-browser", "Open the page in a browser.", default=True),
) -> None:
    """Fit a classifier in the browser: name classes, add pictures, predict, correct, download the model.

    PROJECT is a folder with one folder of pictures per class; by default clipadapter-studio in the current folder. It
    is created if it does not exist, and every label is written there at once. The studio stores its own files in
    PROJECT/.studio. Ctrl-C ends it; nothing is lost.
    """
    if host not in LOOPBACK_HOSTS and not password:
        out.warn(f"everybody who can reach {host} can see and change the pictures: give --password")
    from clipadapter.studio import build_page
    from clipadapter.studio.project import UPLOADS_FOLDER, prepare_uploads, studio_path

    # Gradio reads these when it is imported, or when a part of a page is created. Uploaded files stay in the project.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio_path(project.absolute(), UPLOADS_FOLDER))
    if project.is_dir():
        check_layout(project, read_folder(project, follow_links=False).dataset)
    require("gradio", "studio", "The studio")  # before an encoder is downloaded and opened in vain
    page = build_page(
        project,
        unlabelled=unlabelled,
        encoder=encoder_options.open(out),
        head=head,
        quality=quality,
        device=encoder_options.device,
        **encoder_options.run_parameters,
    )
    prepare_uploads(page.session.project.root)
    try:
        url = _serve(page, host, port, password, browser)
        text = f"{url}\nThe pictures are in {project}. Ctrl-C ends the studio."
        out.result({"url": url, "project": str(project)}, text)
        while True:
            threading.Event().wait(1)  # without a timeout, Windows would not handle Ctrl-C
    except KeyboardInterrupt:
        out.note("ended; everything is saved")
    finally:
        page.close(verbose=False)
        page.session.close()


def _serve(page: Page, host: str, port: int | None, password: str | None, browser: bool) -> str:
    """Serve the page, and return its address."""
    auth = (USER, password) if password else None
    try:
        name = f"[{host}]" if ":" in host else host
        _, url, _ = page.launch(
            server_name=name, server_port=port, auth=auth, inbrowser=browser, prevent_thread_lock=True, share=False
        )
    except OSError as error:
        raise InputError(f"can't listen on {host}, port {port or '7860 to 7959'}: {error}") from error
    return str(url)
