"""Sequences of very different lengths come in batches of like length; rows keep their places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.stopped import stopped_after
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import CausalLM, featurize
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.block_rows import RowComputer
from trakstore.features.draws import Repeated
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fingerprint import hashed_rows
from trakstore.features.sorted_batches import batches_by_length, padded_share, sequence_length

WORDS, ROWS, SIZE = 23, 200, 8
SJLT = ts.ProjectionSpec("sjlt", dim=32, seed=1)
LONG, SHORT = range(40, 61), range(3, 12)
OPTIONS: dict[str, Any] = {"projector": SJLT, "batch_size": SIZE, "progress": False}


@given(st.lists(st.integers(0, 300), min_size=1, max_size=80), st.integers(1, 9))
def test_batches_hold_each_sequence_once_and_little_padding(lengths: list[int], size: int) -> None:
    known = np.array(lengths)
    batches = batches_by_length(known, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    longest = [known[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert known[batch].max() == 0 or padded_share(known[batch]) <= 0.1 + 1e-9
    # Sequences of one length are not reordered, and a batch is not smaller than it need be.
    same = batches_by_length(np.full(len(lengths), 7), size)
    assert np.concatenate(same).tolist() == list(range(len(lengths)))
    assert len(same) == -(-len(lengths) // size)


def test_lengths_are_those_of_all_sequences_of_a_sample() -> None:
    assert sequence_length({"chosen_input_ids": [1, 2], "rejected_input_ids": torch.ones(3)}) == 5
    assert sequence_length({"input_ids": np.ones(4), "label": 3, "labels": 1}) == 4
    assert sequence_length({"input_ids": torch.ones(2, 3)}) is None
    assert sequence_length({"pixel_values": [1.0]}) is None
    assert sequence_length(([1, 2], 3)) is None


class Texts:
    """Rows of tokens with log-normal lengths; it counts how often each is read."""

    def __init__(self, sizes: list[int]) -> None:
        generator = torch.Generator().manual_seed(3)
        self.rows = [torch.randint(1, WORDS, (n,), generator=generator) for n in sizes]
        self.read = Counter[int]()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.read[index] += 1
        return {"input_ids": self.rows[index]}


def lengths(rows: int = ROWS) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(12), 0.8, rows)
    return np.clip(drawn, 3, 60).astype(int).tolist()


class Padding:
    """Collator that pads to the longest, or to one width."""

    def __init__(self, width: int = 0) -> None:
        self.width = width

    def __call__(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([one["input_ids"] for one in samples], batch_first=True)
        ids = nn.functional.pad(ids, (0, max(0, self.width - ids.shape[1])))
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Masks of the batches that features are computed of, without the one that is tried first."""
    seen, rows = list[Tensor](), FactorisedEngine.rows

    def noted(self: Any, batch: Any) -> Any:
        if self._prepared:
            seen.append(batch["attention_mask"])
        return rows(self, batch)

    monkeypatch.setattr(FactorisedEngine, "rows", noted)
    return seen


def padding(masks: list[Tensor]) -> float:
    return 1 - sum(int(one.sum()) for one in masks) / sum(one.numel() for one in masks)


class Reader(nn.Module):
    """A causal model whose states pass over padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embed(input_ids) * attention_mask[..., None]
        out: Tensor = self.head(torch.tanh(states.cumsum(1)))
        return out


def written(where: Path, **options: Any) -> tuple[dict[str, Any], Any, Texts]:
    data, options = Texts(lengths()), {"collate": Padding(), **OPTIONS, **options}
    featurize(Reader(), data, where, output=CausalLM(), **options)
    split = ts.open_store(where).split(0, "train")
    return {name: split.column(name).read(0, ROWS) for name in split.columns}, split, data


def test_rows_are_those_of_unsorted_batches_with_a_tenth_of_padding(
    masks: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"text {i}" for i in range(ROWS)]
    sorted_, split, data = written(tmp_path / "a", ids=ids)
    assert split.spec.block_rows == 8 * SIZE
    assert padding(masks) < 0.1 and sum(map(len, masks)) == ROWS
    masks.clear()
    monkeypatch.setattr(Batches, "uneven", lambda *_: None)
    plain, *_ = written(tmp_path / "b", ids=ids)
    assert padding(masks) > 0.4 and max(map(len, masks)) == SIZE
    assert sorted_["sample_id"].tolist() == ids
    for name in ("features", "loss", "output", "out_to_loss", "norm"):
        scale = np.abs(plain[name]).max()
        np.testing.assert_allclose(sorted_[name], plain[name], rtol=1e-4, atol=1e-5 * scale)
    # Each sample is read once for its own row, and some once more to be compared, or tried.
    often = {*range(8), *hashed_rows(ROWS)}
    blocks = -(-ROWS // split.spec.block_rows)
    again = sum(data.read[i] - 1 for i in range(ROWS) if i not in often)
    assert min(data.read.values()) >= 1 and again <= 2 * blocks


def test_results_are_equal_to_the_bit_whoever_computes_which_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, *_ = written(tmp_path / "one")
    with stopped_after(2, monkeypatch) as done:
        written(tmp_path / "many", rank=1, world_size=2)
    assert min(done) > 0
    shared, *_ = written(tmp_path / "many", rank=0, world_size=2)
    for name, column in alone.items():
        np.testing.assert_array_equal(shared[name], column)


@pytest.mark.parametrize("check", ["some", "all"])
def test_rows_out_of_order_are_compared_with_their_own_samples(
    check: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Right rows are not doubted; one that is wrong is found, and its block is computed again."""
    right, *_ = written(tmp_path / "a", check=check)
    assert not [r for r in caplog.records if "disagree" in r.message]
    if check == "some":
        return
    rows, spoilt = FactorisedEngine.rows, Texts(lengths()).rows[100]

    def wrong(self: Any, batch: Any) -> Any:
        made, width = rows(self, batch), len(spoilt)
        ids = batch["input_ids"][:, :width]
        own = (ids == spoilt).all(1) if ids.shape[1] == width else torch.zeros(len(ids)).bool()
        return made._replace(features=made.features + own[:, None])

    monkeypatch.setattr(FactorisedEngine, "rows", wrong)
    again, *_ = written(tmp_path / "b", check=check)
    said = [r.message for r in caplog.records if "disagree" in r.message]
    assert len(said) == 1 and "rows 64 to 127" in said[0]
    scale = np.abs(right["features"]).max()
    np.testing.assert_allclose(again["features"], right["features"], rtol=1e-4, atol=1e-5 * scale)


def test_what_needs_no_sorting_is_read_as_it_comes(masks: list[Tensor], tmp_path: Path) -> None:
    _, split, _ = written(tmp_path / "wide", collate=Padding(64))
    assert split.spec.block_rows == SIZE and {tuple(one.shape) for one in masks} == {(SIZE, 64)}
    sizes = [20 + i % 3 for i in range(ROWS)]
    masks.clear()
    options: dict[str, Any] = {"output": CausalLM(), "collate": Padding(), **OPTIONS}
    featurize(Reader(), Texts(sizes), tmp_path / "even", **options)
    assert ts.open_store(tmp_path / "even").split(0, "train").spec.block_rows == SIZE
    assert torch.cat([one.sum(1) for one in masks]).tolist() == sizes


def test_a_memory_limit_reckons_with_the_longest_and_sorts_fewer_at_once(
    masks: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    within = RowComputer.within

    def noted(self: Any, *args: Any) -> Any:
        assert sorted(len(Texts(lengths()).rows[i]) for i in self.measured)[0] > 30
        made = within(self, *args)
        pools.append(made.pool)
        return made

    monkeypatch.setattr(RowComputer, "within", noted)
    plain, *_ = written(tmp_path / "a", block_rows=ROWS)
    for limit in (300_000, 10**9):
        columns, *_ = written(tmp_path / str(limit), memory_limit=limit)
        scale = np.abs(plain["features"]).max()
        assert np.abs(columns["features"] - plain["features"]).max() < 1e-5 * scale
        if limit == 300_000:
            few, many = ([len(one) for one in masks if one.shape[1] in w] for w in (LONG, SHORT))
            assert max(few) < max(many) <= SIZE
        masks.clear()
    assert SIZE <= pools[0] < pools[1] == 32 * SIZE


def test_memory_that_does_not_suffice_is_shared_by_length(
    masks: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After long samples did not fit, short ones are still computed together."""
    plain, *_ = written(tmp_path / "a")
    masks.clear()
    computed, refused = RowComputer._computed, list[tuple[int, ...]]()

    def short_of_memory(self: Any, batch: Any, rows: Any) -> Any:
        if batch["input_ids"].numel() > 100:
            refused.append(tuple(batch["input_ids"].shape))
            raise torch.OutOfMemoryError
        return computed(self, batch, rows)

    monkeypatch.setattr(RowComputer, "_computed", short_of_memory)
    columns, *_ = written(tmp_path / "b", memory_limit=10**9)
    scale = np.abs(plain["features"]).max()
    assert np.abs(columns["features"] - plain["features"]).max() < 1e-5 * scale
    assert refused and len(refused) < 12
    long, short = (max(len(one) for one in masks if one.shape[1] in w) for w in (LONG, SHORT))
    assert 1 <= long < short == SIZE


def test_rows_of_one_sample_stay_in_one_batch() -> None:
    """Of a sample whose labels are drawn several times, one forward pass serves all draws."""
    batches = Batches(Repeated(Texts(lengths()), 3), torch.device("cpu"), Padding())
    parts = BatchReader(batches, 12, by_length=True, each=3).read((30, 150))
    assert sorted(np.concatenate([one.rows for one in parts]).tolist()) == list(range(30, 150))
    for rows, _, batch in parts:
        assert len(rows) <= 12 and len(batch["input_ids"]) == len(rows)
        assert (rows.reshape(-1, 3) - rows[::3, None] == np.arange(3)).all()
        assert (rows[::3] % 3 == 0).all()
    assert padding([one.batch["attention_mask"] for one in parts]) < 0.1
