"""What is done to pixels before a tower sees them; the scaling itself is in `tests/encoders/test_inputs.py`."""

import numpy as np
import pytest

from clipadapter.utils.pixels import (
    PixelSpec,
    different_squares,
    min_jpeg_side,
    pack_squares,
    packed_shape,
    unpack_squares,
)


def test_in_full_precision_no_pixel_is_lost():
    assert min_jpeg_side("fp32", 224) is None


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_jpeg_keeps_four_times_the_side_of_the_square(precision):
    assert min_jpeg_side(precision, 224) == 896


@pytest.mark.parametrize("sizes", [(4,), (4, 8)])
def test_packed_squares_of_pictures_are_unpacked_as_they_were(sizes):
    specs = [PixelSpec(size, (0.5,) * 3, (0.5,) * 3) for size in sizes]
    rng = np.random.default_rng(0)
    pictures = [[rng.integers(0, 256, (size, size, 3), np.uint8) for size in sizes] for _ in range(2)]
    packed = np.stack([pack_squares(squares) for squares in pictures])
    assert packed.shape[1:] == packed_shape(specs)
    for i, squares in enumerate(unpack_squares(packed, specs)):
        np.testing.assert_array_equal(squares, [picture[i] for picture in pictures])


def test_equal_squares_are_made_once():
    small, large = (PixelSpec(size, (0.5,) * 3, (0.5,) * 3) for size in (32, 64))
    squares, numbers = different_squares([small, large, small])
    assert (squares, numbers) == ((small, large), (0, 1, 0))
