"""``predict --out`` and predictions from tables of features; what is predicted is in `test_predict.py`."""

import csv
import errno
import json
import os
import shlex
import shutil

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from clipadapter.cli.commands import predict
from clipadapter.cli.prediction_files import PredictionFile
from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError, InputError
from clipadapter.features import open_feature_table
from clipadapter.features.collection import divide_collection, open_filesystem
from clipadapter.features.ray_extract import RayJob, make_plan, shard_name, write_plan, write_unit
from clipadapter.features.tables import MAX_WIDTH
from clipadapter.utils.prediction import Prediction

PART = f"00000000-1-0-{'0' * 32}-{'1' * 32}"
"""Name of a part."""


def printed(run, *args):
    top = () if "--top" in args else ("--top", 1)  # a file has one class unless it is told, JSON all
    result = run("predict", *args, *top, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def written(run, path, *args):
    result = run("predict", *args, "--out", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert not path.with_name(f"{path.name}.parts").exists()
    return json.loads(result.stdout), read(path)


def read(path):
    """The records of a Parquet file as `Prediction.record` gives them."""
    rows = parquet.read_table(path).to_pylist()
    for row in rows:
        labels, scores = row.pop("top_labels"), row.pop("top_scores")
        row["top"] = [{"label": name, "score": score} for name, score in zip(labels, scores, strict=True)]
    return rows


def contents(folder):
    """The files below a folder and their bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(path, name, text=""):
    """Write a file into the folder for the parts of a file of predictions."""
    file = path.with_name(f"{path.name}.parts") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def near(records, expected):
    """Equal, but for the rounding of products of matrices of other sizes."""
    apart = dict.fromkeys(("top", "ood_score", "probability", "reason"))
    for one, other in zip(records, expected, strict=True):
        top, expected_top = ({each["label"]: each["score"] for each in record["top"]} for record in (one, other))
        assert list(top) == list(expected_top) and top == pytest.approx(expected_top)
        assert one["ood_score"] == pytest.approx(other["ood_score"], abs=1e-3)
        assert one["probability"] == pytest.approx(other["probability"])
        assert one.keys() == other.keys() and {**one, **apart} == {**other, **apart}


@pytest.fixture
def mixed(noisy_squares, tmp_path):
    """Six pictures, and in the middle one that can't be read."""
    folder = tmp_path / "pictures"
    shutil.copytree(noisy_squares / "test", folder)
    (folder / "green" / "00.jpg").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    "line", ["--top 2 --reject 0.2", "--coverage 0.8", "--minimise 'false red=50'", "--adapt tda --top 3"]
)
def test_the_file_and_predictions_from_features_have_what_is_printed(line, mixed, probe, tmp_path, run):
    options = shlex.split(line)
    expected = printed(run, probe, mixed, *options)
    facts, records = written(run, tmp_path / "answers.parquet", probe, mixed, *options)
    near(records, expected)
    assert (facts["pictures"], facts["unreadable"], facts["from_earlier_run"]) == (7, 1, 0)
    features = tmp_path / "features.parquet"
    assert run("embed", mixed, "--encoder", "toy", "--to", features).exit_code == 0
    readable = [record for record in expected if record["error"] is None]
    near(printed(run, probe, features, *options), readable)
    near(written(run, tmp_path / "of-features.parquet", probe, features, *options)[1], readable)


def test_shards_give_the_predictions_of_their_pictures_without_opening_any(mixed, probe, tmp_path, run):
    expected = printed(run, probe, mixed, "--top", 2)
    encoder = create_encoder("toy")
    (system, source), (target, folder) = map(open_filesystem, (mixed, tmp_path / "shards"))
    units = divide_collection(system, source, 3)
    plan = make_plan("toy", encoder, [shard_name(unit, encoder.info.fingerprint) for unit in units])
    write_plan(target, folder, plan)
    job = RayJob(plan, system, target, folder, 4, 1, "cpu")  # with one core: it sets torch's threads
    assert [write_unit(job, unit) for unit in units] == [(3, 0), (3, 1), (1, 0)]
    shutil.rmtree(mixed)
    records = written(run, tmp_path / "answers.parquet", probe, tmp_path / "shards", "--top", 2)[1]
    for record in (*records, *expected):
        record["source"] = "/".join(record["source"].split("/")[-2:])
    near(records, expected)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_lines_and_fields_have_what_is_printed(suffix, mixed, probe, tmp_path, run):
    expected, path = printed(run, probe, mixed, "--top", 2), tmp_path / f"answers{suffix}"
    assert run("predict", probe, mixed, "--top", 2, "--out", path).exit_code == 0
    with path.open(newline="") as file:
        if suffix == ".jsonl":
            near([json.loads(line) for line in file], expected)
            return
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [record["label"] or "" for record in expected]
    assert [row["top_labels"] for row in rows] == ["|".join(each["label"] for each in one["top"]) for one in expected]
    # A file of predictions is replaced, another one is not.
    assert run("predict", probe, mixed, "--out", path).exit_code == 0


@pytest.fixture
def stop(noisy_squares, tmp_path, run, monkeypatch):
    """A function that runs a command on eight pictures from its beginning; it ends at the sixth, after two parts."""
    monkeypatch.setattr(predict, "PICTURES_PER_PART", 2)
    folder, path = tmp_path / "pictures", tmp_path / "answers.parquet"
    folder.mkdir()
    for i, picture in enumerate(sorted((noisy_squares / "train").glob("*/*.png"))[:8]):
        shutil.copy(picture, folder / f"{i}.png")

    def run_to_the_sixth(command):
        good = (folder / "5.png").read_bytes()
        shutil.rmtree(path.with_name("answers.parquet.parts"), ignore_errors=True)
        (folder / "5.png").write_text("no picture")
        assert run(*command).exit_code == 1 and not path.exists()
        (folder / "5.png").write_bytes(good)

    return run_to_the_sixth


@pytest.fixture
def stopped(stop, probe, tmp_path):
    """A run that ended at the sixth picture; gives pictures, file and command."""
    folder, path = tmp_path / "pictures", tmp_path / "answers.parquet"
    command = ["predict", probe, folder, "--out", path, "--strict", "--json"]
    stop(command)
    return folder, path, command


def test_a_stopped_run_continues(stopped, probe, run):
    folder, path, command = stopped
    facts = json.loads(run(*command).stdout)
    assert (facts["pictures"], facts["from_earlier_run"]) == (8, 4)
    near(read(path), printed(run, probe, folder))
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 0  # a finished run does not continue


def test_a_picture_that_changed_is_predicted_again(stopped, probe, run):
    folder, path, command = stopped
    Image.new("RGB", (9, 9), "blue").save(folder / "2.png")
    Image.new("RGB", (9, 9), "red").save(folder / "35.png")  # and one more than before
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 2
    near(read(path), printed(run, probe, folder))


def test_a_picture_that_changes_after_it_was_read_is_predicted_again(stopped, stop, probe, run, monkeypatch):
    folder, path, command = stopped
    gather = predict._gather

    def change(blocks, *args):
        for part in gather(blocks, *args):
            if part[0][0].source.endswith("2.png"):
                Image.new("RGB", (9, 9), "blue").save(folder / "2.png")
            yield part

    with monkeypatch.context() as context:
        context.setattr(predict, "_gather", change)
        stop(command)
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 2
    near(read(path), printed(run, probe, folder))


@pytest.mark.parametrize("replace", [True, False])
def test_a_picture_of_equal_size_and_time_is_predicted_again(replace, stopped, stop, probe, run):
    folder, path, command = stopped
    old, new = (folder / "0.png").read_bytes(), (folder / "7.png").read_bytes()
    size = max(len(old), len(new))
    (folder / "0.png").write_bytes(old.ljust(size, b"\0"))  # bytes after the end of a PNG file change nothing
    stop(command)
    status = (folder / "0.png").stat()
    target = folder / "new" if replace else folder / "0.png"
    target.write_bytes(new.ljust(size, b"\0"))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    target.replace(folder / "0.png")
    assert (folder / "0.png").stat().st_mtime_ns == status.st_mtime_ns
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 0
    near(read(path), printed(run, probe, folder))


def test_a_run_continues_by_its_own_rules_for_what_cannot_be_read(stopped, run, monkeypatch):
    folder, path, command = stopped
    shutil.rmtree(path.with_name("answers.parquet.parts"))
    (folder / "1.png").write_text("no picture")
    lenient = [word for word in command if word != "--strict"]
    with monkeypatch.context() as context:
        context.setattr(PredictionFile, "finish", lambda self: click.get_current_context().exit(1))
        assert run(*lenient).exit_code == 1
    result = run(*lenient, "--max-pixels", 10**6)
    assert result.exit_code == 1 and "differs from this command in max_pixels (" in result.stderr
    result = run(*command)
    assert result.exit_code == 1 and "1.png" in result.stderr
    assert not path.exists()


def test_a_command_that_failed_before_its_first_part_leaves_its_name_free(model, squares, tmp_path, run):
    folder, path = tmp_path / "pictures", tmp_path / "answers.csv"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    assert run("predict", model, folder, "--out", path, "--strict").exit_code == 1
    result = run("predict", model, squares, "--out", path)
    assert result.exit_code == 0 and path.is_file(), result.stderr


def test_parts_of_another_run_are_neither_mixed_nor_lost(stopped, model, run):
    folder, path, command = stopped
    parts = sorted(path.with_name("answers.parquet.parts").glob("*.parquet"))
    assert len(parts) == 2
    result = run(*command, "--top", 2)
    assert result.exit_code == 1 and "in top (1 there, 2 here): repeat its command" in result.stderr
    result = run("predict", model, folder, "--out", path)
    assert result.exit_code == 1 and "differs from this command in model: repeat" in result.stderr
    assert sorted(path.with_name("answers.parquet.parts").glob("*.parquet")) == parts


def test_adaptation_starts_again(stopped, stop, probe, run):
    folder, path, command = stopped
    command = [*command, "--adapt", "tda"]
    stop(command)
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 0
    near(read(path), printed(run, probe, folder, "--adapt", "tda"))


def test_rows_of_features_continue_too(noisy_squares, probe, tmp_path, run, monkeypatch):
    monkeypatch.setattr(predict, "ROWS_PER_PART", 5)
    monkeypatch.setattr("clipadapter.features.tables.ROWS_PER_BATCH", 5)
    features, path = tmp_path / "features.parquet", tmp_path / "answers.parquet"
    assert run("embed", noisy_squares, "--encoder", "toy", "--to", features).exit_code == 0
    table, command = parquet.read_table(features), ["predict", probe, features, "--out", path, "--json"]
    values, kind = table["feature"].to_pylist(), table.schema.field("feature").type
    values[12] = [np.nan] * 32
    values[15:] = [None] * 3  # no row of the last batch has a feature
    parquet.write_table(table.set_column(3, "feature", pa.array(values, kind)), features)
    result = run(*command, "--strict")
    assert result.exit_code == 1 and "its feature is not finite" in result.stderr
    facts = json.loads(run(*command).stdout)
    assert (facts["pictures"], facts["unreadable"], facts["from_earlier_run"]) == (18, 4, 10)
    near(read(path), printed(run, probe, features))


def test_a_table_that_is_named_twice_is_answered_twice(noisy_squares, probe, tmp_path, run, monkeypatch):
    monkeypatch.setattr(predict, "ROWS_PER_PART", 5)
    monkeypatch.setattr("clipadapter.features.tables.ROWS_PER_BATCH", 5)
    features, other = tmp_path / "features.parquet", tmp_path / "other.parquet"
    assert run("embed", noisy_squares, "--encoder", "toy", "--to", features).exit_code == 0
    parquet.write_table(parquet.read_table(features).slice(0, 7), other)
    tables = [features, features, other, tmp_path / "." / "features.parquet"]
    facts, records = written(run, tmp_path / "answers.parquet", probe, *tables)
    assert facts["pictures"] == 18 + 18 + 7 + 18
    near(records, printed(run, probe, *tables))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_row_with_a_feature_and_an_error_has_no_prediction(suffix, noisy_squares, probe, tmp_path, run):
    features, path = tmp_path / "features.parquet", tmp_path / f"answers{suffix}"
    assert run("embed", noisy_squares, "--encoder", "toy", "--to", features).exit_code == 0
    table, readable = parquet.read_table(features), printed(run, probe, features)
    errors = pa.array(["", "damaged", None, "damaged", *[None] * 14], pa.string())
    parquet.write_table(table.append_column("error", errors), features)
    assert run("predict", probe, features, "--out", path).exit_code == 0
    records = read(path) if suffix == ".parquet" else [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["error"] for record in records] == [None, "damaged", None, "damaged", *[None] * 14]
    answered = [i for i in range(18) if i not in (1, 3)]
    near([records[i] for i in answered], [readable[i] for i in answered])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_part_without_all_of_its_rows_is_not_kept(suffix, tmp_path):
    path, stamp = tmp_path / f"answers{suffix}", predict.hash_facts([])
    rows = [Prediction('a "b"\nc', None, None, (), 'it,\n"d"'), Prediction("e\n", "f", 0.5, (("f", 0.5),))]
    with PredictionFile(path, {}) as file:
        file.write([rows], stamp)
    (part,) = file.folder.glob("0*")
    whole = part.read_bytes()
    edited = whole.replace(b"f", b"F")
    for content, is_kept in ((whole, True), (edited, False), (whole[:-1], False), (bytes(len(whole)), False)):
        part.write_bytes(content)
        with PredictionFile(path, {}) as file:
            assert file.keep_parts(2, lambda *_: stamp) == (2 if is_kept else 0)
    part.write_bytes(whole)
    with PredictionFile(path, {}) as file:
        assert file.keep_parts(2, lambda *_: stamp) == 2
        part.write_bytes(b"")
        with pytest.raises(DataError, match="same command"):
            file.finish()


def test_what_a_killed_run_left_is_no_obstacle(tmp_path):
    path, folder = tmp_path / "answers.csv", tmp_path / "answers.csv.parts"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".run.json-x1_abcde").touch()
    with PredictionFile(path, {}):
        assert {file.name for file in folder.iterdir()} == {"lock", "run.json"}
        (folder / ".hidden").mkdir()
    with PredictionFile(path, {}):
        assert (folder / ".hidden").is_dir()


def test_files_of_a_person_beside_the_parts_stay(stopped, run):
    _, path, command = stopped
    folder = path.with_name("answers.parquet.parts")
    for name in ("notes.txt", "sub/mine.txt", ".hidden", "00000000.parquet", ".joined", ".run.json-backup"):
        put(path, name, "mine")
    others = {name: text for name, text in contents(folder).items() if text == b"mine"}
    assert json.loads(run(*command).stdout)["from_earlier_run"] == 4
    assert len(others) == 6 and contents(folder) == others
    assert run(*command).exit_code == 0  # a folder with others' files alone is no obstacle
    assert contents(folder) == others


@pytest.mark.parametrize("name", ["", "run.json", "lock", f"{PART}.csv", ".joined.csv", "notes"])
def test_links_among_the_parts_are_not_followed(name, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis").write_text("thesis")
    path = tmp_path / "answers.csv"
    link = tmp_path / "answers.csv.parts" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(home / "thesis" if name else home)
    with pytest.raises(InputError, match="is a link"):
        PredictionFile(path, {})
    assert contents(home) == {"thesis": b"thesis"} and link.is_symlink()


def test_a_link_in_place_of_a_file_of_the_model_is_refused_before_anything_is_written(model, squares, tmp_path, run):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "config.json").rename(tmp_path / "config.json")
    (copy / "config.json").symlink_to(tmp_path / "config.json")
    result = run("predict", copy, squares, "--out", tmp_path / "answers.csv")
    assert result.exit_code == 1 and "config.json is a link" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "config.json"}


def test_a_file_system_without_locks_can_be_written(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with PredictionFile(tmp_path / "answers.csv", {}) as file:
        assert file.folder.is_dir()


def test_a_bar_is_shown_where_no_predictions_are_printed(squares, model, tmp_path, run, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True, raising=False)
    assert "12/12" not in run("predict", model, squares).stderr  # it would be between the lines of a terminal
    assert "12/12" in run("predict", model, squares, "--out", tmp_path / "answers.csv").stderr


def test_two_writers_never_share_parts(tmp_path, monkeypatch):
    path, remove, errors = tmp_path / "answers.csv", PredictionFile._remove, []

    def open_before(self, *names):
        with pytest.raises(InputError, match="another process") as error:
            PredictionFile(path, {})
        errors.append(error)
        remove(self, *names)

    with PredictionFile(path, {}) as file, monkeypatch.context() as context:
        context.setattr(PredictionFile, "_remove", open_before)
        file.remove_parts()
    assert errors and not file.folder.exists()
    with PredictionFile(path, {}) as file:
        assert file.folder.is_dir()


def test_a_table_with_a_column_feature_of_text_lists_pictures(squares, model, tmp_path, run):
    picture = next(squares.glob("**/*.png"))
    table = pa.table({"path": [str(picture)], "feature": ["striped"], "label": ["red"]})
    parquet.write_table(table, tmp_path / "listing.parquet")
    near(printed(run, model, tmp_path / "listing.parquet"), printed(run, model, picture))


def test_a_table_of_wider_features_than_it_says_is_refused_before_it_is_read(tmp_path, monkeypatch):
    def write(lengths):
        values = pa.array(np.zeros(sum(lengths), np.float32))
        lists = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), values)
        parquet.write_table(pa.table({"path": [str(i) for i in range(len(lengths))], "feature": lists}), path)

    path = tmp_path / "features.parquet"
    write([MAX_WIDTH + 1])
    with pytest.raises(DataError, match=str(MAX_WIDTH)):
        open_feature_table(path)
    write([4, 5000])
    table = open_feature_table(path)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", None)
    with pytest.raises(DataError, match="5004 numbers in 2 rows"):
        next(table.batches(str(path), ["final"]))


def test_a_table_of_features_with_names_without_an_end_is_refused(tmp_path):
    path = tmp_path / "features.parquet"
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int32()), ["x" * 10_000]).cast(pa.string())
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(200, np.float32)), 4)
    parquet.write_table(pa.table({"path": names, "feature": lists}), path)
    with pytest.raises(DataError, match="column 'path' has a text of more than 8,192 characters"):
        next(open_feature_table(path).batches(str(path), ["final"]))


def test_features_of_another_encoder_are_refused(noisy_squares, probe, tmp_path, run):
    features = tmp_path / "features.parquet"
    assert run("embed", noisy_squares, "--encoder", "toy", "--to", features).exit_code == 0
    table = parquet.read_table(features)
    other = {**table.schema.metadata, b"clipadapter.fingerprint": b"0" * 32}
    del other[b"clipadapter.block_fingerprints"]
    for facts, code, words in ((other, 1, "--encoder 'toy'"), ({}, 0, "")):  # another program's table states nothing
        parquet.write_table(table.replace_schema_metadata(facts).select(["path", "feature"]), features)
        result = run("predict", probe, features)
        assert result.exit_code == code and words in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("prepare", "name", "words"),
    [
        (lambda path: path.write_bytes(b"PAR1"), "answers.parquet", "exists and is no file of predictions"),
        (lambda path: path.with_name(f"{path.name}.parts").touch(), "answers.parquet", "is no folder"),
        (lambda path: put(path, f"{PART}.parquet"), "answers.parquet", "has no run.json"),
        (lambda path: put(path, "run.json", "my own run"), "a.csv", "run.json was not written by this program"),
        (lambda path: put(path, "run.json", '{"model": 1}'), "a.csv", "run.json was not written by this program"),
        (lambda path: put(path, "lock", "mine"), "a.csv", "lock was not written by this program"),
        (lambda path: put(path, "lock/mine"), "a.csv", "lock was not written by this program"),
    ],
)
def test_a_file_that_must_not_be_written_is_refused(prepare, name, words, squares, model, tmp_path, run):
    prepare(tmp_path / name)
    before = contents(tmp_path)
    result = run("predict", model, squares, "--out", tmp_path / name)
    assert contents(tmp_path) == before
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


def test_features_and_pictures_are_not_mixed(squares, model, tmp_path, run):
    features = tmp_path / "features.parquet"
    assert run("embed", squares, "--encoder", "toy", "--to", features).exit_code == 0
    assert "has features and" in run("predict", model, features, squares).stderr
    assert "leave out --views" in run("predict", model, features, "--views", 2).stderr
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"")
    assert "takes pictures only" in run("predict", exported, features).stderr
