"""One resizing for training, evaluation and the exported model."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from detmtl.data.fit import InputSettings, fit, fit_size, resize, scale_boxes


def scripted(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that scripting will end some day
        return torch.jit.script(function)


sides = st.integers(1, 20_000)


@given(sides, sides, st.integers(32, 2000), st.integers(0, 2000))
def test_the_deciding_side_is_exact_and_no_side_is_too_long(height, width, short, more):
    long = short + more
    h, w = fit_size(height, width, short, long)
    assert min(h, w) >= 1
    assert min(h, w) <= short and max(h, w) <= long
    assert min(h, w) == short or max(h, w) == long


@given(sides, sides)
def test_the_ratio_is_kept_to_rounding(height, width):
    h, w = fit_size(height, width, 480, 640)
    scale = min(480 / min(height, width), 640 / max(height, width))
    assert abs(h - height * scale) <= 0.5 + 1e-6 or h == 1
    assert abs(w - width * scale) <= 0.5 + 1e-6 or w == 1


def test_fitting_twice_changes_nothing():
    for height, width in [(480, 640), (333, 500), (1000, 37), (7, 7), (1, 9000)]:
        once = fit_size(height, width, 480, 640)
        assert fit_size(*once, 480, 640) == once


def test_a_third_of_a_third_does_not_lose_a_pixel():
    # in floating point 480 / 333 * 333 may be 479.99..., which rounds down to 479
    assert fit_size(333, 333, 480, 640) == (480, 480)
    assert fit_size(480, 640, 480, 640) == (480, 640)
    assert fit_size(640, 480, 480, 640) == (640, 480)


def test_a_picture_that_fits_is_returned_untouched():
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    assert fit(image, 480, 640) is image


@pytest.mark.parametrize("size", [(97, 131), (700, 900), (480, 100)])
def test_pixels_are_bilinear_with_antialiasing(size):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    found = fit(image, 120, 160)
    expected = F.interpolate(
        image[None].float(), size=fit_size(*size, 120, 160), mode="bilinear", antialias=True
    )[0]
    assert found.dtype == torch.uint8
    assert (found.float() - expected).abs().max() <= 1.0


def test_memory_layout_changes_no_pixel():
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (301, 200, 3), dtype=np.uint8)
    )
    rows = image.permute(2, 0, 1)
    assert torch.equal(fit(rows, 96, 128), fit(rows.contiguous(), 96, 128))


def test_scripted_equals_eager():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 70), dtype=np.uint8))
    assert torch.equal(scripted(fit)(image, 64, 96), fit(image, 64, 96))
    assert torch.equal(scripted(resize)(image, 33, 44), resize(image, 33, 44))
    assert scripted(fit_size)(333, 500, 480, 640) == fit_size(333, 500, 480, 640)
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert torch.equal(
        scripted(scale_boxes)(boxes, (10, 20), (20, 60)), torch.tensor([[3.0, 4.0, 9.0, 8.0]])
    )


def test_boxes_scale_by_each_sides_own_factor_and_back():
    boxes = torch.tensor([[0.0, 0.0, 501.0, 333.0]])
    size = fit_size(333, 501, 480, 640)
    there = scale_boxes(boxes, (333, 501), size)
    assert there.tolist() == [[0.0, 0.0, float(size[1]), float(size[0])]]
    torch.testing.assert_close(scale_boxes(there, size, (333, 501)), boxes)
    assert scale_boxes(torch.zeros(0, 4), (1, 2), (3, 4)).shape == (0, 4)


def test_a_long_side_shorter_than_the_short_one_is_refused():
    with pytest.raises(ValidationError, match="long is 100, less than short, 200"):
        InputSettings(short=200, long=100)
    for wrong in ({"short": 31}, {"short": 20, "long": 31}, {"long": 8193}):
        with pytest.raises(ValidationError):
            InputSettings(**wrong)
    assert InputSettings(short=32, long=32).long == 32


@pytest.mark.gpu
def test_on_a_gpu_pixels_differ_by_one_level_at_most():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (3, 301, 200), dtype=np.uint8)
    )
    there = fit(image.cuda(), 96, 128).cpu()
    assert (there.int() - fit(image, 96, 128).int()).abs().max() <= 1
