"""Pages whose code is run as it stands: blocks under ``<!-- run -->``, and files under ``<!-- file NAME -->``."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from clipadapter.cli.app import app
from clipadapter.encoders.lite import LiteEncoder
from clipadapter.heads.clip_adapter import ClipAdapter

from .conftest import save_work

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^<!-- (run|file \S+) -->\n```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code: its language, its text, and the file to be written, if it is one."""

    language: str
    code: str
    file: str | None


def read_page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def marked(page):
    """The blocks of a page's text that are marked, in order."""
    return [Block(language, code, mark[5:] or None) for mark, language, code in BLOCK.findall(page)]


def shorten_training(monkeypatch):
    """A page shows what is called, and its figures are not compared.

    CLIP-Adapter trains for 10 steps by default, and `lite` looks a second time at 128 pixels, not 384.
    """
    save_work(monkeypatch)
    monkeypatch.setattr(LiteEncoder, "second_size", lambda encoder: 128)
    monkeypatch.setitem(ClipAdapter.__init__.__kwdefaults__, "steps", 10)


def run_command(line):
    """A line that begins with ``clipadapter``, in this process: what it imports is there for the next one."""
    program, *words = shlex.split(line, comments=True)
    assert program == "clipadapter", line
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}\n{done.stderr}\n{done.exception!r}"
    return done
