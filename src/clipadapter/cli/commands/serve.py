"""``clipadapter serve``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, flag, option, options_of
from clipadapter.cli.options import LOOPBACK_HOSTS, Count, File
from clipadapter.cli.output import Output
from clipadapter.errors import InputError
from clipadapter.runtime.engines.formats import list_inference_backends

TOKEN_VARIABLE = "CLIPADAPTER_TOKEN"
BACKENDS = options.late_choice(lambda: ["auto", *list_inference_backends()])
POSITIVE = click.FloatRange(0, min_open=True)


@dataclass(frozen=True)
class LimitOptions:
    """The limits that `clipadapter.serve.Limits` describes, with its defaults. ``--help`` does not import it."""

    HEADING: ClassVar[str] = "Limits"
    max_batch: Count = option("--max-batch", "Pictures in a batch.", default=8)
    queue: Count = option("--queue", "Pictures of a model that may wait; more are refused with 503.", default=256)
    deadline: float = option(
        "--deadline SECONDS", "A request without an answer by then is dropped with 504.", type=POSITIVE, default=10.0
    )
    max_bytes: Count = option("--max-bytes", "Of a request.", default=32 << 20)
    max_pixels: Count = option("--max-pixels", "Of a picture.", default=50_000_000)
    max_pictures: Count = option("--max-pictures", "Of a request.", default=64)
    header_timeout: float = option(
        "--header-timeout SECONDS", "In which the headers of a request must arrive.", type=POSITIVE, default=10.0
    )
    max_connections: Count = option(
        "--max-connections", "Open at a time; for one more the longest idle is closed.", default=800
    )


@cli_command(
    "clipadapter serve pets.onnx other=model/ --port 8080",
    first="--host --port --token-file --allow-host --json --quiet",
)
def command(
    models: tuple[str, ...] = argument(metavar="MODEL..."),
    host: str = option("--host", "Address to listen at; 0.0.0.0 is all.", default="127.0.0.1"),
    port: int = option("--port", "0 takes a free one.", type=click.IntRange(0, 65535), default=8000),
    token_file: File | None = option("--token-file", f"Has a token that requests must send; or set {TOKEN_VARIABLE}."),
    backend: str = option("--backend", type=BACKENDS, default="auto"),
    threads: Count | None = option("--threads N", "That run a model; by default as many as cores."),
    limits: LimitOptions = options_of(LimitOptions),
    formats: str | None = option(
        "--formats NAMES", "Of pictures that are accepted, as in jpeg,png,webp; by default all."
    ),
    allowed_hosts: tuple[str, ...] = option(
        "--allow-host NAME",
        "Answer requests for this name too; '*' for any. A server for this machine alone knows localhost only.",
    ),
    grace: float = option(
        "--grace SECONDS",
        "Answer for so long after SIGTERM, though not ready, until a load balancer has noticed.",
        type=click.FloatRange(0),
        default=0.0,
    ),
    as_json: bool = flag("--json", "Write the address to stdout as JSON."),
    quiet: bool = flag("-q, --quiet", "Log warnings and errors only."),
) -> None:
    """Serve exported models over HTTP.

    A MODEL is a file that export wrote, a folder of such files, or a saved model, which is exported first.
    name=PATH gives it a name; by default it has the name of its file. The page / is for trying pictures, /docs
    lists all addresses, and programs send pictures to /v1/models/NAME/predict. A file that changes is loaded again.
    Logs are lines of JSON on stderr. On SIGTERM the server ends when all requests that have begun are answered.
    """
    import logging

    token = _read_token(token_file)

    from clipadapter.serve import Limits, ServedModels, create_app, run
    from clipadapter.serve.logs import log_to_stream

    log_to_stream(sys.stderr, logging.WARNING if quiet else logging.INFO)
    if token is None and host not in LOOPBACK_HOSTS:
        logging.getLogger("clipadapter.serve").warning(
            "anyone who reaches this address may send requests: give --token-file, or let a proxy check who sends them"
        )
    names = None if formats is None else tuple(name.strip().lower() for name in formats.split(","))
    served = ServedModels(models, Limits(formats=names, **vars(limits)), backend=backend, threads=threads)
    out = Output(as_json, quiet)

    def report_address(url: str) -> None:
        names = ", ".join(served.names)
        out.result({"url": url, "models": served.names}, f"{url} answers for {names}; try it at {url}/")

    run(create_app(served, token), host, port, grace, report_address, allowed_hosts)


def _read_token(path: Path | None) -> str | None:
    """The token, from a file or the environment: on a command line every user of the machine could read it."""
    if path is None and TOKEN_VARIABLE not in os.environ:
        return None
    try:
        token = (os.environ[TOKEN_VARIABLE] if path is None else path.read_text(encoding="utf-8")).strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read for a token: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{path or TOKEN_VARIABLE} holds no token: write one line of letters and digits")
    return token
