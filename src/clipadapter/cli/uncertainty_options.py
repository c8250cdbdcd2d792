"""Options of decisions beside the best class: none of these, a set of classes, unequal costs.

The classes are called arguments, since `clipadapter.uncertainty` has the options that they are turned into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from clipadapter.cli.options import FILE, FOLDER, FRACTION, option
from clipadapter.cli.output import Fact, Output
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.uncertainty import Uncertainty, UncertaintyOptions

FEW_HELD_OUT_SHOTS = 10
"""With fewer held-out shots a person is told that they say little of the calibration."""


@dataclass(frozen=True)
class DecisionArguments:
    """The decisions of one call. What is not given is left to the model."""

    HEADING: ClassVar[str] = "Decisions and uncertainty"
    reject: float | None = option(
        "--reject",
        type=FRACTION,
        metavar="RATE",
        help='Answer "none of these" for pictures unlike the classes. RATE is about the fraction of pictures of the '
        "classes that are rejected too.",
    )
    coverage: float | None = option(
        "--coverage",
        type=FRACTION,
        metavar="RATE",
        help="Name a set of classes that contains the right one at this rate.",
    )
    cost: Path | None = option(
        "--cost", type=FILE, help="CSV file with the cost of each mistake: rows are true classes, columns answers."
    )
    minimise: str | None = option(
        "--minimise",
        metavar="MISTAKE",
        help="The mistake to avoid: 'false NAME' or 'missed NAME'; '=N' at the end makes it N times as bad.",
    )

    def decisions(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the decisions as `FewShotClassifier.classify` takes them."""
        from clipadapter.uncertainty import parse_costs, read_costs

        if self.cost is not None and self.minimise is not None:
            raise InputError("--cost and --minimise both set the costs of mistakes: give one of them")
        costs = None if self.cost is None else read_costs(self.cost, class_names)
        costs = costs if self.minimise is None else parse_costs(self.minimise, class_names)
        decisions = {"reject": self.reject, "coverage": self.coverage, "costs": costs}
        return {name: value for name, value in decisions.items() if value is not None}

    def check(self, uncertainty: Uncertainty, class_names: Sequence[str], out: Output) -> dict[str, Any]:
        """Return the decisions, and warn of rates that the shots can't guarantee."""
        warn_about_rates(uncertainty, self.reject, self.coverage, out)
        return self.decisions(class_names)


@dataclass(frozen=True)
class UncertaintyArguments(DecisionArguments):
    """The default decisions of a model, and how it learns them."""

    calibration: str = option(
        "--calibration",
        default="auto",
        type=click.Choice(["auto", "temperature", "vector", "none"]),
        help="How held-out shots turn logits into probabilities.",
    )
    sets: str = option(
        "--sets",
        default="cross",
        type=click.Choice(["cross", "cv+", "split"]),
        help="How shots are held out for --coverage. cv+ stores one head per fold; split holds out half of the shots.",
    )
    by_class: bool = option("--by-class", default=False, is_flag=True, help="Promise the coverage for each class.")
    outliers: Path | None = option(
        "--outliers", type=FOLDER, help="Folder of pictures of none of the classes, as expected in use."
    )
    negative_labels: bool = option(
        "--negative-labels", default=False, is_flag=True, help="Detect outliers by the class names of ImageNet too."
    )

    def options(self, class_names: Sequence[str]) -> UncertaintyOptions:
        """Return the options as `FewShotClassifier` takes them."""
        from clipadapter.uncertainty import UncertaintyOptions

        names = ("calibration", "sets", "by_class", "negative_labels")
        return UncertaintyOptions(**{name: getattr(self, name) for name in names}, **self.decisions(class_names))


def warn_about_rates(uncertainty: Uncertainty, reject: float | None, coverage: float | None, out: Output) -> None:
    """Warn of rates of "none of these" and of sets that the held-out shots can't guarantee."""
    if reject is not None and uncertainty.rejector is not None:
        threshold = uncertainty.rejector.threshold(reject)
        if not threshold.is_attainable:
            out.warn(
                f"{threshold.shots} held-out shots can't set a rate of {100 * reject:g} %: the smallest rate is "
                f"{100 * threshold.min_rate:.2g} %. Beyond that, a normal tail is assumed"
            )
        if threshold.rate_is_upper_bound:
            out.warn("with one shot per class, fewer pictures than this rate will be called none of these")
    conformal = uncertainty.conformal
    if coverage is not None and conformal is not None and (too_few := conformal.explain_shortage(coverage)):
        out.warn(too_few)


def uncertainty_facts(uncertainty: Uncertainty, calibration: str) -> list[Fact]:
    """Calibration, rejection and prediction sets of a fitted model; `calibration` is as the user gave it."""
    if uncertainty.multilabel is not None:
        rule = uncertainty.multilabel
        source = f"from {rule.n} held-out pictures" if rule.n else "the default, since no shot could be held out"
        text = f"{rule.thresholds.min():.2f} to {rule.thresholds.max():.2f}, {source}"
        return [Fact("held_out", rule.n), Fact("thresholds", rule.thresholds.tolist(), text)]
    calibrator, decisions = uncertainty.calibrator, uncertainty.decisions
    method = "temperature" if calibrator.weight is None else "vector scaling, temperature"
    source = (
        f"from {calibrator.n} held-out shots ({uncertainty.held_out_by})"
        if calibrator.n
        else "a usual value of this head: no shot could be held out, so it was not learned from your pictures"
    )
    if 0 < calibrator.n < FEW_HELD_OUT_SHOTS:
        source += ". These are few: probabilities are mostly those that are usual for this head"
    fitted = f"{method} {calibrator.temperature:.3g}, {source}"
    text = "none: the softmax of the logits" if calibration == "none" else fitted
    facts = [
        Fact("temperature", calibrator.temperature, text, "calibration"),
        Fact("held_out", calibrator.n),
        Fact("held_out_by", uncertainty.held_out_by),
    ]
    if decisions.reject is not None and uncertainty.rejector is not None:
        threshold = uncertainty.rejector.threshold(decisions.reject)
        value = threshold.value if threshold.shots > 2 else None
        data = {"rate": decisions.reject, "threshold": value, "is_attainable": threshold.is_attainable}
        text = f"about {100 * decisions.reject:g} % of pictures of the classes"
        facts.append(Fact("reject", data, text, "none of these"))
    if decisions.coverage is not None and uncertainty.conformal is not None:
        guarantee = uncertainty.conformal.describe_guarantee(decisions.coverage)
        text = uncertainty.conformal.explain_shortage(decisions.coverage) or guarantee.split(". ")[0]
        facts.append(Fact("coverage", {"rate": decisions.coverage, "guarantee": guarantee}, text, "sets"))
    return facts


def describe_accuracy(model: FewShotClassifier) -> str:
    """Describe how often the model is right about held-out shots, or why that is not known."""
    from clipadapter.heads.registry import head_name

    counts, accuracy = model.support_.counts, model.uncertainty_.accuracy
    if accuracy is not None:
        n_single = sum(count == 1 for count in counts.values())
        return accuracy.describe() + (f"; classes with one picture, not held out: {n_single}" if n_single else "")
    if model.uncertainty_.multilabel is not None:
        return "not known: pictures with several labels are measured on others, by 'clipadapter eval'"
    if max(counts.values()) <= 1:
        return "not known: with one picture per class none can be held out; give two or more of each class"
    return f"not known: {head_name(type(model.head_))} is not fitted again without some of the shots"
