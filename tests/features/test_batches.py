"""Samples as people have them become batches with one row a sample, or one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import featurize
from trakstore.features.batches import Batches, Collate
from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows

CPU = torch.device("cpu")


def read(samples: Any, collate: Collate | None = None) -> Any:
    return Batches(samples, CPU, collate).read(0, len(samples))


TABLE = [
    {"input_ids": [5, 6, 7], "boxes": [[0.5, 1], [2, 3]], "mask": [True, False, True], "label": 1},
    {"input_ids": [8, 9, 1], "boxes": [[4, 5], [6.5, 7]], "mask": [True, True, False], "label": 0},
]


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_lists_of_numbers_are_tensors(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        batch = read(TABLE)
    finally:
        torch.set_default_dtype(before)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "boxes": torch.float32,
        "mask": torch.bool,
        "label": torch.int64,
    }
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch["boxes"].tolist() == [[[0.5, 1], [2, 3]], [[4, 5], [6.5, 7]]]


def test_samples_of_lists_and_a_label() -> None:
    inputs, label = read([([0.0, 1.0], 2), ([3.0, 4.0], 1)])
    assert (inputs.tolist(), label.tolist()) == ([[0, 1], [3, 4]], [2, 1])
    pair, label = read([[[torch.zeros(3), torch.ones(3)], 0], [[torch.ones(3), torch.ones(3)], 1]])
    assert [tuple(one.shape) for one in pair] == [(2, 3), (2, 3)]  # several inputs stay so many
    assert label.tolist() == [0, 1]


def test_rows_of_a_table_have_the_features_of_tensors(tmp_path: Path) -> None:
    class Rows:
        def __init__(self, *, lists: bool) -> None:
            self.data, self.lists = Samples(5), lists

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            x, y = self.data[index]
            return {"input": x.tolist() if self.lists else x, "labels": int(y)}

    found = []
    for lists in (True, False):
        where = tmp_path / f"{lists}.zarr"
        spec = ts.ProjectionSpec("sjlt", dim=8)
        featurize(mlp(), Rows(lists=lists), where, projector=spec, progress=False)
        found.append(ts.open_store(where).features(0, "train").values)
    np.testing.assert_array_equal(*found)


def ragged(samples: list[Any]) -> Any:
    """Nodes of graphs one after the other, and their edges, as graph libraries do it."""
    return {
        "x": torch.cat([x for x, _ in samples]),
        "edge_index": torch.zeros(2, 4, dtype=torch.int64),
        "y": torch.tensor([y for _, y in samples]),
    }


def padded(samples: list[Any]) -> Any:
    """Tokens alone, as a collator that is made for dicts does."""
    return torch.stack([sample["input_ids"] for sample in samples])


BATCHES: dict[str, tuple[Any, Collate | None, str]] = {
    "lengths": (
        [{"ids": [1, 2]}, {"ids": [1, 2, 3]}],
        None,
        r"samples 0 to 1 cannot be put into one batch .* pass collate= that pads them$",
    ),
    "tokens": (
        [{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}],
        None,
        r"collate= that pads them, such as trakstore.features.pad_tokens or the Trainer's collator$",
    ),
    "ragged": ([{"boxes": [[1, 2], [3]]}], None, "samples 0 to 0 cannot be put into one batch"),
    "text": (
        [{"ids": [1], "text": "a"}] * 2,
        None,
        r"of type str at \['text'\]\[0\]: leave it out, .* \(in the data set, or by collate=\)",
    ),
    "graphs": (
        [(torch.ones(3, 4), 0), (torch.ones(2, 4), 1)],
        ragged,
        r"a tensor of shape \(5, 4\) at \['x'\]: one row a sample .* pad graphs .* \(in collate=\)",
    ),
    "flattened": (
        [{"ids": [1, 2]}, {"ids": [3]}],
        lambda samples: {"ids": torch.tensor([[i for one in samples for i in one["ids"]]])},
        r"a tensor of shape \(1, 3\) at \['ids'\]: pad samples, one a row, .* \(padding_free=False\)",
    ),
    "scalar": (
        [1, 2],
        lambda samples: torch.tensor(sum(samples)),
        r"holds a tensor of shape \(\):",
    ),
    "nested": (
        [torch.ones(3), torch.ones(2)],
        lambda samples: {"x": torch.nested.nested_tensor(samples)},
        r"holds a nested tensor at \['x'\]: samples are cut from dense tensors; pad it",
    ),
    "jagged": (
        [torch.ones(3), torch.ones(2)],
        lambda samples: torch.nested.nested_tensor(samples, layout=torch.jagged),
        "holds a nested tensor: samples are cut from dense tensors",
    ),
    "sparse": (
        [torch.ones(3), torch.ones(3)],
        lambda samples: torch.stack(samples).to_sparse(),
        r"holds a tensor of layout sparse_coo: .* to_dense\(\) \(in collate=\)",
    ),
    "object": ([1, 2], lambda _: object(), "of type object: leave it out"),
    "collator": (
        [[1, 2], [3]],
        lambda samples: torch.tensor(samples),
        r"^the collator, of samples 0 to 1: ValueError: .* \(test_batches.py, line \d+\); mend it and",
    ),
    "texts": (
        ["a", "b"],
        padded,
        r"^the collator, of samples .*: TypeError: .*\); samples are str: give dicts with input_ids",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", BATCHES)
def test_what_has_not_one_row_a_sample(case: str) -> None:
    samples, collate, said = BATCHES[case]
    with pytest.raises(TrakStoreError, match=said) as caught:
        read(samples, collate)
    assert "\n" not in str(caught.value)


class Stream(IterableDataset[Any]):
    """Can only be iterated, though its length is known."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        return iter(Samples(8))  # type: ignore[call-overload,no-any-return]


DATA: dict[str, tuple[Any, str]] = {
    "stream": (Stream(), "the data set needs __len__ and __getitem__, got Stream; .* list"),
    "generator": ((i for i in range(3)), "got generator"),
    "splits": (
        {"train": [], "test": []},
        "is a mapping of 'train', 'test', .* give one of its splits",
    ),
    "empty": ([], "the data set is empty"),
}


@pytest.mark.parametrize("case", DATA)
def test_what_is_no_data_set(case: str) -> None:
    data, said = DATA[case]
    with pytest.raises(TrakStoreError, match=said):
        dataset_rows(data)


def test_samples_that_cannot_be_read_are_named() -> None:
    class Short(Dataset[int]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            return [1, 2][index]

    with pytest.raises(TrakStoreError, match=r"sample 2 cannot be read \(IndexError"):
        read(Short())
    with pytest.raises(TrakStoreError, match=r"sample 0 cannot be read \(NotImplementedError"):
        read(Subset(Stream(), [0, 1]))
    assert dataset_rows({0: 1, 1: 2}) == 2


class Graph:
    """A sample that is neither a tree nor an array, as graph libraries have them."""

    def __init__(self, nodes: Tensor) -> None:
        self.x = nodes

    def __iter__(self) -> Iterator[Any]:
        return iter([("x", self.x), ("edges", torch.zeros(2, 3))])

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: int) -> Any:
        return list(self)[key]

    def to_dict(self) -> dict[str, Any]:
        return {"x": self.x}


def test_graphs_are_told_from_one_another() -> None:
    ids = np.arange(1)
    told = [dataset_fingerprint([(Graph(torch.full((2, 2), v)), 1)], ids) for v in (0.0, 0.0, 1.0)]
    assert told[0] == told[1] != told[2]
    with pytest.raises(TrakStoreError, match="got a object: convert it in the data set"):
        dataset_fingerprint([object()], ids)
