"""``clipadapter fit``."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.fit_options import HeadChoice, Prompts, Views, head_options, prompt_options, training_view_options
from clipadapter.cli.options import (
    FOLDER,
    Towers,
    encoder_options,
    open_dataset,
    output_options,
    seed_option,
    split_option,
    strict_option,
)
from clipadapter.cli.output import Output, facts
from clipadapter.cli.uncertainty_options import Learned, learned_options, told
from clipadapter.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset


@click.command(epilog="Example: clipadapter fit shots/ --out model/ --shots 16 --set alpha=0.2")
@click.argument("data", type=FOLDER)
@click.option("--out", "folder", type=FOLDER, required=True, help="Folder for the model; a model in it is replaced.")
@encoder_options
@head_options
@click.option(
    "--shots", type=click.IntRange(1), metavar="K", help="Draw this many pictures a class; all are taken without it."
)
@seed_option
@split_option
@training_view_options
@prompt_options
@click.option(
    "--unlabelled", type=FOLDER, help="Pictures that will be asked for, without labels; for transductive heads."
)
@learned_options
@click.option("--no-support", is_flag=True, help="Leave the shots' features out of the model.")
@strict_option
@output_options
def command(
    data: Path,
    folder: Path,
    towers: Towers,
    head: HeadChoice,
    shots: int | None,
    seed: int,
    split: str | None,
    views: Views,
    prompts: Prompts,
    unlabelled: Path | None,
    learned: Learned,
    no_support: bool,
    strict: bool,
    out: Output,
) -> None:
    """Fit a classifier to the pictures in DATA and save it.

    Without --split the part "train" is taken if there is one, else everything. A class with fewer pictures than
    --shots gives all it has.
    """
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.features import PER_EPOCH

    started = time.monotonic()
    dataset = prompts.rename(open_dataset(data, split, default="train"))
    labels: Sequence[str] | Sequence[tuple[str, ...]] = dataset.label_sets if dataset.multilabel else dataset.labels
    rows = _rows(dataset, shots, seed, out)
    descriptions = prompts.read_descriptions(dataset.class_names)
    params, grid, spec = head.params(), head.grid(), views.training_spec(seed)
    others, outliers = _unlabelled(head, unlabelled), learned.pictures()
    uncertainty = learned.options(dataset.class_names)
    _check_folder(folder)
    encoder = towers.open(out)
    model = FewShotClassifier(
        encoder,
        head.head,
        head_params=params,
        grid=grid,
        uncertainty=uncertainty,
        templates=prompts.templates,
        descriptions=descriptions,
        views=spec,
        seed=seed,
        backend=towers.backend,
        precision=towers.precision,
        cache=towers.store,
        batch_size=towers.batch_size,
        progress=out.progress,
        strict=strict,
    )
    paths, shot_labels = [dataset.samples[i].path for i in rows], [labels[i] for i in rows]
    if views.views == PER_EPOCH:
        _report_cost(model, paths, shot_labels, dataset.class_names, out)
    model.fit(paths, shot_labels, dataset.class_names, others, outliers)
    towers.tell(encoder, model.encoder_, out)
    model.save(folder, support=not no_support)
    model.make_quick(folder)
    _report(model, head, learned, folder, time.monotonic() - started, out)


def _rows(dataset: Dataset, shots: int | None, seed: int, out: Output) -> Sequence[int]:
    """The pictures to learn from; tells of classes that have too few."""
    from clipadapter.data import draw_multilabel_shots, draw_shots

    if shots is None:
        return range(len(dataset.samples))
    counts = Counter(name for names in dataset.label_sets for name in names)
    few = [f"{name} ({count})" for name, count in counts.items() if count < shots]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        out.warn(f"fewer than {shots} pictures in {', '.join(few[:5])}{more}: all of them are taken")
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
    """Say what views for each epoch cost before the first is computed, and the time once two pictures were timed."""
    cost = model.view_cost(paths, labels, class_names)
    cost.check()
    out.note(f"views: {cost}")
    timed = model.view_cost(paths, labels, class_names, measure=True)
    if timed.time:
        out.note(f"views: about {timed.time} if none of them is cached")


def _unlabelled(head: HeadChoice, folder: Path | None) -> list[Path] | None:
    """Pictures without labels; refuses before the work a head that needs them, or takes none."""
    from clipadapter.data import load_dataset

    needed = head.make().transductive
    if needed and folder is None:
        raise InputError(
            f"{head.head} is transductive: give the pictures that it will be asked for, --unlabelled FOLDER"
        )
    if folder is not None and not needed:
        raise InputError(f"{head.head} learns from labelled pictures only: leave --unlabelled out")
    return None if folder is None else load_dataset(folder).paths


def _check_folder(folder: Path) -> None:
    """Refuse before the work a folder that saving would refuse after it."""
    from clipadapter.persistence import History, check_target_folder

    try:
        check_target_folder(folder)
    except OSError as error:
        raise ArtifactError(f"can't write {folder}: {error.strerror}") from error
    if (folder / "config.json").is_file():
        History.load(folder).check()
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(f"can't write {folder}: {place} is no folder that you may write to")


def _report(
    model: FewShotClassifier, head: HeadChoice, learned: Learned, folder: Path, seconds: float, out: Output
) -> None:
    facts_of, support, info = model.support_.provenance, model.support_, model.encoder_.info
    shots = support.counts
    skipped = facts_of["skipped"]
    out.skipped(skipped)
    for name in (name for name, count in shots.items() if not count):
        out.warn(f"the class '{name}' has no picture that can be read: only its text stands for it")
    trusted, words, warnings = told(model.uncertainty_, learned.calibration)
    for text in warnings:
        out.warn(text)
    least, most = min(shots.values()), max(shots.values())
    result: dict[str, Any] = {
        "model": str(folder),
        "classes": list(shots),
        "shots": shots,
        "head": {"name": head.head, "params": model.head_.get_params(deep=False)},
        "selection": _selection(model),
        "encoder": {"name": info.name, "dim": info.dim, "licence": info.licence, "fingerprint": info.fingerprint},
        "uncertainty": trusted,
        "views": facts_of["views"],
        "crop": facts_of.get("crop"),
        "computed": facts_of["computed"],
        "skipped": [{"source": name, "reason": reason} for name, reason in skipped],
        "seconds": round(seconds, 2),
    }
    lines = [
        ("model", folder),
        ("classes", len(shots)),
        ("pictures", f"{least} a class" if least == most else f"{least} to {most} a class, {len(support)} in all"),
        ("skipped", len(skipped)),
        ("head", head.head + _chosen(model)),
        *words,
        ("encoder", f"{info.name} (width {info.dim}, licence {info.licence})"),
        ("seconds", f"{seconds:.1f}"),
    ]
    out.result(result, facts(lines))


def _selection(model: FewShotClassifier) -> dict[str, Any] | None:
    """How the values of a grid did on held-out shots, for machines."""
    found = model.selection_
    if found is None:
        return None
    keys = ("name", "loss", "behind", "error", "accuracy", "seconds")
    candidates = [{key: getattr(one, key) for key in keys} for one in found.candidates]
    return {"how": found.strategy, "held_out": found.n_held_out, "seconds": found.seconds, "candidates": candidates}


def _chosen(model: FewShotClassifier) -> str:
    """The same for people."""
    found = model.selection_
    if found is None:
        return ""
    best = found.candidates[0]
    next_best = f"; next {found.candidates[1].name}" if len(found.candidates) > 1 else ""
    behind = f" (log-loss {found.candidates[1].behind:+.3f} ± {found.candidates[1].error:.3f})" if next_best else ""
    return (
        f", {best.name}: best of {len(found.candidates)} on {found.n_held_out} held-out shots by {found.strategy}, "
        f"{found.seconds:.1f} s{next_best}{behind}"
    )
