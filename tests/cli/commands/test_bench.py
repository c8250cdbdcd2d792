import itertools
import json
import re
from types import SimpleNamespace

import pytest

from clipadapter.bench import list_suites, speed
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


def test_a_protocol_that_fits_all_shots_takes_them(bench, suite):
    suite.write_text(SUITE.replace("shots = [1, 2]", 'shots = [1, "all"]\nprotocol = "cross-validation"'))
    result = bench("--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["fitted"] == 12


def test_compare_two_folders(bench, run, tmp_path):
    bench()
    result = run("bench", "compare", tmp_path / "out", tmp_path / "out", "--suite", "own")
    assert result.exit_code == 0, result.stderr
    assert "prototype" in result.stdout


def test_an_interrupted_run_says_what_is_kept(bench, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipadapter.bench.launch.save_bundle", interrupt)
    result = bench()
    assert result.exit_code == 130
    kept = f"the records of finished fits are in {tmp_path / 'out'}, and features in the feature store; the same"
    assert result.stderr.splitlines()[-1] == f"interrupted: {kept} command runs only what is missing"


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


def test_failed_runs_are_recorded_and_end_in_an_exit_code(bench, monkeypatch):
    def fail(self, shots):
        raise RuntimeError("out of order")

    monkeypatch.setattr(ZeroShot, "_fit", fail)
    result = bench()
    assert result.exit_code == 1
    assert "12 runs finished" in result.stdout
    assert "\n4 of them failed; why: clipadapter bench status own" in result.stdout


def test_speed_compares_backends_with_the_limit_of_the_machine(run, folders, monkeypatch):
    monkeypatch.setattr(speed, "list_backends", lambda: ["torch"])
    monkeypatch.setattr(speed, "MATRIX_SIDE", 100)
    seconds = itertools.count()
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))  # all take one second
    encoder = f"open_clip:local-dir:{folders['tiny']}"
    arguments = ("bench", "speed", "--encoder", encoder, "--count", 4, "--rounds", 1)
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["limits"] == pytest.approx({"fp32": 0.002, "bf16": 0.002})  # 2 x 100^3 of a second
    assert (found["decode"], found["pictures"]) == (250.0, 4)
    assert [each["precision"] for each in found["speeds"]] == ["fp32", "bf16"]
    for each in found["speeds"]:
        assert each["share"] == pytest.approx(each["rate"] * found["gflop"] / 0.002)
        assert each["ready"] == 1 and each["parity"]["mean_cosine"] > 0.99
    assert re.search(r"reading one picture, ms +250.0", run(*arguments).stdout)
