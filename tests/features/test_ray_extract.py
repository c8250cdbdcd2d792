import io
import json
import os
import socket
import tarfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.bench import load_suite, open_source, run_suite
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.protocols.base import create_protocol
from clipadapter.bench.suite import Variant
from clipadapter.cli.app import app
from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureStore, extract, import_shards, open_feature_table, read_features
from clipadapter.features.collection import StorageError, _read_file, divide_collection, open_filesystem
from clipadapter.features.ray_extract import (
    RayJob,
    _write_units,
    count_pictures,
    extract_with_ray,
    make_plan,
    shard_name,
    write_plan,
    write_unit,
)

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
fs = pytest.importorskip("pyarrow.fs")
CONNECT = socket.socket.connect
"""Taken before the tests' seal: Ray talks to itself through sockets."""


@pytest.fixture
def pictures(tmp_path):
    """Twenty pictures in two classes below ``data``; gives the folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 16, 3), dtype=np.uint8)
    for i, array in enumerate(pixels):
        path = tmp_path / "data" / ("cat" if i < 10 else "dog") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def threads_stay():
    """A worker takes as many threads as it has cores, here in the process of the tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(source, out, size=6, filesystem=None, only=None, encoder="toy"):
    """Shards made in this process, all or the first few; gives (pictures, unreadable)."""
    system, path = open_filesystem(source, filesystem)
    target, folder = open_filesystem(out)
    opened = create_encoder(encoder)
    units = divide_collection(system, path, size)
    plan = make_plan(encoder, opened, [shard_name(unit, opened.info.fingerprint) for unit in units])
    write_plan(target, folder, plan)
    job = RayJob(plan, system, target, folder, 4, 2, "cpu")
    counts = [write_unit(job, unit) for unit in units[:only]]
    return tuple(sum(column) for column in zip(*counts, strict=True))


def files_of(root):
    return sorted(root.rglob("*.png"))


def table(file, **columns):
    parquet.write_table(pa.table(columns), file, row_group_size=8)


def archive(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def errors_in(out):
    """Why pictures in the shards of a folder could not be read, sorted."""
    rows = [row for shard in out.glob("*.parquet") for row in parquet.read_table(shard).to_pylist()]
    assert [row["feature"] is None for row in rows] == [row["error"] is not None for row in rows]
    return sorted(row["error"] for row in rows if row["error"])


def test_shards_have_the_features_of_extract_whatever_the_source(pictures, tmp_path, toy):
    paths = files_of(pictures)
    expected = extract(toy, paths).features[:, 0]
    labels, parts = [path.parent.name for path in paths], ["train"] * 15 + ["test"] * 5
    table(tmp_path / "bytes.parquet", bytes=[path.read_bytes() for path in paths], label=labels, split=parts)
    table(tmp_path / "paths.parquet", path=[str(path.relative_to(tmp_path)) for path in paths], label=labels)
    (tmp_path / "tars" / "train").mkdir(parents=True)
    for i in range(2):
        own = paths[10 * i : 10 * i + 10]
        members = [
            (f"{path.stem}.{end}", path.read_bytes() if end == "png" else label.encode() + b"\n")
            for path, label in zip(own, labels[10 * i :], strict=False)
            for end in ("cls", "png")
        ]
        archive(tmp_path / "tars" / "train" / f"{i}.tar", [*members, ("notes.txt", b"no picture")])
    inner = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    sources = {"folder": pictures, "uri": f"file://{pictures}", "inner": "data", "tars": tmp_path / "tars"}
    sources |= {name: tmp_path / f"{name}.parquet" for name in ("bytes", "paths")}
    for name, source in sources.items():
        out = tmp_path / f"of-{name}"
        assert make(source, out, filesystem=inner if name == "inner" else None) == (20, 0)
        result = read_features(out)
        np.testing.assert_allclose(result.X, expected, atol=1e-5)
        assert result.y == tuple(labels) == ("cat",) * 10 + ("dog",) * 10
        assert result.provenance["fingerprint"] == toy.info.fingerprint
        if name in ("bytes", "paths"):
            assert len(list(out.glob("*.parquet"))) == 3  # row groups of 8
    np.testing.assert_allclose(read_features(tmp_path / "of-bytes", "test").X, expected[15:], atol=1e-5)
    assert open_feature_table(tmp_path / "of-tars").splits == ("train",)


def test_an_unreadable_picture_is_a_row_that_says_why_and_a_damaged_shard_is_named(pictures, tmp_path, no_waits):
    (pictures / "cat" / "03.png").write_bytes(b"no picture")
    (pictures / "dog" / "12.png").write_bytes(b"")
    assert make(pictures, tmp_path / "out", size=100) == (20, 2)
    assert errors_in(tmp_path / "out") == ["file is empty", "not an image"]
    assert len(read_features(tmp_path / "out")) == 18
    (shard,) = (tmp_path / "out").glob("*.parquet")  # that another worker left
    content = shard.read_bytes()
    for damaged in (content[:-8] + b"x" * 8, bytes(len(content) - 8) + content[-8:]):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{shard.name}' can't be read: .* delete it"):
            make(pictures, tmp_path / "out", size=100)


LONG_NAME = tarfile.TarInfo("b")
LONG_NAME.type, LONG_NAME.size = tarfile.GNUTYPE_LONGNAME, 1 << 40


@pytest.mark.parametrize(
    ("limit", "members", "end", "counts", "reasons"),
    [
        # A picture of an archive that is too large by itself.
        ("MAX_IMAGE_BYTES", [("a.png", 0), ("b.png", (1 << 20) + 1)], b"", (2, 1), ["too large: over 1 MiB"]),
        # Pictures of one sample that are too large together, or alone.
        (
            "MAX_SAMPLE_BYTES",
            [*((f"a.{i}.png", 1 << 19) for i in range(4)), ("a.bin", 1 << 21), ("b.png", 1 << 19)]
            + [("c.0.png", 1 << 21), ("c.1.png", 1 << 19)],
            b"",
            (7, 3),
            ["too large: over 1 MiB"] * 3,
        ),
        (
            None,
            [("first.png", 0), *((f"a.{i}.bin", 0) for i in range(1001))],
            b"",
            (2, 1),
            ["the archive is damaged from here on: more than 1,000 files have the name of one sample"],
        ),
        (
            None,
            [("first.png", 0)],
            LONG_NAME.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20),
            (1, 1),  # the sample before it is not known to be whole
            [f"the archive is damaged from here on: a header has {1 << 40:,} bytes, but at most 1,048,576 are read"],
        ),
    ],
    ids=["large picture", "large sample", "endless sample", "endless header"],
)
def test_an_archive_asks_for_bounded_memory(limit, members, end, counts, reasons, pictures, tmp_path, monkeypatch):
    if limit:
        monkeypatch.setattr(f"clipadapter.features.collection.{limit}", 1 << 20)
    (tmp_path / "tars").mkdir()
    data = files_of(pictures)[0].read_bytes()
    archive(tmp_path / "tars" / "0.tar", [(name, data + bytes(max(0, size - len(data)))) for name, size in members])
    content = (tmp_path / "tars" / "0.tar").read_bytes()
    if end:
        content = content.rstrip(b"\0")
        content += bytes(-len(content) % 512) + end
    (tmp_path / "tars" / "0.tar").write_bytes(content)
    assert make(tmp_path / "tars", tmp_path / "out") == counts
    assert errors_in(tmp_path / "out") == reasons


def test_a_damaged_archive_keeps_what_came_before(pictures, tmp_path):
    (tmp_path / "tars").mkdir()
    archive(tmp_path / "tars" / "0.tar", [(path.name, path.read_bytes()) for path in files_of(pictures)])
    data = (tmp_path / "tars" / "0.tar").read_bytes()
    (tmp_path / "tars" / "0.tar").write_bytes(data[: len(data) // 2])
    made, unreadable = make(tmp_path / "tars", tmp_path / "out")
    assert (5 < made < 15, unreadable) == (True, 1)


def test_existing_shards_are_counted_and_not_written_again_and_a_new_picture_is(pictures, tmp_path):
    """Another worker may have written a shard before it died."""

    def written():
        return {(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "out").glob("*.parquet")}

    (pictures / "dog" / "12.png").write_bytes(b"")
    make(pictures, tmp_path / "out", only=2)
    with pytest.raises(DataError, match=r"2 of 4 shards .* are missing"):
        read_features(tmp_path / "out")
    first = written()
    assert make(pictures, tmp_path / "out") == (20, 1)
    second = written()
    assert (len(first), len(second)) == (2, 4)
    assert first < second
    assert make(pictures, tmp_path / "out") == (20, 1)
    assert written() == second
    Image.new("RGB", (16, 12), "red").save(pictures / "cat" / "00.png")
    make(pictures, tmp_path / "out")
    assert len(written() - second) == 1


def test_shards_fill_a_store_and_blocks_are_named_in_the_plan_and_kept_apart_in_the_store(pictures, tmp_path, toy):
    make(pictures, tmp_path / "one")
    with FeatureStore(":memory:") as store:
        assert import_shards(tmp_path / "one", store) == 20
        again = extract(toy, files_of(pictures), store=store)
    assert (again.computed, again.cached) == (0, 20)
    uri = "toy[final,inner,final@48]"
    encoder = create_encoder(uri)
    make(pictures, tmp_path / "out", encoder=uri)
    result = read_features(tmp_path / "out")
    np.testing.assert_allclose(result.X, extract(encoder, files_of(pictures)).features[:, 0], atol=1e-5)
    assert result.blocks == encoder.info.blocks
    with FeatureStore(":memory:") as store:
        assert import_shards(tmp_path / "out", store) == 3 * 20
        for one in (encoder, create_encoder("toy"), create_encoder("toy[final,final@48]")):
            assert extract(one, files_of(pictures), store=store).computed == 0


def test_folders_have_the_labels_and_parts_that_load_dataset_sees(pictures, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "divided" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "divided" / part / "cat" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "divided" / "beside.png")

    def parts(folder):
        local = fs.LocalFileSystem()
        (unit,) = divide_collection(local, str(folder), 10)
        return [(picture.label, picture.split) for picture in unit.images(local, False)]

    assert parts(tmp_path / "divided") == [("cat", "test"), ("cat", "train")]
    assert set(parts(pictures / "cat")) == {(None, "all")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out, shard: (out / "shards.json").unlink(), "holds no feature shards"),
        (lambda out, shard: (out / "shards.json").write_text("{}"), "is damaged"),
        (lambda out, shard: (out / "shards.json").write_text("[" * 100_000), "is damaged"),
        (lambda out, shard: change_plan(out, format=2), "format 2, this version reads 1: update clipadapter"),
        (lambda out, shard: change_plan(out, blocks=[]), "is damaged"),
        (lambda out, shard: change_plan(out, blocks=[block(32, "inner")]), "is damaged: the first block .* 'final'"),
        (lambda out, shard: change_plan(out, blocks=[block(31)]), "features have not all the width 31|640 numbers"),
        (lambda out, shard: shard.write_bytes(b"PAR1"), "its end is missing"),
        (lambda out, shard: table(shard, path=["a"]), "1 of 1 pictures .* have no label"),
        (lambda out, shard: shard.write_bytes(changed(shard, label=None)), "20 of 20 pictures .* have no label"),
        (lambda out, shard: shard.write_bytes(changed(shard, split="x")), "a split is 'x', not one of all"),
        (lambda out, shard: shard.write_bytes(changed(shard, feature=[1.0])), "features have not all the width 32"),
        (lambda out, shard: shard.write_bytes(changed(shard, feature=None)), "row 0: it has no feature"),
        (lambda out, shard: shard.write_bytes(changed(shard, facts="other")), "it is of another encoder"),
    ],
)
def test_a_damaged_folder_is_refused(change, words, pictures, tmp_path):
    make(pictures, tmp_path / "out", size=100)
    (shard,) = (tmp_path / "out").glob("*.parquet")
    change(tmp_path / "out", shard)
    with pytest.raises(DataError, match=words):
        read_features(tmp_path / "out")


def block(width, name="final"):
    return {"name": name, "width": width, "fingerprint": "f"}


def change_plan(out, **changes):
    plan = json.loads((out / "shards.json").read_text())
    (out / "shards.json").write_text(json.dumps(plan | changes))


def changed(shard, facts=None, **columns):
    """The content of a shard with one value in all rows of a column, or with another fingerprint."""
    result, sink = parquet.read_table(shard), pa.BufferOutputStream()
    for name, value in columns.items():
        position = result.column_names.index(name)
        result = result.set_column(position, name, pa.array([value] * len(result), result.schema.field(name).type))
    if facts:
        result = result.replace_schema_metadata({"clipadapter.fingerprint": facts})
    parquet.write_table(result, sink)
    return sink.getvalue().to_pybytes()


def test_wrong_sources_are_refused(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    table(tmp_path / "x.parquet", name=["a"])
    (tmp_path / "both").mkdir()
    archive(tmp_path / "both" / "0.tar", [])
    Image.new("RGB", (8, 8)).save(tmp_path / "both" / "a.png")
    for name, words in [
        ("empty", "has no pictures"),
        ("missing", "there is no folder or file"),
        ("x.parquet", "needs a column 'path' or 'bytes'"),
        ("both", r"has archives \(.tar\) and pictures"),
    ]:
        with pytest.raises(DataError, match=words):
            make(tmp_path / name, tmp_path / "out")
    with pytest.raises(DataError, match="can't be reached"):
        open_filesystem("warp://somewhere/x")


class FailingFiles(LocalFileSystem):
    """Files of this machine of which some can't be read for some times; with a server that is down, folders neither."""

    protocol = "failing"
    cachable = False

    def __init__(self, ending, failures=1_000_000, is_down=False):
        super().__init__()
        self.ending, self.failures, self.is_down, self.has_failed = ending, failures, is_down, False

    def _open(self, path, *args, **kwargs):
        if path.endswith(self.ending) and self.failures:
            self.failures -= 1
            self.has_failed = True
            return BrokenFile(Path(path).read_bytes())
        return super()._open(path, *args, **kwargs)

    def info(self, path, **kwargs):
        if self.is_down and self.has_failed:
            raise OSError("the server does not answer")
        return super().info(path, **kwargs)


class BrokenFile(io.BytesIO):
    """A connection that is reset when it is read."""

    def read(self, size=-1):
        raise OSError("Connection reset by peer\nRequest ID: 7")


def test_a_storage_that_fails_is_not_called_damage(pictures, tmp_path):
    make(pictures, tmp_path / "out", size=100)
    (shard,) = (tmp_path / "out").glob("*.parquet")
    failing = fs.PyFileSystem(fs.FSSpecHandler(FailingFiles(".parquet")))
    for read in (count_pictures, lambda system, path: open_feature_table(path, system)):
        with pytest.raises(StorageError, match="can't be read: Connection reset by peer; if it is damaged, "):
            read(failing, str(shard))


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("clipadapter.features.ray_extract.STORAGE_RETRY_SECONDS", (0.0, 0.0))


def test_a_file_is_read_in_pieces(tmp_path):
    """pyarrow reserves memory for all that a read may give, so that 31 files of any size took 31 GB of addresses."""
    (tmp_path / "a.png").write_bytes(bytes(range(256)) * (1 << 16))
    system, asked = fs.LocalFileSystem(), []

    class Files:
        type_name = "local"

        @contextmanager
        def open_input_stream(self, path):
            with system.open_input_stream(path) as stream:
                yield SimpleNamespace(read=lambda size: asked.append(size) or stream.read(size))

    assert _read_file(Files(), str(tmp_path / "a.png"), False) == (tmp_path / "a.png").read_bytes()
    assert max(asked) <= 4 << 20


def test_an_outage_makes_no_picture_unreadable(pictures, tmp_path, no_waits):
    out = tmp_path / "out"
    with pytest.raises(StorageError, match="03.png' can't be read: .*; check the address") as found:
        make(pictures, out, filesystem=FailingFiles("03.png", is_down=True))
    assert "\n" not in str(found.value)
    with pytest.raises(StorageError, match="no picture of .*png' can't be opened: Connection reset by peer; check"):
        make(pictures, out, filesystem=FailingFiles(".png"))  # lists its files, and serves none
    assert list(out.glob("*.parquet")) == []


@pytest.mark.parametrize(("failures", "unreadable"), [(1, 0), (2, 0), (1_000_000, 1)])
def test_a_file_that_a_storage_never_gives_is_an_unreadable_picture(failures, unreadable, pictures, tmp_path, no_waits):
    assert make(pictures, tmp_path / "out", filesystem=FailingFiles("03.png", failures)) == (20, unreadable)
    assert errors_in(tmp_path / "out") == ["can't be opened: Connection reset by peer"] * unreadable


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_connection_that_breaks_in_an_archive_or_table_costs_no_picture(kind, pictures, tmp_path, no_waits):
    paths = files_of(pictures)
    if kind == "tar":
        archive(tmp_path / "0.tar", [(path.name, path.read_bytes()) for path in paths])
    else:
        table(tmp_path / "0.parquet", bytes=[path.read_bytes() for path in paths])
    (unit, *_) = divide_collection(fs.LocalFileSystem(), str(tmp_path / f"0.{kind}"), 10)
    encoder = create_encoder("toy")
    target, folder = open_filesystem(tmp_path)
    for failures in (1, 1_000_000):
        source, _ = open_filesystem("", FailingFiles(kind, failures))
        job = RayJob(make_plan("toy", encoder, []), source, target, folder, 4, 1, "cpu")
        if failures == 1:
            assert write_unit(job, unit) == (20 if kind == "tar" else 8, 0)
            (tmp_path / shard_name(unit, encoder.info.fingerprint)).unlink()
            continue
        with pytest.raises(StorageError, match=f"0.{kind}' can't be read: Connection reset by peer; check the ad"):
            write_unit(job, unit)
        assert not (tmp_path / shard_name(unit, encoder.info.fingerprint)).exists()


@pytest.fixture
def divided(tmp_path):
    """Pictures of three colours with noise, divided into train and test, and their shards of 7 pictures."""
    random = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 12)):
        for channel, label in enumerate(("red", "green", "blue")):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (16, 16, 3))
                pixels[..., channel] += 20
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    make(tmp_path / "data", tmp_path / "shards", size=7)
    return tmp_path


def test_a_fit_to_shards_is_the_fit_to_their_pictures_and_refuses_what_needs_pictures(divided):
    for name in ("data", "shards"):
        options = ("--encoder", "toy", "--head", "tip-adapter", "--shots", "4", "--out", divided / f"of-{name}")
        result = CliRunner().invoke(app, ["fit", str(divided / name), *map(str, options)])
        assert result.exit_code == 0, result.output
    models = [FewShotClassifier.load(divided / f"of-{name}") for name in ("data", "shards")]
    pictures = files_of(divided / "data" / "test")
    expected, logits = (model.logits(pictures) for model in models)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    sources = [[str(source) for source in model.support_.provenance["sources"]] for model in models]
    assert sorted(sources[0]) == sorted(sources[1])
    for options, words in [
        (("--views", "3"), "--views needs pictures"),
        (("--unlabelled", str(divided)), "--unlabelled needs pictures"),
        (("--head", "coop"), "coop trains through the encoder"),
        (("--split", "val"), "no features of the split 'val'"),
        (("--encoder", "toy[final,inner]"), "are of the encoder 'toy'"),
    ]:
        command = ["fit", str(divided / "shards"), "--out", str(divided / "model"), *options]
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, words in result.output) == (1, True), result.output


def test_a_suite_on_shards_has_the_records_of_a_suite_on_their_pictures(divided):
    few = {"shots": [4], "seeds": [1, 2], "heads": [Variant(head="tip-adapter")]}
    suite = load_suite("few-shot").model_copy(update=few)
    spec = f"features:{divided / 'shards'}"
    bundle = create_protocol("few-shot").load(suite, open_source(spec))
    rows = bundle.draws
    assert len(bundle.support) == len({row for draw in rows.values() for row in draw}) < 27
    model = FewShotClassifier("toy", quality="fast", precision="fp32", cache=None)
    results = {}
    for name, source in (("pictures", open_source(str(divided / "data"))), ("shards", open_source(spec))):
        run_suite(suite, [source], {"toy": model}, divided / name, Launcher(workers=1))
        lines = (divided / name / "runs.jsonl").read_text().splitlines()
        runs = [json.loads(line) for line in lines]
        results[name] = sorted([run["seed"], run["metrics"]["accuracy"], run["metrics"]["log_loss"]] for run in runs)
    assert len(results["shards"]) == 2
    np.testing.assert_allclose(results["shards"], results["pictures"], atol=1e-5)


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on this machine with the bucket "shop", named by the environment as a user would; a file system."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in (("ENDPOINT_URL", address), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    system = fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True, access_key="k", secret_key="s")
    system.create_dir("shop")
    yield system
    server.stop()


def test_pictures_and_shards_in_s3(pictures, tmp_path, toy, s3):
    paths = files_of(pictures)
    archive(tmp_path / "0.tar", [(path.name, path.read_bytes()) for path in paths])
    contents = {f"files/{path.relative_to(pictures)}": path.read_bytes() for path in paths}
    for name, data in (contents | {"tars/0.tar": (tmp_path / "0.tar").read_bytes()}).items():
        with s3.open_output_stream(f"shop/{name}") as stream:
            stream.write(data)
    expected = extract(toy, paths).features[:, 0]
    for source in ("files", "tars"):
        assert make(f"s3://shop/{source}", f"s3://shop/of-{source}") == (20, 0)
        names = [info.base_name for info in s3.get_file_info(fs.FileSelector(f"shop/of-{source}"))]
        assert sum(name.endswith(".parquet") for name in names) == len(names) - 1 == (4 if source == "files" else 1)
    assert make("s3://shop/files", "s3://shop/of-files") == (20, 0)  # counted, not written again
    result = read_features("s3://shop/of-files")
    np.testing.assert_allclose(result.X, expected, atol=1e-5)
    assert result.y == ("cat",) * 10 + ("dog",) * 10
    with pytest.raises(DataError, match="there is no folder or file 'shpo/files' in S3"):
        make("s3://shpo/files", "s3://shop/out")
    with pytest.raises(DataError, match="'shpo/out' can't be created: Bucket 'shpo' not found; check the bucket"):
        make("s3://shop/files", "s3://shpo/out")


def test_a_shard_whose_workers_always_die_ends_the_call(pictures):
    ray, units = MagicMock(), divide_collection(fs.LocalFileSystem(), str(pictures), 20)
    ray.exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OSError)
    ray.nodes.return_value = [{"Alive": True, "Resources": {"CPU": 1}}]
    ray.wait.side_effect = lambda references, **_: (references[:1], references[1:])
    ray.get.side_effect = OSError("the process was killed\n(by the system)")
    message = "the shard of .*00.png' and 19 more pictures died 3 times, the last time: the process was killed;"
    with pytest.raises(DataError, match=message):
        _write_units(ray, SimpleNamespace(cores=1), units, workers=None, gpus=0)
    assert ray.get.call_count == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_ray_writes_the_same_shards_and_survives_a_killed_node(pictures, tmp_path, toy, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from killing_files import KillingFiles

    # As a call leaves it that is killed after its first file.
    make(pictures, tmp_path / "out", filesystem=LocalFileSystem(), only=1)
    # A node counts as dead after three checks that fail, which takes half a minute by default.
    checks = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    unneeded = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # each is a process
    head = {"num_cpus": 1, "_system_config": checks, **unneeded}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        other = cluster.add_node(num_cpus=1)
        with ray.init(cluster.address, log_to_driver=False, configure_logging=False):
            with pytest.raises(InputError, match="the cluster has 2 cores and 0 GPUs"):
                extract_with_ray(pictures, "toy", tmp_path / "gpu", gpus=1)
            options = {"filesystem": KillingFiles(cluster.head_node.node_id), "batch_size": 4, "shard_size": 6}
            report = extract_with_ray(pictures, "toy", tmp_path / "out", **options)
            assert (tmp_path / "killed").exists() and other.dead_processes()
            assert (report.shards, report.reused, report.pictures, report.unreadable) == (4, 1, 14, 0)
    finally:
        cluster.shutdown()
    result = read_features(tmp_path / "out")
    np.testing.assert_allclose(result.X, extract(toy, files_of(pictures)).features[:, 0], atol=1e-5)
    again = extract_with_ray(pictures, "toy", tmp_path / "out", filesystem=LocalFileSystem(), shard_size=6)
    assert (again.reused, again.pictures) == (4, 0)
