from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trakstore.errors import TrakStoreError
from trakstore.storage import layout

ESCAPES = [
    "..",
    "../x",
    "/etc",
    "a/b",
    "",
    ".",
    "a\\b",
    "zarr.json/..",
    "é",
    "a" * 101,
    "c:",
    "__x",
    "zarr.json.0758.partial",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(TrakStoreError, match="cannot name"):
        layout.split_path(0, name)
    with pytest.raises(TrakStoreError):
        layout.epoch_path(name)


@pytest.mark.parametrize("epoch", [-1, True, "scores", "grams", "-1", "1.5", "01", "00", 10**19])
def test_bad_epochs(epoch: int | str) -> None:
    with pytest.raises(TrakStoreError):
        layout.as_epoch(epoch)


@given(st.integers(min_value=0, max_value=10**19 - 1))
def test_an_epoch_number_survives_its_path(epoch: int) -> None:
    assert layout.as_epoch(layout.epoch_path(epoch)) == epoch


@given(st.integers(min_value=0, max_value=10**9))
def test_a_marker_key_names_its_block(block: int) -> None:
    assert layout.marker_block(layout.marker_key("0/train", block).rpartition("/")[2]) == block


@pytest.mark.parametrize(
    "name", ["zarr.json", "c.5.1", "c.05.0", "c.5.0.ab12.partial", "c.5.partial"]
)
def test_other_keys_are_no_markers(name: str) -> None:
    assert layout.marker_block(name) is None


def test_epochs_sort_as_numbers_then_names() -> None:
    epochs = ["final", 10, 2, "best"]
    assert sorted(epochs, key=layout.epoch_sort_key) == [2, 10, "best", "final"]


def test_splits_that_are_made_of_others_are_named_after_them() -> None:
    assert layout.sampled_split("train") == "train~sampled"
    assert layout.token_split("test") == "test~tokens"
    for name in ("train~sampled", "train~tokens", "train"):
        assert layout.own_split(name) == "train"
        assert layout.check_name(name, "split") == name
    for name in ("train~tokens~sampled", "~tokens", "train~others"):
        with pytest.raises(TrakStoreError, match="cannot name a split"):
            layout.check_name(name, "split")
