"""``clipadapter sentences``."""

from __future__ import annotations

import json
from pathlib import Path

from clipadapter import persistence
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, flag, option
from clipadapter.cli.inputs import check_output_file, rename_classes
from clipadapter.cli.options import File
from clipadapter.cli.output import Fact, Output, echo, plain_facts, table
from clipadapter.data import load_dataset, sentences
from clipadapter.data.manifests import is_manifest
from clipadapter.errors import DataError, InputError
from clipadapter.runtime.model_folder import CONFIG_FILE
from clipadapter.utils.files import quote_path, write_atomically
from clipadapter.utils.parsing import read_text

NAMES_SUFFIX = ".txt"  # suffix of a list of class names


@cli_command("clipadapter sentences shots/ --domain food --out sentences.json")
def command(
    out: Output,
    source: Path | None = argument(),
    domains: tuple[str, ...] = option(
        "--domain NAME",
        "What the pictures show, such as food. May be repeated. --list-domains lists the names.",
        default=("objects",),
    ),
    given_names: tuple[str, ...] = option("--class NAME", "A class name. May be repeated."),
    class_names: File | None = options.class_names_option,
    file: File | None = option("--out", "JSON file for the sentences; by default they are printed."),
    overwrite: bool = flag("--overwrite", "Replace the file if it exists."),
    list_domains: bool = flag("--list-domains", "Only list the domains."),
) -> None:
    """Write sentences about each class, from templates, for --descriptions of fit and compare.

    SOURCE has the class names: a folder or table of labelled pictures, the folder of a saved model, or a text file
    (.txt) with one name per line. No language model is used, and nothing is downloaded. Edit the file: sentences about
    what distinguishes the classes help most. See docs/guides/class-sentences.md.
    """
    if list_domains:
        known = sentences.list_domains()
        rows = [[domain.name, len(domain.sentences), domain.title] for domain in known]
        data = [{"name": d.name, "title": d.title, "sentences": list(d.sentences)} for d in known]
        out.result(data, table(["domain", "sentences", "pictures of"], rows))
        return
    for name in domains:
        sentences.get_domain(name)
    if file is not None:
        inputs = [path for path in (source, class_names) if path is not None]
        check_output_file(file, *inputs, suffixes=(".json",))
        if file.exists() and not overwrite:
            raise InputError(
                f"{file} exists, and may have been edited: give another --out, or --overwrite to replace it"
            )
    if source is None and not given_names:
        raise InputError("there are no class names: give a folder with pictures, a model, a .txt file, or --class NAME")
    names, has_pictures = _read_names(source, class_names)
    for name in given_names:
        if not name.strip():
            raise InputError("--class needs a name, but got an empty text")
        if name in names:
            raise InputError(f"the class '{name}' is in {source} already: leave --class '{name}' out")
    by_class = sentences.make_sentences([*names, *given_names], domains)
    text = json.dumps(by_class, indent=1, ensure_ascii=False)
    if file is None:
        echo(text)
        return
    write_atomically(file, f"{text}\n")
    counts = {"classes": len(by_class), "sentences": sum(map(len, by_class.values()))}
    stated = Fact("domains", list(domains), ", ".join(domains))
    out.facts([Fact("file", str(file), file), stated, *plain_facts(counts)])
    folder = quote_path(source) if source is not None and has_pictures else "shots/"
    out.note(f"edit the file, then compare: clipadapter compare {folder} --descriptions {quote_path(file)}")


def _read_names(source: Path | None, class_names: Path | None) -> tuple[list[str], bool]:
    """The class names of the source, and whether it has pictures."""
    is_model = source is not None and (source / CONFIG_FILE).is_file()
    is_list = source is not None and source.suffix.lower() == NAMES_SUFFIX and not source.is_dir()
    if class_names is not None and (source is None or is_model or is_list):
        raise InputError("--class-names renames the classes of pictures: give a folder or table of them")
    if source is None:
        return [], False
    if is_model:
        return list(persistence.read_config(source).class_names), False
    if is_list:
        names = [line.strip() for line in read_text(source).splitlines() if line.strip()]
        if not names:
            raise DataError(f"{source} has no class names: write one name per line")
        return names, False
    if source.is_file() and not is_manifest(source):
        raise DataError(
            f"{source} holds no class names that can be read: give a text file that ends with {NAMES_SUFFIX} and has "
            "one name per line, a folder or table of labelled pictures, or the folder of a saved model"
        )
    dataset = rename_classes(load_dataset(source, one_class=True), class_names)
    if not dataset.class_names:
        raise DataError(f"the pictures of {source} have no classes: expected one folder per class, or --class NAME")
    return list(dataset.class_names), True
