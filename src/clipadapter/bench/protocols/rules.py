"""What a protocol says of itself: which heads and options it takes, and how reports show its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.heads import Head


class Rules:
    """The rules of a protocol, which suites and reports know; `clipadapter.bench.protocols.base` has the rest."""

    test_kinds: ClassVar[Mapping[str, str]] = {
        "given": "given: the test part stands apart from what the shots are drawn from",
        "rest": "rest: the test part is the rows that were not drawn, so each draw has another",
        "new": "new: other classes than those of the shots, known by their text alone",
        "shift": "shift: pictures from elsewhere that show classes of the shots, among which alone a head chooses",
    }
    """Explanations in reports, by the values of `RunData.protocol`: those of test parts; a protocol may give others."""
    report_columns: ClassVar[Literal["shots", "test"]] = "test"
    """Whether the columns of report tables are numbers of shots or test parts."""
    has_harmonic_mean: ClassVar[bool] = False
    """Whether reports have the harmonic mean of the two test parts, base and new classes."""
    test_parts: ClassVar[int | None] = None
    """Number of test parts of a draw from one data set; None for that of the data set."""
    combines_data_sets: ClassVar[bool] = False
    """Whether the first data set gives the shots, and all others are test parts."""
    accepts_features: ClassVar[bool] = False
    """Whether ``features:FOLDER`` can be a data set: the protocol needs no other class text and no other classes."""
    accepts_all_shots: ClassVar[bool] = False
    """Whether ``shots = "all"`` is possible: a test part remains if every picture is a shot."""
    tests_all_pictures: ClassVar[bool] = False
    """Whether each picture is a test picture, so that a separate test part is not used."""
    options: Mapping[str, int] = {}
    """Options that ``[options]`` of a suite may set, with their defaults."""

    def why_not(self, cls: type[Head]) -> str:
        """Why the protocol can't measure a head; empty if it can. ``heads = ["all"]`` leaves such heads out."""
        return ""

    def check_head(self, name: str, cls: type[Head]) -> None:
        """Refuse a head that the protocol can't measure."""
        if why := self.why_not(cls):
            raise InputError(f"{name} {why}: leave it out")
