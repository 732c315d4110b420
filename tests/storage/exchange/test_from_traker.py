"""Import of save directories: of the same layout always, and of traker itself where it is installed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    IncompleteError,
    LocationError,
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.features import featurize
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.exchange.from_traker import import_traker

N, T, K = 23, 7, 16


def save_directory(where: Path, dtype: str = "float32", matrix: str = "normal") -> dict[str, Any]:
    """Two models and an experiment, as traker 0.3.2 leaves them; the arrays by path."""
    rng = np.random.default_rng(0)
    where.mkdir()
    metadata = {"JL dimension": K, "JL matrix type": matrix, "train set size": N}
    (where / "metadata.json").write_text(json.dumps(metadata))
    experiment = {"num_targets": T, "scores_path": "scores/targets.mmap", "scores_finalized": 1}
    (where / "experiments.json").write_text(json.dumps({"targets": experiment}))
    arrays: dict[str, Any] = {}
    for model in (0, 3):
        (where / str(model)).mkdir()
        state = {str(model): {"is_featurized": 1, "is_finalized": 1}}
        (where / f"id_{model}.json").write_text(json.dumps(state))
        files = {
            "grads": (N, K),
            "features": (N, K),
            "out_to_loss": (N, 1),
            "targets_grads": (T, K),
        }
        for name, shape in files.items():
            arrays[f"{model}/{name}"] = rng.random(shape).astype(dtype)
        arrays[f"{model}/_is_featurized"] = np.ones((N, 1), np.int32)
    for name, array in arrays.items():
        with (where / f"{name}.mmap").open("wb") as file:
            np.save(file, array)
    return arrays


@pytest.mark.parametrize("source", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_model_is_an_epoch(tmp_path: Path, source: str, dtype: Any) -> None:
    arrays = save_directory(tmp_path / "saved", source)
    store = import_traker(tmp_path / "saved", tmp_path / "s.zarr", dtype=dtype)
    assert store.epochs == (0, 3) and store.splits == ("targets", "train")
    assert store.spec.projection == ts.ProjectionSpec("external", dim=K)
    for epoch in store.epochs:
        train = store.split(epoch, "train").to_xarray().compute()
        np.testing.assert_array_equal(train.features, arrays[f"{epoch}/grads"].astype(dtype))
        q = arrays[f"{epoch}/out_to_loss"][:, 0]
        np.testing.assert_array_equal(train.out_to_loss, q.astype(np.float32))
        targets = store.features(epoch, "targets")
        np.testing.assert_array_equal(targets, arrays[f"{epoch}/targets_grads"].astype(dtype))
    assert verify_store(store).ok
    assert import_traker(tmp_path / "saved", tmp_path / "s.zarr", dtype=dtype).spec == store.spec


def test_the_number_of_parameters_gives_the_scale(tmp_path: Path) -> None:
    arrays = save_directory(tmp_path / "saved")
    store = import_traker(tmp_path / "saved", tmp_path / "s.zarr", models=[3], parameters=K * 9)
    assert store.epochs == (3,)
    np.testing.assert_array_equal(store.features(3, "train"), arrays["3/grads"] * np.float32(3))
    plain = save_directory(tmp_path / "plain", matrix="na")  # NoOpProjector: g / sqrt(p)
    store = import_traker(tmp_path / "plain", tmp_path / "na.zarr")
    np.testing.assert_array_equal(store.features(0, "train"), plain["0/grads"] * np.float32(4))
    with pytest.raises(TrakStoreError, match="counts scalars"):
        import_traker(tmp_path / "saved", tmp_path / "t.zarr", parameters=0)


def test_another_directory_or_scale_is_refused(tmp_path: Path) -> None:
    save_directory(tmp_path / "saved")
    import_traker(tmp_path / "saved", tmp_path / "s.zarr")
    with pytest.raises(SpecMismatchError, match=r"checkpoint features:.*this run has features:"):
        import_traker(tmp_path / "saved", tmp_path / "s.zarr", parameters=7)
    save_directory(tmp_path / "half", "float16")
    with pytest.raises(SpecMismatchError, match="checkpoint"):
        import_traker(tmp_path / "half", tmp_path / "s.zarr")


def test_featurize_does_not_add_to_it(tmp_path: Path) -> None:
    save_directory(tmp_path / "saved")
    store = import_traker(tmp_path / "saved", tmp_path / "s.zarr")
    data = torch.utils.data.TensorDataset(torch.ones(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(TrakStoreError):
        featurize(torch.nn.Linear(4, 2), data, tmp_path / "s.zarr", epoch=9)
    spec = store.spec.projection
    with pytest.raises(TrakStoreError, match="made by another program"):
        featurize(torch.nn.Linear(4, 2), data, tmp_path / "new.zarr", projector=spec)
    assert store.epochs == (0, 3)


def test_what_cannot_be_imported_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    saved, made = tmp_path / "saved", tmp_path / "s.zarr"
    with pytest.raises(LocationError, match=r"no metadata\.json"):
        import_traker(tmp_path, made)
    arrays = save_directory(saved)
    with pytest.raises(NotFoundError, match="no model id 1"):
        import_traker(saved, made, models=[1])
    arrays["3/_is_featurized"][4] = 0
    with (saved / "3/_is_featurized.mmap").open("wb") as file:
        np.save(file, arrays["3/_is_featurized"])
    with pytest.raises(IncompleteError, match="22 of 23 rows"):
        import_traker(saved, made)
    (saved / "3/grads.mmap").unlink()
    with pytest.raises(NotFoundError, match="del_grads"):
        import_traker(saved, made)
    assert not made.exists()


def test_nothing_is_unpickled_and_shapes_are_checked(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save_directory(saved)
    with (saved / "0/out_to_loss.mmap").open("wb") as file:
        np.save(file, np.array([[print]] * N, dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match=r"out_to_loss\.mmap cannot be read"):
        import_traker(saved, tmp_path / "s.zarr")
    with (saved / "0/out_to_loss.mmap").open("wb") as file:
        np.save(file, np.ones((N, 2), np.float32))
    with pytest.raises(DamagedError, match=r"shape \(23, 2\), metadata.json says \(23, 1\)"):
        import_traker(saved, tmp_path / "s.zarr")
    for text in ("[", "{}"):
        (saved / "metadata.json").write_text(text)
        with pytest.raises(DamagedError, match=r"metadata\.json"):
            import_traker(saved, tmp_path / "s.zarr")


def test_a_run_of_traker_itself(tmp_path: Path) -> None:
    """Same scores as traker's own; gradients' products, with the number of parameters."""
    trak = pytest.importorskip("trak")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    X, y = torch.randn(80 + T, 20), torch.randint(0, 3, (80 + T,))
    given: dict[str, Any] = {"task": "image_classification", "train_set_size": 80, "proj_dim": 32}
    given |= {"device": "cpu", "use_half_precision": False, "logging_level": logging.ERROR}
    traker = trak.TRAKer(model=model, save_dir=str(tmp_path / "saved"), **given)
    state = model.state_dict()
    traker.load_checkpoint(state, model_id=0)
    traker.featurize((X[:80], y[:80]), num_samples=80)
    traker.finalize_features()
    traker = trak.TRAKer(model=model, save_dir=str(tmp_path / "saved"), **given)
    traker.start_scoring_checkpoint("targets", state, model_id=0, num_targets=T)
    traker.score((X[80:], y[80:]), num_samples=T)
    theirs = np.asarray(traker.finalize_scores("targets"))
    where = tmp_path / "s.zarr"
    store = import_traker(tmp_path / "saved", where, parameters=parameters)
    ours = np.asarray(ts.trak_scores(store, targets="targets", train="train", damping=1e-9))
    assert np.corrcoef(ours.T.ravel(), theirs.ravel())[0, 1] > 0.9999
    data = torch.utils.data.TensorDataset(X[:80], y[:80])
    identity = ts.ProjectionSpec("identity")
    featurize(model, data, tmp_path / "g.zarr", projector=identity, progress=False)
    wanted = ts.open_store(tmp_path / "g.zarr").split(0, "train").column("norm").read(0, 80)
    got = store.split(0, "train").column("norm").read(0, 80)
    assert np.mean(got**2) == pytest.approx(np.mean(wanted**2), rel=0.2)
    q = ts.open_store(tmp_path / "g.zarr").split(0, "train").column("out_to_loss").read(0, 80)
    mine = store.split(0, "train").column("out_to_loss").read(0, 80)
    np.testing.assert_allclose(mine, q, rtol=1e-3, atol=1e-6)
