"""Options that say what a model may answer beside the best class: none of these, a set of classes, unequal costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import FILE, FOLDER, bundle
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.uncertainty import MultiLabel, Uncertainty, UncertaintyOptions


class Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number between 0 and 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a percentage is refused with what it would be."""
        try:
            found = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number: give a share such as 0.05", param, ctx)
        if not 0 < found < 1:
            hint = f": {found:g} % is {found / 100:g}" if 1 <= found < 100 else ""
            self.fail(f"{value} is no share between 0 and 1{hint}", param, ctx)
        return found


SHARE = Share()


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the best class.

    Args:
        reject: share of pictures of the classes that may be called none of these; None if it was not said.
        coverage: share of pictures whose class must be in the set; None if it was not said.
        cost: table of costs, or None.
        minimise: a mistake in words, or None.
    """

    reject: float | None = None
    coverage: float | None = None
    cost: Path | None = None
    minimise: str | None = None

    def asked(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As `FewShotClassifier.classify` takes it; what was not said is left to the model.

        Raises:
            InputError: if both costs and a mistake are given, or they don't go with the classes.
        """
        from clipadapter.uncertainty import costs_for, read_costs

        if self.cost is not None and self.minimise is not None:
            raise InputError("--cost and --minimise say the same thing in two ways: give one of them")
        found: dict[str, Any] = {name: getattr(self, name) for name in ("reject", "coverage")}
        if self.cost is not None:
            found["costs"] = read_costs(self.cost, class_names)
        if self.minimise is not None:
            found["costs"] = costs_for(self.minimise, class_names)
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Learned(Wanted):
    """The same, and how it is learned.

    Args:
        calibration: how probabilities are calibrated.
        sets: how shots are held out for the sets.
        by_class: promise the coverage for each class.
        outliers: folder with pictures of none of the classes, or None.
        negative_labels: compare with ImageNet's class names.
    """

    calibration: str = "auto"
    sets: str = "cross"
    by_class: bool = False
    outliers: Path | None = None
    negative_labels: bool = False

    def options(self, class_names: Sequence[str]) -> UncertaintyOptions:
        """As `FewShotClassifier` takes it.

        Raises:
            InputError: as `asked`.
        """
        from clipadapter.uncertainty import UncertaintyOptions

        return UncertaintyOptions(
            calibration=self.calibration,
            sets=self.sets,
            by_class=self.by_class,
            negative_labels=self.negative_labels,
            **self.asked(class_names),
        )

    def pictures(self) -> list[Path] | None:
        """Paths of the outlier pictures.

        Raises:
            DataError: if there are none in the folder.
        """
        from clipadapter.data import list_images
        from clipadapter.errors import DataError

        if self.outliers is None:
            return None
        if not self.outliers.is_dir():
            raise DataError(f"there is no folder '{self.outliers}': give one with pictures of other things")
        found = list_images(self.outliers)
        if not found:
            raise DataError(f"there are no pictures in '{self.outliers}': give a folder of pictures of other things")
        return list(found)


def doubts(uncertainty: Uncertainty, reject: float | None, coverage: float | None) -> list[str]:
    """What a person should know of the rates that are asked for.

    Args:
        uncertainty: of a fitted model.
        reject: share that may be called none of these, or None.
        coverage: share whose class is to be in the set, or None.
    """
    found = []
    if reject is not None and uncertainty.rejector is not None:
        threshold = uncertainty.rejector.threshold(reject)
        if not threshold.is_attainable:
            found.append(
                f"{threshold.shots} held-out shots can't set a rate of {100 * reject:g} %, the smallest is "
                f"{100 * threshold.min_rate:.2g} %: beyond, a normal tail is assumed"
            )
        if threshold.bound:
            found.append("with one shot a class fewer pictures than asked will be called none of these")
    if coverage is not None and uncertainty.conformal is not None:
        few = uncertainty.conformal.too_few(coverage)
        found += [few] if few else []
    return found


def told(uncertainty: Uncertainty, calibration: str) -> tuple[dict[str, Any], list[tuple[str, str]], list[str]]:
    """What was learned of how far a model can be trusted: for machines, for people, and what they should know.

    Args:
        uncertainty: of a fitted model.
        calibration: as it was asked for.
    """
    if uncertainty.multilabel is not None:
        return _thresholds(uncertainty.multilabel)
    calibrator, asked = uncertainty.calibrator, uncertainty.decisions
    how = "temperature" if calibrator.weight is None else "vector scaling, temperature"
    seen = (
        f"{calibrator.n} held-out shots ({uncertainty.held_out_by})"
        if calibrator.n
        else "no held-out shots, only what is usual"
    )
    plain, fitted = "none: the softmax of the logits", f"{how} {calibrator.temperature:.3g}, from {seen}"
    words = [("calibration", plain if calibration == "none" else fitted)]
    facts: dict[str, Any] = {
        "temperature": calibrator.temperature,
        "held_out": calibrator.n,
        "how": uncertainty.held_out_by,
    }
    if asked.reject is not None and uncertainty.rejector is not None:
        found = uncertainty.rejector.threshold(asked.reject)
        value = found.value if found.shots > 2 else None
        facts["reject"] = {"rate": asked.reject, "threshold": value, "enough": found.is_attainable}
        words.append(("none of these", f"about {100 * asked.reject:g} % of pictures of the classes"))
    if asked.coverage is not None and uncertainty.conformal is not None:
        promise = uncertainty.conformal.words(asked.coverage)
        facts["coverage"] = {"rate": asked.coverage, "promise": promise}
        words.append(("sets", uncertainty.conformal.too_few(asked.coverage) or promise.split(". ")[0]))
    return facts, words, doubts(uncertainty, asked.reject, asked.coverage)


def _thresholds(rule: MultiLabel) -> tuple[dict[str, Any], list[tuple[str, str]], list[str]]:
    seen = f"from {rule.n} held-out pictures" if rule.n else "the usual one, since no shot could be held out"
    words = f"{rule.thresholds.min():.2f} to {rule.thresholds.max():.2f}, {seen}"
    return {"held_out": rule.n, "thresholds": rule.thresholds.tolist()}, [("thresholds", words)], []


_WANTED = (
    click.option(
        "--reject", type=SHARE, metavar="RATE", help='Say "none of these"; of pictures that are one, about so often.'
    ),
    click.option(
        "--coverage", type=SHARE, metavar="RATE", help="Name a set of classes that has the right one so often."
    ),
    click.option(
        "--cost", type=FILE, help="CSV with the cost of each mistake: rows are true classes, columns answers."
    ),
    click.option(
        "--minimise", metavar="MISTAKE", help="The mistake to avoid: 'false NAME' or 'missed NAME', =N times as bad."
    ),
)
wanted_options = bundle("wanted", Wanted, *_WANTED)
"""``--reject``, ``--coverage``, ``--cost``, ``--minimise``; as ``wanted``."""

_LEARNED = (
    click.option(
        "--calibration",
        type=click.Choice(["auto", "temperature", "vector", "none"]),
        default="auto",
        show_default=True,
        help="How logits become probabilities, on shots that were held out.",
    ),
    click.option(
        "--sets",
        type=click.Choice(["cross", "cv+", "split"]),
        default="cross",
        show_default=True,
        help="How shots are held out for --coverage; cv+ keeps several heads, split learns from half of the shots.",
    ),
    click.option("--by-class", is_flag=True, help="Promise the coverage for each class by itself."),
    click.option("--outliers", type=FOLDER, help="Folder of pictures of none of the classes, as expected in use."),
    click.option("--negative-labels", is_flag=True, help="Detect outliers by the class names of ImageNet too."),
)
learned_options = bundle("learned", Learned, *_WANTED, *_LEARNED)
"""The same, with how they are learned; as ``learned``. What is asked for is the model's default."""
