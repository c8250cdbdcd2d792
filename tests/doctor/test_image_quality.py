import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from clipadapter.doctor.pictures import check_image_quality, measure_image, measure_images, measure_sharpness


def test_sharpness_is_the_99th_percentile_of_the_laplacian_over_the_contrast():
    grey = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(float)
    edges = []
    for i in range(1, 8):
        for j in range(1, 6):
            around = grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1]
            edges.append(abs(4 * grey[i, j] - around))
    contrast = np.percentile(grey, 99) - np.percentile(grey, 1)
    assert measure_sharpness(grey) == pytest.approx(np.percentile(edges, 99) / contrast)


def test_the_hash_is_that_of_imagehash(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    measures = measure_image(tmp_path / "a.png", imagehash)
    tile = draw(0).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    assert f"{measures.hash:016x}" == str(imagehash.phash(tile))
    assert f"{measures.mirrored_hash:016x}" == str(imagehash.phash(ImageOps.mirror(tile)))


def test_unreadable_pictures_have_no_measures(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first, second = measure_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert (first.width, first.height) == (96, 80)
    assert second is None


@pytest.fixture
def find_faults(tmp_path, make_pictures):
    """A function that gives the findings on one picture by kind."""

    def find(image, input_side=32, squashes=False):
        image.save(tmp_path / "one.png")
        measures = [measure_image(tmp_path / "one.png", imagehash)]
        findings = check_image_quality(make_pictures(["cat"]), measures, input_side, squashes)
        return {finding.kind: finding for finding in findings}

    return find


def test_a_normal_picture_has_no_findings(find_faults, draw):
    assert find_faults(draw(0)) == {}


@pytest.mark.parametrize(
    ("kind", "degrade"),
    [
        ("dark", lambda image: ImageEnhance.Brightness(image).enhance(0.15)),
        ("bright", lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.9)),
        ("flat", lambda image: Image.blend(image, Image.new("RGB", image.size, "grey"), 0.93)),
        ("blurry", lambda image: image.filter(ImageFilter.GaussianBlur(4))),
    ],
)
def test_degraded_pictures_are_found(find_faults, draw, kind, degrade):
    assert list(find_faults(degrade(draw(1)))) == [kind]


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
