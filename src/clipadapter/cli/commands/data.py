"""``clipadapter data``: benchmark data sets by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.groups import Verbs
from clipadapter.cli.options import Command, output_options
from clipadapter.cli.output import Failure, Output, facts, table
from clipadapter.errors import DataError

if TYPE_CHECKING:
    from clipadapter.data.sets import BenchmarkSet, PrepareResult

root_option: Callable[[Command], Command] = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the data sets; by default $CLIPADAPTER_DATA, else data in the user's cache folder.",
)


@click.group(cls=Verbs, epilog="Example: clipadapter data list")
@output_options
@click.pass_context
def command(ctx: click.Context, out: Output) -> None:
    """List, explain and prepare the benchmark data sets of the few-shot papers.

    A set that is ready is given to other commands by its name in place of DATA.
    """
    ctx.default_map = dict.fromkeys(("list", "info", "prepare"), {"as_json": out.as_json, "quiet": out.quiet})


@command.command("list", epilog="Example: clipadapter data list --root /data")
@root_option
@output_options
def list_(root: Path | None, out: Output) -> None:
    """List the data sets, and what is missing of each.

    This looks for folders only; info and prepare look for every picture.
    """
    from clipadapter.data.sets import data_root, list_sets

    found = [_describe(name, root) for name in list_sets()]
    header = ["data set", "classes", "train", "val", "test", "state"]
    rows = [
        [
            f"{one['name']}{'' if one['pictures_checked'] else ' *'}",
            one["classes"],
            *(one["pictures"].get(part, "-") for part in header[2:5]),
            _state(one),
        ]
        for one in found
    ]
    out.note(f"root: {data_root(root)}")
    out.result(
        found, f"{table(header, rows)}\n\n* how many pictures there should be was not checked, and is not compared"
    )


@command.command(epilog="Example: clipadapter data info dtd")
@click.argument("name")
@root_option
@output_options
def info(name: str, root: Path | None, out: Output) -> None:
    """Show all about the data set NAME: classes, prompts, licence, and what to put where."""
    from clipadapter.data.sets import create_set

    one, found = create_set(name), _describe(name, root)
    if found["ready"]:
        found["problems"] = _problems(one, root)
        found["ready"] = not found["problems"]
    pairs = [(key, found[key]) for key in ("name", "title", "summary", "classes")]
    pairs.append(("pictures", ", ".join(f"{part} {count}" for part, count in found["pictures"].items())))
    pairs += [(key, found[key]) for key in ("paper", "homepage", "licence")]
    pairs += [("prompts", "; ".join(found["prompts"])), ("download", found["download"]), ("state", _state(found))]
    lines = [facts(pairs), "", "What belongs where:", *(f"  {line}" for line in one.describe_paths(root).splitlines())]
    lines += ["", *found["problems"]] if found.get("problems") else []
    out.result(found, "\n".join(lines))


@command.command(epilog="Example: clipadapter data prepare dtd eurosat --root data/")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@root_option
@output_options
def prepare(names: tuple[str, ...], root: Path | None, out: Output) -> None:
    """Download the data sets NAME... as far as they can be, and check what is there.

    What is there is not downloaded again. The split files can't be downloaded: where they are linked is said.
    """
    from clipadapter.data.sets import set_info

    for name in names:
        set_info(name)  # a typo is told before anything is downloaded
    found = []
    for name in names:
        found.append(_prepared(name, root, out))
    out.result(found, "\n".join(line for one in found for line in _report(one)))
    bad = [one["name"] for one in found if not one["ready"]]
    if bad:
        raise Failure(f"not ready: {', '.join(bad)}")


def _prepared(name: str, root: Path | None, out: Output) -> dict[str, Any]:
    from clipadapter.data import sets

    out.note(f"{name}: looking into {sets.data_root(root) / sets.set_info(name).cls.folder}")
    try:
        # torchvision always draws a bar
        with contextlib.nullcontext() if out.progress else contextlib.redirect_stderr(io.StringIO()):
            done: PrepareResult = sets.prepare(name, root)
    except DataError as error:
        return {"name": name, "ready": False, "downloaded": False, "missing": [], "problems": [str(error)]}
    missing = [{"path": str(required.path), "how": required.source} for required in done.missing]
    ready = not missing and not done.differences
    return {
        "name": name,
        "ready": ready,
        "downloaded": done.downloaded,
        "missing": missing,
        "problems": list(done.differences),
    }


def _report(one: dict[str, Any]) -> list[str]:
    """The lines on one set, for a person."""
    fetched = ", the pictures were downloaded" if one["downloaded"] else ""
    lines = [f"{one['name']}: {'ready' if one['ready'] else 'not ready'}{fetched}"]
    lines += [f"  put there: {need['path']}\n    {need['how']}" for need in one["missing"]]
    return lines + [f"  {problem}" for problem in one["problems"]]


def _describe(name: str, root: Path | None) -> dict[str, Any]:
    from clipadapter.data import get_templates
    from clipadapter.data.sets import data_root, set_info

    entry = set_info(name)
    one: type[BenchmarkSet] = entry.cls
    missing = [str(required.path) for required in one().missing_paths(root)]
    return {
        "name": name,
        "title": one.title,
        "summary": entry.summary,
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


def _state(one: dict[str, Any]) -> str:
    if one["missing"]:
        return f"missing: {', '.join(Path(path).name for path in one['missing'])}"
    return "ready" if one["ready"] else "not as in the papers"


def _problems(one: BenchmarkSet, root: Path | None) -> list[str]:
    try:
        return one.differences(one.load(root))
    except DataError as error:
        return [str(error)]
