"""Scaling and cutting is torchvision's, but a strip takes no memory."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from clipadapter.encoders.inputs import to_tensor
from clipadapter.pixels import centre_square


def reference(image: Image.Image, size: int) -> Image.Image:
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.CenterCrop(size)(transforms.Resize(size, interpolation=bicubic)(image))


@pytest.mark.parametrize(
    "shape", [(300, 200), (201, 333), (224, 224), (31, 32), (640, 80), (97, 101), (50, 50), (1, 1), (7, 5)]
)
@pytest.mark.parametrize("size", [224, 65])
def test_pixels_equal_torchvisions(shape, size, picture):
    image = picture(*shape)
    np.testing.assert_array_equal(centre_square(image, size), reference(image, size))


@pytest.mark.parametrize("shape", [(900, 100), (60, 999)])
def test_a_strip_has_the_pixels_of_the_scaled_picture(shape, picture):
    image = picture(*shape)
    gap = np.asarray(centre_square(image, 96), dtype=int) - np.asarray(reference(image, 96), dtype=int)
    assert np.abs(gap).mean() < 0.5  # sharp edges differ a little: Pillow may swap its two passes


@pytest.mark.parametrize("shape", [(5000, 1), (1, 5000)])
def test_a_strip_is_cropped_before_it_is_scaled(shape, picture, resized_to):
    assert centre_square(picture(*shape), 224).size == (224, 224)
    assert resized_to == [(224, 224)]


def test_to_tensor_equals_torchvisions(picture):
    image = picture(33, 21)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = transforms.Normalize(mean, std)(transforms.ToTensor()(image))
    torch.testing.assert_close(to_tensor(image, mean, std), expected)
