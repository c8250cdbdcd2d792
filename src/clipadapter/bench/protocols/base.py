"""The base of all protocols: few-shot fits, measured on every test part of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import Draw, Features, attempt, finish_run, fit_head, plan_run, record_failure, score_part
from clipadapter.bench.plan import Rows, draw_all_shots
from clipadapter.bench.run import Run
from clipadapter.bench.sources import DataSetSize, Source, apply_prompts, check_features, load_feature_bundle
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.heads import Head

SEPARATE_PART_TEXT = "given: the test part stands apart from what the shots are drawn from"
NEW_CLASSES_TEXT = "new: other classes than those of the shots, known by their text alone"


@dataclass(frozen=True, eq=False)
class BundleOfDraws:
    """Features, and the draws of a suite on them.

    Args:
        bundle: features and class text.
        draws: the draws.
        data: the data set as the user named it.
        encoder: the encoder as the user named it.
        prompts: how the class text was made.
    """

    bundle: Bundle
    draws: Sequence[Draw]
    data: str
    encoder: str
    prompts: Prompts


class Protocol:
    """How the data sets of a suite become fits and test parts. A protocol overrides what differs from few-shot."""

    test_kinds: ClassVar[Mapping[str, str]] = {}
    """Explanations in reports, by the values of `RunData.protocol` that the protocol gives."""
    report_columns: ClassVar[Literal["shots", "test"]] = "test"
    """Whether the columns of report tables are numbers of shots or test parts."""
    has_harmonic_mean: ClassVar[bool] = False
    """Whether reports have the harmonic mean of the two test parts, base and new classes."""
    combines_data_sets: ClassVar[bool] = False
    """Whether the first data set gives the shots, and all others are test parts."""
    accepts_features: ClassVar[bool] = False
    """Whether ``features:FOLDER`` can be a data set: the protocol needs no other class text and no other classes."""
    accepts_all_shots: ClassVar[bool] = False
    """Whether ``shots = "all"`` is possible: a test part remains if every picture is a shot."""
    fits_depend_on_class_sizes: ClassVar[bool] = False
    """Whether the number of fits depends on the number of pictures of each class."""
    options: Mapping[str, int] = {}
    """Options that ``[options]`` of a suite may set, with their defaults."""

    def check_suite(self, suite: Suite) -> None:
        """Refuse a suite with settings that do not suit the protocol.

        Raises:
            ValueError: if so.
        """
        known = type(self).options
        if unknown := sorted(suite.options.keys() - known.keys()):
            listed = ", ".join(known) or "none"
            raise ValueError(f"options of protocol '{suite.protocol}' are {listed}, not {', '.join(unknown)}")

    def accepts_head(self, cls: type[Head]) -> bool:
        """Whether ``heads = ["all"]`` includes a head."""
        return True

    def check_head(self, name: str, cls: type[Head]) -> None:
        """Refuse a head that the protocol cannot measure.

        Raises:
            InputError: if so.
        """

    def used_size(self, size: DataSetSize) -> DataSetSize:
        """The size of what the protocol uses of a data set, for estimates of the cost."""
        return size

    def fits_per_draw(self, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """Number of fits of a head for one draw of shots, for estimates of the cost.

        Args:
            sizes: of the data sets that the bundle is built from; shots are drawn from the first.
            transductive: whether the head is fitted again for each test part.

        Raises:
            InputError: if the protocol cannot use data sets of these sizes.
        """
        return sizes[0].test_parts if transductive else 1

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """Refuse data sets that the protocol can't use, before any feature is computed.

        Args:
            suite: the suite.
            sources: the data sets; a text is ``features:FOLDER``.

        Raises:
            InputError: if the protocol needs other data sets.
            DataError: if classes do not match, or stored features can't be read.
        """
        for spec in (source for source in sources if isinstance(source, str)):
            if not self.accepts_features or len(suite.prompts) > 1:
                raise InputError(
                    f"'{spec}' are features: suite '{suite.name}' needs pictures and an encoder, "
                    "for its text or classes"
                )
            check_features(spec, suite)

    def bundles(
        self, suite: Suite, sources: Sequence[Source | str], encoders: Mapping[str, FewShotClassifier]
    ) -> Iterator[BundleOfDraws]:
        """Compute the features of a suite, and draw from them.

        Args:
            suite: the suite.
            sources: data sets; a text is ``features:FOLDER``.
            encoders: by the name that tables show; they make features and class text.

        Raises:
            InputError: if the protocol needs other data sets.
            DataError: if data can't be read.
        """
        self.check_sources(suite, sources)
        for spec in (source for source in sources if isinstance(source, str)):
            bundle, rows = self.load_features(suite, spec)
            data = Path(spec.partition(":")[2]).name
            yield BundleOfDraws(bundle, self.draws(suite, bundle, rows), data, bundle.encoder.name, suite.prompts[0])
        pictures = [source for source in sources if not isinstance(source, str)]
        for group in [pictures] if self.combines_data_sets and pictures else [[source] for source in pictures]:
            for name, model in encoders.items():
                for prompts in suite.prompts:
                    prompted = apply_prompts(suite, model, prompts, group[0])
                    bundle, rows = self.build(suite, group, prompted, prompts)
                    yield BundleOfDraws(bundle, self.draws(suite, bundle, rows), group[0].name, name, prompts)

    def load_features(self, suite: Suite, spec: str) -> tuple[Bundle, Rows | None]:
        """Load the features of ``features:FOLDER``, and the rows of the draws; None to draw from the support."""
        return load_feature_bundle(spec, suite), None

    def build(
        self, suite: Suite, sources: Sequence[Source], model: FewShotClassifier, prompts: Prompts
    ) -> tuple[Bundle, Rows | None]:
        """Compute the features: of all test pictures, and of those training pictures that a draw takes.

        Args:
            suite: the suite.
            sources: one data set; several for a protocol that combines them.
            model: makes features and class text, with the prompts of the first data set.
            prompts: how the class text is made.

        Returns:
            The features, and the drawn rows; None for the latter if they are drawn from the bundle's support.

        Raises:
            InputError: if the protocol needs other data sets.
            DataError: if labels do not match, or no picture can be read.
        """
        raise NotImplementedError

    def draws(self, suite: Suite, bundle: Bundle, rows: Rows | None) -> list[Draw]:
        """The draws of a suite; rows are those that were drawn before, None to draw from the support of the bundle."""
        rows = draw_all_shots(suite, bundle.support.y) if rows is None else rows
        return [Draw(n, seed, rows[n, seed], bundle.names) for n in suite.shots for seed in suite.seeds]

    def plan(self, bundle: Bundle, label: str, head: Head, draw: Draw) -> list[Run]:
        """The records of a fit before it is made, one for each test part.

        Args:
            bundle: features and class text.
            label: name of the head in tables.
            head: unfitted.
            draw: the shots.
        """
        return [
            plan_run(
                bundle,
                label,
                head,
                draw,
                data=bundle.data(name, draw.rows),
                text_of=name,
                n_classes=bundle.n_classes(name),
                n_test=bundle.n_test(name, len(draw.rows)),
            )
            for name in bundle.names
        ]

    def measure(self, bundle: Bundle, head: Head, runs: Sequence[Run], unlabelled: Features | None = None) -> list[Run]:
        """Fit a head and measure it. A transductive head is fitted again for each test part.

        Args:
            bundle: features and class text.
            head: unfitted.
            runs: planned runs of one fit.
            unlabelled: see `fit_and_score`. The records do not name these pictures.

        Returns:
            The planned records with their metrics, or with the reason why the head failed.

        Raises:
            InputError: if no row is left to test on.
        """
        names = {bundle.data(name, runs[0].rows): name for name in bundle.names}
        shots, finished = bundle.shots(runs[0].rows), []
        for group in [[run] for run in runs] if head.transductive else [runs]:
            parts = [bundle.test(names[run.data], run.rows) for run in group]

            try:
                fitted, seconds = fit_head(head, shots, parts, bundle.text, unlabelled)
            except Exception as error:  # of any head, also of plug-ins: the other heads must still run
                finished += [record_failure(run, error) for run in group]
                continue
            for run, part in zip(group, parts, strict=True):
                # A head may know no other classes than those of its shots.
                finished += attempt([run], partial(_measure, run, fitted, seconds, part))
        return finished


def _measure(run: Run, fitted: Head, seconds: float, part: TestPart) -> list[Run]:
    return [finish_run(run, fitted, seconds, score_part(fitted, part))]
