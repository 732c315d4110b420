"""Wrong arguments of public functions: errors that say what was got and what was needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.features import featurize

SPEC = ts.ProjectionSpec("sjlt", dim=8)


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(tmp_path / "a.zarr", projection=SPEC)
    for split, rows in (("train", 12), ("test", 3)):
        features = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        made.write_split(0, split, features, out_to_loss=np.ones(rows))
    return made


Call = Callable[[ts.FeatureStore], Any]
CALLS: dict[str, tuple[Call, str]] = {
    "place": (lambda _: ts.open_store(3), "a place is a path, a URL .*; got 3"),  # type: ignore[arg-type]
    "path": (
        lambda s: ts.trak_scores(str(s.location)),
        "needed an open store, got its path: open_",
    ),
    "path of dots": (lambda s: ts.grad_dot_scores(Path(str(s.location))), "needed an open store"),
    "k": (lambda s: ts.top_k(ts.trak_scores(s), 2.5), r"k must be in 1..12 .*got 2.5"),  # type: ignore[arg-type]
    "matrix": (lambda _: ts.top_k(np.ones((3, 4)), 2), "needed Scores, .* got ndarray"),
    "saved": (lambda s: ts.save_scores(np.ones((3, 12)), s, "a"), "needed Scores, .* got ndarray"),
    "dim": (lambda _: ts.ProjectionSpec("sjlt", dim=2.5), "dim must be an integer .* got 2.5"),
    "seed": (lambda _: ts.ProjectionSpec("sjlt", dim=2, seed="a"), "seed must be .* got 'a'"),
    "spec": (lambda _: ts.FeatureStore.create("memory://bad", projection="sjlt"), "got 'sjlt'"),
    "size": (lambda s: ts.trak_scores(s, memory_limit=-1), "must be positive, got -1"),
    "epoch": (lambda s: ts.kernel_report(s, -1, "train"), "non-negative integer or a name"),
    "split": (lambda s: s.features(0, "tran"), "did you mean 'train'"),
    "shape": (lambda s: s.write_split(1, "train", np.ones((4, 3))), "dimension 8, got 3"),
    "rows": (lambda s: s.write_split(1, "train", np.ones((4, 8)), ids=[1]), "ids must be 4"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str, store: ts.FeatureStore) -> None:
    call, said = CALLS[case]
    with pytest.raises(ts.TrakStoreError, match=said):
        call(store)


FEATURIZED = {
    "gpu": ({"device": "gpu"}, "device 'gpu' cannot be used"),
    "no gpu": ({"device": "cuda:99"}, "device 'cuda:99' cannot be used .*: use cpu"),
    "meta": ({"device": "meta"}, "tensors there have no numbers"),
    "batch": ({"batch_size": 2.5}, "batch_size must be an integer, 1 or more, got 2.5"),
    "block": ({"block_rows": 1.5}, "block_rows must be an integer"),
    "bits": ({"keep_bits": 0}, "keep_bits must be an integer, 1 or more, got 0"),
    "projector": ({"projector": "sjlt"}, "projector must be a ProjectionSpec.* got 'sjlt'"),
    "collate": ({"collate": 3}, "collate must be a function of a list, got 3"),
    "rate": ({"learning_rate": "x"}, "learning rate of epoch 0 must be a number >= 0, got 'x'"),
    "negative": ({"learning_rate": -0.1}, "must be a number >= 0, got -0.1"),
    "output": ({"output": "margn"}, "did you mean 'margin'"),
    "dtype": ({"dtype": "float64"}, "stored as float32, float16, got 'float64'"),
    "parameters": ({"parameters": ["nope*"]}, "matches 'nope[*]'; the model has weight, bias"),
}


@pytest.mark.parametrize("case", FEATURIZED)
def test_featurize(case: str, tmp_path: Path) -> None:
    options, said = FEATURIZED[case]
    model = torch.nn.Linear(4, 3)
    samples = torch.utils.data.TensorDataset(torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))
    asked: dict[str, Any] = {"projector": SPEC, "progress": False, **options}
    with pytest.raises(ts.TrakStoreError) as caught:
        featurize(model, samples, tmp_path / "a.zarr", **asked)
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()
    assert model.weight.device.type == "cpu"
