"""Findings as HTML that asks for nothing else: small pictures stand in it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from clipadapter.data.images import read_image
from clipadapter.doctor.findings import KINDS, Diagnosis, Finding, Kind, Picture
from clipadapter.errors import ImageError
from clipadapter.files import write_atomically

SIDE = 96
"""Long side of a small picture in pixels."""
EACH = 8
"""Pictures of a finding that are shown at most."""


@dataclass(frozen=True)
class Exhibit:
    """A finding with what there is to see of it.

    Args:
        finding: which.
        thumbnails: of its first pictures, each with an address that holds it as a small JPEG
            (``data:image/jpeg;...``); empty where the picture can't be read.
    """

    finding: Finding
    thumbnails: tuple[tuple[Picture, str], ...]


@dataclass(frozen=True)
class Group:
    """Findings of one kind, worst first.

    Args:
        name: of the kind.
        kind: what it is and what to do.
        count: how many there are.
        exhibits: the first of them.
    """

    name: str
    kind: Kind
    count: int
    exhibits: tuple[Exhibit, ...]


def illustrated(diagnosis: Diagnosis, *, per_kind: int = 60, side: int = SIDE) -> tuple[Group, ...]:
    """The findings with small pictures, for a page.

    Args:
        diagnosis: what was found; its pictures are read again from where they lie, each once.
        per_kind: findings of a kind at most.
        side: long side of a small picture in pixels.
    """
    shown = {kind: diagnosis.of(kind)[:per_kind] for kind in diagnosis.counts}
    wanted = {picture for findings in shown.values() for one in findings for picture in one.pictures[:EACH]}
    small = _thumbnails(wanted, side)
    groups = []
    for kind, findings in shown.items():
        exhibits = tuple(Exhibit(one, tuple((each, small[each]) for each in one.pictures[:EACH])) for one in findings)
        groups.append(Group(kind, KINDS[kind], diagnosis.counts[kind], exhibits))
    return tuple(groups)


def findings_html(groups: Iterable[Group], level: int = 2) -> Markup:
    """A section a kind, with the anchor ``#kind``; all text is escaped. See `findings_css`.

    Args:
        groups: see `illustrated`.
        level: of the headings, 2 for h2.
    """
    page = _environment().get_template("findings.html")
    return Markup(page.render(groups=list(groups), level=level))  # noqa: S704 - escaped


def findings_css() -> Markup:
    """CSS of `findings_html`, light and dark; all its classes begin with ``doctor``."""
    return Markup(_environment().get_template("findings.css").render())  # noqa: S704 - no data in it


def write_page(diagnosis: Diagnosis, path: Path, per_kind: int) -> Path:
    """Write the page of a diagnosis; see `Diagnosis.to_html`.

    Raises:
        InputError: if it can't be written.
    """
    groups = illustrated(diagnosis, per_kind=per_kind)
    page = _environment().get_template("doctor.html")
    text = page.render(diagnosis=diagnosis, groups=groups, findings=findings_html(groups), css=findings_css())
    return write_atomically(path, text)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("clipadapter.doctor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _thumbnails(pictures: Iterable[Picture], side: int) -> dict[Picture, str]:
    wanted = list(pictures)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(wanted, pool.map(lambda picture: _thumbnail(picture.path, side), wanted), strict=True))


def _thumbnail(path: Path, side: int) -> str:
    """The address of a small JPEG that holds the picture; empty if it can't be read."""
    try:
        image = read_image(path, shrink_to=2 * side)
    except ImageError:
        return ""
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
