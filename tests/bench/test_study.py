import pytest

from clipadapter.bench.plan import Entry, Plan
from clipadapter.bench.run import append_runs
from clipadapter.bench.study import Setting, Study, distinct_values, load_study, metric_value
from clipadapter.bench.suite import Suite
from clipadapter.errors import DataError

SUITE = Suite(name="mine", title="Mine", heads=["zero-shot", "clip-adapter"], shots=[1, 4], seeds=[1, 2])


def entry(run, **changes):
    own = {"key": run.key, "shots": run.shots, "seed": run.seed, "label": run.head}
    return Entry(**{**own, "data": "pets", "encoder": "toy", "test": "test", **changes})


def setting(label, shots):
    return Setting("pets", "toy", "", "test", label, shots)


def cell(study, where, metric="accuracy"):
    return study.spots[where].cell(metric_value(metric))


@pytest.fixture
def runs(make_run):
    """Two heads at 1 and 4 shots, two seeds; one failed."""
    values = {("zero-shot", 1): (0.5, 0.5), ("zero-shot", 4): (0.5, 0.5)}
    values |= {("clip-adapter", 1): (0.5, 0.7), ("clip-adapter", 4): (0.9, None)}
    return [
        make_run(head, n, seed, accuracy=value or 0.0, error=None if value else "ValueError: no")
        for (head, n), pair in values.items()
        for seed, value in enumerate(pair, 1)
    ]


@pytest.fixture
def study(runs):
    return Study(SUITE, tuple(entry(run) for run in runs), {run.key: run for run in runs})


def test_a_cell_has_the_runs_over_the_seeds_and_counts_failed_ones(study):
    # 0.5 and 0.7: mean 0.6, sample sd 0.1414; macro F1 is half of it, log-loss one minus it in these records.
    one, four = setting("clip-adapter", 1), setting("clip-adapter", 4)
    assert [run.seed for run in study.spots[one].runs] == [1, 2]
    assert cell(study, one).mean == pytest.approx(0.6) and cell(study, one).sd == pytest.approx(0.1414, abs=1e-4)
    assert cell(study, one, "macro_f1").mean == pytest.approx(0.3)
    assert cell(study, one, "log_loss").values == pytest.approx((0.5, 0.3))
    failed = cell(study, four)
    assert (failed.values, failed.failed, failed.missing) == ((0.9,), 1, 0)
    assert study.failures() == ["clip-adapter on pets failed: ValueError: no."]


def test_a_run_of_an_older_version_is_neither_missing_nor_a_second_seed(runs, make_run):
    """A planned record may not exist yet; if a newer one of its head and draw does, it is not missing."""
    older, other = make_run("zero-shot", 1, 1, method_version="0"), make_run("zero-shot", shots=2, seed=1)
    planned = tuple(entry(run) for run in [*runs, older, other])
    study = Study(SUITE, planned, {run.key: run for run in runs})
    missing = {place: spot.missing for place, spot in study.spots.items() if spot.missing}
    assert (len(study.runs), len(study.missing), missing) == (8, 2, {setting("zero-shot", 2): 1})
    study = Study(SUITE, planned, {run.key: run for run in [*runs, older.model_copy(update={"metrics": None})]})
    assert cell(study, setting("zero-shot", 1)).values == (0.5, 0.5)
    assert study.superseded == 1


def test_labels_of_the_plan_count_and_not_those_of_the_record(make_run):
    run = make_run("clip-adapter")
    study = Study(SUITE, (entry(run, label="alpha=0.2", value=0.2),), {run.key: run})
    assert study.reference == "alpha=0.2" and study.varied_values == {"alpha=0.2": 0.2}


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ([("zero-shot", "zero-shot", None), ("clip-adapter", "clip-adapter", None)], "clip-adapter"),
        ([("zero-shot", "zero-shot", None), ("visual, 0.2", "clip-adapter", None)], "visual, 0.2"),
        ([("zero-shot", "zero-shot", None), ("alpha=0.2", "clip-adapter", 0.2)], "zero-shot"),
        ([("b", "knn", None), ("a", "knn", None)], "b"),
    ],
)
def test_the_reference_is_clip_adapter_with_defaults_if_the_suite_has_it(make_run, heads, expected):
    runs = [make_run(label, method=method, params={"label": label}) for label, method, _ in heads]
    entries = tuple(entry(run, value=value) for run, (_, _, value) in zip(runs, heads, strict=True))
    assert Study(SUITE, entries, {run.key: run for run in runs}).reference == expected


def test_a_study_is_read_from_its_folder_and_errors_name_what_is_wrong(runs, tmp_path):
    Plan(suite=SUITE, entries=[entry(run) for run in runs]).save(tmp_path)
    append_runs(tmp_path / "runs.jsonl", runs[:5])
    study = load_study(tmp_path, "mine")
    assert study.suite == SUITE and len(study.runs) == 5 and len(study.missing) == 3
    with pytest.raises(DataError, match="no runs of suite 'yours'; it has: mine"):
        load_study(tmp_path, "yours")
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"runs\.jsonl, line 6 is no run"):
        load_study(tmp_path, "mine")


def test_numbers_rise_and_names_keep_their_order():
    settings = [setting("b", 4), setting("a", 1)]
    assert distinct_values(settings, "shots") == [1, 4] and distinct_values(settings, "label") == ["b", "a"]
