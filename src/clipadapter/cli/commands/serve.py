"""``clipadapter serve``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from clipadapter.cli.options import FILE
from clipadapter.cli.output import Output
from clipadapter.errors import InputError

TOKEN = "CLIPADAPTER_TOKEN"
LOCAL = ("127.0.0.1", "::1", "localhost")


@click.command(epilog="Example: clipadapter serve pets.onnx other=model/ --port 8080")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--token-file", type=FILE, help=f"Holds a token that requests must bear; or set {TOKEN}.")
@click.option("--backend", type=click.Choice(["auto", "onnxruntime", "openvino"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="That run a model; by default as many as cores.")
@click.option("--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Pictures that run at once.")
@click.option(
    "--max-wait-ms",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="How long a picture waits for others that are being unpacked.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Pictures of a model that may wait; more are refused with 503.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="What is not answered by then is dropped with 504.",
)
@click.option("--max-bytes", type=click.IntRange(1), default=32 << 20, show_default=True, help="Of a request.")
@click.option("--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="Of a picture.")
@click.option("--max-pictures", type=click.IntRange(1), default=64, show_default=True, help="Of a request.")
@click.option(
    "--max-bodies",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Bodies that come in at a time; for one more the slowest is cut off.",
)
@click.option(
    "--min-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="BYTES",
    default=16 << 10,
    show_default=True,
    help="A second that a body must come with.",
)
@click.option(
    "--head-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="In which the head of a request must have come.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=800,
    show_default=True,
    help="Open at a time; for one more the longest idle is closed.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    metavar="NAME",
    multiple=True,
    help="Answer requests for this name too; '*' for any. A server for this machine alone knows localhost only.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=0.0,
    show_default=True,
    help="Answer so long after SIGTERM, though not ready, until a balancer has seen it.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the address to stdout as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    backend: str,
    threads: int | None,
    max_wait_ms: float,
    allowed_hosts: tuple[str, ...],
    grace: float,
    as_json: bool,
    quiet: bool,
    **limits: float,
) -> None:
    """Answer for exported models over HTTP.

    A MODEL is a file that export wrote (.onnx, .xml), a folder of such files, or a saved model, which is exported
    first; name=PATH gives it a name, else it goes by its file's. Pictures go to /v1/models/NAME/predict, tensors to
    /v2/models/NAME/infer (Open Inference Protocol), people to /docs. A file that changes is loaded anew. Logs are
    lines of JSON on stderr. SIGTERM ends it when all that was begun is answered.
    """
    import logging

    token = _token(token_file)

    from clipadapter.serve import Limits, Models, create_app, run
    from clipadapter.serve.logs import write_to

    write_to(sys.stderr, logging.WARNING if quiet else logging.INFO)
    if token is None and host not in LOCAL:
        logging.getLogger("clipadapter.serve").warning(
            "anyone who reaches this address can ask: give --token-file, or let a proxy ask who it is"
        )
    bounds = Limits(max_wait=max_wait_ms / 1000, **limits)  # type: ignore[arg-type]
    shelf = Models(models, bounds, backend=backend, threads=threads)
    out = Output(as_json, quiet)

    def opened(url: str) -> None:
        out.result(
            {"url": url, "models": shelf.names}, f"{url} answers for {', '.join(shelf.names)}; try it at {url}/docs"
        )

    run(create_app(shelf, token), host, port, grace, opened, allowed_hosts)


def _token(path: Path | None) -> str | None:
    """The token, from a file or the environment: on a command line every user of the machine could read it.

    Raises:
        InputError: if the file can't be read, or holds none.
    """
    if path is None:
        found = os.environ.get(TOKEN)
        if found is None:
            return None
        where = TOKEN
    else:
        try:
            found, where = path.read_text(encoding="utf-8"), str(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} can't be read for a token: {error}") from error
    token = found.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{where} holds no token: write one line of letters and digits")
    return token
