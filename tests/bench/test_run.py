import json

import pytest

from clipadapter.bench.run import append_runs, digest, parse_run, read_runs
from clipadapter.errors import DataError, InputError


def test_runs_are_appended_and_an_incomplete_last_line_is_no_record(make_run, tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    runs = [make_run(seed=1), make_run(seed=2, error="InputError: no")]
    append_runs(path, runs)
    before = path.read_bytes()
    append_runs(path, [make_run(seed=3)])
    assert path.read_bytes().startswith(before)
    assert read_runs(path)[:2] == runs
    path.write_bytes(path.read_bytes()[:-30])
    assert [run.seed for run in read_runs(path)] == [1, 2]
    append_runs(path, [make_run(seed=4)])
    assert [run.seed for run in read_runs(path)] == [1, 2, 4]


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


def test_files_and_lines_that_cannot_be_read_or_written_are_named(make_run, tmp_path):
    path, later = tmp_path / "runs.jsonl", tmp_path / "later.jsonl"
    with pytest.raises(DataError, match="can't read"):
        read_runs(path)
    append_runs(path, [make_run()])
    path.write_text(path.read_text() + '{"head": 3}\n')
    with pytest.raises(DataError, match=r"runs\.jsonl, line 2 is no run"):
        read_runs(path)
    append_runs(later, [make_run(format=99)])
    with pytest.raises(DataError, match="line 1 has format 99, this version reads 1"):
        read_runs(later)
    with pytest.raises(InputError, match="can't write .*runs.jsonl"):
        append_runs(path / "runs.jsonl", [make_run()])


def test_the_key_depends_on_what_shapes_the_result_alone_and_the_digest_on_where_a_part_ends(make_run):
    others = [{"seed": 2}, {"rows": [0, 3]}, {"shots": 2}, {"method_version": "2"}, {"text": "x"}]
    others += [{"versions": {"torch": "2"}}, {}]
    assert len({make_run(**change).key for change in others}) == len(others)
    released = [make_run(versions={"torch": "1", "clipadapter": number}, code=number) for number in ("0.1.0", "0.2.0")]
    same = [make_run(created="later", accuracy=0.9, learned={"alpha_": 1.0}), *released]
    assert {run.key for run in same} == {make_run().key}
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_a_record_states_each_test_picture_and_known_metrics_alone(make_run):
    run = make_run()
    for correct in ("", "00" * (run.n_test // 8 + 2)):
        line = json.dumps({**json.loads(run.model_dump_json()), "correct": correct})
        with pytest.raises(DataError, match=f"{len(correct)} digits, which {run.n_test} test pictures do not give"):
            parse_run("runs.jsonl, line 1", line.encode())
    line = run.model_dump_json().replace('"macro_f1"', '"makro_f1"')
    with pytest.raises(DataError, match="there is no metric 'makro_f1'"):
        parse_run("runs.jsonl, line 1", line.encode())
