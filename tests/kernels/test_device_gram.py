"""Grams on a device are those of the CPU; torch's own CPU stands for the device."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import reference
import torch

from trakstore.errors import MemoryLimitError, NumericsError
from trakstore.kernels import device_gram
from trakstore.kernels.device_gram import DeviceSums
from trakstore.kernels.gram import gram
from trakstore.passes import memory, pinned
from trakstore.passes.rows import ArrayRows

DEVICE = "cpu:0"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("chunk", [7, 100])
@pytest.mark.parametrize("strip", [4, 13, 4096])
def test_grams_are_those_of_the_cpu(draw, dtype, chunk, strip, monkeypatch):
    monkeypatch.setattr(device_gram, "STRIP", strip)
    features = draw(300, 13, dtype=dtype)
    found, expected = (gram(ArrayRows(features, chunk), device=one) for one in (DEVICE, "cpu"))
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    assert (found.rows, found.dtype) == (300, "float32")
    assert found.trace == pytest.approx(expected.trace, rel=1e-6)


@pytest.mark.parametrize("strip", [700, 2048])
def test_a_matrix_of_several_squares_is_symmetric(draw, strip, monkeypatch):
    monkeypatch.setattr(device_gram, "STRIP", strip)
    features = draw(40, 2100)
    found = gram(ArrayRows(features, 8), device=DEVICE).matrix
    np.testing.assert_allclose(found, reference.gram(features), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found, found.T)


def test_float64_sums_products_of_a_few_rows():
    # 1 + 2⁻²⁴ is 1 in float32: a sum in float32 alone would miss all but the first row.
    rows = np.full((9, 1), 2.0**-12, np.float32)
    rows[0] = 1
    sums = DeviceSums(1, "float32", 1, DEVICE)
    sums.add(ArrayRows(rows), 0, 5, None)
    sums.add(ArrayRows(rows), 5, 9, None)
    assert sums.matrix()[0, 0] == 1 + 8 * 2.0**-24 and sums.used == 9
    together = DeviceSums(1, "float32", 4, DEVICE)
    for at in range(9):
        together.add(ArrayRows(rows), at, at + 1, None)
    assert together.matrix()[0, 0] == 1 + 5 * 2.0**-24


def test_products_of_float64(draw):
    features = draw(90, 11)
    exact = gram(ArrayRows(features, 16), dtype="float64", device=DEVICE)
    np.testing.assert_allclose(exact.matrix, reference.gram(features), rtol=1e-12, atol=1e-12)


def test_weights_and_rows_without(draw):
    features, weights = draw(60, 5), np.abs(draw(60)).astype(np.float64)
    features[[3, 40]], weights[[3, 40]] = np.nan, 0
    found = gram(ArrayRows(features, 8), ArrayRows(weights, 16), device=DEVICE)
    expected = reference.gram(np.nan_to_num(features), weights)
    np.testing.assert_allclose(found.matrix, expected, rtol=1e-4, atol=1e-4)
    assert found.rows == 58


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "1 of them"), (np.inf, "NaN or inf"), (1e30, "too large")]
)
def test_features_that_cannot_enter_are_named_as_on_the_cpu(draw, value, why):
    features = draw(40, 3)
    features[21, 1] = value
    told = pytest.raises(NumericsError, match=rf"rows 16\.\.24 .*{why}")
    with dask.config.set(scheduler="sync"), told:
        gram(ArrayRows(features, 8), device=DEVICE)


def test_only_the_matrix_comes_back(draw, monkeypatch):
    back, fetched = [], pinned._fetched

    def counted(part):
        back.append(part.numel() * part.element_size())
        return fetched(part)

    monkeypatch.setattr(pinned, "_fetched", counted)
    sums, rows = DeviceSums(6, "float32", 4096, DEVICE), ArrayRows(draw(1000, 6, dtype="float16"))
    for low in range(0, 1000, 100):
        sums.add(rows, low, low + 100, None)
    assert not back
    sums.matrix()
    assert sum(back) == 8 * 6 * 6 + 1


def test_rows_are_added_without_a_wait():
    # Tensors on "meta" have no numbers: to ask for one is an error.
    sums, rows = DeviceSums(5, "float32", 30, "meta"), ArrayRows(np.ones((100, 5), np.float16))
    for low in range(0, 100, 20):
        sums.add(rows, low, low + 20, np.ones(20, np.float32))
    assert sums.used == 100 and sums._total.dtype == torch.float64


def test_too_little_memory_on_a_device_is_refused_before_reading(draw, monkeypatch):
    class Unread(ArrayRows):
        def read(self, *_):
            raise AssertionError("read")

    rows = Unread(draw(10, 512))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**6)
    with pytest.raises(MemoryLimitError, match=r"a gram of 512 on cuda needs .*device='cpu'"):
        gram(rows, device="cuda")
