"""Data sets that fail after blocks were committed: one line with the sample, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp, seeded
from torch import nn
from torch.utils.data import Dataset, IterableDataset, default_collate

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Streamed, featurize
from trakstore.features.fingerprint import hashed_rows
from trakstore.storage.checking.verification import verify_store

ROWS, BAD = 68, 42  # the bad sample is not among those that are hashed
IDS = [f"img{at}" for at in range(ROWS)]
OPTIONS: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=8), "progress": False}
OPTIONS |= {"batch_size": 8, "block_rows": 16}
BLOCKS = BAD // 16  # that come before the one with the bad sample
GOOD = Samples(ROWS)


class Bad(Dataset[Any]):
    """Samples of which one, or all from there on, are made by a function."""

    def __init__(self, make: Callable[[], Any], *, rest: bool = False, good: Any = GOOD) -> None:
        self.make, self.rest, self.good = make, rest, good

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, index: int) -> Any:
        bad = index == BAD or (self.rest and index > BAD and index not in hashed_rows(ROWS))
        return self.make() if bad else self.good[index]


def raises(error: BaseException) -> Callable[[], Any]:
    def make() -> Any:
        raise error

    return make


def test_the_bad_sample_is_not_among_those_that_are_hashed() -> None:
    assert BAD not in hashed_rows(ROWS) and len(hashed_rows(ROWS)) == 32


CASES: dict[str, tuple[Callable[[], Any], str, type[BaseException] | None]] = {
    "error": (raises(OSError("no disk")), r"cannot be read: OSError: no disk \(test_bad", OSError),
    "too short": (raises(IndexError("short")), r"cannot be read \(IndexError: short\)", IndexError),
    "stop": (raises(StopIteration()), r"cannot be read \(StopIteration", StopIteration),
    "none": (lambda: None, "is None: .* leave it out", None),
    "wider": (lambda: (torch.ones(13), 1), r"has float32 of \(13,\) at \[0\], .* \(12,\)", None),
    "more": (lambda: (torch.ones(12), 1, 2), "has 3 numbers or tensors, and the first .* 2", None),
    "text": (lambda: (torch.ones(12), "a"), r"has a str at \[1\], and .* int64 of \(\) at", None),
    "double": (lambda: (torch.ones(12).double(), 1), r"has float64 of \(12,\) at .*float32", None),
    "no class": (
        lambda: (torch.ones(12), torch.tensor(0.7)),
        "has label 0.7, .* classes 0 to 2",
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_sample_ends_the_run_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    make, said, cause = CASES[case]
    place = tmp_path / "s"
    with pytest.raises(TrakStoreError, match=rf"sample {BAD} \(id 'img{BAD}'\) .*{said}") as caught:
        featurize(mlp(), Bad(make), place, ids=IDS, **OPTIONS)
    assert "\n" not in str(caught.value)
    if cause is not None:
        assert isinstance(caught.value.__cause__, cause)
    # Whole blocks that came before stay, nothing else is there, and the mended data go on.
    split = ts.open_store(place).split(0, "train")
    assert split.status().written_rows == BLOCKS * 16
    assert featurize(mlp(), GOOD, place, ids=IDS, **OPTIONS).rows == ROWS - BLOCKS * 16
    featurize(mlp(), GOOD, tmp_path / "whole", ids=IDS, **OPTIONS)
    stored = [ts.open_store(one).features(0, "train").values for one in (place, tmp_path / "whole")]
    np.testing.assert_array_equal(*stored)
    assert verify_store(place).ok


def test_samples_that_are_hashed_are_tried_before_anything_is_written(tmp_path: Path) -> None:
    """Mended data have another hash, and could not go on with a split."""
    hashed = hashed_rows(ROWS)[20]
    data = [GOOD[at] for at in range(ROWS)]
    data[hashed] = (data[hashed][0].double(), data[hashed][1])
    with pytest.raises(TrakStoreError, match=rf"does not take sample {hashed} \(torch.float64 of"):
        featurize(mlp(), data, tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()
    assert featurize(mlp(), GOOD, tmp_path / "s", **OPTIONS).rows == ROWS


@pytest.mark.parametrize("case", ["stop", "none", "double"])
def test_each_of_two_workers_ends_so(tmp_path: Path, case: str) -> None:
    """The one whose share the sample is in, and the other as it helps."""
    make, said, _ = CASES[case]
    for rank in (0, 1):
        with pytest.raises(TrakStoreError, match=rf"sample {BAD} .*{said}"):
            featurize(mlp(), Bad(make), tmp_path / "s", rank=rank, world_size=2, **OPTIONS)
    split = ts.open_store(tmp_path / "s").split(0, "train")
    written = split.status().written_rows
    assert 0 < written < ROWS and BLOCKS in split.missing_blocks()
    assert featurize(mlp(), GOOD, tmp_path / "s", **OPTIONS).rows == ROWS - written


def regression() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 1)))


VALUES = [(x, float(y)) for x, y in (GOOD[at] for at in range(ROWS))]
SHAPES: dict[str, tuple[Any, str]] = {
    "two values": (
        (torch.ones(12), torch.ones(2)),
        r"has float32 of \(2,\) at \[1\], and .* number",
    ),
    "two rows": ((torch.ones(2, 12), 1.0), r"has float32 of \(2, 12\) at \[0\]"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_a_sum_would_take_are_refused(tmp_path: Path, case: str) -> None:
    """All of a batch have another shape, which no error of the model or of collating tells."""
    sample, said = SHAPES[case]
    data = Bad(lambda: sample, rest=True, good=VALUES)
    options = {**OPTIONS, "batch_size": 1, "output": "squared_error"}
    needed = f"sample {BAD} {said}.*: squared_error needs one prediction and one value"
    with pytest.raises(TrakStoreError, match=needed):
        featurize(regression(), data, tmp_path / "s", **options)
    assert ts.open_store(tmp_path / "s").split(0, "train").status().written_rows == BLOCKS * 16


def test_a_value_that_the_model_does_not_take_is_named(tmp_path: Path) -> None:
    tokens = [(torch.arange(3) + at % 5, at % 3) for at in range(ROWS)]
    model = seeded(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)))
    data = Bad(lambda: (torch.arange(7, 10), 0), good=tokens)
    with pytest.raises(
        TrakStoreError, match=rf"not take sample {BAD} .*index out of range"
    ) as caught:
        featurize(model, data, tmp_path / "s", **OPTIONS)
    assert isinstance(caught.value.__cause__, IndexError)


def test_numbers_of_both_kinds_are_one_form(tmp_path: Path) -> None:
    """A table has whole numbers and floats in a column, and labels in any width."""
    data = [
        (x.tolist(), torch.tensor(int(y), dtype=torch.int32))
        for x, y in map(GOOD.__getitem__, range(ROWS))
    ]
    data[BAD] = ([0] * 12, torch.tensor(1))
    featurize(mlp(), data, tmp_path / "s", **OPTIONS)
    alike = [(x, y.long()) for x, y in data]
    alike[BAD] = ([0.0] * 12, torch.tensor(1))
    featurize(mlp(), alike, tmp_path / "t", **OPTIONS)
    stored = [ts.open_store(tmp_path / one).features(0, "train").values for one in ("s", "t")]
    np.testing.assert_array_equal(*stored)


def test_a_collator_may_take_lists_of_any_lengths(tmp_path: Path) -> None:
    data = [([[float(at)], [1.0] * (at % 3)], at % 3) for at in range(ROWS)]

    def collate(samples: list[Any]) -> Any:
        sums = [[float(sum(map(sum, lists)))] * 12 for lists, _ in samples]
        return torch.tensor(sums), torch.tensor([label for _, label in samples])

    assert featurize(mlp(), data, tmp_path / "s", collate=collate, **OPTIONS).rows == ROWS


@pytest.mark.parametrize("error", [KeyError("pixel"), StopIteration()])
def test_a_collator_that_fails_for_one_batch(tmp_path: Path, error: Exception) -> None:
    def collate(samples: list[Any]) -> Any:
        if any(torch.equal(x, GOOD[BAD][0]) for x, _ in samples):
            raise error
        return default_collate(samples)

    said = f"the collator, of samples 40 to 47 \\(ids 'img40' to 'img47'\\): {type(error).__name__}"
    with pytest.raises(TrakStoreError, match=said + ".* mend it and run again") as caught:
        featurize(mlp(), GOOD, tmp_path / "s", ids=IDS, collate=collate, **OPTIONS)
    assert caught.value.__cause__ is error
    done = featurize(mlp(), GOOD, tmp_path / "s", ids=IDS, collate=default_collate, **OPTIONS)
    assert done.rows == ROWS - BLOCKS * 16


class Stream(IterableDataset[Any]):
    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        for at in range(ROWS):
            yield self.make() if self.make and at == BAD else GOOD[at]


@pytest.mark.parametrize("case", ["error", "none", "double"])
def test_streams_are_told_of_in_the_same_way(tmp_path: Path, case: str) -> None:
    make, said, _ = CASES[case]
    with pytest.raises(TrakStoreError, match=rf"sample {BAD} .*{said}"):
        featurize(mlp(), Streamed(Stream(make), rows=ROWS), tmp_path / "s", **OPTIONS)
    done = featurize(mlp(), Streamed(Stream(), rows=ROWS), tmp_path / "s", **OPTIONS)
    assert done.rows == ROWS - BLOCKS * 16


def test_streams_of_another_length(tmp_path: Path) -> None:
    said = f"ended after {ROWS} samples, and 90 were to come: give rows={ROWS}, and drop a split"
    with pytest.raises(TrakStoreError, match=said):
        featurize(mlp(), Streamed(Stream(), rows=90), tmp_path / "s", **OPTIONS)
    featurize(mlp(), Streamed(Stream(), rows=40), tmp_path / "t", **OPTIONS)
    featurize(mlp(), Samples(ROWS), tmp_path / "whole", **OPTIONS)
    first, whole = (
        ts.open_store(tmp_path / one).features(0, "train").values for one in ("t", "whole")
    )
    np.testing.assert_array_equal(first, whole[:40])


@pytest.mark.parametrize("length", [-1, 10.5, None, "x", True])
def test_a_length_that_is_no_number_of_samples(tmp_path: Path, length: Any) -> None:
    class Wrong(Samples):
        def __len__(self) -> int:
            return length  # type: ignore[no-any-return]

    said = rf"the data set 'train' has a __len__ that gives {length!r}, and the number of samples"
    with pytest.raises(TrakStoreError, match=said):
        featurize(mlp(), Wrong(8), tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()


def test_a_length_that_cannot_be_asked_for_or_is_too_large(tmp_path: Path) -> None:
    class Fails(Samples):
        def __len__(self) -> int:
            raise RuntimeError("no length")

    class Large(Samples):
        def __len__(self) -> int:
            return 20

    with pytest.raises(
        TrakStoreError, match="__len__ that fails: RuntimeError: no length"
    ) as caught:
        featurize(mlp(), Fails(8), tmp_path / "s", **OPTIONS)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(
        TrakStoreError, match=r"sample 8 cannot be read \(IndexError.* length is 20"
    ):
        featurize(mlp(), Large(8), tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()


IDENTICAL: dict[str, tuple[Any, str]] = {
    "twice": (["a", "b", "c", "b"], r"1 of 4 repeat others, first 'b' at positions 1 and 3; give"),
    "numbers": ([7, 7, 7, 1], r"2 of 4 repeat others, first 7 at positions 0 and 1"),
    "nan": ([1, float("nan"), 2, 3], "integers or strings, of one kind, got nan at position 1"),
    "array": (
        np.array([0, 1, np.nan, 3]),
        "integers or strings, of one kind, got 0.0 at position 0",
    ),
}


@pytest.mark.parametrize("case", IDENTICAL)
def test_ids_that_name_no_sample(tmp_path: Path, case: str) -> None:
    ids, said = IDENTICAL[case]
    with pytest.raises(TrakStoreError, match=said):
        featurize(mlp(), Samples(4), tmp_path / "s", ids=ids, **OPTIONS)
    assert not (tmp_path / "s").exists()
