"""Streams as suites: tasks and their orders, data sets made one, runs, records, resumption, report."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from clipadapter.bench import (
    FEATURES,
    StreamTask,
    learn_task_stream,
    load_study,
    load_suite,
    open_source,
    read_runs,
    run_suite,
    write_report,
)
from clipadapter.bench.bundle import Bundle, TestPart, load_bundle, save_bundle
from clipadapter.bench.costs import estimate
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.published import NO_PUBLISHED_STREAM, find_published_grid, read_rows
from clipadapter.bench.report import build_report
from clipadapter.bench.run import RunEncoder, Task, TaskStream
from clipadapter.bench.streams import DataSetFeatures, draw_tasks, join_data_sets, join_sources
from clipadapter.bench.study import Spot
from clipadapter.bench.suite import ALL, ORDERS, Order, Prompts, StreamRules, count_tasks, order_tasks
from clipadapter.bench.tables import continual_value
from clipadapter.classifier import FewShotClassifier
from clipadapter.cli.app import app
from clipadapter.data import draw_shots
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.heads.knn import Knn

from ..suite_text import parse_suite

SUITE = """
title = "Tasks"
question = "What is left?"
protocol = "stream"
heads = ["zero-shot", "knn"]
shots = [2]
seeds = [1, 2]
"""


def features(names, n, seed, every=None, data="animals"):
    every = every or names
    rng = np.random.default_rng(seed)
    y = tuple(name for name in names for _ in range(n))
    X = np.array([np.eye(16)[hash_of(name)] for name in y]) + 0.15 * rng.standard_normal((len(y), 16))
    return FeatureSet(X, y, tuple(every), {"encoder": "made up", "fingerprint": "f", "data": data})


def hash_of(name):
    return sum(map(ord, name)) % 16


def words(names):
    return TextFeatures(names, [np.eye(16)[hash_of(name)] + 0.1 for name in names], logit_scale=20.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of features as ``features:FOLDER``: six classes, and two of which one is also there."""
    specs, tmp_path = [], tmp_path_factory.mktemp("sets")
    for name, classes, seed in (("zoo", ("ant", "bee", "cat", "dog", "elk", "fox"), 1), ("farm", ("cow", "dog"), 2)):
        test = TestPart(features(classes, 3, seed + 50, data=name))
        save_bundle(Bundle(features(classes, 4, seed, data=name), words(classes), {"test": test}), tmp_path / name)
        specs.append(f"{FEATURES}{tmp_path / name}")
    return specs


def go(sources, out, text=SUITE, **more):
    return run_suite(parse_suite("own", text), sources, {}, out, Launcher(workers=1), **more)


# Tasks and orders


def test_a_data_set_is_divided_as_evenly_as_can_be():
    names = [f"{i:03}" for i in range(101)]
    tasks = order_tasks({"c": names}, StreamRules(classes_per_task=20), ORDERS["given"], 1)
    expected = [(f"c {i}/5", n) for i, n in enumerate((20, 20, 20, 20, 21), 1)]
    assert [(name, len(classes)) for name, _, classes in tasks] == expected
    assert sum((classes for _, _, classes in tasks), []) == names
    assert [count_tasks(n, 20) for n in (1, 29, 31, 100)] == [1, 1, 2, 5]


def test_the_seed_changes_shuffled_orders_only():
    sets = {"a": list("pqrstuvw"), "b": ["x", "y"], "c": ["z", "0"]}
    rules = StreamRules(classes_per_task=2)

    def order(kind, seed):
        return order_tasks(sets, rules, ORDERS[kind], seed)

    assert order("given", 1) == order("given", 2)
    assert [name for name, _, _ in order("classes", 1)] == ["a 1/4", "a 2/4", "a 3/4", "a 4/4", "b", "c"]
    assert order("classes", 1) != order("classes", 2)
    assert order("seed", 1) == order("seed", 1) != order("seed", 2)
    for kind in ORDERS:
        assert sorted(sum((classes for _, _, classes in order(kind, 3)), [])) == sorted("pqrstuvwxyz0")
    assert len({tuple(name for name, _, _ in order("seed", seed)) for seed in range(5)}) > 1


def test_a_named_order_sorts_the_given_data_sets_and_those_of_mtil_are_the_published_ones():
    mine = Order(name="mine", data=["c", "b", "a"])
    assert [name for name, _, _ in order_tasks({"a": ["p"], "c": ["q"]}, StreamRules(), mine, 1)] == ["c", "a"]
    with pytest.raises(InputError, match="the order 'mine' lacks d; it has: c, b, a.*--order given"):
        order_tasks({"d": ["p"]}, StreamRules(), mine, 1)
    first, second = load_suite("mtil").stream.orders
    assert [first.data[i] for i in (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2)] == second.data
    assert load_suite("x-tail").data == [name for name in first.data if name != "cifar100"]
    published = dict.fromkeys(tuple(one["data"].split()) for one in read_rows("streams.csv"))
    assert [tuple(one.data) for one in (first, second)] == list(published)


# One of several


def data_set(name, classes, seed, text=None):
    support, test = features(classes, 2, seed, data=name), features(classes, 1, seed + 9)
    bundle = Bundle(
        support, text or words(classes), {"test": TestPart(test)}, np.arange(len(support)), {(1, 1): [0, 2]}
    )
    return DataSetFeatures(name, bundle, 10)


def test_a_name_that_two_data_sets_have_is_one_class_or_two():
    text = TextFeatures(("cow", "dog"), np.eye(2, 16))
    data_sets = [data_set("zoo", ("ant", "dog"), 1), data_set("farm", ("cow", "dog"), 2, text)]
    shared = join_data_sets(data_sets, "share")
    assert shared.bundle.text.labels == ("ant", "dog", "cow")
    mean = data_sets[0].bundle.text.embeddings[1] + text.embeddings[1]
    np.testing.assert_allclose(shared.bundle.text.embeddings[1], mean / np.linalg.norm(mean), rtol=1e-5)
    assert shared.classes == {"zoo": ("ant", "dog"), "farm": ("cow", "dog")}
    apart = join_data_sets(data_sets, "apart")
    assert apart.bundle.text.labels == ("ant", "dog (zoo)", "cow", "dog (farm)")
    assert apart.bundle.tests["farm"].features.y == ("cow", "dog (farm)")
    np.testing.assert_array_equal(apart.bundle.text.embeddings[3], text.embeddings[1])
    # Rows are counted through all data sets.
    assert list(shared.bundle.rows) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert shared.draws["farm"] == {(1, 1): [10, 12]}
    assert shared.bundle.shots([10, 12]).y == ("cow", "dog")
    with pytest.raises(InputError, match="different names, but are called zoo, zoo"):
        join_data_sets([data_sets[0], data_set("zoo", ("cow", "pig"), 2)], "share")


def test_shots_are_those_that_each_data_set_gives_alone(sets):
    suite = parse_suite("own", SUITE + "[stream]\nclasses_per_task = 2")
    union = join_sources(suite, [open_source(spec) for spec in sets], None, Prompts(label=""))
    _, _, rows, _, tasks = draw_tasks(suite.stream, union, ORDERS["given"], 2, 1)
    assert [(one.name, one.shots) for one in tasks] == [(name, 4) for name in ("zoo 1/3", "zoo 2/3", "zoo 3/3", "farm")]
    assert [one.classes for one in tasks] == [["ant", "bee"], ["cat", "dog"], ["elk", "fox"], ["cow", "dog"]]
    zoo = load_bundle(sets[0][len(FEATURES) :]).support
    assert rows[:12] == draw_shots(zoo.y, 2, 1)
    farm = load_bundle(sets[1][len(FEATURES) :]).support
    assert rows[12:] == [24 + row for row in draw_shots(farm.y, 2, 1)]
    np.testing.assert_array_equal(union.bundle.shots(rows[12:]).X, farm.X[draw_shots(farm.y, 2, 1)])
    union.draws["zoo"][2, 1][:] = union.draws["zoo"][2, 1][4:]
    with pytest.raises(DataError, match="the task 'zoo 1/3' has no picture to learn from: ant, bee"):
        draw_tasks(suite.stream, union, ORDERS["given"], 2, 1)


def test_of_an_undivided_set_every_second_picture_is_for_the_test(tmp_path):
    all_features = features(("ant", "bee"), 5, 1)
    save_bundle(Bundle(all_features, words(("ant", "bee"))), tmp_path / "all")
    source = open_source(f"{FEATURES}{tmp_path / 'all'}")
    union = join_sources(parse_suite("own", SUITE), [source], None, Prompts(label=""))
    np.testing.assert_array_equal(union.bundle.support.X, all_features.X[[0, 2, 4, 5, 7, 9]])
    np.testing.assert_array_equal(np.asarray(union.bundle.tests["all"].features.X), all_features.X[[1, 3, 6, 8]])


# Runs


def test_a_suite_gives_what_the_function_gives(sets, tmp_path):
    result = go(sets[:1], tmp_path / "out", SUITE + "[stream]\nclasses_per_task = 3")
    assert (result.n_made, result.n_failed) == (4, 0)
    bundle = load_bundle(sets[0][len(FEATURES) :])
    rows = draw_shots(bundle.support.y, 2, 1)
    tasks = []
    for names in (("ant", "bee", "cat"), ("dog", "elk", "fox")):
        own = bundle.support.take([row for row in rows if bundle.support.y[row] in names])
        part = bundle.tests["test"].features
        tasks.append(StreamTask(names[0], own, part.take([i for i, y in enumerate(part.y) if y in names])))
    (expected,) = learn_task_stream({"knn": Knn()}, tasks, bundle.text)
    run = next(r for r in read_runs(tmp_path / "out" / "runs.jsonl") if (r.head, r.seed) == ("knn", 1))
    assert run.continual.accuracy == expected.continual.accuracy
    assert run.continual.zero_shot == expected.continual.zero_shot


def test_all_pictures_may_be_learned_from_and_the_name_of_an_order_makes_no_other_run(sets, tmp_path):
    go(sets, tmp_path / "out", SUITE.replace("[2]", '[2, "all"]'))
    runs = read_runs(tmp_path / "out" / "runs.jsonl")
    assert {(run.shots, len(run.rows)) for run in runs} == {(2, 16), (ALL, 32)}
    result = go(sets, tmp_path / "out", SUITE + '[stream]\norders = [{ name = "mine", data = ["zoo", "farm"] }]')
    assert (result.n_made, result.n_existing) == (0, 4)


def test_pictures_and_features_make_streams(tmp_path, colour_folder, sets):
    colour_folder("first/train", 3)
    colour_folder("first/test", 2, seed=1)
    colour_folder("second", 4, seed=2)
    for name in ("blue", "green", "red"):
        (tmp_path / "second" / name).rename(tmp_path / "second" / f"dark {name}")
    sources = [open_source(str(tmp_path / name)) for name in ("first", "second")]
    toy = FewShotClassifier("toy", cache=None)
    launcher = Launcher(workers=1)
    suite = parse_suite("own", SUITE)
    result = run_suite(suite, sources, {"toy": toy}, tmp_path / "out", launcher)
    assert result.n_failed == 0
    run = read_runs(tmp_path / "out" / "runs.jsonl")[0]
    assert [(task.name, task.shots) for task in run.stream.tasks] == [("first", 6), ("second", 6)]
    assert run.n_test == 6 + 6  # of the undivided set every second of four
    entries = load_study(tmp_path / "out", suite.name).entries
    assert {(entry.data, entry.test) for entry in entries} == {("first + second", "as given")}
    with pytest.raises(InputError, match="one encoder|one shape"):
        run_suite(suite, [sources[0], sets[0]], {"toy": toy}, tmp_path / "other", launcher)


# Suites


def test_all_heads_of_a_stream_are_those_with_a_place_in_it_and_an_estimate_counts_streams(sets):
    names = {v.head for v in parse_suite("own", 'title = "t"\nprotocol = "stream"\nheads = ["all"]').all_variants()}
    assert {"zero-shot", "auto"} <= names and not {"transclip", "zlap"} & names
    cost = estimate(parse_suite("own", SUITE + "[stream]\nclasses_per_task = 2"), sets, ["lite"])
    assert cost.fits == 2 * 2
    assert cost.fit_seconds > 4 * 4 * 0.1


# Report


@pytest.fixture(scope="module")
def report(sets, tmp_path_factory):
    """The report of a stream with one head that goes on, and its files by ending."""
    out = tmp_path_factory.mktemp("report")
    go(sets, out, SUITE + "[stream]\nclasses_per_task = 2")
    study = load_study(out, "own")
    return write_report(study, out, published=True), study


def test_a_report_describes_the_stream_and_its_results_and_its_csv_has_each_cell(report):
    files, study = report
    page = files[0].read_text()
    assert "4 tasks are learned one after the other: zoo 1/3 (2 classes), then zoo 2/3 (2 classes)" in page
    assert "The task of a test picture is unknown: a head predicts among all 7 classes." in page
    assert "Transfer: accuracy on a task before it was learned" in page
    assert "No published result that comes with the package is of this stream" in page
    knn = next(spot for spot in study.spots.values() if spot.label == "knn")
    row = next(line for line in page.splitlines() if line.startswith("| knn ‡ | joint |"))
    for figure in ("transfer", "average", "last", "forgetting"):
        assert f"{round(100 * knn.cell(continual_value(figure)).mean, 1) + 0.0:.1f} ± " in row
    first, last = (knn.results[0].steps[t].size for t in (0, -1))
    assert f"{first:,} → {last:,}" in row and last > first
    assert "| head | zoo 1/3 | zoo 2/3 | zoo 3/3 | farm |" in page
    assert [path.name for path in files[4:]] == ["own-1-matrix.png", "own-2-learned.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[4:])
    html = next(path for path in files if path.suffix == ".html").read_text()
    assert html.count("data:image/svg+xml;base64,") == 2
    rows = list(csv.DictReader(next(path for path in files if path.suffix == ".csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 4 * 4
    run = next(spot.runs[0] for place, spot in study.spots.items() if place.label == "knn")
    cell = next(r for r in rows if (r["key"], r["after"], r["task"]) == (run.key, "2", "4"))
    assert float(cell["accuracy"]) == run.continual.accuracy[1][3]
    assert (cell["after_task"], cell["task_name"], cell["learned"]) == ("zoo 2/3", "farm", "False")


@pytest.mark.parametrize(
    ("text", "first", "lines"),
    [
        (
            SUITE + '[stream]\nclasses_per_task = 2\norders = [{ name = "by seed", shuffle = "all" }]',
            0,
            ["| head | task 1 | task 2 | task 3 | task 4 |", "their order depends on the seed"],
        ),
        (SUITE, 1, ["1 task: farm (2 classes)", "| knn ‡ | joint | - |"]),  # no Transfer
        (
            SUITE.replace('"knn"]', '"knn", { head = "clip-adapter", params = { branch = "none" } }]'),
            0,
            ["failed 2 times: InputError: branch must be one of"],
        ),
    ],
)
def test_a_report_says_what_is_special_about_a_stream(sets, tmp_path, text, first, lines):
    go(sets[first:], tmp_path / "out", text)
    study = load_study(tmp_path / "out", "own")
    page = build_report(study).to_markdown()
    for line in lines:
        assert line in page
    failed = [run.error for run in study.runs if run.error]
    assert all(error.endswith("(after 0 of 2 tasks)") for error in failed)


def test_published_figures_are_compared_with_the_same_stream_only(sets, tmp_path):
    go(sets, tmp_path / "out")
    run = read_runs(tmp_path / "out" / "runs.jsonl")[0]
    order = load_suite("mtil").stream.orders[0].data
    sizes = {"fgvc_aircraft": 100, "caltech101": 100, "dtd": 47, "eurosat": 10, "oxford_flowers": 102, "food101": 101}
    sizes |= {"oxford_pets": 37, "stanford_cars": 196, "sun397": 397}
    classes = {name: [f"{name} {i}" for i in range(sizes.get(name, 10))] for name in order}
    tasks = [Task(name=name, part=name, classes=own, shots=1) for name, own in classes.items()]

    def told(known=True, tasks=tasks, encoder="open_clip:ViT-B-16/openai"):
        plan = TaskStream(task_known=known, joint=False, tasks=tasks)
        same = run.model_copy(update={"stream": plan, "encoder": RunEncoder(name=encoder, fingerprint="f")})
        return find_published_grid("t", 16, [Spot([same], label="mine")])

    rows = told().rows
    assert [row[0] for row in rows] == ["mine", "zero-shot", "fine-tune", "lwf", "icarl", "zscl"]
    assert rows[-1][2:] == ("68.1", "75.4", "83.6", "S12")
    assert rows[0][-1] == "measured"
    other = [tasks[0].model_copy(update={"classes": ["x"]}), *tasks[1:]]
    for changes in ({"known": False}, {"tasks": tasks[::-1]}, {"encoder": "lite"}, {"tasks": other}):
        assert told(**changes) == NO_PUBLISHED_STREAM


# The command


@pytest.fixture
def command(tmp_path):
    """A function that runs a command on a suite file."""

    def run(*args, text=SUITE):
        (tmp_path / "own.toml").write_text(text)
        place = ["bench", "run", str(tmp_path / "own.toml"), "--workers", "1", "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, [*place, *map(str, args)])

    return run


def test_the_command_prints_a_table_with_its_definitions(sets, command):
    data = [word for spec in sets for word in ("--data", spec)]
    result = command(*data, "--per-task", "2", "--order", "classes")
    assert result.exit_code == 0, result.output
    assert "zoo + farm, 2 shots, tasks classes by seed, about 2 classes a task" in result.stdout
    assert "Last: accuracy on a task after the last one was learned." in result.stdout
    assert "4 streams finished" in result.stdout
    data_of_run = json.loads(command(*data, "--shots", "all", "--seeds", "1", "--heads", "knn", "--json").stdout)
    assert [(one["head"], one["learns"], one["shots"]) for one in data_of_run["streams"]] == [("knn", "joint", ALL)]
    assert "tasks     4, learned one after" in command(*data, "--per-task", "2", "--dry-run").stdout
    wrong = command(*data, "--order", "backwards")
    assert wrong.exit_code == 2 and "backwards" in wrong.stderr


def test_the_command_names_missing_data_sets(tmp_path, colour_folder, command):
    colour_folder("root/mnist/train", 2)
    colour_folder("root/mnist/test", 1)
    options, text = ("--root", tmp_path / "root", "--encoder", "toy"), SUITE + 'data = ["dtd", "mnist", "cifar100"]\n'
    result = command(*options, text=text)
    assert result.exit_code == 1
    assert "2 of the 3 data sets of this stream are not on disk: dtd, cifar100." in result.stderr
    assert "own.toml --data mnist" in result.stderr
    plan = command(*options, "--dry-run", text=text).stdout
    assert "the data set 'dtd' is not ready" in plan and "mnist: 3 classes, 6 + 3 pictures, ready" in plan
    assert "'cifar100' is not ready" in plan and "put its pictures into" in plan
    assert "cifar100: unknown size, NOT ON DISK" in plan
