import csv
import re

import pytest

from clipadapter.bench.plan import Entry
from clipadapter.bench.report import build_report, compare_studies, format_csv, write_report
from clipadapter.bench.run import Flags, Metrics, RunData, RunEncoder
from clipadapter.bench.study import HARMONIC, Row, Study, make_mean_tables, make_tables
from clipadapter.bench.suite import Suite
from clipadapter.errors import InputError
from clipadapter.heads import fidelity_of
from clipadapter.rendering.tables import Grid

from ..markup import Markup


def suite(**changes):
    return Suite(
        **{"name": "mine", "title": "Mine", "heads": ["zero-shot"], "shots": [1, 4], "seeds": [1, 2], **changes}
    )


def joined(study_suite, runs, missing=(), axis=None):
    """A study of records; their data and test part say where they stand, and a parameter is the varied one."""
    entries = [
        Entry(
            key=run.key,
            shots=run.shots,
            seed=run.seed,
            label=run.head,
            data=run.data.support,
            encoder=run.encoder.name,
            test=run.data.test if run.data.protocol in ("shift", "new") else "test",
            value=run.params.get(axis),
        )
        for run in [*runs, *missing]
    ]
    return Study(study_suite, tuple(entries), {run.key: run for run in runs})


def grids(study, published=False):
    return {
        block.title: block
        for section in build_report(study, published).sections
        for block in section.blocks
        if isinstance(block, Grid)
    }


def part(support="pets", test=None, protocol="given"):
    return RunData(support=support, test=test or support, protocol=protocol, digest=f"{support}{test}")


@pytest.fixture(scope="module")
def study(make_run):
    """zero-shot 50 %; clip-adapter 2 and 4 points above at one shot, 10 and 30 at four; three seeds."""
    above = {1: (0.02, 0.04, 0.03), 4: (0.1, 0.3, 0.2)}
    runs = [
        make_run(head, n, seed, accuracy=0.5 + gain * (head == "clip-adapter"), size=10, method=head)
        for n, gains in above.items()
        for seed, gain in enumerate(gains, 1)
        for head in ("zero-shot", "clip-adapter")
    ]
    return joined(suite(seeds=[1, 2, 3]), runs)


@pytest.fixture(scope="module")
def tables(study):
    """The tables of its report by their titles."""
    return grids(study)


def test_long_labels_and_line_breaks_of_labels_break_no_table(make_run):
    label = "two\nlines " + "a" * 400
    study = joined(suite(seeds=[1]), [make_run(label, 1, 1, method="knn")])
    assert all(len(row[0]) <= 70 and "\n" not in row[0] for grid in grids(study).values() for row in grid.rows)


def test_a_table_has_mean_and_deviation_and_the_best_of_each_column(tables):
    grid = tables["Accuracy: pets"]
    assert grid.header == ("head", "1 shot", "4 shots")
    # 0.02, 0.04, 0.03: mean 0.03, sd 0.01; 0.1, 0.3, 0.2: mean 0.2, sd 0.1.
    assert grid.rows == (("zero-shot", *["50.0 ± 0.0"] * 2), ("clip-adapter", "53.0 ± 1.0", "70.0 ± 10.0"))
    assert grid.best == {(1, 1), (1, 2)}
    costs = tables["Cost at 4 shots: pets"]
    # 0.01 s for 40 pictures: 0.25 ms each.
    assert costs.rows[1] == ("clip-adapter", "70.0 ± 10.0", "0.25 ± 0", "0.25 ± 0", "10", "-")
    assert "worker process" in costs.notes[0]


def test_differences_are_paired_by_the_drawn_rows(tables, make_run):
    (row,) = tables["Difference to clip-adapter: pets"].rows
    assert row[0] == "zero-shot"
    # All draws at one shot are between -4 and -2, so the interval of their mean is, too.
    mean, low, high = (float(number) for number in re.findall(r"[-+]\d+\.\d", row[1]))
    assert mean == -3.0 and -4.0 <= low < mean < high <= -2.0
    # Over all shots the mean is that of -3 and -20.
    assert row[3].startswith("-11.5 [")
    two_draws = [make_run(head, 1, seed, accuracy=0.5) for head in ("a", "b") for seed in (1, 2)]
    other_rows = [make_run("a", rows=[0, 1]), make_run("b", rows=[0, 2])]
    for runs, text in ((two_draws, "+0.0 (2 draws)"), (other_rows, "no common draw")):
        assert grids(joined(suite(), runs))["Difference to a: pets"].rows == (("b", text),)


def test_failed_and_missing_runs_are_named(make_run):
    runs = [make_run("a", seed=1, accuracy=0.5), make_run("a", seed=2, error="E: why"), make_run("b", error="E: no")]
    missing = [make_run("b", seed=2), *(make_run("c", seed=seed) for seed in (1, 2))]
    document = build_report(joined(suite(shots=[1]), runs, missing))
    assert "3 of 6 planned records exist." in document.summary
    assert "3 are not run yet (c, pets, toy: 2; b, pets, toy: 1)." in document.summary
    (grid,) = [b for b in document.sections[0].blocks if isinstance(b, Grid) and b.title == "Accuracy: pets"]
    assert [row[1] for row in grid.rows] == ["50.0 (1 of 2)", "failed", "not run yet"]
    assert "a failed: E: why." in grid.notes and "b failed: E: no." in grid.notes
    # Costs are those of the most shots that were run.
    assert "Cost at 1 shot: pets" in grids(joined(suite(), [make_run("a", 1)], [make_run("a", 4)]))


def test_only_transductive_heads_are_never_the_best_and_every_mark_is_explained(make_run):
    runs = [
        make_run("clap", accuracy=0.5),
        make_run("mine", accuracy=0.9, method="auto"),
        make_run("zlap", accuracy=0.95, flags=Flags(transductive=True)),
    ]
    study = joined(suite(), runs)
    grid, common = grids(study)["Accuracy: pets"], build_report(study).sections[0].common
    assert [row[0] for row in grid.rows] == ["clap", "mine ‡", "zlap *‡"]
    assert grid.best == {(1, 1)}
    for name in ("auto", "zlap"):
        assert f"‡ {name}: {fidelity_of(name)}" in common
    assert not any(line.startswith("‡ clap") for line in common)
    assert "* transductive" in " ".join(common)
    assert r"* transductive; $\ddagger$ not the published method.}" in build_report(study).to_latex()


def test_the_mean_over_data_sets_is_made_seed_by_seed(make_run):
    values = {"pets": (0.5, 0.7), "cars": (0.3, 0.3)}
    places = [(name, seed) for name in values for seed in (1, 2)]
    runs = [make_run("a", 1, seed, accuracy=values[name][seed - 1], data=part(name)) for name, seed in places]
    runs.append(make_run("b", 1, 1, accuracy=0.9, data=part("pets")))
    (mean,) = make_mean_tables(make_tables(joined(suite(), runs)))
    # Seed 1: (0.5 + 0.3) / 2; seed 2: (0.7 + 0.3) / 2.
    assert mean.by_seed(Row("a"), 1) == pytest.approx({1: 0.4, 2: 0.5})
    assert mean.cell(Row("b"), 1).remark == "1 of 2 sets"


def base_and_new(make_run, values, head="a"):
    """Records of base and new classes; the accuracies are by data set and test part, of seeds 1 and 2."""
    return [
        make_run(head, 1, seed, accuracy=value, data=part(name, test, "new" if test == "new" else "given"))
        for (name, test), pair in values.items()
        for seed, value in enumerate(pair, 1)
    ]


BASE_TO_NEW = suite(protocol="base-to-new", shots=[1])


def test_the_harmonic_mean_is_that_of_the_means_of_base_and_new_seed_by_seed_and_only_of_accuracies(make_run):
    values = {("pets", "base"): (0.8, 0.5), ("pets", "new"): (0.4, 0.5)}
    values |= {("cars", "base"): (0.4, 0.5), ("cars", "new"): (0.8, 0.5)}
    tables = make_tables(joined(BASE_TO_NEW, base_and_new(make_run, values)))
    # 2 * 0.8 * 0.4 / 1.2 = 0.5333; 0.5 and 0.5 give 0.5: the mean of these, not that of the means (0.65 and 0.45).
    assert tables[0].columns() == ("test", "new", HARMONIC)
    assert tables[0].by_seed(Row("a"), HARMONIC) == pytest.approx({1: 0.53333, 2: 0.5}, abs=1e-4)
    # The papers' mean over data sets is 0.6 of base and of new, so its harmonic mean is 0.6, and not 0.5333.
    (mean,) = make_mean_tables(tables)
    assert mean.by_seed(Row("a"), HARMONIC) == pytest.approx({1: 0.6, 2: 0.5})
    # Losses and other data sets have none.
    shown = grids(joined(BASE_TO_NEW, base_and_new(make_run, values)))
    assert shown["Accuracy: pets, 1 shot"].header == ("head", "test", "new", HARMONIC)
    assert shown["Log-loss: pets, 1 shot"].header == ("head", "test", "new")
    crossed = joined(suite(protocol="cross-dataset", shots=[1]), base_and_new(make_run, values))
    assert HARMONIC not in grids(crossed)["Accuracy: pets, 1 shot"].header


def test_costs_over_several_parts_are_means_and_their_deviation_is_that_of_the_seeds(make_run):
    values = {("pets", "base"): (0.9, 0.9), ("pets", "new"): (0.5, 0.5), ("cars", "base"): (0.6, 0.6)}
    sizes = {"pets": 10, "cars": 30}
    runs = [run.model_copy(update={"size": sizes[run.data.support]}) for run in base_and_new(make_run, values)]
    runs += base_and_new(make_run, {("cars", "new"): (0.4, 0.4)})
    tables = grids(joined(BASE_TO_NEW, runs))
    assert tables["Cost at 1 shot: pets, 1 shot"].rows[0][1] == "70.0 ± 0.0"
    mean = tables["Cost at 1 shot: Mean over 2 data sets"]
    # (0.9 + 0.5 + 0.6 + 0.4) / 4, and (10 + 30) / 2 numbers.
    assert (mean.rows[0][1], mean.rows[0][4]) == ("60.0 ± 0.0", "20")


def test_the_columns_are_shifted_parts_with_their_mean_or_encoders(make_run):
    parts = [part("pets"), part("pets", "drawn", "shift"), part("pets", "dark", "shift")]
    runs = [make_run("a", data=data, accuracy=value) for data, value in zip(parts, (0.9, 0.6, 0.4), strict=True)]
    grid = grids(joined(suite(protocol="shift", shots=[1]), runs))["Accuracy: pets, 1 shot"]
    assert grid.header == ("head", "test", "drawn", "dark", "mean of the 2 others")
    assert grid.rows[0][1:5] == ("90.0", "60.0", "40.0", "50.0")
    runs = [make_run("a", encoder=RunEncoder(name=name, fingerprint=name)) for name in ("small", "large")]
    assert grids(joined(suite(), runs))["Accuracy: pets, 1 shot"].header == ("head", "small", "large")


def test_a_line_of_the_csv_is_a_record(study, make_run):
    failed = make_run("=a, b", error="-E: why\nnot")
    study = joined(suite(), [*study.runs, failed])
    lines = list(csv.DictReader(format_csv(study).splitlines()))
    assert len(lines) == 13
    assert {line["key"] for line in lines} == {run.key for run in study.runs}
    first = next(line for line in lines if line["key"] == study.runs[1].key)
    assert (first["label"], first["shots"], first["seed"], first["size"]) == ("clip-adapter", "1", "1", "10")
    assert float(first["accuracy"]) == 0.52 and float(first["predict_seconds"]) == 0.01
    (wrong,) = [line for line in lines if line["key"] == failed.key]
    # A text that a spreadsheet would take for a formula is marked as text.
    assert (wrong["label"], wrong["accuracy"], wrong["error"]) == ("'=a, b", "", "'-E: why not")


def test_a_study_shows_every_metric_that_its_records_have(study, tables, make_run):
    assert "Balanced accuracy: pets" not in tables  # records of an earlier version
    metrics = Metrics(accuracy=0.5, balanced_accuracy=0.25, macro_f1=0.5, log_loss=0.5)
    extended = joined(suite(), [*study.runs, make_run("tip-adapter").model_copy(update={"metrics": metrics})])
    shown = grids(extended)
    assert {f"{title}: pets" for title in ("Accuracy", "Balanced accuracy", "Macro F1", "Log-loss")} <= shown.keys()
    balanced = {row[0]: row[1] for row in shown["Balanced accuracy: pets"].rows}
    assert balanced == {"zero-shot": "-", "clip-adapter": "-", "tip-adapter": "25.0"}
    values = {line["label"]: line["balanced_accuracy"] for line in csv.DictReader(format_csv(extended).splitlines())}
    assert values == {"zero-shot": "", "clip-adapter": "", "tip-adapter": "0.25"}


def test_the_page_loads_no_other_file_and_its_links_have_targets(study):
    text = build_report(study).to_html()
    page = Markup(text)
    asked = [own[name] for _, own in page.tags for name in ("src", "srcset", "data", "poster") if name in own]
    assert asked and all(address.startswith("data:image/svg+xml;base64,") for address in asked)
    assert not page.all("script", "link", "base", "iframe", "object", "embed")
    assert "url(" not in text and "@import" not in text
    targets = {link["href"].removeprefix("#") for link in page.all("a")}
    assert targets and targets <= {own.get("id") for _, own in page.tags}


def test_names_are_escaped_in_every_format(make_run):
    name, data = "<b>50%_$x", part("a & b|c")
    runs = [make_run(name, n, data=data, templates=["<i>{}"], error="E: <u>" if n > 1 else None) for n in (1, 2)]
    document = build_report(joined(suite(), runs))
    md, tex, html = document.to_markdown(), document.to_latex(), document.to_html()
    assert not Markup(html).all("b", "i", "u")
    assert "&lt;b&gt;50%_$x" in html and "a &amp; b|c" in html and "&lt;u&gt;" in html
    assert "| &lt;b&gt;50%\\_$x |" in md and "a &amp; b|c" in md
    assert r"\textless{}b\textgreater{}50\%\_\$x & " in tex
    assert r"a \& b\textbar{}c" in tex and "“<i>{}”" in tex


def test_a_latex_table_is_one_of_booktabs(study, tables):
    text = build_report(study).to_latex()
    captions = re.findall(r"^\\caption.*$", text, re.MULTILINE)
    assert captions[0] == r"\caption{Accuracy: pets. Accuracy in \%. \textbf{Bold}: best of a column.}"
    assert "fingerprint" in text and not any("fingerprint" in caption for caption in captions)  # in comments
    assert r"\begin{tabular}{lrr}" in text and r"\toprule" in text
    assert r"clip-adapter & \textbf{53.0 $\pm$ 1.0} & \textbf{70.0 $\pm$ 10.0} \\" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(tables)


def test_plots_in_another_format_replace_those_of_an_older_report_but_not_those_of_other_suites(study, tmp_path):
    place, others = tmp_path / "reports", {"mine-too-1-bars.png", "mine-projection.png"}
    write_report(study, tmp_path)
    for name in ("mine-9-bars.png", *others):
        (place / name).touch()
    files = write_report(study, tmp_path, plot_formats=["pdf", "svg"], title="A & b")
    assert {path.name for path in place.glob("*-*")} == {"mine-1-curves.pdf", "mine-1-curves.svg", *others}
    assert "(mine-1-curves.svg)" in files[0].read_text(encoding="utf-8")
    assert ">A &amp; b</text>" in files[-1].read_text(encoding="utf-8")


@pytest.mark.parametrize("values", [(0.0, 0.2), (1.0, 2.0, 4.0), ("visual", "text")])
def test_a_parameter_is_the_axis_of_a_picture(make_run, values):
    runs = [make_run(f"alpha={value}", n, params={"alpha": value}) for value in values for n in (1, 4)]
    study = joined(suite(figure="axis"), [*runs, make_run("zero-shot", 1, params={})], axis="alpha")
    assert list(build_report(study).plots) == ["mine-1-axis"]


def test_an_axis_plot_has_a_line_style_per_level_and_its_subtitle_on_the_page(make_run):
    runs = [make_run(f"alpha={value}", 1, params={"alpha": value}) for value in (0.0, 1.0)]
    levels = [make_run(f"a head with a rather long name, number {i}", accuracy=i / 20, params={}) for i in range(8)]
    study = joined(suite(figure="axis"), [*runs, *levels], axis="alpha")
    figure = build_report(study).plots["mine-1-axis"].figure
    (axes,) = figure.axes
    figure.canvas.draw()
    styles = [str(line._dash_pattern) for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert len(styles) == len(set(styles)) >= 5
    assert figure.bbox.contains(*axes._left_title.get_window_extent().max)
    assert "and 3 more heads" in axes.get_title(loc="left").replace("\n", " ")


def test_many_heads_and_data_sets_can_be_drawn(make_run, tmp_path):
    runs = [make_run(f"head {i} $x", n, data=part(d)) for i in range(7) for n in (1, 4) for d in ("pets", "猫")]
    runs += [make_run("fails", error="E: no", data=part("pets"))]
    names = [path.name for path in write_report(joined(suite(), runs), tmp_path)]
    assert names[4:] == ["mine-1-heat.png", *(f"mine-{i}-curves.png" for i in (2, 3, 4))]


def test_nothing_to_report_and_a_folder_that_cannot_be_written_are_refused(make_run, tmp_path):
    with pytest.raises(InputError, match="suite 'mine' has none of its 1 records yet"):
        build_report(joined(suite(), [], [make_run()]))
    (tmp_path / "reports").touch()
    with pytest.raises(InputError, match="can't write"):
        write_report(joined(suite(shots=[1]), [make_run()]), tmp_path)


def published_run(make_run, **changes):
    encoder = RunEncoder(name="open_clip:RN50/openai", fingerprint="f")
    values = {"head": "clip-adapter", "shots": 16, "accuracy": 0.6, "encoder": encoder, "data": part("dtd")}
    return make_run(**{**values, "n_classes": 47, "n_test": 1692, **changes})


def test_published_figures_are_in_a_separate_section(make_run):
    study = joined(suite(), [published_run(make_run)])
    tables = grids(study, published=True)
    beside = tables.pop("Accuracy beside published results")
    # Tip-Adapter's log has CLIP-Adapter with 16 shots on DTD at 65.96.
    row = next(row for row in beside.rows if row[7] == "S1")
    assert row[:7] == ("clip-adapter", "dtd", "RN50", "16 shots", "60.0", "65.96", "-6.0")
    assert "search" in row[9] and row[10] == "verified"
    assert any(note.startswith("S1: Tip-Adapter") for note in beside.notes)
    assert "65.96" not in " ".join(cell for grid in tables.values() for line in grid.rows for cell in line)
    assert build_report(study).sections[-1].title != "Measured and published"


def test_only_the_same_cell_is_compared_with_a_published_one(make_run):
    others = [{"encoder": RunEncoder(name="open_clip:RN50/yfcc15m", fingerprint="f")}, {"n_classes": 9}]
    others += [{"n_test": 100}, {"data": part("my-own")}, {"data": part("dtd", "dtd", "rest")}]
    for changes in others:
        section = build_report(joined(suite(), [published_run(make_run, **changes)]), published=True).sections[-1]
        assert section.blocks == () and section.text[0].startswith("No published result"), changes


@pytest.mark.parametrize(
    ("changes", "published"),
    [
        # The values are those of the csv file of open_clip; OpenAI's weights are in the papers' tables too.
        ({"encoder": "open_clip:ViT-B-16/datacomp_xl_s13b_b90k"}, {"S19": "57.93"}),
        ({"encoder": "open_clip:ViT-B-32-quickgelu/metaclip_400m"}, {"S19": "52.55"}),
        ({"encoder": "open_clip:ViT-B-32/openai"}, {"S19": "44.36"}),
        ({"encoder": "open_clip:ViT-B-16/my-own"}, {}),
        ({"encoder": "open_clip:ViT-B-32/openai", "shots": 3, "method": "clip-adapter"}, {"S19": "44.36"}),
    ],
)
@pytest.mark.parametrize("is_measured", [False, True])
def test_published_zero_shot_accuracy_is_beside_every_study_of_a_known_encoder(
    make_run, changes, published, is_measured
):
    encoder = RunEncoder(name=changes["encoder"], fingerprint="f")
    runs = [published_run(make_run, **{"head": "knn", "method": "knn", **changes, "encoder": encoder})]
    if is_measured:
        runs.append(published_run(make_run, head="zero-shot", method="zero-shot", encoder=encoder))
    section = build_report(joined(suite(), runs), published=True).sections[-1]
    rows = [row for grid in section.blocks for row in grid.rows]
    assert {row[7]: row[5] for row in rows} == published
    shown = ("zero-shot", "takes none", "60.0" if is_measured else "not measured")
    assert {(row[0], row[3], row[4]) for row in rows} == ({shown} if published else set())


def test_two_folders_are_compared_cell_by_cell(make_run):
    def made(gain, **changes):
        return joined(suite(), [make_run("a", 1, seed, accuracy=0.5 + gain, **changes) for seed in (1, 2, 3)])

    changed = {"code": "new", "versions": {"torch": "2"}, "encoder": RunEncoder(name="toy", fingerprint="other")}
    text = compare_studies(made(0.0), made(0.02, **changed))
    assert "| a | pets | toy | test | 1 | 50.0 ± 0.0 | 52.0 ± 0.0 | +2.0 [+2.0, +2.0] |" in text
    for line in ("- encoder fingerprint: f to other", "- code: c to new", "- version of torch: 1 to 2"):
        assert line in text.splitlines()
    assert "All settings are the same" in compare_studies(made(0.0), made(0.0))
    others = [joined(suite(), [make_run(head)]) for head in "ab"]
    assert "the first has 1 such cells, the second 1" in compare_studies(*others)
    before = joined(suite(), [make_run("a"), make_run("b", params={"alpha": 0.2})])
    after = joined(suite(), [make_run("a"), make_run("b", params={"alpha": 0.4})])
    assert "- alpha of b: 0.2 to 0.4 (1 of 2 runs)" in compare_studies(before, after).splitlines()
