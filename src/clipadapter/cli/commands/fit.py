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
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.commands.eval import describe_evaluation, warn_about
from clipadapter.cli.encoder_options import EncoderOptions, note_backend, note_encoders
from clipadapter.cli.fit_options import HeadOptions, PromptOptions, TrainingViewOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import find_unwritable_parent, list_unlabelled, open_dataset
from clipadapter.cli.option_types import COUNT, FOLDER, FOLDER_OR_URI, FRACTION
from clipadapter.cli.options import option_group, output_options, seed_option, split_option, strict_option
from clipadapter.cli.output import Output, facts, note_kept
from clipadapter.cli.shard_inputs import open_shards
from clipadapter.cli.uncertainty_options import UncertaintyArguments, describe_accuracy, report_uncertainty
from clipadapter.errors import ArtifactError, InputError
from clipadapter.utils.formatting import describe_shots, format_count, format_list, format_seconds
from clipadapter.utils.progress import estimates_reported_to

if TYPE_CHECKING:
    from clipadapter.bench import ModelEvaluation
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset

MAX_NAMED_CLASSES = 5


@cli_command(
    "clipadapter fit shots/ --out model/ --shots 16 --set alpha=0.2",
    first=(
        "--out",
        "--encoder",
        "--quality",
        "--head",
        "--shots",
        "--test-fraction",
        "--reject",
        "--class-names",
        "--json",
    ),
)
@click.argument("data", type=FOLDER_OR_URI)
@click.option(
    "--out",
    "folder",
    type=FOLDER,
    default="model",
    show_default=True,
    help="Folder for the model; a model that is in it stays as an earlier version.",
)
@option_group("encoder_options", EncoderOptions)
@option_group("head", HeadOptions)
@click.option("--shots", type=COUNT, metavar="K", help="Draw K pictures per class; by default all are used.")
@click.option(
    "--test-fraction",
    type=FRACTION,
    metavar="F",
    help="Keep this fraction of the pictures of each class, such as 0.2, to measure the model on. --seed draws them.",
)
@seed_option
@split_option
@option_group("views", TrainingViewOptions)
@option_group("prompts", PromptOptions)
@click.option(
    "--unlabelled",
    type=FOLDER,
    help="Folder of pictures without labels. The default head, auto, can use them; ss-text-u, stata, transclip and "
    "zlap need them; no other head takes them.",
)
@option_group("uncertainty", UncertaintyArguments)
@click.option(
    "--no-support",
    is_flag=True,
    help=(
        "Do not store the features of the shots beside the head, nor the names of their files. Heads that compare with "
        "shots, such as auto and tip-adapter, may have features of their own: then a warning says so."
    ),
)
@strict_option
@output_options
def command(
    data: Path | str,
    folder: Path,
    encoder_options: EncoderOptions,
    head: HeadOptions,
    shots: int | None,
    test_fraction: float | None,
    seed: int,
    split: str | None,
    views: TrainingViewOptions,
    prompts: PromptOptions,
    unlabelled: Path | None,
    uncertainty: UncertaintyArguments,
    no_support: bool,
    strict: bool,
    out: Output,
) -> None:
    """Fit a classifier to the pictures in DATA and save it.

    Without --split the split "train" is taken if there is one, else everything. If a class has fewer pictures than
    --shots, all of them are used. DATA may also be a folder or URI of feature shards, see
    docs/guides/many-pictures.md: then only the features of the shots are read, and no picture.
    """
    started = time.monotonic()
    head.check_names()
    head.check_encoders(encoder_options.uris)
    head.check_unlabelled(unlabelled is not None, early=True)
    unlabelled_pictures = None if unlabelled is None else list_unlabelled(unlabelled)
    version_before = _check_folder(folder)
    before = "no model was saved" if version_before is None else f"the model in {folder} is as it was"
    note_kept(f"{before}; {encoder_options.kept}")
    shards = open_shards(data)
    pictures = open_dataset(Path(data), split, default="train") if shards is None else shards.list_dataset(split)
    if shards is not None:
        encoder_options = shards.check_options(encoder_options, head, views, unlabelled, uncertainty.outliers)
    has_test = split is None and shards is None and _has_test_pictures(data)
    dataset, held_back = prompts.rename_classes(pictures), None
    if test_fraction is not None:
        if has_test or shards is not None:
            has = (
                "test pictures: leave it out, and measure with 'clipadapter eval'"
                if has_test
                else "features, no pictures: leave it out"
            )
            raise InputError(f"--test-fraction is for pictures without a split, but '{data}' has {has}")
        if dataset.multilabel:
            raise InputError(
                f"--test-fraction divides pictures by their class, but pictures of '{data}' have several labels: leave "
                "it out"
            )
        dataset, held_back = _hold_back(dataset, test_fraction, seed)
    labels: Sequence[str] | Sequence[tuple[str, ...]] = dataset.label_sets if dataset.multilabel else dataset.labels
    rows = _draw_rows(dataset, shots, seed, out)
    prompt_parameters, spec = prompts.classifier_parameters(dataset.class_names), views.training_spec(seed)
    head_parameters = head.classifier_parameters()
    head.check_unlabelled(unlabelled is not None)
    outliers = uncertainty.outlier_pictures()
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
    from clipadapter.export.cached import export_to_cache

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


def _hold_back(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide pictures into those to learn from and test pictures, whose name says how they were drawn."""
    from clipadapter.data.splits import hold_back

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

    Args:
        head: with its parameters.
        counts: shots of each class.
        before: what an interrupted command leaves in the folder of the model.
        out: where it is noted.
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
    """Refuse, before the work, a folder that saving would refuse after it.

    Returns:
        The version of the model in the folder; None if there is none.
    """
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
    uncertainty = report_uncertainty(model.uncertainty_, calibration)
    for text in uncertainty.warnings:
        out.warn(text)
    accuracy = model.uncertainty_.accuracy
    result: dict[str, Any] = {
        "model": str(folder),
        "version": versions[1],
        "previous_version": versions[0],
        "classes": list(shots),
        "shots": shots,
        "head": {"name": head.name, "params": model.head_.get_params(deep=False)},
        "selection": _selection_record(model),
        "chosen": _chosen_values(model),
        "unlabelled": _unlabelled_record(model, n_unlabelled),
        "encoder": {"name": info.name, "dim": info.dim, "licence": info.licence, "fingerprint": info.fingerprint},
        "quality": quality,
        "blocks": _block_records(model),
        "passes": [{"image_size": one.info.image_size} for one in model.encoder_.passes()],
        "uncertainty": uncertainty.data,
        "accuracy": None if accuracy is None else accuracy.to_dict(),
        "evaluation": None if measured is None else measured.to_dict(),
        "descriptions": _descriptions_record(model),
        "views": provenance["views"],
        "crop": provenance.get("crop"),
        "computed": provenance["computed"],
        "skipped": [{"source": name, "reason": reason} for name, reason in skipped],
        "seconds": round(seconds, 2),
    }
    lines = [
        ("model", folder if versions[0] is None else f"{folder}, version {versions[1]} (was {versions[0]})"),
        ("classes", len(shots)),
        ("pictures", describe_shots(shots, len(support))),
        ("skipped", len(skipped)),
        ("head", head.name + _describe_selection(model)),
        *_describe_chosen(model),
        *_describe_unlabelled(model, n_unlabelled),
        *_describe_descriptions(model),
        *uncertainty.lines,
        ("encoder", f"{split_blocks(info.name)[0]} (width {info.dim}, licence {info.licence})"),
        *_describe_blocks(model),
        ("seconds", f"{seconds:.1f}"),
        ("accuracy", describe_accuracy(model)),
        ("next", shlex.join(["clipadapter", *following])),
    ]
    out.result(result, facts(lines) + ("" if measured is None else f"\n\n{describe_evaluation(measured)}"))


def _has_test_pictures(data: Path | str) -> bool:
    """Whether a data set has test pictures, which `clipadapter eval` takes."""
    from clipadapter.data.folders import find_split_folders
    from clipadapter.data.load import read_listing

    source = Path(data)
    if not source.is_dir():
        return "test" in read_listing(source).dataset.splits
    return "test" in find_split_folders([path.name for path in source.iterdir() if path.is_dir()]).values()


def _chosen_values(model: FewShotClassifier) -> dict[str, float]:
    """Return the numbers that the head chose for its parameters that are "auto"; it stores them as ``NAME_``."""
    state, parameters = model.head_.state(), model.head_.get_params(deep=False)
    chosen = {name: state.get(f"{name}_") for name, value in parameters.items() if value == "auto"}
    return {name: float(value) for name, value in chosen.items() if value is not None and value.ndim == 0}


def _describe_chosen(model: FewShotClassifier) -> list[tuple[str, str]]:
    """Describe the same for people."""
    values = [f"{name} {value:.3g}" for name, value in _chosen_values(model).items()]
    return [("chosen", f"{', '.join(values)} (set to auto)")] if values else []


def _descriptions_record(model: FewShotClassifier) -> dict[str, int] | None:
    """Return how many classes have sentences in place of templates, and how many sentences; None without any."""
    from clipadapter.data import clean_name

    if not model.descriptions:
        return None
    classes = {clean_name(name) for name in model.descriptions}
    return {"classes": len(classes), "sentences": sum(map(len, model.descriptions.values()))}


def _describe_descriptions(model: FewShotClassifier) -> list[tuple[str, str]]:
    """Describe the same for people."""
    record = _descriptions_record(model)
    if record is None:
        return []
    text = (
        f"{format_count(record['sentences'], 'sentence')} for {record['classes']} of {len(model.class_names_)} classes"
    )
    return [("descriptions", text)]


def _unlabelled_record(model: FewShotClassifier, n_unlabelled: int) -> dict[str, Any] | None:
    """Return what the pictures without labels contributed, as JSON; None without any."""
    if not n_unlabelled:
        return None
    state = model.head_.state()
    facts = {name: state.get(f"unlabelled_{name}_") for name in ("share", "gain")}
    numbers = {name: None if value is None else float(value) for name, value in facts.items()}
    return {"pictures": n_unlabelled, **numbers, "summary": model.head_.describe_unlabelled()}


def _describe_unlabelled(model: FewShotClassifier, n_unlabelled: int) -> list[tuple[str, str]]:
    """Describe the same for people."""
    if not n_unlabelled:
        return []
    how = model.head_.describe_unlabelled()
    return [("unlabelled", format_count(n_unlabelled, "picture") + (f", {how}" if how else ""))]


def _block_records(model: FewShotClassifier) -> list[dict[str, Any]]:
    """Return the blocks of features that the model reads, with their shares in the logits, as JSON."""
    shares = model.head_.block_shares() or {}
    return [
        {"name": block.name, "width": block.width, "share": shares.get(block.name)} for block in model.head_.read_blocks
    ]


def _describe_blocks(model: FewShotClassifier) -> list[tuple[str, str]]:
    """Describe for people what the model looks at, and what a prediction costs."""
    from clipadapter.encoders import describe_passes

    dropped, shares = model.dropped_blocks_, model.head_.block_shares() or {}
    names = [block.name for block in model.head_.read_blocks]
    if len(names) == 1 and not dropped:
        return []
    listed = ", ".join(f"{name} {shares[name]:.0%}" if name in shares else name for name in names)
    unused = f"; not used: {', '.join(dropped)}" if dropped else ""
    return [("looks at", f"{listed}{unused}"), ("prediction", describe_passes(model.encoder_))]


def _selection_record(model: FewShotClassifier) -> dict[str, Any] | None:
    """Return the losses of the values of a grid on held-out shots, as JSON."""
    selection = model.selection_
    if selection is None:
        return None
    keys = ("name", "loss", "excess_loss", "standard_error", "accuracy", "seconds")
    candidates = [{key: getattr(candidate, key) for key in keys} for candidate in selection.candidates]
    return {
        "strategy": selection.strategy,
        "held_out": selection.n_held_out,
        "seconds": selection.seconds,
        "candidates": candidates,
    }


def _describe_selection(model: FewShotClassifier) -> str:
    """Describe the same for people."""
    selection = model.selection_
    if selection is None:
        return ""
    best, *others = selection.candidates
    runner_up = ""
    if others:
        second = others[0]
        runner_up = f"; next {second.name} (log-loss {second.excess_loss:+.3f} ± {second.standard_error:.3f})"
    return (
        f", {best.name}: best of {len(selection.candidates)} on {selection.n_held_out} held-out shots by "
        f"{selection.strategy}, {selection.seconds:.1f} s{runner_up}"
    )
