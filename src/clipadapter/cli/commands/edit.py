"""The commands that change a model, and those that list and undo changes."""

from __future__ import annotations

import getpass
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter import persistence
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import list_pictures
from clipadapter.cli.options import Count, File
from clipadapter.cli.output import Fact, Output, note_kept, table
from clipadapter.data import load_dataset, read_class_names
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.heads.registry import HEADS, refuse_update
from clipadapter.runtime.engines.formats import is_exported
from clipadapter.utils.files import MANIFEST_SUFFIXES, explain_missing, quote_path
from clipadapter.utils.formatting import describe_shots, format_count, format_list

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

NO_LABEL = "a picture alone has no label: give --label NAME, or one folder per class"
Labels = Sequence[str] | Sequence[tuple[str, ...]]


author_option = option("--by NAME", "Author of the change, for the history; by default the login name.", heading="")


@dataclass(frozen=True, eq=False, repr=False)
class EditOptions(options.ModelEncoderOptions):
    """The options of the commands that change a model."""

    author: str | None = author_option
    strict: bool = options.strict_option

    def apply(self, folder: Path, out: Output, change: Callable[[FewShotClassifier, str], Any]) -> None:
        """Load a model, change it (with the name of the author), save it as its next version, and report the change."""
        if is_exported(folder) and folder.is_file():
            raise ArtifactError(f"{folder} is an exported file, which can't be changed: give the folder of its model")
        from clipadapter.cli.commands import fit  # late: `undo` and `history` need no fit

        # Before an encoder is opened, and without an import of torch.
        name = persistence.read_config(folder).head.name
        declared = HEADS.info(name).attributes if name in HEADS.list() else {}
        traits = {trait: bool(declared.get(trait)) for trait in ("transductive", "tunes_encoder")}
        refuse_update(name, **traits, model=folder)
        note_kept(f"the model in {folder} is as it was", and_features=True)
        started = time.monotonic()
        model = self.load(folder, strict=self.strict, progress=out.progress)
        version, shots_before = model.history_.version, model.support_.counts
        has_shots = len(model.support_) > 0
        change(model, find_author(self.author))
        out.skipped(model.skipped_)
        if model.history_.version == version:
            data = {"model": str(folder), "version": version, "changed": False}
            out.result(data, f"{folder}: nothing changed")
            return
        model.save(folder, support=has_shots)
        note_kept(f"the model is saved in {folder}")
        _report_change(model, folder, time.monotonic() - started, fit.accuracy_fact(model), out)
        for name, count in model.support_.counts.items():
            if not count and shots_before.get(name):
                remove = shlex.join(["clipadapter", "remove-class", str(folder), name])
                out.warn(f"class '{name}' has no shots left: undo the change, or remove the class with: {remove}")
        fit.export_for_predict(model, folder)


@cli_command("clipadapter add-class model/ 'snow leopard' photos/snow-leopard/")
def add_class(
    out: Output,
    model: Path = argument(),
    name: str = argument(),
    inputs: tuple[Path, ...] = argument(metavar="PICTURES..."),
    sentences: tuple[str, ...] = option(
        "--text SENTENCE", "Description of the class in place of the templates. May be repeated."
    ),
    edit: EditOptions = options_of(EditOptions),
) -> None:
    """Add a class to a model, from pictures or folders of pictures.

    The pictures that the model was fitted to are not needed, since the model stores their features. The new class is
    the last one. The folder then has a new version of the model; 'clipadapter undo' goes back.
    """
    pictures = _collect_pictures(inputs)
    edit.apply(model, out, lambda m, author: m.add_class(name, pictures, descriptions=sentences or None, by=author))


@cli_command("clipadapter add-examples model/ more/    or: ... model/ a.jpg b.jpg --label lynx")
def add_examples(
    out: Output,
    model: Path = argument(),
    inputs: tuple[Path, ...] = argument(metavar="DATA..."),
    label: str | None = option("--label NAME", "Class of all pictures, whatever their folders are called."),
    class_names: File | None = options.class_names_option,
    edit: EditOptions = options_of(EditOptions),
) -> None:
    """Add pictures of its classes to a model.

    DATA is a folder with one folder per class, or a table, as for fit; with --label pictures, or folders of pictures.
    Pictures that the model has already are left out, so that a growing folder can be given again.
    """
    paths, labels = _read_labelled(inputs, label, class_names)
    edit.apply(model, out, lambda m, author: m.add_examples(paths, labels, by=author))


def _read_labelled(inputs: Sequence[Path], label: str | None, class_names: Path | None) -> tuple[list[Path], Labels]:
    names = {} if class_names is None else read_class_names(class_names)
    if label is not None:
        if names:
            raise InputError("--label sets the class of all pictures, so --class-names has no effect: leave one out")
        pictures = _collect_pictures(inputs)
        return pictures, [label] * len(pictures)
    if any(path.is_file() and path.suffix.lower() not in MANIFEST_SUFFIXES for path in inputs):
        raise InputError(NO_LABEL)
    paths: list[Path] = []
    labels: list[str | tuple[str, ...]] = []
    for path in inputs:
        dataset = load_dataset(path, one_class=True)
        if not dataset.class_names:
            raise InputError(NO_LABEL)
        if "train" in dataset.splits:
            dataset = dataset.split("train")
        dataset = dataset.rename({name: new for name, new in names.items() if name in dataset.class_names})
        paths += dataset.paths
        labels += dataset.label_sets if dataset.multilabel else dataset.labels
    return paths, labels  # type: ignore[return-value]


@cli_command("clipadapter correct model/ photo.jpg --label lynx")
def correct(
    out: Output,
    model: Path = argument(),
    inputs: tuple[Path, ...] = argument(metavar="PICTURES..."),
    labels: tuple[str, ...] = option(
        "--label NAME",
        "Right class of the pictures. May be repeated if pictures may have several labels.",
        required=True,
    ),
    edit: EditOptions = options_of(EditOptions),
) -> None:
    """Correct the labels of pictures, and refit the model.

    A picture among the shots of the model gets the new label, even if its file was moved. Any other picture becomes a
    new shot.
    """
    pictures = _collect_pictures(inputs)

    def relabel(classifier: FewShotClassifier, author: str) -> None:
        is_multilabel = classifier.support_.targets is not None
        if len(labels) > 1 and not is_multilabel:
            raise InputError(f"a picture has one class in this model, but got {' and '.join(labels)}")
        classifier.correct(pictures, [labels if is_multilabel else labels[0]] * len(pictures), by=author)

    edit.apply(model, out, relabel)


@cli_command("clipadapter rename-class model/ lynx 'Eurasian lynx'")
def rename_class(
    out: Output,
    model: Path = argument(),
    name: str = argument(),
    new: str = argument(),
    edit: EditOptions = options_of(EditOptions, without=["strict"]),
) -> None:
    """Rename a class of a model from NAME to NEW.

    The model is refitted with prompts of the new name. Sentences that were written for the class stay as they are.
    """
    edit.apply(model, out, lambda m, author: m.rename_class(name, new, by=author))


@cli_command("clipadapter remove-class model/ fox")
def remove_class(
    out: Output,
    model: Path = argument(),
    name: str = argument(),
    edit: EditOptions = options_of(EditOptions, without=["strict"]),
) -> None:
    """Remove a class and its shots from a model.

    Where pictures may have several labels, they remain shots of their other classes.
    """
    edit.apply(model, out, lambda m, author: m.remove_class(name, by=author))


def find_author(name: str | None) -> str:
    """Return the name, or the login name if it is None."""
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody is logged in, as in a container
        return ""


def _collect_pictures(inputs: Sequence[Path]) -> list[Path]:
    """The pictures of files, folders and tables; the name of a data set is no input: it would become one class."""
    pictures: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path} does not exist{explain_missing(path, 'pictures, or folders with pictures')}")
        is_picture = path.is_file() and path.suffix.lower() not in MANIFEST_SUFFIXES
        pictures += [path] if is_picture else list_pictures(path)
    return pictures


def _report_change(model: FewShotClassifier, folder: Path, seconds: float, accuracy: Fact, out: Output) -> None:
    change, shots = model.history_.changes[-1], model.support_.counts
    stored = describe_shots(shots, len(model.support_))
    if not len(model.support_):
        stored = "not stored: rejection, prediction sets and accuracy were learned for other classes, and are removed"
    out.facts(
        [
            Fact("model", str(folder), f"{folder}, version {change.version}"),
            Fact("version", change.version),
            Fact("changed", True),
            Fact("action", change.action, describe_change(change), "change"),
            *(Fact(key, value) for key, value in change.facts.items()),
            Fact("classes", list(model.class_names_), len(model.class_names_)),
            Fact("shots", shots, stored),
            Fact("seconds", round(seconds, 2), f"{seconds:.1f}"),
            accuracy,
            Fact("", text=f"clipadapter undo {quote_path(folder)}", name="undo"),
        ]
    )


def describe_change(change: persistence.Change) -> str:
    """Describe what was changed in a few words."""
    facts, action = dict(change.facts), change.action
    text = action + (f" '{facts['class']}'" if "class" in facts else "")
    if action == "fit":
        recorded = facts.get("recorded", True)
        text += f" {facts.get('head', '')}".rstrip() + ("" if recorded else " (found in the folder, without a record)")
    elif action == "undo":
        text += f" of version {facts['undone']}" if "undone" in facts else f", to version {facts.get('to', '?')}"
    elif action == "rename-class":
        text += f" to '{facts.get('to', '?')}'"
    elif action == "pull":
        text += f" {facts.get('repo', '')}"
    elif action == "remove-class" and facts.get("pictures"):
        return f"{text} and its {format_count(facts['pictures'], 'shot')}"
    noun = "picture" if action == "fit" else "new picture"
    counts = [format_count(facts["pictures"], noun)] if facts.get("pictures") else []
    counts += [f"{format_count(facts['relabelled'], 'shot')} relabelled"] if facts.get("relabelled") else []
    counts += [f"{facts['known']} already known"] if facts.get("known") else []
    return f"{text}: {', '.join(counts)}" if counts else text


@cli_command("clipadapter history model/")
def history(out: Output, model: Path = argument()) -> None:
    """List the versions of MODEL: when each was made, by whom, and what was changed.

    'clipadapter undo' goes back to a version. Very old versions are only listed: their models are not stored any more.
    """
    versions = persistence.History.load(model)
    versions.check()
    stored, last = versions.stored_versions(), versions.changes[-1]
    data = [{**one.model_dump(exclude={"key", "config"}), "kept": one.version in stored} for one in versions.changes]
    rows = [
        (one.version, one.when.replace("T", " ").rstrip("Z"), one.by, describe_change(one), one.classes, one.pictures)
        for one in versions.changes
    ]
    listing = table(["version", "when (UTC)", "who", "what", "classes", "pictures"], rows)
    others = [number for number in stored if versions.changes[number - 1].content != last.content]
    same_as = "" if last.content == last.version else f", the same as version {last.content}"
    undo = f"; to go back to {', '.join(map(str, others))}: clipadapter undo {quote_path(model)} [--to VERSION]"
    summary = f"{model} is version {last.version}{same_as}" + (undo if others else "")
    out.result({"model": str(model), "version": last.version, "changes": data}, f"{listing}\n\n{summary}")


@cli_command("clipadapter undo model/")
def undo(
    out: Output,
    model: Path = argument(),
    to: Count | None = option("--to VERSION", "Go to this version, which may be one that was undone."),
    author: str | None = author_option,
) -> None:
    """Undo the last change of MODEL. Run it again to undo the change before.

    Nothing is lost: the result is a new version, and --to goes to any version that 'clipadapter history' can go back
    to. No picture and no encoder is needed.
    """
    changes = persistence.restore_version(model, to, find_author(author)).changes
    *_, before, now = changes
    undone, names = changes[before.content - 1], persistence.read_config(model).class_names
    went = Fact("undone", undone.version, f"version {undone.version}, {describe_change(undone)}")
    out.facts(
        [
            Fact("model", str(model), f"{model}, version {now.version}"),
            Fact("version", now.version),
            went if to is None else Fact("undone", None, f"to version {to}", "went"),
            Fact(
                "content", now.content, f"version {now.content}, {describe_change(changes[now.content - 1])}", "same as"
            ),
            Fact("classes", names, f"{len(names)}: {format_list(names)}"),
            Fact("pictures", now.pictures, now.pictures),
            Fact("", text=f"clipadapter undo {quote_path(model)} --to {before.version}", name="go back"),
        ]
    )
