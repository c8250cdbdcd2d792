"""``clipadapter fit``."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.cli.commands.eval import describe_evaluation, warn_about
from clipadapter.cli.encoder_options import EncoderOptions, note_backend, note_encoders
from clipadapter.cli.fit_options import HeadOptions, PromptOptions, TrainingViewOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import find_unwritable_parent, list_pictures
from clipadapter.cli.options import (
    COUNT,
    FOLDER,
    FOLDER_OR_URI,
    FRACTION,
    argument,
    option,
    options_of,
    seed_option,
    split_option,
    strict_option,
)
from clipadapter.cli.output import Fact, Output, note_kept
from clipadapter.cli.uncertainty_options import (
    UncertaintyArguments,
    describe_accuracy,
    uncertainty_facts,
    warn_about_rates,
)
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.utils.files import SHARDS_FILE
from clipadapter.utils.formatting import describe_shots, format_count, format_list, format_seconds
from clipadapter.utils.progress import estimates_reported_to

if TYPE_CHECKING:
    from clipadapter.bench.evaluation import ModelEvaluation
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset
    from clipadapter.features import FeatureTable

MAX_NAMED_CLASSES = 5


@cli_command(
    "clipadapter fit shots/ --out model/ --shots 16 --set alpha=0.2",
    first="--out --encoder --quality --head --shots --test-fraction --reject --class-names --json",
)
def command(
    out: Output,
    data: Path | str = argument(type=FOLDER_OR_URI),
    folder: Path = option(
        "--out",
        type=FOLDER,
        default="model",
        help="Folder for the model; a model that is in it stays as an earlier version.",
    ),
    encoder_options: EncoderOptions = options_of(EncoderOptions),
    head: HeadOptions = options_of(HeadOptions),
    shots: int | None = option(
        "--shots", type=COUNT, metavar="K", help="Draw K pictures per class; by default all are used."
    ),
    test_fraction: float | None = option(
        "--test-fraction",
        type=FRACTION,
        metavar="F",
        help="Keep this fraction of the pictures of each class, such as 0.2, to measure the model on. --seed draws "
        "them.",
    ),
    seed: int = seed_option,
    split: str | None = split_option,
    views: TrainingViewOptions = options_of(TrainingViewOptions),
    prompts: PromptOptions = options_of(PromptOptions),
    unlabelled: Path | None = option(
        "--unlabelled",
        type=FOLDER,
        help="Folder of pictures without labels. The default head, auto, can use them; ss-text-u, stata, transclip and "
        "zlap need them; no other head takes them.",
    ),
    uncertainty: UncertaintyArguments = options_of(UncertaintyArguments),
    no_support: bool = option(
        "--no-support",
        default=False,
        is_flag=True,
        help="Do not store the features of the shots beside the head, nor the names of their files. Heads that compare "
        "with shots, such as auto and tip-adapter, may have features of their own: then a warning says so.",
    ),
    strict: bool = strict_option,
) -> None:
    """Fit a classifier to the pictures in DATA and save it.

    Without --split the split "train" is taken if there is one, else everything. If a class has fewer pictures than
    --shots, all of them are used. DATA may also be a folder or URI of feature shards, see
    docs/guides/many-pictures.md: then only the features of the shots are read, and no picture.
    """
    started = time.monotonic()
    head.check_names()
    head.check_encoders(encoder_options.uris)
    head.check_unlabelled(unlabelled is not None)
    unlabelled_pictures = None if unlabelled is None else list_pictures(unlabelled, "--unlabelled")
    version_before = _check_folder(folder)
    before = "no model was saved" if version_before is None else f"the model in {folder} is as it was"
    note_kept(f"{before}; {encoder_options.kept}")
    shards, has_test = open_shards(data), False
    if shards is None:
        from clipadapter.data.load import load_with_splits

        pictures, splits = load_with_splits(Path(data), split, "train")
        has_test = split is None and "test" in splits
    else:
        pictures = shards.list_dataset(split)
        encoder_options = shards.check_options(encoder_options, head, views, unlabelled, uncertainty.outliers)
    dataset, held_back = prompts.rename_classes(pictures), None
    if test_fraction is not None:
        if has_test:
            _refuse_fraction(data, "test pictures: leave it out, and measure with 'clipadapter eval'")
        if shards is not None:
            _refuse_fraction(data, "features, no pictures: leave it out")
        dataset, held_back = _hold_back(dataset, test_fraction, seed, data)
    labels: Sequence[str] | Sequence[tuple[str, ...]] = dataset.label_sets if dataset.multilabel else dataset.labels
    rows = _draw_rows(dataset, shots, seed, out)
    prompt_parameters, spec = prompts.classifier_parameters(dataset.class_names), views.training_spec(seed)
    head_parameters = head.classifier_parameters()
    outliers = None if uncertainty.outliers is None else list_pictures(uncertainty.outliers)
    uncertainty_options = uncertainty.options(dataset.class_names)
    parameters = {"uncertainty": uncertainty_options, "views": spec, "seed": seed, "strict": strict}
    model = encoder_options.create_classifier(out, **head_parameters, **prompt_parameters, **parameters)
    opened = model.encoder_
    if "auto" not in encoder_options.uris:
        note_encoders([opened], out)
    paths, shot_labels = [dataset.samples[i].path for i in rows], [labels[i] for i in rows]
    if not isinstance(views.views, int):
        _report_cost(model, paths, shot_labels, dataset.class_names, out)
    _report_training(head, [shot_labels.count(name) for name in dataset.class_names], before, out)
    with estimates_reported_to(partial(_report_estimate, out)):
        if shards is None:
            model.fit(paths, shot_labels, dataset.class_names, unlabelled_pictures, outliers)
        else:
            shards.fit(model, rows, [str(label) for label in shot_labels], dataset.class_names)
    if unlabelled_pictures is not None and model.head_.transductive:
        _warn_if_all_are_shots(paths, unlabelled_pictures, out)
    note_backend(opened, model.encoder_, out, "encoder" if model.head_.tunes_encoder else "image tower")
    from clipadapter.export.exporter import export_to_cache

    model.save(folder, support=not no_support)
    note_kept(f"the model is saved in {folder}")
    export_to_cache(model, folder)
    versions = (version_before, model.history_.version)
    skipped_shots = len(paths) - len(model.support_)
    n_unlabelled = len(unlabelled_pictures or ()) - (len(model.support_.provenance["skipped"]) - skipped_shots)
    measured = None if held_back is None else _measure(model, held_back, folder, out)
    following = ["predict", str(folder), "PICTURES"] if measured else ["eval", str(folder), *([str(data)] * has_test)]
    seconds = time.monotonic() - started
    _report(model, head, uncertainty.calibration, folder, versions, n_unlabelled, seconds, measured, following, out)


def _refuse_fraction(data: Path | str, has: str) -> None:
    raise InputError(f"--test-fraction is for pictures without a split, but '{data}' has {has}")


def _hold_back(dataset: Dataset, fraction: float, seed: int, data: Path | str) -> tuple[Dataset, Dataset]:
    """Divide pictures into those to learn from and test pictures, whose name says how they were drawn."""
    from clipadapter.data.splits import hold_back

    if dataset.multilabel:
        raise InputError(
            f"--test-fraction divides pictures by their class, but pictures of '{data}' have several labels: leave it "
            "out"
        )
    train, test = hold_back(dataset.labels, fraction, seed)
    if not test:
        raise InputError("--test-fraction needs two pictures of a class or more, but each class has one")
    name = f"{dataset.name} (--test-fraction {fraction:g} --seed {seed})"
    parts = [tuple(dataset.samples[i] for i in rows) for rows in (train, test)]
    return replace(dataset, samples=parts[0]), replace(dataset, samples=parts[1], name=name)


def _measure(model: FewShotClassifier, pictures: Dataset, folder: Path, out: Output) -> ModelEvaluation:
    """Measure the saved model on the pictures that were held back, and record the figures in it and its card."""
    from clipadapter.bench import evaluate_model
    from clipadapter.persistence import record_evaluation

    result = evaluate_model(model, pictures, curve=False, progress=out.progress)
    warn_about(result, out)
    record_evaluation(folder, result.to_dict())
    return result


def _draw_rows(dataset: Dataset, shots: int | None, seed: int, out: Output) -> Sequence[int]:
    """Draw the shots, and warn of classes that have too few pictures."""
    from clipadapter.data import draw_multilabel_shots, draw_shots

    counts = Counter(name for names in dataset.label_sets for name in names)
    if shots is None:
        single = [name for name, count in counts.items() if count == 1]
        if 0 < len(single) < len(counts):
            out.warn(f"one picture only in {format_list(single, MAX_NAMED_CLASSES)}: give two or more of each class")
        return range(len(dataset.samples))
    small = [f"{name} ({count})" for name, count in counts.items() if count < shots]
    if small:
        more = f" and {len(small) - MAX_NAMED_CLASSES} more" if len(small) > MAX_NAMED_CLASSES else ""
        out.warn(f"fewer than {shots} pictures in {', '.join(small[:MAX_NAMED_CLASSES])}{more}: all of them are used")
    if dataset.multilabel:
        return draw_multilabel_shots(dataset.label_sets, shots, seed)
    return draw_shots(dataset.labels, shots, seed)


def _report_cost(
    model: FewShotClassifier,
    paths: Sequence[Path],
    labels: Sequence[str | tuple[str, ...]],
    class_names: Sequence[str],
    out: Output,
) -> None:
    """Note the cost of per-epoch views before the first is computed, then the time as measured on two pictures."""
    cost = model.view_cost(paths, labels, class_names)
    cost.check()
    out.note(f"views: {cost}")
    measured = model.view_cost(paths, labels, class_names, measure=True)
    if measured.time:
        out.note(f"views: about {measured.time} if none of them is cached")


def _report_training(head: HeadOptions, counts: Sequence[int], before: str, out: Output) -> None:
    """Note how many steps a head makes through a tower, which may take hours, before the first one.

    `before` is what an interrupted command leaves in the folder of the model.
    """
    kind = head.create()
    if not (kind.needs_tower or kind.tunes_encoder):
        return
    from clipadapter.tuners.prompt_tuner import PromptTuner
    from clipadapter.tuners.tower_tuner import TowerTuner

    if isinstance(kind, PromptTuner | TowerTuner) and any(counts):
        out.note(f"training {head.name}: {kind.describe_training(counts)}")
        if kind.checkpoint is not None:
            every = f"a checkpoint every {kind.checkpoint:g} s"
            note_kept(f"{before}; the training keeps {every}, and the same command continues from the last one")


def _report_estimate(out: Output, seconds: float, steps: int, steps_before: int) -> None:
    """Note how long a training will take; a progress bar says it itself."""
    if not out.progress:
        begun = f"training continues after step {steps_before:,}" if steps_before else "training"
        out.note(f"{begun}: about {format_seconds(seconds)} for the {format_count(steps, 'step')} that are left")


def _warn_if_all_are_shots(paths: Sequence[Path], unlabelled: Sequence[Path], out: Output) -> None:
    """Warn if every picture without a label is a shot: a transductive head then has nothing new to learn from."""
    shots = {os.path.realpath(path) for path in paths}
    if shots.issuperset(os.path.realpath(path) for path in unlabelled):
        pictures = format_count(len(unlabelled), "picture")
        out.warn(f"--unlabelled: all {pictures} are shots: give pictures that are none, such as those to classify")


def _check_folder(folder: Path) -> int | None:
    """Refuse, before the work, a folder that saving would refuse after it. The version of the model in it, if any."""
    from clipadapter.persistence import History, check_target_folder

    try:
        check_target_folder(folder)
    except OSError as error:
        raise ArtifactError(f"can't write {folder}: {error.strerror}") from error
    if blocked := find_unwritable_parent(folder):
        raise ArtifactError(f"can't write {folder}: {blocked} is not a folder that you may write to")
    if not (folder / "config.json").is_file():
        return None
    history = History.load(folder)
    history.check()
    return history.version


def _report(
    model: FewShotClassifier,
    head: HeadOptions,
    calibration: str,
    folder: Path,
    versions: tuple[int | None, int],
    n_unlabelled: int,
    seconds: float,
    measured: ModelEvaluation | None,
    following: Sequence[str],
    out: Output,
) -> None:
    from clipadapter.encoders import split_blocks

    provenance, support, info = model.support_.provenance, model.support_, model.encoder_.info
    shots = support.counts
    skipped = provenance["skipped"]
    out.skipped(skipped)
    for name in (name for name, count in shots.items() if not count):
        out.warn(f"the class '{name}' has no readable picture: the model knows only its text")
    quality = provenance.get("quality")
    if quality and quality["why"]:
        out.note(f"the model {quality['why']}")
    uncertainty, accuracy = model.uncertainty_, model.uncertainty_.accuracy
    warn_about_rates(uncertainty, uncertainty.decisions.reject, uncertainty.decisions.coverage, out)
    learned = uncertainty_facts(uncertainty, calibration)
    changed = "" if versions[0] is None else f", version {versions[1]} (was {versions[0]})"
    facts = [
        Fact("model", str(folder), f"{folder}{changed}"),
        Fact("version", versions[1]),
        Fact("previous_version", versions[0]),
        Fact("classes", list(shots), len(shots)),
        Fact("shots", shots, describe_shots(shots, len(support)), "pictures"),
        Fact("skipped", [{"source": name, "reason": reason} for name, reason in skipped], len(skipped)),
        *_head_facts(model, head.name),
        _unlabelled_fact(model, n_unlabelled),
        _descriptions_fact(model),
        Fact("uncertainty", {fact.key: fact.value for fact in learned}),
        *(Fact("", text=fact.text, name=fact.name or fact.key) for fact in learned),
        Fact(
            "encoder",
            {"name": info.name, "dim": info.dim, "licence": info.licence, "fingerprint": info.fingerprint},
            f"{split_blocks(info.name)[0]} (width {info.dim}, licence {info.licence})",
        ),
        Fact("quality", quality),
        *_block_facts(model),
        Fact("views", provenance["views"]),
        Fact("crop", provenance.get("crop")),
        Fact("computed", provenance["computed"]),
        Fact("seconds", round(seconds, 2), f"{seconds:.1f}"),
        Fact("accuracy", accuracy and accuracy.to_dict(), describe_accuracy(model)),
        Fact("evaluation", measured and measured.to_dict()),
        Fact("", text=shlex.join(["clipadapter", *following]), name="next"),
    ]
    out.facts(facts, "" if measured is None else describe_evaluation(measured))


def _head_facts(model: FewShotClassifier, name: str) -> list[Fact]:
    """The head, the losses of the values of a grid on held-out shots, and the numbers that it chose itself."""
    text, record, parameters, state = name, None, model.head_.get_params(deep=False), model.head_.state()
    if selection := model.selection_:
        keys = ("name", "loss", "excess_loss", "standard_error", "accuracy", "seconds")
        record = {
            "strategy": selection.strategy,
            "held_out": selection.n_held_out,
            "seconds": selection.seconds,
            "candidates": [{key: getattr(one, key) for key in keys} for one in selection.candidates],
        }
        best, *others = selection.candidates
        text += (
            f", {best.name}: best of {len(selection.candidates)} on {selection.n_held_out} held-out shots by "
            f"{selection.strategy}, {selection.seconds:.1f} s"
        )
        text += "".join(
            f"; next {second.name} (log-loss {second.excess_loss:+.3f} ± {second.standard_error:.3f})"
            for second in others[:1]
        )
    # A number that is "auto" is stored as NAME_ once it is chosen.
    found = {key: state.get(f"{key}_") for key, value in parameters.items() if value == "auto"}
    chosen = {key: float(value) for key, value in found.items() if value is not None and value.ndim == 0}
    values = ", ".join(f"{key} {value:.3g}" for key, value in chosen.items())
    return [
        Fact("head", {"name": name, "params": parameters}, text),
        Fact("selection", record),
        Fact("chosen", chosen, f"{values} (set to auto)" if values else None),
    ]


def _unlabelled_fact(model: FewShotClassifier, n_unlabelled: int) -> Fact:
    """What the pictures without labels contributed."""
    if not n_unlabelled:
        return Fact("unlabelled")
    state, summary = model.head_.state(), model.head_.describe_unlabelled()
    found = {name: state.get(f"unlabelled_{name}_") for name in ("share", "gain")}
    numbers = {name: None if value is None else float(value) for name, value in found.items()}
    text = format_count(n_unlabelled, "picture") + (f", {summary}" if summary else "")
    return Fact("unlabelled", {"pictures": n_unlabelled, **numbers, "summary": summary}, text)


def _descriptions_fact(model: FewShotClassifier) -> Fact:
    """How many classes have sentences in place of templates, and how many sentences."""
    from clipadapter.data import clean_name

    if not model.descriptions:
        return Fact("descriptions")
    n_classes, n = len(set(map(clean_name, model.descriptions))), sum(map(len, model.descriptions.values()))
    text = f"{format_count(n, 'sentence')} for {n_classes} of {len(model.class_names_)} classes"
    return Fact("descriptions", {"classes": n_classes, "sentences": n}, text)


def _block_facts(model: FewShotClassifier) -> list[Fact]:
    """The blocks of features that the model reads, with their shares in the logits, and what a prediction costs."""
    from clipadapter.encoders import describe_passes

    shares, blocks = model.head_.block_shares() or {}, model.head_.read_blocks
    records = [{"name": block.name, "width": block.width, "share": shares.get(block.name)} for block in blocks]
    passes = [{"image_size": one.info.image_size} for one in model.encoder_.passes()]
    listed = cost = None
    if len(blocks) > 1 or model.dropped_blocks_:
        names = (f"{one.name} {shares[one.name]:.0%}" if one.name in shares else one.name for one in blocks)
        unused = f"; not used: {', '.join(model.dropped_blocks_)}" if model.dropped_blocks_ else ""
        listed, cost = f"{', '.join(names)}{unused}", describe_passes(model.encoder_)
    return [Fact("blocks", records, listed, "looks at"), Fact("passes", passes, cost, "prediction")]


def open_shards(source: Path | str) -> ShardInput | None:
    """Open a folder of shards; None if the source has another form."""
    if isinstance(source, Path) and not (source / SHARDS_FILE).is_file():
        return None
    from clipadapter.features import open_feature_table

    return ShardInput(open_feature_table(source))


class ShardInput:
    """A folder of shards that a classifier is fitted to."""

    def __init__(self, shards: FeatureTable) -> None:
        self._shards = shards

    def list_dataset(self, split: str | None) -> Dataset:
        """The pictures of a split; without a name of "train", if there is one, else of all."""
        from clipadapter.data import Dataset, Sample

        shards = self._shards
        self._rows = shards.rows(split or ("train" if "train" in shards.splits else None))
        labels = shards.labels(self._rows)
        names = tuple(sorted(set(labels)))
        if len(names) < 2:
            raise DataError(f"'{shards.path}' has only one class, '{names[0]}', but at least two are needed")
        # Names of pictures are read for the shots only. One path for all keeps a row at a hundred bytes.
        place = Path(shards.name)
        samples = tuple(Sample(place, label, split or "all") for label in labels)
        return Dataset(shards.name, place, samples, names)

    def check_options(
        self,
        encoder: EncoderOptions,
        head: HeadOptions,
        views: TrainingViewOptions,
        unlabelled: Path | None,
        outliers: Path | None,
    ) -> EncoderOptions:
        """Refuse what needs pictures. Returns the options with the encoder of the shards, unless another is named."""
        used = {"--views": views.views != 1, "--unlabelled": unlabelled is not None, "--outliers": outliers is not None}
        names = [name for name, is_used in used.items() if is_used]
        if names:
            raise InputError(f"{names[0]} needs pictures, but '{self._shards.path}' holds features: leave it out")
        kind = head.create()
        if kind.needs_tower or kind.tunes_encoder:
            raise InputError(f"the head {head.name} trains through the encoder and needs pictures, not features")
        return replace(encoder, uris=(str(self._shards.encoder),)) if encoder.uris == ("auto",) else encoder

    def fit(self, model: FewShotClassifier, positions: Sequence[int], labels: list[str], names: Sequence[str]) -> None:
        """Fit a classifier, whose encoder gives the class text, to the shots at some positions in the data set."""
        shards, info = self._shards, model.encoder_.info
        if info.fingerprint != shards.fingerprint:
            raise InputError(
                f"the features of '{shards.path}' are of the encoder '{shards.encoder}' with weights other than "
                f"those of '{info.name}' on this machine: install the same weights and leave --encoder out"
            )
        support = replace(
            shards.take(self._rows[list(positions)], with_sources=True), y=tuple(labels), class_names=tuple(names)
        )
        model.fit_features(support, model.encode_classes(names)).drop_unused_blocks()
