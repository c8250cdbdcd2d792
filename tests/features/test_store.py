import os
import sqlite3
import struct
import threading
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from clipadapter.errors import StoreError
from clipadapter.features import FeatureStore, feature_key
from clipadapter.utils.files import default_cache_dir


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "features.sqlite"


def vectors(n, dim=4, dtype="float32"):
    values = np.random.default_rng(0).standard_normal((n, dim)).astype(dtype)
    return {f"key {i}".encode(): row for i, row in enumerate(values)}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, vector in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], vector.astype(np.float32))


def test_stored_vectors_are_there_after_opening_again_in_any_order_and_several_times(path):
    items = vectors(1200)
    with FeatureStore(path) as store:
        assert store.put_many(items) == 1200
    with FeatureStore(path) as store:
        assert len(store) == 1200
        same(store.get_many([*(key for key in reversed(items) for _ in range(2)), b"missing"], dim=4), items)


def test_an_existing_entry_is_kept(path):
    with FeatureStore(path) as store:
        store.put_many({b"a": np.float32([1, 2])})
        assert store.put_many({b"a": np.float32([5, 6]), b"b": np.float32([3, 4])}) == 1
        same(store.get_many([b"a", b"b"], dim=2), {b"a": np.float32([1, 2]), b"b": np.float32([3, 4])})


@pytest.mark.parametrize(
    "damage",
    [
        "value = x'00'",
        "value = zeroblob(16)",
        "value = 'text'",
        "value = NULL",
        "checksum = 7",
        "checksum = NULL",
        "dtype = 'int8'",
        "dtype = 'float16'",
        "value = substr(value, 1, 12)",  # of another width
    ],
)
def test_a_damaged_entry_counts_as_missing_and_is_replaced(path, damage):
    items = vectors(2)
    with FeatureStore(path) as store:
        store.put_many(items)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE feature SET {damage} WHERE key = ?", (b"key 0",))
    db.close()
    with FeatureStore(path) as store:
        assert store.get_many([b"key 0"], dim=4) == {}
        same(store.get_many(list(items), dim=4), {b"key 1": items[b"key 1"]})
        assert store.put_many(items) == 1
        same(store.get_many(list(items), dim=4), items)


def test_two_widths_may_be_in_one_store():
    mixed = dict(sorted((vectors(90) | {b"wide " + key: row for key, row in vectors(50, dim=8).items()}).items()))
    with FeatureStore(":memory:") as store:
        store.put_many(mixed)
        four = {key: vector for key, vector in mixed.items() if len(vector) == 4}
        assert len(four) == 90
        same(store.get_many(list(mixed), dim=4), four)


def test_keys_and_checksums_are_those_of_existing_stores(path):
    """A change would make all stored features useless."""
    key = feature_key(bytes(32), "fingerprint", "plain")
    facts = b"1\0fingerprint\0plain\0float32\0" + bytes(32)
    assert key == blake2b(facts, digest_size=32).digest()
    with FeatureStore(path) as store:
        store.put_many({key: np.float32([1, 2])})
        value = struct.pack("<2f", 1, 2)
        (row,) = store._db.execute("SELECT * FROM feature").fetchall()
    assert row == (key, b"float32", crc32(b"float32" + key + value), value)


def changed(path, statement):
    """The bytes of a database after one statement."""
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    return path.read_bytes()


NO_DATABASE = r"features\.sqlite can't be read .* give another path, or move the file away"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda _: b"a note", NO_DATABASE),
        (lambda _: b"no database\n" * 1000, NO_DATABASE),
        (lambda _: b"SQLite format 3\0" + b"\xff" * 5000, NO_DATABASE),
        (
            lambda path: path.unlink() or changed(path, "CREATE TABLE feature (mine TEXT)"),
            "another program: give another path",
        ),
        (lambda path: changed(path, "PRAGMA user_version = 99"), "has format 99, this version reads 1"),
        # The message of SQLite has the name.
        (lambda path: path.read_bytes().replace(b"feature (key", b"feature (\xffey"), "be read as a feature store"),
        (lambda path: path.read_bytes().replace(b", value BLOB)", b"/* ue BLOB*/)"), "be read as a feature store"),
        (lambda path: path.read_bytes().replace(b"value BLOB)", b"valu\xff BLOB)"), "be read as a feature store"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_not_changed(path, content, words):
    with FeatureStore(path) as store:
        store.put_many({b"key": np.ones(4, np.float32)})
    before = content(path)
    path.write_bytes(before)
    with pytest.raises(StoreError, match=words):
        FeatureStore(path)
    assert path.read_bytes() == before


def test_an_index_that_leads_to_another_entry_gives_nothing(path):
    items = {bytes([i]) * 32: row for i, row in enumerate(vectors(5).values())}
    with FeatureStore(path) as store:
        store.put_many(items)
    content = path.read_bytes()
    second, third = bytes([1]) * 32, bytes([2]) * 32
    # An entry of the index is a key and the number of its row; in the table the number type follows the key.
    assert content.count(second + b"\2") == content.count(third + b"\3") == 1
    path.write_bytes(content.replace(second + b"\2", second + b"\3"))
    with FeatureStore(path) as store:
        for keys in (list(items), [second], [second, third]):
            same(store.get_many(keys, dim=4), {key: items[key] for key in keys if key != second})


@pytest.mark.parametrize("name", ["folder", "file/features.sqlite"])
def test_a_file_that_can_not_be_written_is_an_error_at_once(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened or written .* check the folder's permissions"):
        FeatureStore(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_file_is_an_error_at_once(path):
    FeatureStore(path).close()
    path.chmod(0o400)
    with pytest.raises(StoreError, match="can't be opened or written"):
        FeatureStore(path)


def test_a_full_disk_stores_nothing_of_the_batch(path):
    with FeatureStore(path) as store:
        store.put_many({b"first": np.zeros(4, np.float32)})
        store._db.execute("PRAGMA max_page_count = 4")
        with pytest.raises(StoreError, match="full.*free space"):
            store.put_many({bytes([i]): np.zeros(9000, np.float32) for i in range(9)})
        assert len(store) == 1


def test_a_writer_waits_for_another_but_not_too_long(path):
    with FeatureStore(path) as store, FeatureStore(path) as other, FeatureStore(path, timeout=0.01) as hasty:
        other._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            hasty.put_many(vectors(1))
        thread = threading.Thread(target=store.put_many, args=(vectors(3),))
        thread.start()
        other._db.execute("COMMIT")
        thread.join()
        assert len(other) == 3
        assert hasty.put_many({b"more": np.ones(4, np.float32)}) == 1


def test_several_processes_may_create_one_store_at_the_same_time(path):
    barrier, failures = threading.Barrier(8), []

    def work(i):
        barrier.wait()
        try:
            with FeatureStore(path) as store:
                for j in range(5):
                    store.put_many({bytes([i, j]): np.float32([i, j])})
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with FeatureStore(path) as store:
        assert len(store) == 40


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_links_beside_the_file_are_not_followed(ending, is_linked, path, tmp_path):
    with FeatureStore(path) as store:
        store.put_many(vectors(1))
    (tmp_path / "thesis").write_text("thesis")
    Path(f"{path}{ending}").symlink_to(tmp_path / "thesis")
    named = tmp_path / "a link that a person made"
    named.symlink_to(path)
    with pytest.raises(StoreError, match="links are not followed"):
        FeatureStore(named if is_linked else path)
    assert (tmp_path / "thesis").read_text() == "thesis"
    Path(f"{path}{ending}").unlink()
    with FeatureStore(named) as store:
        assert len(store) == 1


def test_a_journal_that_names_another_file_deletes_nothing(path, tmp_path):
    with FeatureStore(path) as store:
        store.put_many(vectors(1))
    thesis, mark, page = tmp_path / "thesis", bytes.fromhex("d9d505f920a163d7"), 16384
    thesis.write_text("thesis\n")
    name = os.fsencode(thesis)
    header = mark + struct.pack(">IIIII", 0, 1, path.stat().st_size // page, 512, page)
    lock_page = (1 << 30) // page + 1
    end = struct.pack(">I", lock_page) + name + struct.pack(">II", len(name), sum(name)) + mark
    Path(f"{path}-journal").write_bytes(header.ljust(512, b"\0") + end)
    with pytest.raises(StoreError, match="may make SQLite delete a file"):
        FeatureStore(path)
    assert thesis.is_file()


def test_the_cache_folder_follows_the_desktop_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "clipadapter"
    with FeatureStore() as store:
        assert store.path == tmp_path / "clipadapter" / "features.sqlite"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", ".cache/clipadapter"), ("darwin", "Library/Caches/clipadapter"), ("win32", "AppData/Local/clipadapter")],
)
def test_the_cache_folder_follows_the_platform(monkeypatch, platform, expected):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    assert default_cache_dir() == Path.home() / expected
