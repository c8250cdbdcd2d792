"""Tables of numbers as tables of text: metrics, differences and costs of heads by column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clipadapter.bench.notes import failure_messages, fidelity_mark, transductive_mark
from clipadapter.bench.pivot import Part, Pivot, Row, fit_seconds, format_shots
from clipadapter.bench.run import Machine, Run
from clipadapter.bench.statistics import Difference
from clipadapter.bench.study import Cell, Value, metric_value
from clipadapter.metrics import METRICS
from clipadapter.rendering.marks import TRANSDUCTIVE
from clipadapter.rendering.tables import Grid
from clipadapter.utils.formatting import shorten_name

INTERVAL = (
    "Difference of accuracy in points on the same draws, with the 95 % interval of a paired bootstrap over the draws. "
    "It covers the variance between draws only, and is too narrow with few draws: with three it contains the true mean "
    "in about 76 of 100 cases. With fewer than three draws for a number of shots or a data set there is none."
)


@dataclass(frozen=True)
class Column:
    """A column of cells."""

    header: str  # above it
    cells: Sequence[Cell]  # one for each row
    format: Callable[[float], str]  # a number as text
    # `max` or `min` if the best number is marked; None for a column without
    best: Callable[[Iterable[float]], float] | None = None
    format_sd: Callable[[float], str] | None = None  # a standard deviation as text, if it differs

    def texts(self) -> list[str]:
        """The cells as text."""
        return [format_cell(cell, self.format, self.format_sd) for cell in self.cells]

    def best_rows(self, takes_part: Sequence[bool]) -> set[int]:
        """Positions of the rows whose printed mean is the best, among those that take part in the choice."""
        if self.best is None:
            return set()
        printed = {
            i: float(self.format(cell.mean))
            for i, (cell, own) in enumerate(zip(self.cells, takes_part, strict=True))
            if own and cell.values and not cell.remark
        }
        best_value = self.best(printed.values()) if printed else None
        return {i for i, value in printed.items() if value == best_value}


def make_grid(
    title: str,
    names: Sequence[str],
    columns: Sequence[Column],
    *,
    takes_part: Sequence[bool] | None = None,
    texts: Sequence[tuple[str, Sequence[str]]] = (),
    notes: Iterable[str] = (),
    minor: bool = False,
) -> Grid:
    """A table of heads."""
    first = 1 + len(texts)
    rows = zip(names, *(cells for _, cells in texts), *(column.texts() for column in columns), strict=True)
    eligible = takes_part if takes_part is not None else [True] * len(names)
    return Grid(
        title,
        ("head", *(header for header, _ in texts), *(column.header for column in columns)),
        tuple(rows),
        frozenset((i, j) for j, column in enumerate(columns, first) for i in column.best_rows(eligible)),
        tuple(notes),
        minor,
        frozenset(range(first)),
    )


def format_cell(
    cell: Cell, format_value: Callable[[float], str], format_sd: Callable[[float], str] | None = None
) -> str:
    """Mean ± sd, and the number of runs if some are missing.

    >>> percent = METRICS["accuracy"].format
    >>> format_cell(Cell((0.5, 0.7)), percent), format_cell(Cell((0.5, 0.7), failed=1), percent)
    ('60.0 ± 14.1', '60.0 ± 14.1 (2 of 3)')
    >>> format_cell(Cell((0.5,)), percent), format_cell(Cell((), missing=3), percent)
    ('50.0', 'not run yet')
    """
    n_done = len(cell.values)
    if cell.remark or not n_done:
        return cell.remark or ("failed" if cell.failed else "not run yet" if cell.missing else "-")
    spread = "" if cell.known_sd is None else f" ± {(format_sd or format_value)(cell.known_sd)}"
    planned = n_done + cell.failed + cell.missing
    return format_value(cell.mean) + spread + (f" ({n_done} of {planned})" if planned > n_done else "")


def format_points(difference: float) -> str:
    """A difference of shares in points of a per cent, without a negative zero.

    >>> format_points(0.0123), format_points(-0.0001)
    ('+1.2', '+0.0')
    """
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def format_difference(difference: Difference | None) -> str:
    """A difference in points with its interval.

    >>> format_difference(Difference(0.012, (0.003, 0.021), 5))
    '+1.2 [+0.3, +2.1]'
    >>> format_difference(Difference(-0.012, None, 2)), format_difference(None)
    ('-1.2 (2 draws)', 'no common draw')
    """
    if difference is None:
        return "no common draw"
    if difference.interval is None:
        return f"{format_points(difference.mean)} ({difference.pairs} draw{'s' if difference.pairs > 1 else ''})"
    low, high = map(format_points, difference.interval)
    return f"{format_points(difference.mean)} [{low}, {high}]"


def format_head(row: Row, runs: Sequence[Run]) -> str:
    """A head's name with its prompts and marks."""
    name = f"{row.label} · {row.prompts}" if row.prompts else row.label
    return f"{shorten_name(name)} {transductive_mark(runs)}{fidelity_mark(runs)}".rstrip()


def head_names(table: Pivot) -> dict[Row, str]:
    """The names of the heads of a table, with their marks."""
    return {row: format_head(row, table.runs(row)) for row in table.rows}


def format_column(column: Part) -> str:
    """The header of a column."""
    return format_shots(column) if isinstance(column, int) else shorten_name(column)


def metric_columns(table: Pivot, metric: str) -> list[Column]:
    """The columns of a table for a metric."""
    value, info = metric_value(metric), METRICS[metric]
    best = max if info.higher_is_better else min
    return [
        Column(format_column(part), [table.cell(row, part, value) for row in table.rows], info.format, best)
        for part in table.columns(metric)
    ]


def measured_grid(table: Pivot, metric: str = "accuracy") -> Grid:
    """A metric by head and column, with the best of each column marked."""
    names, info = head_names(table), METRICS[metric]
    columns = metric_columns(table, metric)
    better, title = "highest" if info.higher_is_better else "lowest", info.title_with_unit
    notes = [f"{title[0].upper()}{title[1:]}. Bold: the {better} of a column among the heads without {TRANSDUCTIVE}."]
    if any("(" in cell or cell in ("failed", "not run yet") for column in columns for cell in column.texts()):
        notes.append("(2 of 3): two of three planned runs have results; the others failed or are not run yet.")
    return make_grid(
        f"{info.title[0].upper()}{info.title[1:]}: {table.title}",
        list(names.values()),
        columns,
        takes_part=[not transductive_mark(table.runs(row)) for row in table.rows],
        notes=[*notes, *failure_messages({name: table.runs(row) for row, name in names.items()})],
        minor=metric != "accuracy",
    )


def difference_grid(table: Pivot, reference: Row) -> Grid:
    """Differences of each head to the reference, by column, and over all shots together."""
    names = head_names(table)
    columns: list[tuple[str, list[Part]]] = [(format_column(column), [column]) for column in table.columns()]
    if table.axis == "shots" and len(table.parts) > 1:
        columns.append(("all shots", list(table.parts)))
    rows = [
        (names[row], *(_difference_text(table, row, reference, own) for _, own in columns))
        for row in table.rows
        if row != reference
    ]
    return Grid(
        f"Difference to {names[reference]}: {table.title}",
        ("head", *(title for title, _ in columns)),
        tuple(rows),
        notes=(INTERVAL,),
    )


def _difference_text(table: Pivot, row: Row, reference: Row, columns: Sequence[Part]) -> str:
    if not all(table.cell(one, column).values for one in (row, reference) for column in columns):
        return "-"
    return format_difference(table.difference(row, reference, columns))


def cost_grid(table: Pivot, minor: bool = True) -> Grid:
    """The cost of each head with the most shots; over several test parts or data sets a mean, seed by seed."""

    def cells(value: Value) -> list[Cell]:
        return [Cell(_by_seed(select_most_shots(table.runs(row)), value)) for row in table.rows]

    costed = select_most_shots(table.runs())
    machines = dict.fromkeys(_machine_text(run.machine) for run in costed)
    columns = [
        Column("accuracy in %", cells(metric_value("accuracy")), METRICS["accuracy"].format),
        *(
            Column(header, cells(value), "{:.3g}".format, format_sd="{:.2g}".format)
            for header, value in (
                ("fit in s", fit_seconds),
                ("predict in ms a picture", lambda run: run.seconds and 1000 * run.seconds.predict / run.n_test),
            )
        ),
        Column("stored numbers", [Cell(_mean_size(table.runs(row))) for row in table.rows], "{:,.0f}".format),
        Column("peak memory in MB", [Cell(_peak_memory(table.runs(row))) for row in table.rows], "{:,.0f}".format),
    ]
    return make_grid(
        f"Cost at {format_shots(costed[0].shots)}: {table.title}",
        list(head_names(table).values()),
        columns,
        notes=(
            "Seconds are of the head alone: features were computed before. Peak memory is that of the worker process "
            "so far, so it includes heads that ran earlier in it. Stored numbers: the state of a fitted head, the "
            "largest of the draws. Over several test parts or data sets, all but the memory are means.",
            f"Machine: {'; '.join(machines)}.",
        ),
        minor=minor,
    )


def _machine_text(machine: Machine) -> str:
    gpu = "" if machine.device == "cpu" else f", heads on {machine.device}"
    return f"{machine.cpus} CPUs, {machine.platform}{gpu}"


def select_most_shots(runs: Sequence[Run]) -> list[Run]:
    """The runs with the most shots."""
    max_shots = max((run.shots for run in runs), default=0)
    return [run for run in runs if run.shots == max_shots]


def _by_seed(runs: Sequence[Run], value: Value) -> tuple[float, ...]:
    """The mean of a value over test parts and data sets, by seed; without seeds that lack some of them."""
    values: dict[int, list[float]] = {}
    for run in runs:
        if (number := value(run)) is not None:
            values.setdefault(run.seed, []).append(number)
    n_parts = max(map(len, values.values()), default=0)
    return tuple(sum(parts) / len(parts) for parts in values.values() if len(parts) == n_parts)


def _mean_size(runs: Sequence[Run]) -> tuple[float, ...]:
    """The largest number of stored numbers of the draws; over data sets their mean."""
    largest: dict[str, int] = {}
    for run in select_most_shots(runs):
        if run.size is not None:
            largest[run.data.support] = max(run.size, largest.get(run.data.support, 0))
    return (sum(largest.values()) / len(largest),) if largest else ()


def _peak_memory(runs: Sequence[Run]) -> tuple[float, ...]:
    peaks = [run.machine.peak_memory_mb for run in select_most_shots(runs) if run.machine.peak_memory_mb is not None]
    return (max(peaks),) if peaks else ()
