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
from trakstore.analysis import distribution, evolution, trajectories, transition
from trakstore.errors import LocationError
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
    "evolution of a name": (lambda _: evolution("x"), "needed Scores, .* got str"),  # type: ignore[arg-type]
    "distribution of an array": (lambda _: distribution(np.ones((2, 2))), "needed Scores"),  # type: ignore[arg-type]
    "trajectories of a store": (lambda s: trajectories(s, [[0]]), "needed Scores"),  # type: ignore[arg-type]
    "transition of a store": (
        lambda s: transition(ts.trak_scores(s), s),  # type: ignore[arg-type]
        "needed Scores, .* got FeatureStore",
    ),
    "huge k": (
        lambda s: ts.top_k(ts.trak_scores(s), 10**5000),
        "k must be in 1..12 .*got a number of some",
    ),
    "k": (lambda s: ts.top_k(ts.trak_scores(s), 2.5), r"k must be in 1..12 .*got 2.5"),  # type: ignore[arg-type]
    "matrix": (lambda _: ts.top_k(np.ones((3, 4)), 2), "needed Scores, .* got ndarray"),
    "index of nothing": (lambda _: ts.open_index(None), "needed Scores, .* got NoneType"),  # type: ignore[arg-type]
    "index of a store": (lambda s: ts.open_index(s), "needed Scores, .* got FeatureStore"),  # type: ignore[arg-type]
    "index of a matrix": (
        lambda s: ts.open_index(ts.trak_scores(s).to_xarray()),  # type: ignore[arg-type]
        "needed Scores, .* got DataArray",
    ),
    "saved": (lambda s: ts.save_scores(np.ones((3, 12)), s, "a"), "needed Scores, .* got ndarray"),
    "dim": (lambda _: ts.ProjectionSpec("sjlt", dim=2.5), "dim must be an integer .* got 2.5"),
    "seed": (lambda _: ts.ProjectionSpec("sjlt", dim=2, seed="a"), "seed must be .* got 'a'"),
    "spec": (lambda _: ts.FeatureStore.create("memory://bad", projection="sjlt"), "got 'sjlt'"),
    "size": (lambda s: ts.trak_scores(s, memory_limit=-1), "must be positive, got -1"),
    "epoch": (
        lambda s: ts.kernel_report(s, -1, "train"),
        "non-negative integer of 19 digits at most, or a name",
    ),
    "number for a split": (lambda s: ts.trak_scores(s, targets=0), "0 cannot name a split"),  # type: ignore[arg-type]
    "nothing for a split": (lambda s: ts.neighbours(s, None), "None cannot name a split"),  # type: ignore[arg-type]
    "split": (lambda s: s.features(0, "tran"), "did you mean 'train'"),
    "shape": (lambda s: s.write_split(1, "train", np.ones((4, 3))), "dimension 8, got 3"),
    "rows": (lambda s: s.write_split(1, "train", np.ones((4, 8)), ids=[1]), "ids must be 4"),
    "no store": (lambda _: ts.trak_scores(None), "needed an open store, .* got None"),  # type: ignore[arg-type]
    "no store of a kernel": (lambda s: ts.kernel_report(str(s.location), 0), "got its path"),
    "solver": (lambda s: ts.trak_scores(s, solver="x"), "solver must be a Solver.* got 'x'"),
    "gram": (
        lambda s: ts.trak_scores(s, gram_dtype="float16"),
        "float32 or float64, got 'float16'",
    ),
    "gram of a kernel": (
        lambda s: ts.kernel_report(s, 0, gram_dtype="float16"),
        "float32 or float64, got 'float16'",
    ),
    "gram of arrays": (
        lambda _: ts.trak_scores_of_arrays(np.eye(3), np.eye(3), gram_dtype="f8"),
        "float32 or float64, got 'f8'",
    ),
    **{
        f"damping of a query {value}": (
            lambda s, value=value: ts.Query(s, damping=value),
            f"damping must be a finite number >= 0, got {value}",
        )
        for value in (-1, True)
    },
    "kernel of a query": (
        lambda s: ts.Query(s, method="grad-dot", kernel="x"),  # type: ignore[arg-type]
        "kernel must be 'train', 'sampled' or None, got 'x'",
    ),
    "index of a query": (
        lambda s: ts.Query(s, index="no"),  # type: ignore[arg-type]
        "index must be True or False, got 'no'",
    ),
    "epoch of a question": (
        lambda s: ts.Query(s).ask(target=0, epochs=1.0),  # type: ignore[arg-type]
        "an epoch is a non-negative integer .* got 1.0",
    ),
    **{
        f"method of a question {value}": (
            lambda s, value=value: ts.Query(s).ask(target=0, method=value),
            rf"method must be a name, such as 'trak', got {re.escape(repr(value))}",
        )
        for value in (1, True, [])
    },
    **{
        f"tokens of a question {value}": (
            lambda s, value=value: ts.Query(s).ask(target=0, tokens=value),
            f"tokens must be an integer from 0 to 20, got {value}",
        )
        for value in (False, None)
    },
    **{
        f"rows of a column {key}": (
            lambda s, key=key: s.split(0, "train").column("features")[key],
            rf"0/train/features takes a row or a slice of rows, got {re.escape(repr(key))}",
        )
        for key in ([3, 1], [True], True, ..., None, 1.0)
    },
    "damping twice": (lambda _: ts.Damping(1.0, absolute=1.0), "got both: 1.0 and 1.0"),
    "no damping": (
        lambda s: ts.whitened_cos_scores(s, damping=None),
        "finite number >= 0, got None",
    ),
    **{
        f"blocks {rows}": (
            lambda s, rows=rows: s.write_split(1, "train", np.ones((4, 8)), block_rows=rows),
            f"block_rows must be an integer, 1 or more, got {rows}",
        )
        for rows in (0, -3, 2.5, True)
    },
    **{
        f"rate {rate}": (
            lambda s, rate=rate: s.write_split(1, "train", np.ones((4, 8)), learning_rate=rate),
            f"learning_rate must be a number >= 0, got {rate!r}",
        )
        for rate in (-1, float("nan"), float("inf"), "0.1", True)
    },
    "checkpoint": (
        lambda s: s.write_split(1, "train", np.ones((4, 8)), checkpoint=5),
        "checkpoint must be a text or None, got 5",
    ),
    "huge epoch": (
        lambda s: s.split(10**5000, "train"),
        "19 digits at most, or a name, got a number of some",
    ),
    "digits": (lambda s: s.split("9" * 5000, "train"), "'9{20}' is no number of an epoch"),
    "zeros": (lambda s: s.write_split("01", "train", np.ones((4, 8))), "no zeros before them"),
    "epoch of new rows": (
        lambda s: s.write_split(10**5000, "train", np.ones((4, 8))),
        "got a number of some",
    ),
    "masked": (lambda s: s.mask("train", [1], masked="no"), "must be True or False, got 'no'"),
    "saved dtype": (
        lambda s: ts.save_scores(ts.trak_scores(s), s, "a", dtype="float64"),  # type: ignore[arg-type]
        "saved as float32 or float16, got 'float64'",
    ),
    **{
        f"ids {what}": (
            lambda s, ids=ids: s.write_split(1, "train", np.ones((2, 8)), ids=ids),
            said,
        )
        for what, ids, said in (
            ("with a null", ["a\0", "a"], r"without null characters, got 'a\\x00'"),
            ("half a pair", np.array(["\udcff", "a"]), "text that UTF-8 can hold, got"),
            ("too long", ["x" * 70_000, "a"], "65,536 characters at most, got one of 70,000"),
        )
    },
    "masked id": (lambda s: s.mask("train", ["a\0"]), "without null characters"),
    "scores": (lambda s: ts.drop_scores(s, "a"), "has no scores 'a'; there are none yet"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str, store: ts.FeatureStore) -> None:
    call, said = CALLS[case]
    with pytest.raises(ts.TrakStoreError, match=said):
        call(store)


PLACES = {
    "user": ("~nobody-at-all/a.zarr", "leads to no home folder: give the whole path"),
    "long": ("x" * 300, "cannot be a place: File name too long; choose another place"),
    "deep": ("y/" * 4000, "cannot be a place: File name too long"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places(case: str) -> None:
    place, said = PLACES[case]
    for use in (ts.open_store, lambda where: ts.FeatureStore.create(where, projection=SPEC)):
        with pytest.raises(LocationError, match=said):
            use(place)


def test_a_working_directory_that_is_gone(
    store: ts.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LocationError, match="the working directory is gone; change to another"):
        ts.open_store("a.zarr")
    assert ts.open_store(str(store.location)).epochs == (0,)


def test_rows_that_torch_holds_a_gradient_of_are_stored(store: ts.FeatureStore) -> None:
    rows = torch.arange(32.0).reshape(4, 8).requires_grad_()
    stored = store.write_split(1, "train", rows)
    assert np.array_equal(stored.column("features").read(0, 4), rows.detach().numpy())


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
    "dtype": ({"dtype": "float64"}, "stored as float32, float16, int8, got 'float64'"),
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
