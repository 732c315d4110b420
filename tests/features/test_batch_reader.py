"""Batches of a split's samples: how much of each is padding, and those of one shape alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trakstore.features import pad_tokens
from trakstore.features.batch_reader import BatchReader, RowOrder
from trakstore.features.batches import Batches

SIZES = [5, 3, 5, 2, 3, 5, 5]
CPU = torch.device("cpu")


class Texts:
    """Samples of tokens, all of which are the sample's number and one; it counts what is read."""

    def __init__(self) -> None:
        self.read = Counter[int]()

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.read[row] += 1
        return {"input_ids": torch.full((SIZES[row],), row + 1), "url": "a" * (9 - SIZES[row])}


def reader(data: Any, collate: Any = pad_tokens, size: int = 3, **options: Any) -> BatchReader:
    return BatchReader(Batches(data, CPU, collate), size, **options)


def test_padding_of_each_sample_is_what_its_batch_has_more() -> None:
    parts = reader(Texts()).read((0, 7))
    assert [one.rows.tolist() for one in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [one.padding.tolist() for one in parts] == [[0, 2, 0], [3, 2, 0], [0]]
    assert [tuple(one.batch["input_ids"].shape) for one in parts] == [(3, 5), (3, 5), (1, 5)]


SAMPLES: dict[str, tuple[list[Any], list[int]]] = {
    "tensors": ([(torch.ones(2, 3), 0), (torch.ones(2, 1), 1)], [0, 4]),
    "two sequences": ([([1, 2, 3], [1]), ([1, 2], [1, 2])], [1, 1]),
    "texts": (["some words", "word"], [0, 6]),
    "columns": ([{"text": "words", "label": 1}, {"text": "word", "label": 0}], [0, 1]),
    "preference": (
        [{"a_input_ids": [1], "b_input_ids": [1, 2]}, {"a_input_ids": [1, 2], "b_input_ids": [3]}],
        [1, 1],
    ),
    "rows of rows": ([[[1, 2], [3]], [[1]]], [0, 2]),
    "lists": ([[1, 2, 3], [1]], [0, 2]),
    "numbers": ([3, 4], [0, 0]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_padding_of_samples_of_all_kinds(name: str) -> None:
    samples, padding = SAMPLES[name]
    collate = lambda some: torch.zeros(len(some), 3)  # noqa: E731
    (one,) = reader(samples, collate).read((0, 2))
    assert one.padding.tolist() == padding


def test_without_a_collator_nothing_is_padded() -> None:
    (one,) = reader([torch.ones(3), torch.ones(3)], None).read((0, 2))
    assert one.padding.tolist() == [0, 0]


def test_samples_of_one_shape_are_put_together() -> None:
    own = reader(Texts(), padded=False)
    parts = own.read((0, 7))
    assert [one.rows.tolist() for one in parts] == [[0, 2, 5], [6], [1, 4], [3]]
    for one in parts:
        wanted = (one.rows + 1)[:, None].repeat(SIZES[one.rows[0]], 1)
        np.testing.assert_array_equal(one.batch["input_ids"].numpy(), wanted)
        assert one.batch["attention_mask"].all() and not one.padding.any()


def test_groups_of_rows_are_read_once_and_not_changed_by_the_collator() -> None:
    data = Texts()

    def taking(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return pad_tokens([{"input_ids": one.pop("input_ids")} for one in samples])

    one, some = reader(data, taking).groups([np.array([3]), np.array([1, 3])])
    assert one["input_ids"].tolist() == [[4, 4]]
    assert some["input_ids"].tolist() == [[2, 2, 2], [4, 4, 0]]
    assert data.read == {1: 1, 3: 1}


def test_the_most_padded_row_of_a_block_and_those_beside_it() -> None:
    order = RowOrder()
    for one in reader(Texts()).read((0, 7)):
        order.add(one)
    assert order.rows.tolist() == [*range(7)]
    every = np.ones(7, dtype=bool)
    assert order.most_padded(every) == 3 and order.beside(3).tolist() == [3, 4, 5]
    assert order.most_padded(every & (np.arange(7) != 3)) == 1
    assert order.most_padded(np.arange(7) == 2) is None
