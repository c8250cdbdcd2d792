"""The base of all protocols: few-shot fits, measured on every test part of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fitting import FitInputs, plan_fit, run_fit
from clipadapter.bench.methods import clone_with_seed
from clipadapter.bench.plan import FitSpec, PlannedFit, Rows, draw_all_shots
from clipadapter.bench.run import Run
from clipadapter.bench.sources import (
    DataSetSize,
    Source,
    apply_prompts,
    check_features,
    extract_dataset,
    extract_drawn_shots,
    load_feature_bundle,
    require_test_part,
)
from clipadapter.bench.suite import Prompts, Suite, Variant, make_head
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.heads import Head


@dataclass(frozen=True, eq=False)
class SuiteInputs:
    """What a suite is run on.

    Args:
        suite: the suite.
        sources: data sets; a text is ``features:FOLDER``.
        encoders: by the name that tables show; they make features and class text.
    """

    suite: Suite
    sources: Sequence[Source | str]
    encoders: Mapping[str, FewShotClassifier]


@dataclass(frozen=True, eq=False)
class ProtocolInputs:
    """What one bundle is built from.

    Args:
        suite: the suite.
        sources: one data set; several for a protocol that combines them.
        model: makes features and class text.
        prompts: how the class text is made.
    """

    suite: Suite
    sources: Sequence[Source]
    model: FewShotClassifier
    prompts: Prompts

    def model_for(self, source: Source) -> FewShotClassifier:
        """The model with the prompts for a data set."""
        return apply_prompts(self.suite, self.model, self.prompts, source)


@dataclass(frozen=True, eq=False)
class BundleOfFits:
    """Features, and the fits on them.

    Args:
        bundle: features and class text.
        plan: gives the fits, from the folder that the features are stored in.
        data: the data set as the user named it.
        encoder: the encoder as the user named it.
        prompts: how the class text was made.
    """

    bundle: Bundle
    plan: Callable[[str], Iterator[PlannedFit]]
    data: str
    encoder: str
    prompts: Prompts


SEPARATE_PART_TEXT = "given: the test part stands apart from what the shots are drawn from"
NEW_CLASSES_TEXT = "new: other classes than those of the shots, known by their text alone"


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
    options: ClassVar[Mapping[str, int]] = {}
    """Options that ``[options]`` of a suite may set, with their defaults."""

    def check_suite(self, suite: Suite) -> None:
        """Refuse a suite with settings that do not suit the protocol.

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

    def used_size(self, size: DataSetSize) -> DataSetSize:
        """The size of what the protocol uses of a data set, for estimates of the cost."""
        return size

    def fits_per_draw(self, suite: Suite, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """Number of fits of a head for one draw of shots, for estimates of the cost.

        Args:
            suite: the suite.
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

    def bundles(self, inputs: SuiteInputs) -> Iterator[BundleOfFits]:
        """Compute the features of a suite, and plan the fits on them.

        Raises:
            InputError: if the protocol needs other data sets.
            DataError: if data can't be read.
        """
        suite = inputs.suite
        self.check_sources(suite, inputs.sources)
        for spec in (source for source in inputs.sources if isinstance(source, str)):
            bundle, drawn = self.load_features(suite, spec)
            data, prompts = Path(spec.partition(":")[2]).name, suite.prompts[0]
            yield BundleOfFits(bundle, partial(self.fits, suite, bundle, drawn), data, bundle.encoder.name, prompts)
        pictures = [source for source in inputs.sources if not isinstance(source, str)]
        groups = [pictures] if self.combines_data_sets and pictures else [[source] for source in pictures]
        for group in groups:
            for name, model in inputs.encoders.items():
                for prompts in suite.prompts:
                    bundle, drawn = self.build(ProtocolInputs(suite, group, model, prompts))
                    yield BundleOfFits(bundle, partial(self.fits, suite, bundle, drawn), group[0].name, name, prompts)

    def load_features(self, suite: Suite, spec: str) -> tuple[Bundle, Rows | None]:
        """Load the features of ``features:FOLDER``, and the rows of the draws; None to draw from the support."""
        bundle = load_feature_bundle(spec, suite)
        assert bundle is not None
        return self.from_features(bundle), None

    def from_features(self, bundle: Bundle) -> Bundle:
        """The features that the protocol uses of a stored bundle."""
        return bundle

    def build(self, inputs: ProtocolInputs) -> tuple[Bundle, Rows | None]:
        """Compute the features: of all test pictures, and of those training pictures that a draw takes.

        Returns:
            The features, and the drawn rows; None for the latter if they are drawn from the bundle's support.

        Raises:
            InputError: if the protocol needs other data sets.
            DataError: if labels do not match, or no picture can be read.
        """
        raise NotImplementedError

    def fits(self, suite: Suite, bundle: Bundle, rows: Rows | None, folder: str) -> Iterator[PlannedFit]:
        """Every fit of a suite on some features.

        Args:
            suite: the suite.
            bundle: the features.
            rows: the drawn rows of the data set by (shots, seed); None to draw from the support.
            folder: where the features are stored.
        """
        heads = create_heads(suite, bundle)
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
                    runs = self.plan_runs(spec, bundle, clone_with_seed(head, seed))
                    names = self.test_names(suite, bundle)
                    yield PlannedFit(spec, [(run.key, name) for run, name in zip(runs, names, strict=True)])

    def draws(self, suite: Suite, bundle: Bundle) -> Rows:
        """The rows that a suite draws from the support of a bundle, by (shots, seed)."""
        return draw_all_shots(suite, bundle.support.y)

    def test_names(self, suite: Suite, bundle: Bundle) -> Sequence[str]:
        """Names of the test parts that a fit is measured on; there is a record for each."""
        return bundle.names

    def plan_runs(self, spec: FitSpec, bundle: Bundle, head: Head) -> list[Run]:
        """The records of a fit before it is made, one for each test part."""
        return plan_fit(bundle, fit_inputs(spec, head))

    def perform(self, spec: FitSpec, bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        """Fit a head and measure it. Returns the planned records with their metrics."""
        return run_fit(bundle, head, runs)


class TransferProtocol(Protocol):
    """Shots from the first data set; a test part from its test pictures, and one from each of the other data sets."""

    combines_data_sets = True

    def check_sources(self, suite: Suite, sources: Sequence[Source | str]) -> None:
        """As `Protocol.check_sources`; the first data set needs a test part, and there must be another one."""
        super().check_sources(suite, sources)
        if len(sources) < 2:
            raise InputError(
                f"protocol '{suite.protocol}' measures heads on other data sets than that of the shots, but there is "
                "only one: give --data once more"
            )
        for first in (source for source in sources[:1] if isinstance(source, Source)):
            require_test_part(suite, first)

    def fits_per_draw(self, suite: Suite, sizes: Sequence[DataSetSize], transductive: bool) -> int:
        """As `Protocol.fits_per_draw`; each data set has a test part."""
        return len(sizes) if transductive else 1

    def build(self, inputs: ProtocolInputs) -> tuple[Bundle, Rows | None]:
        """As `Protocol.build`."""
        first, *others = inputs.sources
        test, names = require_test_part(inputs.suite, first), first.train.class_names
        model = inputs.model_for(first)
        support, positions, drawn = extract_drawn_shots(inputs.suite, model, first.train, names)
        tests = {"test": TestPart(extract_dataset(model, test, names))}
        # The model with the prompts of the first data set has the settings of the suite.
        prepared = replace(inputs, model=model)
        for other in others:
            tests[other.spec] = self.build_transfer_part(prepared, other)
        return Bundle(support, model.encode_classes(names), tests, positions), drawn

    def build_transfer_part(self, inputs: ProtocolInputs, source: Source) -> TestPart:
        """The test part of a data set that gives no shots.

        Args:
            inputs: of the suite; the model is that of the first data set.
            source: the data set.

        Raises:
            DataError: if its classes do not match those of the shots.
        """
        raise NotImplementedError


def fit_inputs(spec: FitSpec, head: Head) -> FitInputs:
    """What a fit is planned from: the draw of a specification, and its unfitted head."""
    return FitInputs(spec.variant.title, head, spec.shots, spec.seed, spec.rows)


def create_heads(suite: Suite, bundle: Bundle) -> list[tuple[Variant, Head]]:
    """The variants of a suite for the data set of a bundle, each with its unfitted head."""
    data = str(bundle.support.provenance.get("data", ""))
    variants = [variant.for_data(data) for variant in suite.all_variants()]
    return [(variant, make_head(variant)) for variant in variants]
