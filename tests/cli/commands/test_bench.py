import json
import re

import pytest

from clipadapter.bench import list_suites, read_runs
from clipadapter.heads.zero_shot import ZeroShot

SUITE = 'title = "Neighbours"\nheads = ["zero-shot", "prototype", "knn"]\nshots = [1, 2]\nseeds = [1, 2]\n'


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def bench(tmp_path, run, suite, noisy_squares):
    """A function that runs the suite on the squares into tmp_path/out."""

    def call(*more):
        place = ("--data", noisy_squares, "--encoder", "toy", "--out", tmp_path / "out", "--workers", 1)
        return run("bench", "run", suite, *place, *more)

    return call


def test_list_has_every_suite(run):
    result = run("bench", "list", "--json")
    assert result.exit_code == 0, result.stderr
    assert [one["name"] for one in json.loads(result.stdout)] == list_suites()
    assert "Width of the bottleneck" in run("bench", "list").stdout


def test_run_status_and_report(bench, run, tmp_path):
    result = bench("--json")
    assert result.exit_code == 0, result.stderr
    assert {key: json.loads(result.stdout)[key] for key in ("fitted", "existing", "failed")} == {
        "fitted": 12,
        "existing": 0,
        "failed": 0,
    }
    assert len(read_runs(tmp_path / "out" / "runs.jsonl")) == 12
    again = bench()
    assert "0 runs finished" in again.stdout
    assert "12 were in the records" in again.stdout
    status = run("bench", "status", "--out", tmp_path / "out", "--json")
    assert json.loads(status.stdout) == [{"suite": "own", "planned": 12, "done": 12, "failed": 0, "open": 0}]
    report = run("bench", "report", "own", "--out", tmp_path / "out", "--json")
    assert report.exit_code == 0, report.stderr
    files = json.loads(report.stdout)["files"]
    assert {".md", ".csv", ".tex", ".html", ".png"} == {name[name.rindex(".") :] for name in files}
    assert "prototype" in (tmp_path / "out" / "reports" / "own.md").read_text()


def test_a_protocol_that_fits_all_shots_takes_them_and_no_other(run, tmp_path, suite, noisy_squares):
    place = ("--data", noisy_squares, "--encoder", "toy", "--out", tmp_path / "out", "--workers", 1)
    refused = run("bench", "run", suite, *place, "--shots", "all")
    assert refused.exit_code == 1
    assert "protocol 'few-shot' has no shots 'all'" in refused.stderr
    suite.write_text(SUITE.replace("shots = [1, 2]", 'shots = [1, "all"]\nprotocol = "cross-validation"'))
    result = run("bench", "run", suite, *place, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["fitted"] == 12


def test_an_interrupted_run_says_what_is_kept(bench, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipadapter.bench.launch.save_bundle", interrupt)
    result = bench()
    assert result.exit_code == 130
    kept = f"the records of finished fits are in {tmp_path / 'out'}, and features in the feature store; the same"
    assert result.stderr.splitlines()[-1] == f"interrupted: {kept} command runs only what is missing"


def test_dry_run_makes_nothing(bench, tmp_path):
    result = bench("--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "fits      12" in result.stdout
    assert "3 classes, 12 + 6 pictures, ready" in result.stdout
    assert not (tmp_path / "out").exists()


def test_the_papers_table_can_be_planned_without_the_data(run, tmp_path):
    result = run("bench", "run", "paper", "-e", "toy", "--root", tmp_path, "--dry-run", "--json")
    assert result.exit_code == 1
    assert "suite 'paper' can't run: 11 problems, see above" in result.stderr
    plan = json.loads(result.stdout)
    assert plan["fits"] == 11 * 8 * 5 * 3
    assert [one["ready"] for one in plan["data"]] == [False] * 11
    assert [problem.split(":")[0] for problem in plan["problems"]] == [
        f"the data set '{one['spec']}' is not ready" for one in plan["data"]
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('encoders = ["lit"]', "no encoder is called 'lit'. Did you mean 'lite'?"),
        ('encoders = ["toy[final,simclr:nowhere/final]"]', "there is no .*nowhere"),
        (
            'encoders = ["toy"]\nshots = [1, 4]',
            "4 shots take all 12 pictures, so that none is left .* with numbers below 4",
        ),
        ('protocol = "base-to-new"\nencoders = ["toy"]', "is not divided into train and test"),
        ('prompts = [{label = "a", descriptions = true}]\nencoders = ["toy"]', "give them with --descriptions FILE"),
        (
            'encoders = ["toy"]\nheads = [{head = "clip-adapter", vary = {alpha = [0.2, 3.0]}}]',
            "alpha=3.0: alpha must be 0 to 1 or .* but is 3",
        ),
        ('prompts = [{label = "a", templates = "imagenet8"}]\nencoders = ["toy"]', "imagenet8"),
    ],
)
def test_a_suite_that_cannot_run_does_not_pass_its_dry_run(run, squares, tmp_path, line, problem):
    defaults = {"heads": 'heads = ["knn"]', "shots": "shots = [1]", "seeds": "seeds = [1]"}
    lines = ['title = "t"', *(default for name, default in defaults.items() if name not in line), line]
    (tmp_path / "own.toml").write_text("\n".join(lines))
    place = ("--data", squares, "--out", tmp_path / "out")
    for dry in (("--dry-run",), ()):
        result = run("bench", "run", tmp_path / "own.toml", *place, *dry)
        assert result.exit_code == 1
        assert re.search(f"suite 'own' can't run: .*{problem}", result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--device", "nowhere"), "no device is called 'nowhere'"),
        (("--heads", "knnn"), "no head called knnn"),
        (("--heads", "knn,protoype"), "no head called protoype"),
        (("--descriptions", "texts.json"), "texts.json"),
    ],
)
def test_a_dry_run_checks_its_options(bench, options, error):
    result = bench("--dry-run", *options)
    assert result.exit_code == 1
    assert error in result.stderr


def test_a_head_is_selected_by_its_name_where_a_variant_has_this_label(bench, suite):
    suite.write_text(SUITE.replace('"knn"]', '"knn", { head = "gda", label = "gda", params = { stream = true } }]'))
    plan = json.loads(bench("--heads", "gda,knn", "--dry-run", "--json").stdout)
    assert plan["heads"] == ["knn", "gda"]


def test_the_cost_of_per_epoch_views_is_printed_before_they_are_computed(bench, suite):
    suite.write_text(
        'title = "t"\nheads = [{head = "clip-adapter", recipe = "paper", params = {epochs = 4}}]\n'
        'shots = [1]\nseeds = [1]\nviews = "per-epoch"\n'
    )
    result = bench("--json")
    assert json.loads(result.stdout)["failed"] == 0
    pictures = json.loads(bench("--dry-run", "--json").stdout)["pictures"]
    assert f"views: {pictures} to encode, if no feature is stored; about" in result.stderr
    assert pictures == 3 * (1 + 4) + 6  # a shot of each of 3 classes in all views, and the test part


def test_what_the_command_line_changes(bench):
    result = bench("--heads", "knn", "--shots", "2", "--seeds", "3", "--json")
    assert json.loads(result.stdout)["fitted"] == 3


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("run", "botleneck"), "Did you mean 'bottleneck'"),
        (("run", "bottleneck"), "there is no data set"),
        (("run", "bottleneck", "--data", "nowhere"), "nowhere"),
        (("run", "bottleneck", "--data", "{data}", "--heads", "knn"), "no head called knn; its heads: clip-adapter"),
        (("run", "bottleneck", "--data", "features:{data}"), "bundle.safetensors"),
        (("status", "few-shot", "--out", "{data}"), "has no runs of suite 'few-shot'; it has: none"),
        (("report", "few-shot", "--out", "{data}"), "has no runs of suite"),
    ],
)
def test_wrong_arguments_are_refused(run, noisy_squares, tmp_path, monkeypatch, args, error):
    monkeypatch.chdir(tmp_path)
    result = run("bench", *(arg.format(data=noisy_squares) for arg in args))
    assert result.exit_code == 1
    assert error in result.stderr
    assert result.stderr.startswith("error: ")


def test_an_empty_folder_has_a_status(run, tmp_path):
    assert "has no runs yet" in run("bench", "status", "--out", tmp_path).stdout


def test_failed_runs_are_recorded_and_end_in_an_exit_code(bench, monkeypatch):
    def fail(self, shots):
        raise RuntimeError("out of order")

    monkeypatch.setattr(ZeroShot, "_fit", fail)
    result = bench()
    assert result.exit_code == 1
    assert "12 runs finished" in result.stdout
    assert "\n4 of them failed; why: clipadapter bench status own" in result.stdout
