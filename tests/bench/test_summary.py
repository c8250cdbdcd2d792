import numpy as np
import pytest

from clipadapter.bench import summarise, table
from clipadapter.bench.run import Flags, pack_correct
from clipadapter.bench.tables import Reference
from clipadapter.errors import InputError
from clipadapter.heads import fidelity_of
from clipadapter.heads.clip_adapter import ClipAdapter


@pytest.fixture
def runs(make_run):
    values = {("a", 1): (0.5, 0.7), ("a", 2): (0.8, 0.8), ("b", 1): (0.5, 0.6), ("b", 2): (0.9, 0.8)}
    return [
        make_run(head, shots, seed, accuracy=value)
        for (head, shots), pair in values.items()
        for seed, value in enumerate(pair, 1)
    ]


def test_a_table_has_mean_and_sample_deviation_and_marks_the_best(runs):
    # 0.5 and 0.7: mean 0.6, sd 0.1414; 0.5 and 0.6: mean 0.55, sd 0.0707.
    assert table(runs).splitlines() == [
        "head        1 shot      2 shots  fit at 2",
        "a     •60.0 ± 14.1   80.0 ± 0.0    0.25 s",
        "b       55.0 ± 7.1  •85.0 ± 7.1    0.25 s",
        "",
        "accuracy in %, mean ± sd over 2 seeds, 40 test pictures of 2 classes; •: best at these shots",
        "fit at 2: seconds of one fit of the head alone; features were computed before",
    ]
    assert table(runs, markdown=True).splitlines()[:3] == [
        "| head | 1 shot | 2 shots | fit at 2 |",
        "| --- | ---: | ---: | ---: |",
        "| a | **60.0 ± 14.1** | 80.0 ± 0.0 | 0.25 s |",
    ]
    assert "•0.150 ± 0.071" in table(runs, "log_loss")  # the lowest is best


def test_a_reference_is_the_first_row_and_never_the_best(make_run):
    runs = [make_run("a", shots, accuracy=value) for shots, value in ((1, 0.4), (2, 0.6))]
    reference = Reference("always the same class", {"accuracy": 0.5, "log_loss": 0.7})
    lines = table(runs, reference=reference).splitlines()
    assert lines[1].split() == ["always", "the", "same", "class", "50.0", "50.0", "-"]
    assert lines[2].split()[:3] == ["a", "•40.0", "•60.0"]
    lines = table(runs, "log_loss", reference=reference).splitlines()
    assert lines[1].split()[-3:] == ["0.700", "0.700", "-"]


def test_what_looks_equal_is_equally_good(make_run):
    runs = [make_run("a", accuracy=0.80001), make_run("b", accuracy=0.80002)]
    assert table(runs).count("•80.0") == 2


def test_failed_runs_are_named(make_run):
    runs = [make_run("a", seed=1, accuracy=0.5), make_run("a", seed=2, error="E: why"), make_run("b", error="E: no")]
    lines = table(runs).splitlines()
    assert lines[1].split() == ["a", "•50.0", "(1", "of", "2)", "0.25", "s"]
    assert lines[2].split() == ["b", "failed", "-"]
    assert lines[-2:] == ["a failed: E: why.", "b failed: E: no."]


@pytest.mark.parametrize(("markdown", "mark"), [(False, "*"), (True, r"\*")])
def test_a_table_says_which_heads_saw_the_test_pictures(make_run, markdown, mark):
    runs = [make_run("a", flags=Flags(transductive=True)), make_run("b")]
    lines = table(runs, markdown=markdown).splitlines()
    assert [line.strip("| ").startswith(f"a {mark}") for line in lines if "50.0" in line] == [True, False]
    (note,) = [line for line in lines if line.startswith(mark)]
    assert note.startswith(f"{mark} transductive: fitted to the test pictures too, without their labels")
    assert "transductive" not in table([make_run("b")], markdown=markdown)
    assert [row["head"] for row in summarise(runs)["rows"]] == ["a (transductive)", "b"]


@pytest.mark.parametrize("markdown", [False, True])
def test_heads_that_are_not_as_published_by_name_or_recipe_are_marked_and_explained(make_run, markdown):
    runs = [make_run(head, seed=seed) for head in ("auto", "tip-adapter", "someone's own") for seed in (1, 2)]
    heads = {"ours": ClipAdapter(), "paper": ClipAdapter.paper(alpha=0.6)}
    runs += [make_run(name, method="clip-adapter", params=head.get_params()) for name, head in heads.items()]
    lines = table(runs, markdown=markdown).splitlines()
    assert ["‡" in line for line in lines if "50.0" in line] == [True, False, False, True, False]
    explained = [f"‡ {name}: {fidelity_of(name)}" for name in ("auto", "clip-adapter")]
    assert [line for line in lines if line.startswith("‡")] == explained
    kinds = {"auto": "own", "tip-adapter": "verified", "someone's own": "not stated"}
    assert summarise(runs)["fidelity"] == {**kinds, "ours": "verified, own recipe", "paper": "verified"}


def test_a_summary_can_be_written_as_json(runs):
    summary = summarise(runs, "macro_f1")
    row = {"head": "a", "shots": 1, "mean": pytest.approx(0.3), "sd": pytest.approx(0.0707, abs=1e-4)}
    assert summary["rows"][0] == {**row, "seeds": 2, "failed": 0}
    assert summary["fit_seconds"] == {"a": 0.25, "b": 0.25}
    with pytest.raises(InputError, match="there are no records"):
        table([])


def test_the_lead_of_the_best_head_is_paired_by_picture(make_run):
    first, second = np.arange(40) < 30, (np.arange(40) < 30) & (np.arange(40) > 1)
    runs = [
        make_run(head, 1, accuracy=right.mean()).model_copy(update={"correct": pack_correct(right)})
        for head, right in (("a", first), ("b", second))
    ]
    # 2 of 40 differences are 1: standard error sqrt(0.05 * 0.95 / 39), times 1.96. With own pictures it would be 19.6.
    assert "on the same pictures and draws: 1 shot: a - b +5.0 ± 6.8\n" in f"{table(runs)}\n"
    assert "lead over" not in table(runs, "log_loss")
