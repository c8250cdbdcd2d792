"""What is done to pixels before a tower sees them; the scaling itself is in `tests/encoders/test_inputs.py`."""

import pytest

from clipadapter.utils.pixels import min_jpeg_side


def test_in_full_precision_no_pixel_is_lost():
    assert min_jpeg_side("fp32", 224) is None


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_jpeg_keeps_four_times_the_side_of_the_square(precision):
    assert min_jpeg_side(precision, 224) == 896
