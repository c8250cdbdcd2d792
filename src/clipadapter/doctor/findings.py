"""Findings of the doctor: each has its pictures, a severity and advice; as JSON, as text, and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from clipadapter.data import Sample
from clipadapter.data.thumbnails import encode_thumbnails, thumbnail_url
from clipadapter.rendering.html import create_environment
from clipadapter.utils.files import encodable, printable, write_atomically

PACKAGE = "clipadapter.doctor"
THUMBNAIL_SIDE = 192  # in pixels: twice that of the page, for screens with two pixels per point
THUMBNAIL_QUALITY = 80
MAX_PICTURES_PER_FINDING = 8


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    # "severe": it makes measurements wrong; "warning": it likely makes a model worse; "note": worth a check
    severity: str
    title: str  # heading
    advice: str  # what to do


KINDS: Mapping[str, Kind] = {
    "conflict": Kind(
        "severe", "One picture with two labels", "Keep the file whose label is right and remove the others."
    ),
    "leak": Kind(
        "severe",
        "One picture in two splits",
        "Remove it from one split, from train if that has enough others: accuracy on pictures that the model was "
        "fitted to is too high.",
    ),
    "no-shots": Kind("severe", "Classes without a picture to fit", "Add pictures, or remove the class."),
    "wrong-label": Kind(
        "warning",
        "Labels that are likely wrong",
        "Check each: move the file to the class that it shows, or keep it if the label is right. If they are too many: "
        "the head auto tolerates some wrong labels, and trained heads do with --set gce_q=auto.",
    ),
    "unreadable": Kind("warning", "Files that can't be read", "Get the file again, convert it to JPEG, or remove it."),
    "overlap": Kind(
        "warning",
        "Classes that overlap",
        "Merge them if the difference does not matter. Else add shots that show it, and describe it in --descriptions.",
    ),
    "same-text": Kind(
        "warning",
        "Classes with the same text",
        "Describe the difference: readable names with --class-names, or sentences with --descriptions.",
    ),
    "name": Kind(
        "warning",
        "Names that the encoder does not understand",
        "Use a plain name with --class-names, sentences with --descriptions, or a head that needs no text.",
    ),
    "few-shots": Kind("warning", "Classes with very few pictures", "Add pictures of other objects, places and days."),
    "doubtful-label": Kind(
        "note",
        "Doubtful labels",
        "Less certain than labels that are likely wrong: the class may be hard, or the picture shows two objects.",
    ),
    "duplicate": Kind(
        "note",
        "Copies of one picture",
        "Keep one: copies count as more shots than they are, and make held-out accuracy too high.",
    ),
    "imbalance": Kind(
        "note",
        "Classes of very unequal size",
        "Add pictures of the small ones: the large ones dominate accuracy. Heads with the parameter logit_adjustment "
        "take the sizes out of their predictions.",
    ),
    "dark": Kind("note", "Very dark pictures", "Take them again, or remove them if a person can't recognise them."),
    "bright": Kind("note", "Pictures that are nearly white", "Take them again, or remove them."),
    "flat": Kind("note", "Pictures with almost no contrast", "Take them again, or remove them."),
    "blurry": Kind("note", "Blurred pictures", "Take them again, unless pictures in use will be as blurred."),
    "tiny": Kind("note", "Pictures smaller than the encoder's input", "Use the originals, not previews."),
    "cut": Kind(
        "note",
        "Long pictures",
        "Crop them to the object: the input of the encoder is a square, and the rest is cut off or squeezed.",
    ),
}
"""All kinds by name, worst first."""


@dataclass(frozen=True)
class Picture:
    """A picture of a finding."""

    path: Path  # of the file
    name: str  # its path relative to the data set's root, as printable text
    label: str | None  # its class name
    split: str  # its split

    @classmethod
    def from_sample(cls, sample: Sample, root: Path) -> Picture:
        """The picture of a sample in a data set with this root."""
        path = sample.path
        name = encodable(path.relative_to(root).as_posix() if path.is_relative_to(root) else path)
        return cls(path, name, sample.label, sample.split)


@dataclass(frozen=True)
class Finding:
    """One fault, certain or possible.

    >>> Finding("few-shots", 0.5, "'cat' has 2 pictures in train", classes=("cat",)).severity
    'warning'
    """

    kind: str  # one of `KINDS`
    score: float  # 0 to 1, how certain or how bad it is within its kind; findings of a kind are sorted by it
    message: str  # a phrase
    pictures: tuple[Picture, ...] = ()  # the pictures with the fault; may be empty
    classes: tuple[str, ...] = ()  # the classes with the fault; may be empty

    @property
    def severity(self) -> str:
        """That of its kind: "severe", "warning" or "note"."""
        return KINDS[self.kind].severity

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "score": round(self.score, 4),
            "message": self.message,
            "pictures": [{"path": each.name, "label": each.label, "split": each.split} for each in self.pictures],
            "classes": list(self.classes),
            "advice": KINDS[self.kind].advice,
        }


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`."""

    name: str  # of the data set
    encoder: str  # name of the encoder whose features were compared
    n_pictures: int  # how many pictures the data set has
    n_classes: int  # how many classes
    splits: tuple[str, ...]  # that have pictures
    n_checked_labels: int  # how many labels were compared with the prediction of a held-out head
    findings: tuple[Finding, ...]  # worst first: by severity, kind, score

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, without kinds that have none, worst first."""
        return {kind: count for kind in KINDS if (count := len(self.of_kind(kind)))}

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind, worst first."""
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def n_severe(self) -> int:
        """How many findings are severe."""
        return sum(finding.severity == "severe" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {
            "name": self.name,
            "encoder": self.encoder,
            "pictures": self.n_pictures,
            "classes": self.n_classes,
            "splits": list(self.splits),
            "checked_labels": self.n_checked_labels,
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_text(self, max_per_kind: int = 10) -> str:
        """The diagnosis as text for a terminal: the kinds, worst first, with their first findings and what to do.

        Args:
            max_per_kind: findings of a kind at most.
        """
        lines = [self.summary] if self.findings else [self.summary, "no findings"]
        for kind, count in self.counts.items():
            description = KINDS[kind]
            lines.append(f"\n{description.severity}: {description.title.lower()}: {count}")
            lines += [f"  {printable(finding.message)}" for finding in self.of_kind(kind)[:max_per_kind]]
            if count > max_per_kind:
                lines.append(f"  and {count - max_per_kind} more")
            lines.append(f"  -> {description.advice}")
        return "\n".join(lines)

    def to_html(self, path: str | Path) -> Path:
        """Write an HTML page with thumbnails. It loads no other file.

        Args:
            path: of the file; its folder is created.

        Raises:
            InputError: if it can't be written.
        """
        template = create_environment(PACKAGE).get_template("doctor.html")
        page = template.render(diagnosis=self, kinds=KINDS, findings=render_findings(self))
        return write_atomically(path, page)

    @property
    def summary(self) -> str:
        """The data set in one phrase."""
        splits = f" ({', '.join(self.splits)})" if self.splits != ("all",) else ""
        return f"{self.n_pictures} pictures in {self.n_classes} classes{splits}, encoder {self.encoder}"


def rank_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings, worst first: by kind, which gives the severity, then by score; equal ones keep their order."""
    kinds = list(KINDS)
    return tuple(sorted(findings, key=lambda finding: (kinds.index(finding.kind), -finding.score)))


# ---- As HTML ----


def render_findings(diagnosis: Diagnosis, *, per_kind: int = 60, side: int = THUMBNAIL_SIDE, level: int = 2) -> Markup:
    """A section per kind, with the anchor ``#kind``; all text is escaped. The style sheet is ``findings.css``.

    Args:
        diagnosis: its pictures are read again from their files, each once.
        per_kind: findings of a kind at most.
        side: longest side of a thumbnail in pixels.
        level: of the headings, 2 for h2.
    """
    # Of each finding its first pictures.
    shown = {
        kind: [(finding, finding.pictures[:MAX_PICTURES_PER_FINDING]) for finding in diagnosis.of_kind(kind)[:per_kind]]
        for kind in diagnosis.counts
    }
    pictures = list({picture for findings in shown.values() for _, first in findings for picture in first})
    thumbnails = encode_thumbnails([picture.path for picture in pictures], side, THUMBNAIL_QUALITY)
    # A URL contains a small JPEG file; it is empty if the picture can't be read.
    urls = {picture: thumbnail_url(thumbnail) for picture, thumbnail in zip(pictures, thumbnails, strict=True)}
    template = create_environment(PACKAGE).get_template("findings.html")
    html = template.render(shown=shown, urls=urls, kinds=KINDS, counts=diagnosis.counts, level=level)
    return Markup(html)  # noqa: S704 - escaped
