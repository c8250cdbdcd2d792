"""The base of all protocols: few-shot fits, measured on every test part of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.fitting import perform, planned
from clipadapter.bench.methods import seeded
from clipadapter.bench.plan import FitSpec, Rows, draws_of
from clipadapter.bench.run import Run
from clipadapter.bench.sources import Source, features_source
from clipadapter.bench.suite import Prompts, Suite, Variant, make_head
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.heads import Head

Fit = tuple[FitSpec, list[tuple[str, str]]]
"""A fit, and of each record that it gives the key and the name of its test part."""
BundleOfFits = tuple[Bundle, Callable[[str], Iterator[Fit]], tuple[str, str, Prompts]]
"""Features; the fits on them, given the folder they are stored in; the data set, encoder and prompts as named by the
user."""


class Protocol:
    """How the data sets of a suite become fits and test parts. A member overrides what it does otherwise."""

    test_kinds: ClassVar[Mapping[str, str]] = {}
    """What reports say of each value of `DataPart.protocol` that the protocol gives."""
    report_columns: ClassVar[Literal["shots", "test"]] = "test"
    """Whether the columns of report tables are numbers of shots or test parts."""
    combines_data_sets: ClassVar[bool] = False
    """Whether the first data set gives the shots, and all others are test parts."""
    accepts_features: ClassVar[bool] = False
    """Whether ``features:FOLDER`` will do as a data set: the protocol needs no other text and no other classes."""
    accepts_all_shots: ClassVar[bool] = False
    """Whether ``shots = "all"`` is possible: a test part remains if every picture is a shot."""
    options: ClassVar[Mapping[str, int]] = {}
    """Options that ``[options]`` of a suite may set, with their defaults."""

    def check_suite(self, suite: Suite) -> None:
        """Refuse a suite with settings that do not go with the protocol.

        Raises:
            ValueError: if so.
        """
        unknown = sorted(suite.options.keys() - self.options.keys())
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"options of protocol '{suite.protocol}' are {known}, not {', '.join(unknown)}")

    def accepts_head(self, cls: type[Head]) -> bool:
        """Whether ``heads = ["all"]`` includes a head."""
        return True

    def check_head(self, name: str, cls: type[Head]) -> None:
        """Refuse a head that the protocol cannot measure.

        Raises:
            InputError: if so.
        """

    def fits_per_draw(self, suite: Suite) -> int:
        """How many times each head is fitted for one draw of shots, for estimates of the cost."""
        return 1

    def bundles(
        self,
        suite: Suite,
        sources: Sequence[Source | str],
        encoders: Mapping[str, FewShotClassifier],
        rows: Rows | None,
    ) -> Iterator[BundleOfFits]:
        """Compute the features of a suite, and say which fits are made on them.

        Args:
            suite: the study.
            sources: data sets; a text is ``features:FOLDER``.
            encoders: by the name that tables show; they make features and class text.
            rows: rows of the first data set to use in place of a draw, by (shots, seed).
        """
        for spec in (source for source in sources if isinstance(source, str)):
            bundle = features_source(spec, suite)
            if bundle is None or not self.accepts_features or len(suite.prompts) > 1:
                raise InputError(
                    f"'{spec}' are features: suite '{suite.name}' needs pictures and an encoder, "
                    "for its text or classes"
                )
            name = Path(spec.partition(":")[2]).name
            bundle = self.from_features(bundle)
            yield bundle, partial(self.fits, suite, bundle, rows), (name, bundle.encoder.name, suite.prompts[0])
        pictures = [source for source in sources if not isinstance(source, str)]
        groups = [pictures] if self.combines_data_sets and pictures else [[source] for source in pictures]
        for group in groups:
            for name, model in encoders.items():
                for prompts in suite.prompts:
                    bundle, drawn = self.build(suite, group, model, prompts, rows)
                    yield bundle, partial(self.fits, suite, bundle, drawn), (group[0].name, name, prompts)

    def from_features(self, bundle: Bundle) -> Bundle:
        """The features that the protocol uses of a stored bundle."""
        return bundle

    def build(
        self,
        suite: Suite,
        sources: Sequence[Source],
        model: FewShotClassifier,
        prompts: Prompts,
        rows: Rows | None = None,
    ) -> tuple[Bundle, Rows | None]:
        """Compute the features: of all test pictures, and of those training pictures that a draw takes.

        Args:
            suite: the study.
            sources: one data set; several for a protocol that combines them.
            model: makes features and class text.
            prompts: how the class text is made.
            rows: rows of the first data set to use in place of a draw, by (shots, seed).

        Returns:
            The features, and the drawn rows; None for the latter if they are drawn from the bundle's support.

        Raises:
            InputError: if the protocol needs other data sets, or there are no such rows.
            DataError: if labels do not go together, or no picture can be read.
        """
        raise NotImplementedError

    def fits(self, suite: Suite, bundle: Bundle, rows: Rows | None, folder: str) -> Iterator[Fit]:
        """Every fit of a suite on some features.

        Args:
            suite: the study.
            bundle: the features.
            rows: the drawn rows of the data set by (shots, seed); None to draw from the support.
            folder: where the features are stored.
        """
        heads = heads_for(suite, bundle)
        draws = self.draws(suite, bundle) if rows is None else rows
        for n in suite.shots:
            for seed in suite.seeds:
                drawn = list(draws[n, seed])
                for variant, head in heads:
                    spec = FitSpec(
                        bundle=folder,
                        protocol=suite.protocol,
                        options=suite.options,
                        variant=variant,
                        shots=n,
                        seed=seed,
                        rows=drawn,
                    )
                    runs = self.plan_runs(spec, bundle, seeded(head, seed))
                    yield (
                        spec,
                        [(run.key, name) for run, name in zip(runs, self.test_names(suite, bundle), strict=True)],
                    )

    def draws(self, suite: Suite, bundle: Bundle) -> Rows:
        """The rows that a suite draws from the support of a bundle, by (shots, seed)."""
        return draws_of(suite, bundle.support.y)

    def test_names(self, suite: Suite, bundle: Bundle) -> Sequence[str]:
        """Names of the test parts that a fit is measured on; a record for each."""
        return bundle.names

    def plan_runs(self, spec: FitSpec, bundle: Bundle, head: Head) -> list[Run]:
        """The records of a fit before it is made, one for each test part."""
        return planned(bundle, spec.variant.title, head, spec.shots, spec.seed, spec.rows)

    def perform(self, spec: FitSpec, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """Fit a head and measure it: the planned records with their figures."""
        return perform(bundle, head, runs)


def heads_for(suite: Suite, bundle: Bundle) -> list[tuple[Variant, Head]]:
    """The variants of a suite for the data set of a bundle, each with its unfitted head."""
    data = str(bundle.support.provenance.get("data", ""))
    variants = [variant.for_data(data) for variant in suite.all_variants()]
    return [(variant, make_head(variant)) for variant in variants]
