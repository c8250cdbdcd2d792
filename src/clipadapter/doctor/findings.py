"""What the doctor says: findings, each with its pictures, how bad it is, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.data import Sample

SEVERITIES = ("severe", "warning", "note")
"""Worst first: figures are wrong because of it; a model is likely worse for it; worth a look."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Args:
        severity: one of `SEVERITIES`.
        title: what it is, as a heading.
        advice: what to do.
    """

    severity: str
    title: str
    advice: str


KINDS: Mapping[str, Kind] = {
    "conflict": Kind(
        "severe", "One picture under two labels", "Keep the file whose label is right and move the others away."
    ),
    "leak": Kind(
        "severe",
        "One picture in two parts",
        "Take it out of one part, out of train if that can spare it: what is measured on pictures that were learned "
        "from is too good.",
    ),
    "no-shots": Kind("severe", "Classes without a picture to learn from", "Add pictures, or take the class out."),
    "wrong-label": Kind(
        "warning",
        "Labels that are likely wrong",
        "Look at each; move the file to the class that it shows, or leave it if the label is right.",
    ),
    "unreadable": Kind(
        "warning", "Files that can't be read", "Get the file anew, convert it to JPEG, or take it away."
    ),
    "overlap": Kind(
        "warning",
        "Classes that are taken for each other",
        "Merge them if the difference does not matter; else add shots that show it, and say it in --descriptions.",
    ),
    "same-text": Kind(
        "warning",
        "Classes whose texts say the same",
        "Say what tells them apart: readable names with --class-names, or sentences with --descriptions.",
    ),
    "name": Kind(
        "warning",
        "Names that the encoder does not understand",
        "Give a plain name with --class-names or sentences with --descriptions, or a head that needs no text.",
    ),
    "few-shots": Kind("warning", "Classes with very few pictures", "Add pictures of other objects, places and days."),
    "doubtful-label": Kind(
        "note",
        "Labels to look at",
        "Less sure than those that are likely wrong: the class may just be hard, or the picture show two things.",
    ),
    "duplicate": Kind(
        "note",
        "One picture several times",
        "Keep one: copies count as more shots than they are, and make held-out figures too good.",
    ),
    "imbalance": Kind(
        "note", "Classes of very unequal size", "Add pictures of the small ones; accuracy will speak of the large ones."
    ),
    "dark": Kind("note", "Very dark pictures", "Take them anew, or leave them out if nobody could name them."),
    "bright": Kind("note", "Pictures that are nearly white", "Take them anew, or leave them out."),
    "flat": Kind("note", "Pictures that show hardly anything", "Take them anew, or leave them out."),
    "blurry": Kind("note", "Blurred pictures", "Take them anew, unless pictures in use will be as blurred."),
    "tiny": Kind("note", "Pictures smaller than the encoder's square", "Use the originals, not previews."),
    "cut": Kind(
        "note",
        "Long pictures",
        "Cut them to what matters: the encoder sees a square, and what hangs over is lost or squeezed.",
    ),
}
"""Every kind by its name, worst first."""


@dataclass(frozen=True)
class Picture:
    """A picture that a finding is about.

    Args:
        path: where it lies.
        name: relative to the data set's root, as it can be printed.
        label: its class name.
        split: its part.
    """

    path: Path
    name: str
    label: str | None
    split: str

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: ``path`` is relative to the root."""
        return {"path": self.name, "label": self.label, "split": self.split}

    @classmethod
    def of(cls, sample: Sample, root: Path) -> Picture:
        """A sample of a data set that lies under ``root``."""
        path = sample.path
        inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        name = inside.encode(errors="backslashreplace").decode()
        return cls(path, name, sample.label, sample.split)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Args:
        kind: one of `KINDS`.
        score: 0 to 1, how sure or how bad within its kind; findings of a kind are sorted by it.
        words: what was found, a phrase.
        pictures: what it is about; may be empty.
        classes: the classes it is about; may be empty.

    >>> Finding("few-shots", 0.5, "'cat' has 2 pictures in train", classes=("cat",)).severity
    'warning'
    """

    kind: str
    score: float
    words: str
    pictures: tuple[Picture, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.kind].severity

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "score": round(self.score, 4),
            "words": self.words,
            "pictures": [picture.to_dict() for picture in self.pictures],
            "classes": list(self.classes),
            "do": KINDS[self.kind].advice,
        }


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Args:
        name: the data set's.
        root: folder that the pictures belong to.
        encoder: name of the encoder whose features were compared.
        pictures: how many there are.
        classes: how many.
        splits: parts that hold pictures.
        judged: how many labels were checked by what was learned from other pictures.
        findings: worst first: by severity, kind, score.
    """

    name: str
    root: Path
    encoder: str
    pictures: int
    classes: int
    splits: tuple[str, ...]
    judged: int
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each kind that occurs, worst first."""
        there = Counter(finding.kind for finding in self.findings)
        return {kind: there[kind] for kind in KINDS if there[kind]}

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind, worst first."""
        return [finding for finding in self.findings if finding.kind == kind]

    @property
    def severe(self) -> int:
        """How many findings are severe."""
        return sum(finding.severity == "severe" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "name": self.name,
            "encoder": self.encoder,
            "pictures": self.pictures,
            "classes": self.classes,
            "splits": list(self.splits),
            "judged": self.judged,
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def text(self, most: int = 10) -> str:
        """For a terminal: kinds worst first, the first findings of each, and what to do.

        Args:
            most: lines a kind.
        """
        return "\n".join(self._lines(most))

    def to_html(self, path: str | Path, *, per_kind: int = 60) -> Path:
        """Write one HTML page that asks for nothing else, with small pictures in it.

        Args:
            path: of the file; its folder is made.
            per_kind: findings of a kind that are shown at most.

        Raises:
            InputError: if it can't be written.
        """
        from clipadapter.doctor.page import write_page

        return write_page(self, Path(path), per_kind)

    @property
    def summary(self) -> str:
        """One sentence on what was looked at."""
        parts = f" ({', '.join(self.splits)})" if self.splits != ("all",) else ""
        return f"{self.pictures} pictures in {self.classes} classes{parts}, seen by {self.encoder}"

    def _lines(self, most: int) -> Iterator[str]:
        yield self.summary
        if not self.findings:
            yield "nothing found"
        for kind, count in self.counts.items():
            about = KINDS[kind]
            yield f"\n{about.severity}: {about.title.lower()}: {count}"
            yield from (f"  {finding.words}" for finding in self.of(kind)[:most])
            if count > most:
                yield f"  and {count - most} more"
            yield f"  -> {about.advice}"


def ranked(findings: list[Finding]) -> tuple[Finding, ...]:
    """Worst first: by severity, then kind, then score; equal ones in the order they came."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    key = {kind: (SEVERITIES.index(about.severity), order[kind]) for kind, about in KINDS.items()}
    return tuple(sorted(findings, key=lambda one: (*key[one.kind], -one.score)))
