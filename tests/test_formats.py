"""The oracle of Q/DQ, against its definition value by value."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from granplugin.quant.formats import FORMATS, dequantize, fake_quantize, quantize, scale_of

values = st.floats(-(2.0**30), 2.0**30, width=32)
amaxes = st.floats(2.0**-24, 2.0**30, width=32)
INTEGERS = [fmt for fmt in FORMATS.values() if fmt.integer]


@given(hnp.arrays(np.float32, (6,), elements=values), amaxes, st.sampled_from(INTEGERS))
def test_integers_are_the_ratio_rounded_half_to_even_and_clipped(x, amax, fmt):
    scale = scale_of(np.array([amax]), fmt)
    stored = quantize(x, scale, (6,), fmt)
    assert stored.dtype == fmt.dtype
    for value, number in zip(x, stored.astype(int), strict=True):
        ratio = Fraction(float(value / scale[0]))
        assert number == min(max(round(ratio), fmt.smallest), fmt.largest)


@given(st.sampled_from(list(FORMATS.values())), amaxes)
def test_amax_is_the_largest_value_that_fits(fmt, amax):
    scale = scale_of(np.array([amax]), fmt)
    x = np.array([fmt.fit(np.float32(amax)), 2 * amax], np.float32)
    assert quantize(x, scale, (2,), fmt).astype(np.float32).tolist() == [fmt.largest] * 2


@given(hnp.arrays(np.float32, (2, 3), elements=values), st.sampled_from(list(FORMATS.values())))
def test_what_is_quantized_already_does_not_change(x, fmt):
    scale = np.array([[0.25], [2.0]], np.float32)
    once = fake_quantize(x, scale, (1, 3), fmt)
    assert np.array_equal(fake_quantize(once, scale, (1, 3), fmt), once)


@given(hnp.arrays(np.float32, (4,), elements=st.floats(-448, 448, width=32)))
def test_fp8_rounds_to_the_nearest_representable_value(x):
    fmt = FORMATS["fp8"]
    every = np.arange(256, dtype=np.uint8).view(fmt.dtype).astype(np.float32)
    every = every[np.isfinite(every)]
    rounded = fake_quantize(x, np.ones(1, np.float32), (4,), fmt)
    assert (np.abs(rounded - x) == np.abs(every[:, None] - x).min(0)).all()


@pytest.mark.parametrize("fmt", INTEGERS)
def test_all_stored_numbers_come_back(fmt):
    stored = np.arange(fmt.smallest, fmt.largest + 1, dtype=np.int8).astype(fmt.dtype)
    scale = np.array([0.5], np.float32)
    back = dequantize(stored, scale, stored.shape)
    assert back.dtype == np.float32
    assert np.array_equal(quantize(back, scale, stored.shape, fmt), stored)
