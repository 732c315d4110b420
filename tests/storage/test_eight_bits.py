"""Rows in 8 bits: each number to half a scale, the same everywhere, and as sound as other columns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import trakstore as ts
from trakstore.errors import DamagedError, NumericsError, SpecMismatchError
from trakstore.features import Job, featurize_job
from trakstore.kernels import BlockedCholesky, Cholesky, Dual
from trakstore.methods.kernel_report import kernel_report
from trakstore.spec import SplitSpec
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.columns import stored_rows, unstorable
from trakstore.storage.eight_bits import dequantised, quantised, rounding_bound
from trakstore.storage.exchange.to_files import export_split

Array = np.ndarray[Any, Any]
DIM = 24
ROWS = {"train": 70, "test": 9}


def rows_of(split: str, dim: int = DIM) -> Array:
    rng = np.random.default_rng(len(split))
    scale = 10.0 ** rng.uniform(-3, 3, (ROWS[split], 1))
    return (rng.standard_normal((ROWS[split], dim)) * scale).astype(np.float32)


def q_of(split: str) -> Array:
    return np.random.default_rng(7).uniform(0.1, 1, ROWS[split]).astype(np.float32)


def read_plainly(where: Path, group: str) -> Array:
    """The rows as any reader of Zarr has them."""
    split = zarr.open_group(where, mode="r")[group]
    integers, scale = split["features"], split["row_scale"]  # type: ignore[index]
    assert integers.dtype == np.int8 and scale.dtype == np.float32  # type: ignore[union-attr]
    return integers[:].astype(np.float32) * scale[:][:, None]  # type: ignore[index]


def filled(where: Any, dtype: Any = "int8", features: Any = None) -> ts.FeatureStore:
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("identity"), dtype=dtype)
    for epoch in (0, 1):
        for split in ROWS:
            rows = rows_of(split) * (1 + epoch) if features is None else features[epoch, split]
            store.write_split(epoch, split, rows, out_to_loss=q_of(split), block_rows=16)
    return store


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the two stores below, to be copied."""
    folder = tmp_path_factory.mktemp("built")
    filled(folder / "s.zarr")
    read = {(e, s): read_plainly(folder / "s.zarr", f"{e}/{s}") for e in (0, 1) for s in ROWS}
    filled(folder / "same.zarr", "float32", read)
    return folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> ts.FeatureStore:
    return ts.open_store(shutil.copytree(built / "s.zarr", tmp_path / "s.zarr"))


@pytest.fixture
def same(built: Path, tmp_path: Path) -> ts.FeatureStore:
    """A store in float32 of what the one in 8 bits has."""
    return ts.open_store(shutil.copytree(built / "same.zarr", tmp_path / "same.zarr"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(-30, 30))
def test_each_number_is_the_nearest_multiple_of_its_rows_scale(
    seed: int, dim: int, power: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((5, dim)) * 10.0**power).astype(np.float32)
    integers, scale = quantised(rows)
    np.testing.assert_allclose(scale, np.abs(rows).max(axis=1) / 127, rtol=2e-7)
    exact = integers.astype(np.float64) * scale.astype(np.float64)[:, None]
    # Half a step, and the rounding of the quotient, which is at most 127.
    assert (np.abs(exact - rows) <= scale[:, None] * (0.5 + 127 * 1.2e-7)).all()
    assert (np.abs(integers).max(axis=1) == 127).all()
    apart = dequantised(integers, scale).astype(np.float64) - rows
    assert (np.linalg.norm(apart, axis=1) <= 1.001 * rounding_bound(scale, dim)).all()
    for row in range(5):  # rows that come alone are the same
        alone, own = quantised(rows[row : row + 1])
        np.testing.assert_array_equal(alone[0], integers[row])
        assert own[0] == scale[row]


def test_ties_go_to_the_even_number_and_zeros_stay() -> None:
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5], [0, 0, 0, 0, 0, 0]], np.float32)
    integers, scale = quantised(rows)
    np.testing.assert_array_equal(integers, [[127, 0, 2, 2, 0, -2], [0] * 6])
    np.testing.assert_array_equal(scale, [1, 0])
    np.testing.assert_array_equal(dequantised(integers, scale)[1], 0)


def test_normal_rows_lose_a_hundredth_of_themselves() -> None:
    for dim, wanted in ((512, 0.0074), (16_384, 0.0093)):
        rows = np.random.default_rng(0).standard_normal((50, dim)).astype(np.float32)
        error = np.linalg.norm(dequantised(*quantised(rows)) - rows, axis=1)
        relative = error / np.linalg.norm(rows, axis=1)
        assert abs(relative.mean() - wanted) < 3e-4 and relative.max() < 0.014


BAD: dict[str, tuple[Any, str]] = {
    "nan": (np.nan, "1 row has NaN or infinite features"),
    "inf": (-np.inf, "1 row has NaN or infinite features"),
    "too large": (1e40, r"1 row overflows int8 \(row 3\)"),
    "one that is far larger": (600.0, "1 row is off by more than 25% in 8 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_that_cannot_be_kept_are_refused(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 65_536))
    rows[3, 7], words = BAD[name]
    with pytest.raises(NumericsError, match=words):
        stored_rows(rows, "int8", 0)
    if np.isfinite(rows).all():
        np.testing.assert_array_equal(unstorable(rows, "int8"), np.arange(5) == 3)


def test_integers_are_rounded_as_other_numbers_are(tmp_path: Path) -> None:
    """They need not be multiples of a scale that float32 happens to have."""
    for whole in (np.arange(80).reshape(10, 8) - 40, np.arange(2040, 0, -255, np.uint16)[None]):
        store = ts.FeatureStore.create(
            tmp_path / str(whole.dtype), projection=ts.ProjectionSpec("identity"), dtype="int8"
        )
        store.write_split(0, "train", whole)
        split = store.split(0, "train")
        rows, scale = split.column("features").read(0, len(whole)), np.abs(whole).max(1) / 127
        assert (np.abs(rows - whole) <= 0.501 * scale[:, None]).all()
        norms = np.linalg.norm(whole.astype(float), axis=1)
        np.testing.assert_allclose(split.column("norm").read(0, len(whole)), norms, rtol=1e-6)
        assert verify_store(store).ok
    far = np.ones((1, 65_536), np.int64)
    far[0, 7] = 600
    with pytest.raises(NumericsError, match="1 row is off by more than 25% in 8 bits"):
        stored_rows(far, "int8", 0)


def test_rows_below_the_smallest_scale_are_refused() -> None:
    rows = np.ones((3, 8), np.float32)
    rows[1] *= 1e-44
    with pytest.raises(NumericsError, match=r"1 row is off by more than 25% in 8 bits .*all tiny"):
        stored_rows(rows, "int8", 0)
    rows[1] = 0  # zeros are kept
    stored = stored_rows(rows, "int8", 0)
    assert stored["row_scale"][1] == 0 == stored["norm"][1]


def test_any_reader_of_zarr_has_the_rows(store: ts.FeatureStore, tmp_path: Path) -> None:
    for split in ROWS:
        rows = store.features(1, split)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, read_plainly(tmp_path / "s.zarr", f"1/{split}"))
        wanted = dequantised(*quantised(2 * rows_of(split)))
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_array_equal(rows[5:8], wanted[5:8])
    plain = xr.open_zarr(tmp_path / "s.zarr", group="0/train", consolidated=False)
    by_hand = plain.features.values * plain.row_scale.values[:, None]
    np.testing.assert_array_equal(by_hand, store.features(0, "train"))
    assert store.split(0, "train").row_bytes == DIM
    np.testing.assert_allclose(
        store.split(0, "train").column("norm").read(0, 70),
        np.linalg.norm(rows_of("train"), axis=1),
        rtol=1e-6,
    )


METHODS: dict[str, Any] = {
    "trak": lambda s, **how: ts.trak_scores(s, **how),
    "dual": lambda s, **how: ts.trak_scores(s, solver=Dual(), **how),
    "blocked": lambda s, **how: ts.trak_scores(s, solver=BlockedCholesky(), **how),
    "cholesky": lambda s, **how: ts.trak_scores(s, solver=Cholesky(), gram_dtype="float64", **how),
    "influence": lambda s, **how: ts.influence_scores(s, hessian="loss", **how),
    "tracin": lambda s, **how: ts.tracin_scores(s, learning_rates=0.1, **how),
    "dot": lambda s, **how: ts.grad_dot_scores(s, **how),
    "cos": lambda s, **how: ts.grad_cos_scores(s, **how),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_rows_that_are_read(
    store: ts.FeatureStore, same: ts.FeatureStore, method: str, masked: bool
) -> None:
    if masked:
        for one in (store, same):
            one.mask("train", [0, 17, 69])
    scores, wanted = METHODS[method](store), METHODS[method](same)
    dense = np.asarray(wanted)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(dense).max())}
    if method == "cos":  # whose norms are those of before
        tolerance = {"rtol": 0.01, "atol": 1e-3}
    np.testing.assert_allclose(np.asarray(scores), dense, **tolerance)
    top, wanted_top = (ts.top_k(one, 5) for one in (scores, wanted))
    np.testing.assert_allclose(top.score, wanted_top.score, **tolerance)
    np.testing.assert_allclose(scores.to_xarray(), np.asarray(scores), **tolerance)


def test_trak_is_the_dense_formula(store: ts.FeatureStore) -> None:
    train, test = (store.features(0, s).values.astype(np.float64) for s in ("train", "test"))
    k = train.T @ train
    inverse = np.linalg.inv(k + np.trace(k) / len(train) * np.eye(DIM))
    wanted = test @ inverse @ train.T * q_of("train")
    got = np.asarray(ts.trak_scores(store, epochs=0))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
    eigenvalues = np.linalg.eigvalsh(k)[::-1]
    report = kernel_report(store, 0, "train", weighting="none")
    np.testing.assert_allclose(report.eigenvalues[:5], eigenvalues[:5], rtol=1e-5)


def test_neighbours_and_saved_scores(store: ts.FeatureStore, same: ts.FeatureStore) -> None:
    got, wanted = (ts.neighbours(s, targets="test", k=4, epoch=0) for s in (store, same))
    np.testing.assert_array_equal(got.train, wanted.train)
    ts.save_scores(ts.grad_dot_scores(store, epochs=0), store, "dot")
    assert verify_store(store).ok


def test_rows_are_appended_to_the_byte(tmp_path: Path) -> None:
    rows, q = rows_of("train"), q_of("train")
    one = ts.FeatureStore.create(
        tmp_path / "a", projection=ts.ProjectionSpec("identity"), dtype="int8"
    )
    two = ts.FeatureStore.create(
        tmp_path / "b", projection=ts.ProjectionSpec("identity"), dtype="int8"
    )
    one.write_split(0, "train", rows, out_to_loss=q, block_rows=16)
    two.write_split(0, "train", rows[:37], out_to_loss=q[:37], block_rows=16)
    two.append(0, "train", rows[37:50], out_to_loss=q[37:50])
    two.append(0, "train", rows[50:], out_to_loss=q[50:])
    np.testing.assert_array_equal(one.features(0, "train"), two.features(0, "train"))
    for path in sorted((tmp_path / "a/0/train").rglob("c/*")):
        if path.is_file():
            assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == (
                path.read_bytes()
            )
    assert verify_store(two).ok


def test_an_append_that_was_stopped_leaves_the_old_rows(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.storage import growth

    before = store.features(0, "train").values

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(growth, "array_documents", stop)
        with pytest.raises(KeyboardInterrupt):
            store.append(0, "train", rows_of("test"), out_to_loss=q_of("test"), ids=range(90, 99))
    np.testing.assert_array_equal(store.features(0, "train"), before)
    store.append(0, "train", rows_of("test"), out_to_loss=q_of("test"), ids=range(90, 99))
    np.testing.assert_array_equal(store.features(0, "train")[:70], before)
    np.testing.assert_array_equal(store.features(0, "train")[70:], store.features(0, "test"))


def test_going_on_with_other_values_is_refused(store: ts.FeatureStore) -> None:
    rows = rows_of("train")
    other = rows.copy()
    other[20] *= 1.5  # the same integers, and another scale
    store.location.delete(["0/train/written/c.4.0"])
    with pytest.raises(SpecMismatchError, match="other values of row_scale"):
        store.write_split(0, "train", other, out_to_loss=q_of("train"), block_rows=16)
    store.write_split(0, "train", rows, out_to_loss=q_of("train"), block_rows=16)
    np.testing.assert_array_equal(store.features(0, "train"), dequantised(*quantised(rows)))


def test_rows_that_are_missing_are_nan(store: ts.FeatureStore) -> None:
    wanted = store.features(0, "train").values
    store.location.delete(["0/train/written/c.1.0", "0/train/row_scale/c/1"])
    got = store.features(0, "train", allow_missing=True).values
    wanted[16:32] = np.nan
    np.testing.assert_array_equal(got, wanted)


def test_damage_is_found_and_never_read_as_numbers(store: ts.FeatureStore, tmp_path: Path) -> None:
    train = tmp_path / "s.zarr/0/train"
    assert verify_store(store).ok

    def refused(kind: str) -> None:
        with pytest.raises(DamagedError):
            store.features(0, "train").values  # noqa: B018
        assert kind in {one.kind for one in verify_store(store).findings}

    for name, kind in (("row_scale/c/1", "damaged"), ("features/c/1/0", "damaged")):
        path = train / name
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            refused(kind)
        path.write_bytes(whole)
    for name in ("row_scale/c/1", "features/c/1/0"):
        other = train / name.replace("/1", "/2", 1)
        kept = (train / name).read_bytes()
        shutil.copy(other, train / name)
        refused("foreign")
        (train / name).unlink()
        refused("missing")
        (train / name).write_bytes(kept)
    assert verify_store(store).ok


def test_rows_that_are_not_those_of_their_norm_are_found(store: ts.FeatureStore) -> None:
    """Chunks that are sound, and committed: only the numbers tell."""
    from trakstore.storage.writer import BlockWriter

    split = store.split(0, "train")
    start, stop = split.spec.block_range(1)
    block = {name: split.column_as_stored(name).read(start, stop) for name in split.columns}
    bound = rounding_bound(block["row_scale"], DIM) / block["norm"]
    for more, wrong in ((0.6, False), (1.6, True)):
        changed = {**block, "norm": (block["norm"] * (1 + more * bound)).astype(np.float32)}
        BlockWriter(split).write(1, changed)
        kinds = {one.kind for one in verify_store(store).findings}
        assert kinds == ({"norm"} if wrong else set())
    scaled = {**block, "row_scale": block["row_scale"] * np.float32(1.02)}
    BlockWriter(split).write(1, scaled)
    assert {one.kind for one in verify_store(store).findings} == {"norm"}


def test_documents_of_columns_that_no_split_has_are_refused() -> None:
    columns = {"features": "int8", "norm": "float32", "sample_id": "int64"}
    for more in ({}, {"row_scale": "float16"}, {"row_scale": "float32", "label": "int8"}):
        spec = SplitSpec(4, 3, tuple(sorted({**columns, **more}.items())))
        with pytest.raises(DamagedError, match=r"row_scale|no split has"):
            SplitSpec.from_dict(spec.to_dict())
    floats = {**columns, "features": "float32", "row_scale": "float32"}
    with pytest.raises(DamagedError, match="for features of int8 alone"):
        SplitSpec.from_dict(SplitSpec(4, 3, tuple(sorted(floats.items()))).to_dict())


def test_files_have_the_rows_that_queries_see(store: ts.FeatureStore, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    wanted = store.features(0, "train").values
    export_split(store, 0, "train", tmp_path / "rows.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), wanted)
    export_split(store, 0, "train", tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert "row_scale" not in table.column_names
    got = np.stack(table["features"].to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(got, wanted)


def test_on_object_storage(bucket: str) -> None:
    store = filled(f"{bucket}/s.zarr")
    np.testing.assert_array_equal(
        store.features(0, "train"), dequantised(*quantised(rows_of("train")))
    )
    near = np.asarray(ts.trak_scores(filled("memory://eight"), epochs=[0, 1]))
    np.testing.assert_array_equal(ts.trak_scores(store, epochs=[0, 1]), near)


def job(bad: bool = False, **how: Any) -> Job:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(40, 6, generator=generator)
    if bad:
        x[[3, 21]] = torch.nan
    data = list(zip(x, torch.arange(40) % 3, strict=True))
    projector = ts.ProjectionSpec("sjlt", dim=32)
    return Job(model, {"train": data}, projector=projector, batch_size=4, block_rows=8, **how)


def test_features_are_rounded_rows_for_any_number_of_workers(tmp_path: Path) -> None:
    featurize_job(job(), tmp_path / "wide.zarr", progress=False)
    wide = ts.open_store(tmp_path / "wide.zarr").features(0, "train").values
    featurize_job(job(dtype="int8"), tmp_path / "one.zarr", progress=False)
    one = ts.open_store(tmp_path / "one.zarr")
    np.testing.assert_array_equal(one.features(0, "train"), dequantised(*quantised(wide)))
    for rank in (2, 0, 1):
        featurize_job(
            job(dtype="int8"), tmp_path / "three.zarr", progress=False, rank=rank, world_size=3
        )
    for path in sorted((tmp_path / "one.zarr/0/train").rglob("c/*")):
        if path.is_file():
            other = tmp_path / "three.zarr" / path.relative_to(tmp_path / "one.zarr")
            assert other.read_bytes() == path.read_bytes(), path
    assert verify_store(one).ok


def test_bad_rows_are_left_out_and_activations_are_float16(tmp_path: Path) -> None:
    how: dict[str, Any] = {"skip_bad_rows": True, "activations": ["1"], "dtype": "int8"}
    featurize_job(job(bad=True, **how), tmp_path / "s.zarr", progress=False)
    store = ts.open_store(tmp_path / "s.zarr")
    split = store.split(0, "train")
    assert split.skipped.tolist() == [3, 21]
    rows = split.column("features").read(0, 40)
    assert np.isnan(rows[[3, 21]]).all() and np.isfinite(np.delete(rows, [3, 21], axis=0)).all()
    assert split.column("activations.1").dtype == np.float16
    assert np.isfinite(np.asarray(ts.trak_scores(store, targets="train"))).all()
    assert verify_store(store).ok
