"""Findings as HTML with thumbnails. The page loads no other file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from clipadapter.data.thumbnails import encode_thumbnails, thumbnail_url
from clipadapter.doctor.findings import KINDS, Diagnosis, Finding, Kind, Picture
from clipadapter.rendering.html import create_environment, read_asset
from clipadapter.utils.files import write_atomically

PACKAGE = "clipadapter.doctor"
THUMBNAIL_SIDE = 192
"""In pixels: twice that of the page, for screens with two pixels per point."""
THUMBNAIL_QUALITY = 80
MAX_PICTURES_PER_FINDING = 8


@dataclass(frozen=True)
class IllustratedFinding:
    """A finding with thumbnails."""

    finding: Finding  # which
    # Its first pictures, each with a URL that contains a small JPEG file (``data:image/jpeg;...``); the URL is empty if
    # the picture can't be read
    thumbnails: tuple[tuple[Picture, str], ...]


@dataclass(frozen=True)
class FindingGroup:
    """Findings of one kind, worst first."""

    name: str  # of the kind
    kind: Kind  # its severity, title and advice
    count: int  # how many findings there are
    shown: tuple[IllustratedFinding, ...]  # the first of them


def illustrate_findings(
    diagnosis: Diagnosis, *, per_kind: int = 60, side: int = THUMBNAIL_SIDE
) -> tuple[FindingGroup, ...]:
    """Findings with thumbnails, in groups.

    Args:
        diagnosis: its pictures are read again from their files, each once.
        per_kind: findings of a kind at most.
        side: longest side of a thumbnail in pixels.
    """
    shown = {kind: diagnosis.of_kind(kind)[:per_kind] for kind in diagnosis.counts}
    pictures = list({picture for findings in shown.values() for finding in findings for picture in _first(finding)})
    thumbnails = encode_thumbnails([picture.path for picture in pictures], side, THUMBNAIL_QUALITY)
    urls = {picture: thumbnail_url(thumbnail) for picture, thumbnail in zip(pictures, thumbnails, strict=True)}
    groups = []
    for kind, findings in shown.items():
        illustrated = tuple(
            IllustratedFinding(finding, tuple((picture, urls[picture]) for picture in _first(finding)))
            for finding in findings
        )
        groups.append(FindingGroup(kind, KINDS[kind], diagnosis.counts[kind], illustrated))
    return tuple(groups)


def _first(finding: Finding) -> tuple[Picture, ...]:
    return finding.pictures[:MAX_PICTURES_PER_FINDING]


def render_findings(groups: Iterable[FindingGroup], level: int = 2) -> Markup:
    """A section per kind, with the anchor ``#kind``; all text is escaped. See `read_findings_css`.

    Args:
        groups: of `illustrate_findings`.
        level: of the headings, 2 for h2.
    """
    template = create_environment(PACKAGE).get_template("findings.html")
    return Markup(template.render(groups=list(groups), level=level))  # noqa: S704 - escaped


def read_findings_css() -> Markup:
    """The style sheet of `render_findings`, light and dark; the names of all its classes begin with ``doctor``."""
    return read_asset(PACKAGE, "findings.css")


def write_page(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the page of a diagnosis; see `Diagnosis.to_html`."""
    groups = illustrate_findings(diagnosis)
    template = create_environment(PACKAGE).get_template("doctor.html")
    return write_atomically(path, template.render(diagnosis=diagnosis, groups=groups, findings=render_findings(groups)))
