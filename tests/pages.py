"""Pages whose code is run as it stands: blocks under ``<!-- run -->``, and files under ``<!-- file NAME -->``."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from clipadapter.cli.app import app
from clipadapter.heads.clip_adapter import ClipAdapter

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
    """CLIP-Adapter trains for 10 steps by default: a page shows what is called, and its figures are not compared."""
    monkeypatch.setitem(ClipAdapter.__init__.__kwdefaults__, "steps", 10)


def run_command(line):
    """A line that begins with ``clipadapter``, in this process: what it imports is there for the next one."""
    program, *words = shlex.split(line, comments=True)
    assert program == "clipadapter", line
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}\n{done.stderr}\n{done.exception!r}"
    return done
