"""``clipadapter data``: benchmark data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.declarations import argument, cli_command, command_group, option
from clipadapter.cli.output import Failure, Output, facts, table
from clipadapter.data import get_templates
from clipadapter.errors import DataError
from clipadapter.rendering.tables import UNVERIFIED

if TYPE_CHECKING:
    from clipadapter.data.sets import PrepareResult

root_option = option(
    "--root",
    "Folder of the data sets; by default $CLIPADAPTER_DATA, else data in the user's cache folder.",
    type=click.Path(file_okay=False, path_type=Path),
)


@cli_command("clipadapter data list --root /data", name="list")
def list_(out: Output, root: Path | None = root_option) -> None:
    """List the data sets, and the files that are missing.

    Only folders are checked here; info and prepare check every picture.
    """
    from clipadapter.data.sets import data_root, list_sets

    descriptions = [_describe(name, root) for name in list_sets()]
    header = ["data set", "classes", "train", "val", "test", "state"]
    rows = [
        [
            f"{description['name']}{'' if description['pictures_checked'] else f' {UNVERIFIED}'}",
            description["classes"],
            *(description["pictures"].get(part, "-") for part in header[2:5]),
            _state(description),
        ]
        for description in descriptions
    ]
    out.note(f"root: {data_root(root)}")
    out.result(
        descriptions,
        f"{table(header, rows)}\n\n{UNVERIFIED} these counts were not verified, and are not compared with your files",
    )


@cli_command("clipadapter data info dtd")
def info(out: Output, name: str = argument(), root: Path | None = root_option) -> None:
    """Describe the data set NAME: classes, prompts, licence, and where its files belong."""
    from clipadapter.data.sets import get_set

    dataset, description = get_set(name), _describe(name, root)
    if description["ready"]:
        try:
            description["problems"] = dataset.differences(dataset.load(root))
        except DataError as error:
            description["problems"] = [str(error)]
        description["ready"] = not description["problems"]
    pairs = [(key, description[key]) for key in ("name", "title", "summary", "classes")]
    pairs.append(("pictures", ", ".join(f"{part} {count}" for part, count in description["pictures"].items())))
    pairs += [(key, description[key]) for key in ("paper", "homepage", "licence")]
    pairs.append(("prompts", "; ".join(description["prompts"])))
    pairs += [("download", description["download"]), ("state", _state(description))]
    lines = [facts(pairs), "", "Where the files belong:"]
    lines += [f"  {line}" for line in dataset.describe_paths(root).splitlines()]
    lines += ["", *description["problems"]] if description.get("problems") else []
    out.result(description, "\n".join(lines))


@cli_command("clipadapter data prepare dtd eurosat --root data/")
def prepare(
    out: Output,
    names: tuple[str, ...] = argument(metavar="NAME..."),
    root: Path | None = root_option,
) -> None:
    """Download the data sets NAME..., as far as possible, and check their files.

    Existing files are not downloaded again. The split files can't be downloaded: their links are printed.
    """
    from clipadapter.data.sets import get_set

    for name in names:
        get_set(name)  # refuses a typo before anything is downloaded
    results = [_prepare(name, root, out) for name in names]
    lines = []
    for result in results:
        downloaded = ", the pictures were downloaded" if result["downloaded"] else ""
        lines.append(f"{result['name']}: {'ready' if result['ready'] else 'not ready'}{downloaded}")
        lines += [f"  missing: {need['path']}\n    {need['source']}" for need in result["missing"]]
        lines += [f"  {problem}" for problem in result["problems"]]
    out.result(results, "\n".join(lines))
    not_ready = [result["name"] for result in results if not result["ready"]]
    if not_ready:
        raise Failure(f"not ready: {', '.join(not_ready)}")


def _prepare(name: str, root: Path | None, out: Output) -> dict[str, Any]:
    from clipadapter.data import sets

    out.note(f"{name}: checking {sets.data_root(root) / sets.get_set(name).folder}")
    try:
        prepared: PrepareResult = sets.prepare(name, root, progress=out.progress)
    except DataError as error:
        return {"name": name, "ready": False, "downloaded": False, "missing": [], "problems": [str(error)]}
    missing = [{"path": str(need.path), "source": need.source} for need in prepared.missing]
    state = {"ready": not missing and not prepared.differences, "downloaded": prepared.downloaded}
    return {"name": name, **state, "missing": missing, "problems": list(prepared.differences)}


def _describe(name: str, root: Path | None) -> dict[str, Any]:
    from clipadapter.data.sets import data_root, get_set

    one = get_set(name)
    missing = [str(need.path) for need in one.missing_paths(root)]
    return {
        "name": name,
        "title": one.title,
        "summary": one.summary,
        "folder": str(data_root(root) / one.folder),
        "classes": one.n_classes,
        "pictures": dict(one.counts),
        "pictures_checked": one.counts_verified,
        "paper": one.paper,
        "homepage": one.homepage,
        "licence": one.licence,
        "templates": one.templates,
        "prompts": list(get_templates(one.templates)),
        "download": f"by torchvision's {one.download.dataset}" if one.download else "by hand",
        "ready": not missing,
        "missing": missing,
    }


def _state(description: dict[str, Any]) -> str:
    if description["missing"]:
        return f"missing: {', '.join(Path(path).name for path in description['missing'])}"
    return "ready" if description["ready"] else "not as in the papers"


command = command_group(
    "clipadapter data list",
    """List, explain and prepare the benchmark data sets of the few-shot papers.

    Other commands take the name of a prepared data set in place of DATA.
    """,
    list_,
    info,
    prepare,
)
