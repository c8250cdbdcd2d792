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

from clipadapter import bench, encoders, features, persistence
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, flag, option, options_of
from clipadapter.cli.inputs import list_pictures, rename_classes
from clipadapter.cli.options import Count, FolderOrUri, Fraction
from clipadapter.cli.output import Fact, Output, note_kept
from clipadapter.cli.outputs import check_output_folder
from clipadapter.data import Dataset, Sample, clean_name, draw_multilabel_shots, draw_shots
from clipadapter.data.load import load_labelled
from clipadapter.data.splits import hold_back
from clipadapter.errors import InputError
from clipadapter.heads.registry import head_name
from clipadapter.utils.files import SHARDS_FILE
from clipadapter.utils.formatting import describe_shots, format_count, format_list, format_seconds
from clipadapter.utils.progress import estimates_reported_to

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapter.classifier import FewShotClassifier
    from clipadapter.features import FeatureTable
    from clipadapter.uncertainty import Uncertainty

FEW_HELD_OUT_SHOTS = 10  # with fewer held-out shots a person is told that they say little of the calibration


@cli_command(
    "clipadapter fit shots/ --out model/ --shots 16 --set alpha=0.2",
    first="--out --encoder --quality --head --shots --test-fraction --reject --class-names --json",
)
def command(
    out: Output,
    data: FolderOrUri = argument(),
    folder: Path = option(
        "--out", "Folder for the model; a model that is in it stays as an earlier version.", default="model"
    ),
    encoder_options: options.EncoderOptions = options_of(options.EncoderOptions),
    head: options.HeadOptions = options_of(options.HeadOptions),
    shots: Count | None = option("--shots K", "Draw K pictures per class; by default all are used."),
    test_fraction: Fraction | None = option(
        "--test-fraction F",
        "Keep this fraction of the pictures of each class, such as 0.2, to measure the model on. --seed draws them.",
    ),
    seed: int = options.seed_option,
    split: str | None = options.split_option,
    views: options.ViewOptions = options_of(options.ViewOptions),
    prompts: options.PromptOptions = options_of(options.PromptOptions),
    unlabelled: Path | None = option(
        "--unlabelled",
        "Folder of pictures without labels. The default head, auto, can use them; ss-text-u, stata, transclip and "
        "zlap need them; no other head takes them.",
    ),
    uncertainty: options.UncertaintyArguments = options_of(options.UncertaintyArguments),
    no_support: bool = flag(
        "--no-support",
        "Do not store the features of the shots beside the head, nor the names of their files. Heads that compare "
        "with shots, such as auto and tip-adapter, may have features of their own: then a warning says so.",
    ),
    strict: bool = options.strict_option,
) -> None:
    """Fit a classifier to the pictures in DATA and save it.

    Without --split the split "train" is taken if there is one, else everything. If a class has fewer pictures than
    --shots, all of them are used. DATA may also be a folder or URI of feature shards, see
    docs/guides/many-pictures.md: then only the features of the shots are read, and no picture.
    """
    started = time.monotonic()
    head.check(encoder_options.uris, unlabelled is not None)
    without_labels = None if unlabelled is None else list_pictures(unlabelled, "--unlabelled")
    version_before = _check_folder(folder)
    before = "no model was saved" if version_before is None else f"the model in {folder} is as it was"
    note_kept(before, and_features=True)
    dataset, shards, has_test = _open_data(data, split, prompts.class_names)
    if shards is not None:
        used = {"views": views.views != 1, "unlabelled": unlabelled is not None, "outliers": bool(uncertainty.outliers)}
        encoder_options = _check_shards(shards, encoder_options, head, [name for name in used if used[name]])
    held_back = None
    if test_fraction is not None:
        if shards is not None or has_test:
            has = "features, no pictures" if shards is not None else "test pictures"
            raise InputError(f"--test-fraction is for pictures without a split, but '{data}' has {has}: leave it out")
        dataset, held_back = _hold_back(dataset, test_fraction, seed, data)
    rows = _draw_rows(dataset, shots, seed, out)
    labels: Sequence[str] | Sequence[tuple[str, ...]] = dataset.label_sets if dataset.multilabel else dataset.labels
    paths, shot_labels = [dataset.samples[i].path for i in rows], [labels[i] for i in rows]
    parameters = {
        **prompts.classifier_parameters(dataset.class_names),
        "views": views.spec(seed),
        **head.classifier_parameters(),
        "uncertainty": uncertainty.options(dataset.class_names),
        "seed": seed,
        "strict": strict,
    }
    outliers = None if uncertainty.outliers is None else list_pictures(uncertainty.outliers)
    model = encoder_options.create_classifier(out, **parameters)
    opened = model.encoder_
    if "auto" not in encoder_options.uris:
        options.note_encoder(opened, out)
    if views.views == "per-epoch":
        shots_to_see = (paths, shot_labels, dataset.class_names)
        cost = model.view_cost(*shots_to_see)
        cost.check()
        out.note(f"views: {cost}")
        longest = model.view_cost(*shots_to_see, measure=True).time
        out.note(f"views: about {longest} if none of them is cached" if longest else "")
    _note_training(head, [shot_labels.count(name) for name in dataset.class_names], before, out)
    with estimates_reported_to(partial(_note_estimate, out)):
        if shards is None:
            model.fit(paths, shot_labels, dataset.class_names, without_labels, outliers)
        else:
            own_rows = _shard_rows(shards, split)[list(rows)]
            _fit_to_shards(model, shards, own_rows, list(map(str, shot_labels)), dataset.class_names)
    options.note_backend(opened, model.encoder_, out, "encoder" if model.head_.tunes_encoder else "image tower")
    model.save(folder, support=not no_support)
    note_kept(f"the model is saved in {folder}")
    evaluation, measured = None, ""
    if held_back is not None:
        from clipadapter.cli.commands.eval import describe_evaluation, warn_about

        evaluation = bench.evaluate_model(model, held_back, curve=False, progress=out.progress)
        warn_about(evaluation, out)
        measured = describe_evaluation(evaluation)
        persistence.record_evaluation(folder, evaluation.to_dict())
    _warn_about_fit(model, paths, without_labels, out)
    version, seconds = model.history_.version, time.monotonic() - started
    changed = "" if version_before is None else f", version {version} (was {version_before})"
    following = ["predict", str(folder), "PICTURES"] if evaluation else ["eval", str(folder), *[str(data)] * has_test]
    facts = [
        Fact("model", str(folder), f"{folder}{changed}"),
        Fact("version", version),
        Fact("previous_version", version_before),
        *_model_facts(model, head.name, uncertainty.calibration, len(paths), len(without_labels or ())),
        Fact("seconds", round(seconds, 2), f"{seconds:.1f}"),
        accuracy_fact(model),
        Fact("evaluation", evaluation and evaluation.to_dict()),
        Fact("", text=shlex.join(["clipadapter", *following]), name="next"),
    ]
    out.facts(facts, measured)
    export_for_predict(model, folder)


def export_for_predict(model: FewShotClassifier, folder: Path) -> None:
    """Write the file with which `predict` answers without torch, while a person reads the result of a command."""
    # Otherwise the first `predict` does that: a tower that is not in memory may take many seconds to load.
    is_loaded = bool(model.support_.provenance.get("computed"))
    if is_loaded or all(encoders.plain_encoder(each).builds_quickly for each in model.encoder_.passes()):
        from clipadapter.runtime.export.exporter import export_to_cache

        note_kept(f"the model is saved in {folder}; its first predict will take longer")
        export_to_cache(model, folder)


def _hold_back(dataset: Dataset, fraction: float, seed: int, data: Path | str) -> tuple[Dataset, Dataset]:
    """Divide pictures into those to learn from and test pictures, whose name says how they were drawn."""
    if dataset.multilabel:
        raise InputError(f"--test-fraction divides classes, but pictures of '{data}' have several labels: leave it out")
    train, test = hold_back(dataset.labels, fraction, seed)
    if not test:
        raise InputError("--test-fraction needs two pictures of a class or more, but each class has one")
    name = f"{dataset.name} (--test-fraction {fraction:g} --seed {seed})"
    parts = [tuple(dataset.samples[i] for i in rows) for rows in (train, test)]
    return replace(dataset, samples=parts[0]), replace(dataset, samples=parts[1], name=name)


def _draw_rows(dataset: Dataset, shots: int | None, seed: int, out: Output) -> Sequence[int]:
    """Draw the shots, and warn of classes that have too few pictures."""
    counts = Counter(name for names in dataset.label_sets for name in names)
    if shots is None:
        single = [name for name, count in counts.items() if count == 1]
        if 0 < len(single) < len(counts):
            out.warn(f"one picture only in {format_list(single)}: give two or more of each class")
        return range(len(dataset.samples))
    small = [f"{name} ({count})" for name, count in counts.items() if count < shots]
    if small:
        out.warn(f"fewer than {shots} pictures in {format_list(small)}: all of them are used")
    if dataset.multilabel:
        return draw_multilabel_shots(dataset.label_sets, shots, seed)
    return draw_shots(dataset.labels, shots, seed)


def _note_training(head: options.HeadOptions, counts: Sequence[int], before: str, out: Output) -> None:
    """Note how many steps a head makes through a tower, which may take hours, before the first one."""
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


def _note_estimate(out: Output, seconds: float, steps: int, steps_before: int) -> None:
    """Note how long a training will take; a progress bar says it itself."""
    if not out.progress:
        begun = f"training continues after step {steps_before:,}" if steps_before else "training"
        out.note(f"{begun}: about {format_seconds(seconds)} for the {format_count(steps, 'step')} that are left")


def _check_folder(folder: Path) -> int | None:
    """Refuse, before the work, a folder that saving would refuse after it. The version of the model in it, if any."""
    persistence.check_target_folder(folder)
    check_output_folder(folder)
    if not (folder / "config.json").is_file():
        return None
    history = persistence.History.load(folder)
    history.check()
    return history.version


# ---- What is said of a fitted model ----


def _warn_about_fit(
    model: FewShotClassifier, paths: Sequence[Path], without_labels: Sequence[Path] | None, out: Output
) -> None:
    """Warn of pictures and classes that the model lacks, and of rates that its shots can't guarantee."""
    if without_labels is not None and model.head_.transductive:  # it learns from nothing else
        shots = {os.path.realpath(path) for path in paths}
        if shots.issuperset(os.path.realpath(path) for path in without_labels):
            pictures = format_count(len(without_labels), "picture")
            out.warn(f"--unlabelled: all {pictures} are shots: give pictures that are none, such as those to classify")
    provenance, uncertainty = model.support_.provenance, model.uncertainty_
    out.skipped(provenance["skipped"])
    for name, count in model.support_.counts.items():
        if not count:
            out.warn(f"the class '{name}' has no readable picture: the model knows only its text")
    if (provenance.get("quality") or {}).get("why"):
        out.note(f"the model {provenance['quality']['why']}")
    options.warn_about_rates(uncertainty, uncertainty.decisions.reject, uncertainty.decisions.coverage, out)


def _model_facts(
    model: FewShotClassifier, name: str, calibration: str, n_shots: int, n_without_labels: int
) -> list[Fact]:
    """What a model was fitted to, by which head, and what it learned.

    ``calibration`` and the numbers of pictures, some of which may be unreadable, are as the user gave them.
    """
    provenance, shots = model.support_.provenance, model.support_.counts
    info, state = model.encoder_.info, model.head_.state()
    learned = _uncertainty_facts(model.uncertainty_, calibration)
    # A number that is "auto" is stored as NAME_ once it is chosen.
    parameters = model.head_.get_params(deep=False)
    own = {key: state.get(f"{key}_") for key, value in parameters.items() if value == "auto"}
    chosen = {key: float(value) for key, value in own.items() if value is not None and value.ndim == 0}
    values = ", ".join(f"{key} {value:.3g}" for key, value in chosen.items())
    selection, selected = _describe_selection(model)

    pool = pool_text = None
    n_unlabelled = n_without_labels - (len(provenance["skipped"]) - (n_shots - len(model.support_)))
    if n_unlabelled:
        numbers = {key: state.get(f"unlabelled_{key}_") for key in ("share", "gain")}
        summary = model.head_.describe_unlabelled()
        shown = {key: None if value is None else float(value) for key, value in numbers.items()}
        pool = {"pictures": n_unlabelled, **shown, "summary": summary}
        pool_text = format_count(n_unlabelled, "picture") + (f", {summary}" if summary else "")
    sentences = sentences_text = None
    if model.descriptions:
        sentences = {
            "classes": len(set(map(clean_name, model.descriptions))),
            "sentences": sum(map(len, model.descriptions.values())),
        }
        of = f"for {sentences['classes']} of {len(model.class_names_)} classes"
        sentences_text = f"{format_count(sentences['sentences'], 'sentence')} {of}"

    shares, blocks = model.head_.block_shares() or {}, model.head_.read_blocks
    listed = cost = None
    if len(blocks) > 1 or model.dropped_blocks_:
        names = (f"{one.name} {shares[one.name]:.0%}" if one.name in shares else one.name for one in blocks)
        unused = f"; not used: {', '.join(model.dropped_blocks_)}" if model.dropped_blocks_ else ""
        listed, cost = f"{', '.join(names)}{unused}", encoders.describe_passes(model.encoder_)
    skipped = [{"source": source, "reason": reason} for source, reason in provenance["skipped"]]
    return [
        Fact("classes", list(shots), len(shots)),
        Fact("shots", shots, describe_shots(shots, len(model.support_)), "pictures"),
        Fact("skipped", skipped, len(skipped)),
        Fact("head", {"name": name, "params": parameters}, f"{name}{selected}"),
        Fact("selection", selection),
        Fact("chosen", chosen, f"{values} (set to auto)" if values else None),
        Fact("unlabelled", pool, pool_text),
        Fact("descriptions", sentences, sentences_text),
        Fact("uncertainty", {fact.key: fact.value for fact in learned}),
        *(Fact("", text=fact.text, name=fact.name or fact.key) for fact in learned),
        Fact(
            "encoder",
            {"name": info.name, "dim": info.dim, "licence": info.licence, "fingerprint": info.fingerprint},
            f"{encoders.split_blocks(info.name)[0]} (width {info.dim}, licence {info.licence})",
        ),
        Fact("quality", provenance.get("quality")),
        Fact(
            "blocks",
            [{"name": block.name, "width": block.width, "share": shares.get(block.name)} for block in blocks],
            listed,
            "looks at",
        ),
        Fact("passes", [{"image_size": one.info.image_size} for one in model.encoder_.passes()], cost, "prediction"),
        Fact("views", provenance["views"]),
        Fact("crop", provenance.get("crop")),
        Fact("computed", provenance["computed"]),
    ]


def _describe_selection(model: FewShotClassifier) -> tuple[dict[str, object] | None, str]:
    """The losses of the values of a grid on held-out shots, for JSON and for people; nothing without a grid."""
    selection = model.selection_
    if not selection:
        return None, ""
    keys = ("name", "loss", "excess_loss", "standard_error", "accuracy", "seconds")
    record = {
        "strategy": selection.strategy,
        "held_out": selection.n_held_out,
        "seconds": selection.seconds,
        "candidates": [{key: getattr(one, key) for key in keys} for one in selection.candidates],
    }
    best, *others = selection.candidates
    text = (
        f", {best.name}: best of {len(selection.candidates)} on {selection.n_held_out} held-out shots by "
        f"{selection.strategy}, {selection.seconds:.1f} s"
    )
    for second in others[:1]:
        text += f"; next {second.name} (log-loss {second.excess_loss:+.3f} ± {second.standard_error:.3f})"
    return record, text


def _uncertainty_facts(uncertainty: Uncertainty, calibration: str) -> list[Fact]:
    """Calibration, rejection and prediction sets of a fitted model."""
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


def accuracy_fact(model: FewShotClassifier) -> Fact:
    """How often a model is right about held-out shots, or why that is not known; only in JSON without any shots."""
    counts, accuracy = model.support_.counts, model.uncertainty_.accuracy
    text: str | None = None
    if accuracy is not None:
        n_single = sum(count == 1 for count in counts.values())
        text = accuracy.describe() + (f"; classes with one picture, not held out: {n_single}" if n_single else "")
    elif model.uncertainty_.multilabel is not None:
        text = "not known: pictures with several labels are measured on others, by 'clipadapter eval'"
    elif max(counts.values()) <= 1:
        text = "not known: with one picture per class none can be held out; give two or more of each class"
    else:
        text = f"not known: {head_name(type(model.head_))} is not fitted again without some of the shots"
    return Fact("accuracy", accuracy and accuracy.to_dict(), text if len(model.support_) else None)


# ---- Feature shards ----


def _open_data(
    data: Path | str, split: str | None, class_names: Path | None
) -> tuple[Dataset, FeatureTable | None, bool]:
    """The pictures to learn from, the shards if they are rows of these, and whether there are test pictures beside."""
    if isinstance(data, Path) and not (data / SHARDS_FILE).is_file():
        pictures, splits = load_labelled(data, split, "train")
        return rename_classes(pictures, class_names), None, split is None and "test" in splits
    shards = features.open_feature_table(data)
    labels = shards.labels(_shard_rows(shards, split))
    # Names of pictures are read for the shots only. One path for all keeps a row at a hundred bytes.
    place = Path(shards.name)
    samples = tuple(Sample(place, label, split or "all") for label in labels)
    pictures = Dataset(shards.name, place, samples, tuple(sorted(set(labels))))
    return rename_classes(pictures, class_names), shards, False


def _shard_rows(shards: FeatureTable, split: str | None) -> NDArray[np.int64]:
    """The rows of a split; without a name of "train", if there is one, else all."""
    return shards.rows(split or ("train" if "train" in shards.splits else None))


def _check_shards(
    shards: FeatureTable, encoder: options.EncoderOptions, head: options.HeadOptions, for_pictures: Sequence[str]
) -> options.EncoderOptions:
    """Refuse what needs pictures. Returns the options with the encoder of the shards, unless another is named."""
    if for_pictures:
        raise InputError(f"--{for_pictures[0]} needs pictures, but '{shards.path}' holds features: leave it out")
    kind = head.create()
    if kind.needs_tower or kind.tunes_encoder:
        raise InputError(f"the head {head.name} trains through the encoder and needs pictures, not features")
    return replace(encoder, uris=(str(shards.encoder),)) if encoder.uris == ("auto",) else encoder


def _fit_to_shards(
    model: FewShotClassifier, shards: FeatureTable, rows: NDArray[np.int64], labels: list[str], names: Sequence[str]
) -> None:
    """Fit a classifier, whose encoder gives the class text, to some rows of shards."""
    info = model.encoder_.info
    if info.fingerprint != shards.fingerprint:
        raise InputError(
            f"the features of '{shards.path}' are of the encoder '{shards.encoder}' with weights other than "
            f"those of '{info.name}' on this machine: install the same weights and leave --encoder out"
        )
    support = replace(shards.take(rows, with_sources=True), y=tuple(labels), class_names=tuple(names))
    model.fit_features(support, model.encode_classes(names)).drop_unused_blocks()
