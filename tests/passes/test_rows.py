from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trakstore.passes.rows import ArrayRows, MeanRows, PositionRows, TakenRows, UnmaskedRows

SIZE = 37


class Counted(ArrayRows):
    """Rows that refuse a read across chunks, as a careless reader would make."""

    def read(self, start, stop):
        assert start // self.chunk_rows == (stop - 1) // self.chunk_rows
        return super().read(start, stop)


@given(
    index=st.one_of(
        st.lists(st.integers(0, SIZE - 1), max_size=60).map(lambda x: np.array(x, dtype=np.int64)),
        st.builds(lambda s: range(*s.indices(SIZE)), st.slices(SIZE)),
    ),
    data=st.data(),
)
def test_taken_rows_are_the_rows_and_scattered_ones_are_read_chunk_by_chunk(index, data):
    array = np.arange(SIZE * 2).reshape(SIZE, 2)
    whole = isinstance(index, range) and index.step == 1  # one read, whatever the chunks
    rows = TakenRows((ArrayRows if whole else Counted)(array, 5), index)
    start = data.draw(st.integers(0, len(index)))
    stop = data.draw(st.integers(start, len(index)))
    assert rows.shape == (len(index), 2)
    np.testing.assert_array_equal(rows.read(start, stop), array[np.asarray(index, int)][start:stop])


@given(masked=st.sets(st.integers(0, SIZE - 1), max_size=SIZE - 1), data=st.data())
def test_unmasked_rows_are_the_rows_without_the_masked(masked, data):
    gone = np.array(sorted(masked), dtype=np.int64)
    rows, expected = UnmaskedRows(PositionRows(SIZE), gone), np.delete(np.arange(SIZE), gone)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    assert rows.shape == expected.shape
    np.testing.assert_array_equal(rows.read(start, stop), expected[start:stop])


@pytest.mark.parametrize("dtype", ["U5", np.dtypes.StringDType()])
def test_string_ids_can_be_taken(dtype):
    ids = np.array(["a", "bb", "ccc"], dtype=dtype)
    taken = TakenRows(ArrayRows(ids, 2), np.array([2, 0, 2]))
    assert taken.read(0, 3).tolist() == ["ccc", "a", "ccc"]


def test_mean_is_of_float64():
    columns = tuple(ArrayRows(np.array([value], dtype="float16")) for value in (60000, 60000, 3))
    assert MeanRows(columns).read(0, 1) == pytest.approx(
        [np.mean([np.float16(60000).astype(float)] * 2 + [3.0])]
    )


def test_tokens_tell_contents_apart():
    one, same, other = ArrayRows(np.arange(4)), ArrayRows(np.arange(4)), ArrayRows(np.arange(5))
    assert one.token == same.token != other.token
    assert TakenRows(one, range(2)).token != TakenRows(one, range(1, 3)).token
