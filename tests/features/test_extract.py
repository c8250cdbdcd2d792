import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapter.data.images import image_bytes, read_image
from clipadapter.errors import ImageError, InputError
from clipadapter.features import FeatureStore, ViewSpec, extract, parse_shard, stream_features


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "features.sqlite") as store:
        yield store


@pytest.fixture
def encoded(toy, monkeypatch):
    """How many views each call of the image tower was given."""
    sizes, encode_pixels = [], toy.encode_pixels

    def counting(pixels):
        sizes.append(len(pixels))
        return encode_pixels(pixels)

    monkeypatch.setattr(toy, "encode_pixels", counting)
    return sizes


def one_by_one(encoder, sources):
    return np.stack([encoder.encode_images([read_image(source)]).numpy() for source in sources])  # (n, 1, d)


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("workers", [1, 5])
def test_features_are_those_of_the_encoder_in_the_order_of_the_sources(toy, picture_folder, store, batch_size, workers):
    paths = picture_folder(23)[::-1]
    result = extract(toy, paths, store=store, batch_size=batch_size, workers=workers)
    close(result.features, one_by_one(toy, paths))
    assert result.rows == list(range(23))
    assert (result.computed, result.cached, result.skipped) == (23, 0, [])


def test_the_second_time_nothing_is_computed_and_the_result_is_equal(toy, picture_folder, store, encoded):
    paths, views = picture_folder(10), ViewSpec(count=3)
    first = extract(toy, paths, store=store, views=views)
    assert sum(encoded) == first.computed == 30
    second = extract(toy, paths[::-1], store=store, views=views)
    assert sum(encoded) == second.cached == 30
    np.testing.assert_array_equal(second.features[::-1], first.features)  # stored, not computed again


def test_only_missing_views_are_computed(toy, picture_folder, store, encoded):
    paths = picture_folder(5)
    plain = extract(toy, paths, store=store)
    more = extract(toy, paths, store=store, views=ViewSpec(count=4), batch_size=4)
    assert (more.computed, more.cached) == (15, 5)
    assert more.features.shape == (5, 4, toy.info.dim)
    np.testing.assert_array_equal(more.features[:, 0], plain.features[:, 0])  # stored, not computed again
    assert len({row.tobytes() for row in more.features.reshape(20, -1)}) == 20
    # Views do not depend on other pictures.
    close(more.features, np.stack([extract(toy, [path], views=ViewSpec(count=4)).features[0] for path in paths]))


def test_a_picture_is_read_and_decoded_once_for_all_views(toy, picture_folder, store, monkeypatch):
    read, decoded = [], []
    monkeypatch.setattr(
        "clipadapter.features.extraction.image_bytes", lambda source: read.append(source) or image_bytes(source)
    )

    def decode(source, min_sides, data=None):
        assert (data, set(min_sides)) == (source.read_bytes(), {None})
        decoded.append(source)
        return {None: read_image(source, data=data)}

    monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", decode)
    paths = picture_folder(3)
    extract(toy, paths, store=store, views=ViewSpec(count=5))
    assert sorted(read) == sorted(decoded) == paths
    extract(toy, paths, store=store, views=ViewSpec(count=5))
    assert len(read) == 6
    assert len(decoded) == 3


@pytest.mark.parametrize("with_store", [True, False])
def test_equal_pictures_are_computed_once(toy, picture_folder, store, encoded, with_store):
    paths = picture_folder(6)
    sources = [paths[i] for i in (0, 1, 0, 2, 3, 4, 5, 0, 5)]
    result = extract(toy, sources, store=store if with_store else None, batch_size=2)
    assert sum(encoded) == 6
    assert (result.computed, result.cached) == (6, 3)
    close(result.features, one_by_one(toy, sources))


def test_pictures_in_memory_have_the_features_of_their_files(toy, picture_folder, store):
    paths = picture_folder(3)
    expected = extract(toy, paths).features
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    close(extract(toy, opened * 5, store=store, workers=4).features, np.tile(expected, (5, 1, 1)))
    close(extract(toy, [str(paths[0]), *arrays[1:]], store=store).features, expected)


@pytest.fixture
def mixed(picture_folder):
    """Five good pictures, and bad ones at the positions 0, 3 and 7."""
    good = picture_folder(5)
    folder = good[0].parent
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    return [folder / "empty.jpg", *good[:2], folder / "text.jpg", *good[2:], folder / "missing.jpg"]


def test_a_picture_that_can_not_be_read_is_skipped_with_its_reason(toy, store, mixed):
    result = extract(toy, mixed, store=store, batch_size=2)
    assert result.rows == [1, 2, 4, 5, 6]
    close(result.features, one_by_one(toy, [mixed[row] for row in result.rows]))
    expected = [(0, mixed[0], "file is empty"), (3, mixed[3], "not an image"), (7, mixed[7], "no such file")]
    assert result.skipped == [(position, str(path), reason) for position, path, reason in expected]
    stored = extract(toy, mixed, store=store, keep=False)
    assert (stored.skipped, stored.rows, len(stored.features)) == (result.skipped, result.rows, 0)


@pytest.mark.parametrize("keep", [True, False])
def test_strict_raises_for_a_picture_that_can_not_be_read(toy, store, mixed, keep):
    with pytest.raises(ImageError, match=r"empty\.jpg: file is empty"):
        extract(toy, mixed, store=store, strict=True, keep=keep)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clipadapter")]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_affects_its_picture_only(toy, picture_folder, store, monkeypatch, bad):
    paths, encode_pixels = picture_folder(4), toy.encode_pixels

    def spoil(pixels):
        features = encode_pixels(pixels).clone()
        features[1, 2] = bad
        return features

    with monkeypatch.context() as patch:
        patch.setattr(toy, "encode_pixels", spoil)
        result = extract(toy, paths, store=store)
    assert result.rows == [0, 2, 3]
    assert result.skipped == [(1, str(paths[1]), "its feature is not finite")]
    assert extract(toy, paths, store=store).computed == 1


def test_a_shard_is_read_from_text():
    assert parse_shard("1/1") == (1, 1)
    assert parse_shard(" 3/8 ") == (3, 8)
    for text in ("", "2", "2/", "a/b", "-1/4", "1/2/3", "1.0/2", "²/3"):
        with pytest.raises(InputError, match=re.escape(f"but is {text!r}")):
            parse_shard(text)
    for text in ("0/4", "5/4", "0/0"):
        with pytest.raises(InputError, match=f"1 <= i <= n, but is {text}"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ("photo.jpg", {}, "given as a list, but came as str"),
        (Path("photo.jpg"), {}, "given as a list, but came as"),
        ([], {"batch_size": 0}, "batch_size and workers must be 1 or more"),
        ([], {"workers": 0}, "batch_size and workers must be 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(toy, sources, options, message):
    with pytest.raises(InputError, match=message):
        extract(toy, sources, **options)


def test_no_pictures_give_no_features_and_progress_goes_to_stderr_only_on_request(toy, picture_folder, capsys):
    assert extract(toy, []).features.shape == (0, 1, toy.info.dim)
    assert extract(toy, ["missing.jpg"], views=ViewSpec(count=2)).features.shape == (0, 2, toy.info.dim)
    paths = picture_folder(3)
    extract(toy, paths)
    assert capsys.readouterr() == ("", "")
    extract(toy, paths, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


@pytest.mark.parametrize("kept", [False, True], ids=["no store", "store"])
def test_a_stream_gives_what_extract_gives_in_order(toy, picture_folder, tmp_path, encoded, kept):
    paths = picture_folder(23)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    sources = [*paths[:9], bad, paths[0], *paths[9:], tmp_path / "gone.png"]
    expected = extract(toy, sources)
    with FeatureStore(tmp_path / "features.sqlite") as store:
        if kept:  # some come from the store, others do not
            extract(toy, paths[3:15], store=store)
        encoded.clear()
        batches = stream_features(toy, iter(sources), store=store if kept else None, batch_size=4, workers=3)
        streamed = [each for batch in batches for each in batch]
        if kept:
            assert sum(encoded) == 23 - 12
            list(stream_features(toy, paths, store=store))
            assert sum(encoded) == 23 - 12
    assert [source for source, _ in streamed] == sources
    errors = {i: values for i, (_, values) in enumerate(streamed) if isinstance(values, ImageError)}
    assert {i: error.reason for i, error in errors.items()} == {i: reason for i, _, reason in expected.skipped}
    # Each of their frames would hold the pixels of a picture: 300 of three million pixels took 4 GB.
    assert {(error.__traceback__, error.__cause__) for error in errors.values()} == {(None, None)}
    values = [values for _, values in streamed if not isinstance(values, ImageError)]
    np.testing.assert_allclose(values, expected.features, rtol=1e-4, atol=1e-5)


def test_pictures_before_a_pause_are_given_before_the_next_is_asked_for(toy, picture_folder):
    paths, given = picture_folder(10), []

    def pausing():
        for i, path in enumerate(paths):
            if i in (0, 1, 6):
                yield None
                yield None  # still nothing
                assert len(given) == i
            yield path

    for batch in stream_features(toy, pausing(), batch_size=4, workers=2):
        given.extend(source for source, _ in batch)
    assert given == paths
