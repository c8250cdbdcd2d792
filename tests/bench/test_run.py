import json

import pytest

from clipadapter.bench.run import append_runs, digest, parse_run, read_runs
from clipadapter.errors import DataError, InputError


def test_runs_come_back_as_they_were_appended(make_run, tmp_path):
    runs = [make_run(seed=1), make_run(seed=2, error="InputError: no")]
    append_runs(tmp_path / "new" / "runs.jsonl", runs)
    assert read_runs(tmp_path / "new" / "runs.jsonl") == runs


def test_appending_does_not_change_existing_lines(make_run, tmp_path):
    path = tmp_path / "runs.jsonl"
    append_runs(path, [make_run(seed=1)])
    before = path.read_bytes()
    append_runs(path, [make_run(seed=2)])
    assert path.read_bytes().startswith(before)
    assert [run.seed for run in read_runs(path)] == [1, 2]


def test_an_incomplete_last_line_is_no_record_and_is_removed(make_run, tmp_path):
    path = tmp_path / "runs.jsonl"
    append_runs(path, [make_run(seed=1), make_run(seed=2)])
    path.write_bytes(path.read_bytes()[:-30])
    assert [run.seed for run in read_runs(path)] == [1]
    append_runs(path, [make_run(seed=3)])
    assert [run.seed for run in read_runs(path)] == [1, 3]


@pytest.mark.parametrize("is_link", [True, False])
def test_a_file_that_is_no_file_of_runs_is_not_cut(make_run, tmp_path, is_link):
    diary, log = tmp_path / "diary.txt", tmp_path / "out" / "runs.jsonl"
    log.parent.mkdir()
    (diary if is_link else log).write_text("all my words in one line")
    if is_link:
        log.symlink_to(diary)
    with pytest.raises(InputError, match="is a link" if is_link else "is not a file of runs"):
        append_runs(log, [make_run()])
    assert log.read_text() == "all my words in one line"


def test_a_damaged_line_is_named(make_run, tmp_path):
    path = tmp_path / "runs.jsonl"
    append_runs(path, [make_run()])
    path.write_text(path.read_text() + '{"head": 3}\n')
    with pytest.raises(DataError, match=r"runs\.jsonl, line 2 is no run"):
        read_runs(path)


def test_a_later_format_is_refused(make_run, tmp_path):
    append_runs(tmp_path / "runs.jsonl", [make_run(format=99)])
    with pytest.raises(DataError, match="line 1 has format 99, this version reads 1"):
        read_runs(tmp_path / "runs.jsonl")


def test_a_file_that_cannot_be_written_is_refused(make_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write .*runs.jsonl"):
        append_runs(tmp_path / "file" / "runs.jsonl", [make_run()])


def test_a_missing_file_of_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't read"):
        read_runs(tmp_path / "runs.jsonl")


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"rows": [0, 3]}, {"shots": 2}, {"method_version": "2"}, {"text": "x"}]
)
def test_the_key_depends_on_what_shapes_the_result(make_run, change):
    assert make_run(**change).key != make_run().key


def test_the_key_does_not_depend_on_time_and_machine(make_run):
    assert make_run(created="later", accuracy=0.9, learned={"alpha_": 1.0}).key == make_run().key


def test_the_key_does_not_depend_on_the_source_code_or_the_release(make_run):
    versions = [{"torch": "1", "clipadapter": release} for release in ("0.1.0", "0.2.0")]
    assert make_run(code="x", versions=versions[0]).key == make_run(versions=versions[1]).key
    assert make_run(versions={"torch": "2"}).key != make_run(versions={"torch": "1"}).key


def test_the_digest_tells_apart_where_a_part_ends():
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_a_record_states_as_many_right_or_wrong_pictures_as_it_has_test_pictures(make_run):
    run = make_run()
    for correct in ("", "00" * (run.n_test // 8 + 2)):
        line = json.dumps({**json.loads(run.model_dump_json()), "correct": correct})
        with pytest.raises(DataError, match=f"{len(correct)} digits, which {run.n_test} test pictures do not give"):
            parse_run("runs.jsonl, line 1", line.encode())


def test_a_record_with_a_metric_that_nobody_knows_is_named(make_run, tmp_path):
    line = make_run().model_dump_json().replace('"macro_f1"', '"makro_f1"')
    with pytest.raises(DataError, match="there is no metric 'makro_f1'"):
        parse_run("runs.jsonl, line 1", line.encode())
