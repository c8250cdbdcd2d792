import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import convolve
from sklearn.neighbors import NearestNeighbors

from clipadapter.doctor.pictures import (
    ImageMeasures,
    check_image_quality,
    find_duplicates,
    group_duplicates,
    measure_image,
    measure_images,
    measure_sharpness,
    nearest_neighbours,
)
from clipadapter.encoders import create_encoder


def test_sharpness_is_the_99th_percentile_of_the_laplacian_over_the_contrast():
    grey = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(float)
    edges = abs(convolve(grey, [[0, 1, 0], [1, -4, 1], [0, 1, 0]]))[1:-1, 1:-1]
    contrast = np.percentile(grey, 99) - np.percentile(grey, 1)
    assert measure_sharpness(grey) == pytest.approx(np.percentile(edges, 99) / contrast)


def test_the_hash_is_that_of_imagehash(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    measures = measure_image(tmp_path / "a.png")
    tile = draw(0).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    assert f"{measures.hash:016x}" == str(imagehash.phash(tile))
    assert f"{measures.mirrored_hash:016x}" == str(imagehash.phash(ImageOps.mirror(tile)))


def test_unreadable_pictures_have_no_measures(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    measures = measure_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert list(measures) == [0]
    assert (measures[0].width, measures[0].height) == (96, 80)


@pytest.fixture
def find_faults(tmp_path, make_pictures):
    """A function that gives the findings on one picture by kind."""

    def find(image, input_side=32, squashes=False):
        image.save(tmp_path / "one.png")
        measures = [measure_image(tmp_path / "one.png")]
        findings = check_image_quality(make_pictures(["cat"]), measures, input_side, squashes)
        return {finding.kind: finding for finding in findings}

    return find


@pytest.mark.parametrize(
    ("kinds", "degrade"),
    [
        ([], lambda image: image),
        (["dark"], lambda image: ImageEnhance.Brightness(image).enhance(0.15)),
        (["bright"], lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.9)),
        (["flat"], lambda image: Image.blend(image, Image.new("RGB", image.size, "grey"), 0.93)),
        (["blurry"], lambda image: image.filter(ImageFilter.GaussianBlur(4))),
    ],
)
def test_only_degraded_pictures_are_found(find_faults, draw, kinds, degrade):
    assert list(find_faults(degrade(draw(1)))) == kinds


@pytest.mark.parametrize("side", [100, 250, 600])
def test_sharpness_does_not_depend_on_the_size_of_the_picture(find_faults, draw, side):
    sharp = draw(1, size=(12, 10)).resize((round(1.2 * side), side), Image.Resampling.NEAREST)
    assert find_faults(sharp) == {}
    assert list(find_faults(sharp.filter(ImageFilter.GaussianBlur(0.025 * side)))) == ["blurry"]


def test_pictures_smaller_than_the_encoders_input_are_tiny(find_faults, draw):
    assert list(find_faults(draw(0, size=(100, 79)), input_side=80)) == ["tiny"]
    assert find_faults(draw(0, size=(100, 80)), input_side=80) == {}


def test_the_finding_on_a_long_picture_has_the_lost_part(find_faults, draw):
    long = draw(0, size=(200, 50))
    assert find_faults(long)["cut"].message.endswith("75% of it is cut off")
    assert find_faults(long)["cut"].score == 0.75
    assert find_faults(long, squashes=True)["cut"].message.endswith("is squeezed to 25% of its length")
    assert find_faults(draw(0, size=(125, 50))) == {}


def test_neighbours_are_those_of_another_library():
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32) + 3
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    distance, index = NearestNeighbors(n_neighbors=6, metric="cosine").fit(units - units.mean(0)).kneighbors()
    cosines, positions = nearest_neighbours(X, 6)
    np.testing.assert_array_equal(positions, index)
    np.testing.assert_allclose(cosines, 1 - distance, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_pictures_have_fewer_neighbours(n):
    assert nearest_neighbours(np.eye(4, dtype=np.float32)[:n], 12)[1].shape == (n, n - 1)


@pytest.fixture
def find(tmp_path):
    """A function that gives the pairs among pictures, each as (first, second, relation)."""

    def find_pairs(images, **options):
        paths = [tmp_path / f"{i}.{'jpg' if i in options else 'png'}" for i in range(len(images))]
        for i, (image, path) in enumerate(zip(images, paths, strict=True)):
            image.save(path, **({"quality": options[i]} if i in options else {}))
        neighbours = nearest_neighbours(create_encoder("toy").encode_images(images).numpy())
        measures = [measure_image(path) for path in paths]
        return [(*pair, relation) for pair, (relation, _) in find_duplicates(measures, neighbours).items()]

    return find_pairs


@pytest.mark.parametrize(
    ("change", "relation"),
    [
        (lambda image: image, "equal files"),
        (lambda image: image.resize((86, 72)), "nearly equal"),
        (lambda image: image.crop((2, 2, 94, 78)), "nearly equal"),
        (lambda image: ImageEnhance.Brightness(image).enhance(1.1), "nearly equal"),
    ],
    ids=["equal", "smaller", "cut", "brighter"],
)
def test_copies_are_pairs_also_if_they_are_slightly_changed(find, draw, change, relation):
    assert find([draw(0), *(draw(i) for i in range(1, 12)), change(draw(0))]) == [(0, 12, relation)]


@pytest.mark.parametrize(
    ("bits", "cosine", "relation"),
    [(bits, 0.2, "equal hash") for bits in ((), (5,), (0, 63), (20, 21))]
    + [((0, 1, 2), 0.2, None), ((), 0.9, "nearly equal"), (range(24), 0.999, None)]
    + [(range(n), cosine, "nearly equal") for n, cosine in ((10, 0.76), (16, 0.86), (22, 0.96))]
    + [(range(n), cosine, None) for n, cosine in ((11, 0.76), (17, 0.86), (23, 0.96))],
)
def test_the_more_bits_differ_the_nearer_features_must_be_and_two_bits_make_a_pair_anyway(bits, cosine, relation):
    def pairs(contrast):
        values = enumerate((99, 99 ^ sum(1 << bit for bit in bits)))
        images = [ImageMeasures(bytes([i]), 9, 9, 0.0, contrast, 1.0, value, (1 << 64) - 1) for i, value in values]
        return find_duplicates(images, (np.full((2, 1), cosine, np.float32), np.array([[1], [0]])))

    assert [found for found, _ in pairs(255.0).values()] == [relation] * (relation is not None)
    assert relation != "equal hash" or pairs(20.0) == {}


def test_a_mirrored_copy_is_a_pair(tmp_path, draw):
    draw(0).save(tmp_path / "0.png")
    ImageOps.mirror(draw(0)).save(tmp_path / "1.png")
    near = (np.full((2, 1), 0.9, np.float32), np.array([[1], [0]]))
    pairs = find_duplicates([measure_image(tmp_path / f"{i}.png") for i in range(2)], near)
    assert pairs[0, 1][0] == "mirrored"


def test_connected_pairs_are_one_finding(make_pictures):
    pictures = make_pictures(["cat"] * 5)
    chain = {(0, 1): ("equal files", 1.0), (1, 3): ("nearly equal", 0.9)}
    (pair,) = group_duplicates(pictures, chain)
    assert [picture.name for picture in pair.pictures] == ["0.png", "1.png", "3.png"]
    assert (pair.kind, pair.score) == ("duplicate", 0.9)


def test_copies_with_two_labels_are_conflicts_and_in_two_splits_leaks(make_pictures):
    pictures = make_pictures(["cat", "dog", "cat", "cat", "ant"], ["train", "train", "test", "train", "test"])

    def kinds(a, b):
        return [pair.kind for pair in group_duplicates(pictures, {(a, b): ("equal files", 1.0)})]

    expected = [["conflict"], ["leak"], ["duplicate"], ["conflict", "leak"]]
    assert [kinds(0, other) for other in range(1, 5)] == expected
    assert list(group_duplicates(pictures, {})) == []
