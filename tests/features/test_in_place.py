"""Collators and data sets that give samples what is of others: refused, or copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import featurize
from trakstore.features.batches import Batches

IDENTITY = ts.ProjectionSpec("identity")
Batch = list[tuple[Tensor, int]]


class Bag(nn.Module):
    """Means of embedded words, of as many as each sample has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(30, 5), nn.Linear(5, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        known = (torch.arange(ids.shape[1]) < lengths[:, None])[..., None]
        out: Tensor = self.head((self.words(ids) * known).sum(1) / lengths[:, None])
        return out


def samples(count: int = 20, length: int | None = None) -> Batch:
    rng = torch.Generator().manual_seed(0)
    sizes = [length or int(torch.randint(2, 9, (), generator=rng)) for _ in range(count)]
    return [(torch.randint(1, 30, (n,), generator=rng), i % 4) for i, n in enumerate(sizes)]


def padded(batch: Batch) -> Any:
    ids = [one for one, _ in batch]
    lengths = torch.tensor([len(one) for one in ids])
    return pad_sequence(ids, batch_first=True), lengths, torch.tensor([label for _, label in batch])


def padded_left(batch: Batch) -> Any:
    ids, lengths, labels = padded([(one.flip(0), label) for one, label in batch])
    return ids.flip(1), lengths, labels


def in_eights(batch: Batch) -> Any:
    ids, *others = padded(batch)
    return (nn.functional.pad(ids, (0, -ids.shape[1] % 8)), *others)


def with_changes(batch: Batch) -> Any:
    """Pad what it was given in its place."""
    most = max(len(one) for one, _ in batch)
    lengths = torch.tensor([int((one > 0).sum()) for one, _ in batch])
    for at, (one, label) in enumerate(batch):
        batch[at] = nn.functional.pad(one, (0, most - len(one))), label
    return torch.stack([one for one, _ in batch]), lengths, padded(batch)[2]


@pytest.mark.parametrize("collate", [padded, in_eights, with_changes])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_padding_collators_are_taken(tmp_path, collate: Callable[[Batch], Any], size: int) -> None:
    options: Any = {"projector": IDENTITY, "progress": False, "batch_size": size}
    data = samples()
    featurize(Bag(), data, tmp_path / "s.zarr", collate=collate, **options)
    split = ts.open_store(tmp_path / "s.zarr").split(0, "train")
    for row, one in enumerate(data):
        featurize(Bag(), [one], tmp_path / f"{row}.zarr", collate=padded, **options)
        alone = ts.open_store(tmp_path / f"{row}.zarr").features(0, "train").values
        np.testing.assert_allclose(split.column("features").read(row, row + 1), alone, atol=1e-6)
    assert split.column("label").read(0, 20).tolist() == [label for _, label in data]


def popped(batch: list[dict[str, Any]]) -> Any:
    """Take labels and words out of the samples, and put a first word before each."""
    labels = torch.tensor([one.pop("label") for one in batch])
    ids = [torch.cat([torch.zeros(1, dtype=torch.long), one.pop("ids")]) for one in batch]
    lengths = torch.tensor([len(one) for one in ids])
    padding = lengths.max() - lengths
    return {"ids": pad_sequence(ids, batch_first=True), "padding": padding, "labels": labels}


def test_collators_may_change_samples_and_tell_of_padding() -> None:
    made = [{"ids": ids, "label": label} for ids, label in samples(7)]
    batch = Batches(made, torch.device("cpu"), popped).read(0, 7)
    assert batch["labels"].tolist() == [label for _, label in samples(7)]
    assert batch["padding"].min() == 0 < batch["padding"].max()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_batches_of_any_dtype_are_compared(dtype: torch.dtype) -> None:
    data = [(torch.arange(6).to(dtype), 0), ((5 - torch.arange(6)).to(dtype), 1)]
    both = Batches(data, torch.device("cpu"), lambda some: [torch.stack(c) for c in _columns(some)])
    assert both.read(0, 2)[0].dtype == dtype
    turned = replace(both, collate=lambda some: [torch.stack(c) for c in _columns(some[::-1])])
    with pytest.raises(TrakStoreError, match="something else, than alone"):
        turned.read(0, 2)


def _columns(some: list[Any]) -> list[list[Tensor]]:
    return [[one for one, _ in some], [torch.tensor(label) for _, label in some]]


def of_lengths(batch: Batch) -> Any:
    return padded(sorted(batch, key=lambda one: -len(one[0])))


def of_labels(batch: Batch) -> Any:
    return padded(sorted(batch, key=lambda one: one[1]))


def turned_back(batch: Batch) -> Any:
    return padded(batch[::-1])


def of_the_next(batch: Batch) -> Any:
    others = [*batch[1:], batch[0]]
    return padded([(one, label) for (one, _), (_, label) in zip(batch, others, strict=True)])


def cut_to_the_shortest(batch: Batch) -> Any:
    least = min(len(one) for one, _ in batch)
    return padded([(one[:least], label) for one, label in batch])


def centred(batch: Batch) -> Any:
    ids, lengths, labels = padded(batch)
    return ids, lengths - lengths.min() + 1, labels


@pytest.mark.parametrize("check", ["some", "all"])
@pytest.mark.parametrize(
    "collate", [of_lengths, of_labels, turned_back, of_the_next, cut_to_the_shortest, centred]
)
def test_collators_that_give_samples_others_rows_are_refused(
    tmp_path, collate: Callable[[Batch], Any], check: Any
) -> None:
    with pytest.raises(
        TrakStoreError, match=rf"collate={collate.__name__}, of samples 0 to .*depend on the others"
    ):
        featurize(
            *(Bag(), samples(), tmp_path / "s.zarr"),
            **{"collate": collate, "batch_size": 8, "check": check, "progress": False},
        )
    assert not (tmp_path / "s.zarr").exists() or not ts.open_store(tmp_path / "s.zarr").epochs


def test_a_batch_that_comes_late_is_looked_at(tmp_path) -> None:
    """All samples of the first batches are of one length, and stay where they are."""
    data = [*samples(16, length=6), *samples(4, length=3)[:1], *samples(3, length=6)]
    with pytest.raises(TrakStoreError, match="collate=of_lengths, of samples 16 to 19"):
        featurize(
            *(Bag(), data, tmp_path / "s.zarr"),
            **{"collate": of_lengths, "batch_size": 4, "progress": False, "block_rows": 8},
        )


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "the first ones alike"])
def test_samples_in_one_piece_of_memory_are_copied(tmp_path, kind: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 6)).astype(np.float32), np.arange(20) % 4
    if kind == "the first ones alike":
        x[:6] = 0

    class Reused:
        def __init__(self) -> None:
            self.buffer: Any = np.zeros(6, np.float32)
            if kind == "tensor":
                self.buffer = torch.zeros(6)
            elif kind == "list":
                self.buffer = [0.0] * 6

        def __len__(self) -> int:
            return 20

        def __getitem__(self, at: int) -> tuple[Any, int]:
            self.buffer[:] = torch.from_numpy(x[at]) if kind == "tensor" else x[at]
            return self.buffer, int(y[at])

    torch.manual_seed(0)
    model, options = nn.Linear(6, 4), {"projector": IDENTITY, "progress": False, "batch_size": 8}
    featurize(model, Reused(), tmp_path / "reused.zarr", **options)  # type: ignore[arg-type]
    whole = [(torch.from_numpy(one), int(label)) for one, label in zip(x, y, strict=True)]
    featurize(model, whole, tmp_path / "whole.zarr", **options)  # type: ignore[arg-type]
    got, wanted = (
        ts.open_store(tmp_path / f"{name}.zarr").features(0, "train").values
        for name in ("reused", "whole")
    )
    np.testing.assert_array_equal(got, wanted)
