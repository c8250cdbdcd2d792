"""Features of a stream: what they are is in `test_extract.py`."""

import numpy as np
import pytest

from clipadapter.errors import ImageError
from clipadapter.features import FeatureStore, extract, stream_features


@pytest.mark.parametrize("kept", [False, True], ids=["no store", "store"])
def test_a_stream_gives_what_extract_gives_in_order(toy, picture_folder, tmp_path, kept):
    paths = picture_folder(23)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    sources = [*paths[:9], bad, paths[0], *paths[9:], tmp_path / "gone.png"]
    expected = extract(toy, sources)
    with FeatureStore(tmp_path / "features.sqlite") as store:
        if kept:  # some come from the store, others do not
            extract(toy, paths[3:15], store=store)
        batches = stream_features(toy, iter(sources), store=store if kept else None, batch_size=4, workers=3)
        streamed = [each for batch in batches for each in batch]
    assert [source for source, _ in streamed] == sources
    errors = {i: values for i, (_, values) in enumerate(streamed) if isinstance(values, ImageError)}
    assert {i: error.reason for i, error in errors.items()} == {i: reason for i, _, reason in expected.skipped}
    # Each of their frames would hold the pixels of a picture: 300 of three million pixels took 4 GB.
    assert {(error.__traceback__, error.__cause__) for error in errors.values()} == {(None, None)}
    values = [values for _, values in streamed if not isinstance(values, ImageError)]
    np.testing.assert_allclose(values, expected.features, rtol=1e-4, atol=1e-5)


def test_a_stored_feature_is_not_computed_again(toy, picture_folder, tmp_path, monkeypatch):
    paths = picture_folder(10)
    with FeatureStore(tmp_path / "features.sqlite") as store:
        first = [values for batch in stream_features(toy, paths, store=store) for _, values in batch]
        monkeypatch.setattr(toy, "encode_pixels", None)
        again = [values for batch in stream_features(toy, paths, store=store) for _, values in batch]
    np.testing.assert_array_equal(again, first)


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
