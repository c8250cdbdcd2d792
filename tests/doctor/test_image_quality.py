import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from clipadapter.doctor._quality import quality
from clipadapter.doctor.image_quality import look, looks, sharpness, shrunk
from clipadapter.errors import MissingExtraError


def test_sharpness_is_the_99th_percentile_of_the_laplacian_over_the_spread():
    grey = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(float)
    edges = []
    for i in range(1, 8):
        for j in range(1, 6):
            around = grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1]
            edges.append(abs(4 * grey[i, j] - around))
    spread = np.percentile(grey, 99) - np.percentile(grey, 1)
    assert sharpness(grey) == pytest.approx(np.percentile(edges, 99) / spread)


def test_sharpness_does_not_fall_with_contrast():
    grey = np.random.default_rng(0).uniform(0, 255, (20, 20))
    assert sharpness(grey / 4 + 100) == pytest.approx(sharpness(grey))


def test_the_code_is_the_libraries_hash_of_the_picture(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    found = look(tmp_path / "a.png", imagehash)
    tile = draw(0).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    assert f"{found.code:016x}" == str(imagehash.phash(tile))
    assert f"{found.mirrored:016x}" == str(imagehash.phash(ImageOps.mirror(tile)))


def test_what_cant_be_read_has_no_look(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first, second = looks([tmp_path / "a.png", tmp_path / "b.png"])
    assert (first.width, first.height) == (96, 80)
    assert second is None


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(MissingExtraError, match=r"clipadapter\[doctor\]"):
        looks([tmp_path / "a.png"])


@pytest.fixture
def kinds(tmp_path, shown):
    """A function that gives the kinds of findings on one picture."""

    def find(image, square=32, squashes=False):
        image.save(tmp_path / "one.png")
        found = quality(shown(["cat"]), [look(tmp_path / "one.png", imagehash)], square, squashes)
        return {one.kind: one for one in found}

    return find


def test_a_plain_scene_has_no_finding(kinds, draw):
    assert kinds(draw(0)) == {}


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("dark", lambda image: ImageEnhance.Brightness(image).enhance(0.15)),
        ("bright", lambda image: Image.blend(image, Image.new("RGB", image.size, "white"), 0.9)),
        ("flat", lambda image: Image.blend(image, Image.new("RGB", image.size, "grey"), 0.93)),
        ("blurry", lambda image: image.filter(ImageFilter.GaussianBlur(4))),
    ],
)
def test_spoiled_pictures_are_found(kinds, draw, kind, spoil):
    assert list(kinds(spoil(draw(1)))) == [kind]


def test_tiny_is_half_of_the_encoders_square(kinds, draw):
    assert list(kinds(draw(0, size=(50, 40)), square=80)) == ["tiny"]
    assert kinds(draw(0, size=(50, 41)), square=80) == {}


def test_a_long_picture_says_what_is_lost(kinds, draw):
    long = draw(0, size=(200, 50))
    assert kinds(long)["cut"].words.endswith("75% of it is cut off")
    assert kinds(long)["cut"].score == 0.75
    assert kinds(long, squashes=True)["cut"].words.endswith("is squeezed to 25% of its length")
    assert kinds(draw(0, size=(125, 50))) == {}


def test_shrinking_keeps_what_is_small():
    image = Image.new("L", (30, 20))
    assert shrunk(image, 20) is image
