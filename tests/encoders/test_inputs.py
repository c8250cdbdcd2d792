"""Scaling and cutting is torchvision's; that a strip takes no memory is in `test_open_clip.py`."""

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval as timm_transform
from torchvision import transforms

from clipadapter.errors import InputError
from clipadapter.utils.pixels import PixelSpec


def square(image: Image.Image, size: int) -> np.ndarray:
    return PixelSpec(size, (0.5,) * 3, (0.5,) * 3).to_square(image)


def reference(image: Image.Image, size: int) -> Image.Image:
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.CenterCrop(size)(transforms.Resize(size, interpolation=bicubic)(image))


@pytest.mark.parametrize(
    "shape", [(300, 200), (201, 333), (224, 224), (31, 32), (640, 80), (97, 101), (50, 50), (1, 1), (7, 5)]
)
@pytest.mark.parametrize("size", [224, 65])
def test_pixels_equal_torchvisions(shape, size, picture):
    image = picture(*shape)
    np.testing.assert_array_equal(square(image, size), reference(image, size))


@pytest.mark.parametrize("shape", [(900, 100), (60, 999)])
def test_a_strip_has_the_pixels_of_the_scaled_picture(shape, picture):
    image = picture(*shape)
    gap = square(image, 96).astype(int) - np.asarray(reference(image, 96), dtype=int)
    assert np.abs(gap).mean() < 0.5  # sharp edges differ a little: Pillow may swap its two passes


@pytest.mark.parametrize("shape", [(300, 200), (201, 333), (97, 101), (50, 50), (640, 80)])
@pytest.mark.parametrize(("mode", "resize"), [("center", "shortest"), ("squash", "squash")])
@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bicubic"), (0.95, "bilinear")])
def test_pixels_of_a_crop_equal_timms(shape, mode, resize, crop, interpolation, picture):
    transform = timm_transform(
        96, crop_pct=crop, crop_mode=mode, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    spec = PixelSpec(96, (0.5,) * 3, (0.5,) * 3, resize, interpolation, crop)
    expected = transform(picture(*shape)).mul(255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(spec.to_square(picture(*shape)), expected)


def test_a_square_of_the_towers_size_is_not_cropped(picture):
    for resize in ("shortest", "squash"):
        spec = PixelSpec(96, (0.5,) * 3, (0.5,) * 3, resize, crop=0.875)
        np.testing.assert_array_equal(spec.to_square(picture(96, 96)), np.asarray(picture(96, 96)))


def test_only_a_crop_adds_a_field_that_earlier_versions_lack_and_one_out_of_range_is_refused():
    for crop in (0.0, 0.4, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"must be 0\.5 to 1"):
            PixelSpec(96, (0.5,) * 3, (0.5,) * 3, crop=crop)
    plain, cropped = PixelSpec(8, (0.5,) * 3, (0.5,) * 3), PixelSpec(8, (0.5,) * 3, (0.5,) * 3, crop=0.9)
    assert set(plain.to_dict()) == {"size", "mean", "std", "resize", "resample"}
    assert cropped.to_dict()["crop"] == 0.9
    assert [PixelSpec.from_dict(spec.to_dict()) for spec in (plain, cropped)] == [plain, cropped]
