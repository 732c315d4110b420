"""Stored activations: what layers give, beside the gradients, as safe as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import (
    MemoryLimitError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.features import featurize
from trakstore.features.activations import NamedActivations
from trakstore.features.outputs import as_output
from trakstore.methods.neighbours import neighbours
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.exchange.to_files import export_split

SJLT = ts.ProjectionSpec("sjlt", dim=8)


class Net(nn.Module):
    """A convolution whose output the next layer changes in place, and a layer that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
        self.row = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)
        self.twice = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x.reshape(-1, 1, 8, 8)).mean(1)
        h = self.twice(self.twice(self.row(h)[0][:, -1]))
        return self.head(h)


class Images(Samples):
    def __init__(self, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(64, 64, generator=generator)[:rows]
        self.y = torch.randint(0, 4, (64,), generator=generator)[:rows]


def made(where: Path, rows: int = 21, **options: Any) -> ts.FeatureStore:
    options = {"projector": SJLT, "batch_size": 4, "progress": False, "block_rows": 8, **options}
    featurize(Net(), Images(rows), where, **{"activations": ("body.0", "head.input"), **options})
    return ts.open_store(where)


def column(store: ts.FeatureStore, name: str) -> np.ndarray[Any, Any]:
    split = store.split(0, "train")
    return split.column(name).read(0, split.rows)


def expected(model: nn.Module, x: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """By hand, in the model's own words."""
    model.eval()
    with torch.no_grad():
        convolved = model.body[0](x.reshape(-1, 1, 8, 8))
        states = model.row(convolved.relu().mean(1))[0]
    return {
        "activations.body.0": convolved.flatten(1).numpy(),
        "activations.row": states.flatten(1).numpy(),
        "activations.head.input": states[:, -1].numpy(),
    }


def test_they_are_what_the_layers_give(tmp_path: Path) -> None:
    model, data = Net(), Images(21)
    store = made(tmp_path / "s.zarr", activations=["row", "head.input", "body.0"])
    for name, rows in expected(model, data.x).items():
        np.testing.assert_allclose(column(store, name), rows, rtol=1e-5, atol=1e-6)
    plain = made(tmp_path / "p.zarr", activations=())
    assert plain.split(0, "train").spec.widths == ()
    np.testing.assert_array_equal(column(store, "features"), column(plain, "features"))
    hooks = [*model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hooks)


def test_each_layer_has_a_dimension_of_its_own(tmp_path: Path) -> None:
    import xarray as xr

    store = made(tmp_path / "s.zarr")
    sizes = {"sample": 21, "feature": 8, "activations.body.0": 108, "activations.head.input": 5}
    assert dict(store.split(0, "train").to_xarray().sizes) == sizes
    plain = xr.open_zarr(tmp_path / "s.zarr" / "0" / "train", consolidated=False)
    name = "activations.head.input"
    assert plain[name].dims == ("sample", name)
    np.testing.assert_array_equal(plain[name], column(store, name))


def test_blocks_are_of_the_widest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trakstore.planning.CHUNK_BYTES", 108 * 4 * 2)
    store = made(tmp_path / "s.zarr")
    split = store.split(0, "train")
    assert (split.spec.block_rows, split.spec.chunk_rows) == (8, 2)
    assert split.column("activations.body.0").chunk_rows == 2
    wanted = expected(Net(), Images(21).x)["activations.body.0"]
    np.testing.assert_allclose(column(store, "activations.body.0"), wanted, rtol=1e-5, atol=1e-6)
    assert verify_store(store).ok


def test_every_byte_of_them_is_watched(tmp_path: Path) -> None:
    made(tmp_path / "s.zarr")
    chunks = sorted((tmp_path / "s.zarr").rglob("activations.*/c/*/0"))
    assert len(chunks) == 6
    for at, chunk in enumerate(chunks):
        whole = chunk.read_bytes()
        chunk.write_bytes(whole[: 7 * at] + bytes([whole[7 * at] ^ 8]) + whole[7 * at + 1 :])
        (found,) = verify_store(tmp_path / "s.zarr").findings
        assert (found.kind, found.block) == ("damaged", at % 3)
        chunk.unlink()
        (found,) = verify_store(tmp_path / "s.zarr").findings
        assert found.kind == "missing"
        chunk.write_bytes(whole)
    one, other = chunks[0].read_bytes(), chunks[1].read_bytes()
    chunks[0].write_bytes(other)
    assert [f.kind for f in verify_store(tmp_path / "s.zarr", repair=True).findings] == ["foreign"]
    assert made(tmp_path / "s.zarr").split(0, "train").status().complete
    assert chunks[0].read_bytes() == one
    assert verify_store(tmp_path / "s.zarr").ok


def test_rows_that_come_later(tmp_path: Path) -> None:
    made(tmp_path / "s.zarr", rows=11)
    grown = made(tmp_path / "s.zarr", rows=21, append=True)
    whole = made(tmp_path / "w.zarr", rows=21)
    for name in grown.split(0, "train").columns:
        np.testing.assert_allclose(column(grown, name), column(whole, name), rtol=1e-5, atol=1e-6)
    assert verify_store(grown).ok
    with pytest.raises(TrakStoreError, match="columns"):
        grown.append(0, "train", np.zeros((2, 8), np.float32))
    grown.drop(0)
    left = {path.name for path in (tmp_path / "s.zarr").iterdir()} - {"_claims", "_complete"}
    assert left == {"runs", "zarr.json"}


def test_other_layers_are_another_split(tmp_path: Path) -> None:
    made(tmp_path / "s.zarr")
    with pytest.raises(SpecMismatchError, match=r"this run has .*activations\.row"):
        made(tmp_path / "s.zarr", activations="row")


def test_half_precision_and_memory(tmp_path: Path) -> None:
    halves = made(tmp_path / "h.zarr", dtype="float16")
    wanted = expected(Net(), Images(21).x)["activations.head.input"]
    assert column(halves, "activations.head.input").dtype == np.float16
    np.testing.assert_allclose(column(halves, "activations.head.input"), wanted, rtol=1e-3)
    with pytest.raises(MemoryLimitError):
        made(tmp_path / "m.zarr", memory_limit=9000)
    assert not (tmp_path / "m.zarr").exists()


def test_export(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    store = made(tmp_path / "s.zarr")
    export_split(store, 0, "train", tmp_path / "a.npy", column="activations.body.0")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), column(store, "activations.body.0"))
    export_split(store, 0, "train", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    got = np.stack(table["activations.head.input"].to_numpy())
    np.testing.assert_array_equal(got, column(store, "activations.head.input"))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_neighbours_of_activations(tmp_path: Path, metric: Any) -> None:
    store = made(tmp_path / "s.zarr", rows=40)
    featurize(
        Net(),
        Images(7, seed=1),
        store,
        split="test",
        activations=("body.0", "head.input"),
        progress=False,
    )
    t, f = (expected(Net(), Images(n, s).x)["activations.head.input"] for n, s in ((7, 1), (40, 0)))
    dense = np.linalg.norm(t[:, None] - f[None], axis=2)
    if metric == "cosine":
        dense = 1 - (t @ f.T) / np.linalg.norm(t, axis=1)[:, None] / np.linalg.norm(f, axis=1)
    found = neighbours(store, k=5, metric=metric, activations="head.input")
    np.testing.assert_array_equal(found["position"], np.argsort(dense, axis=1)[:, :5])
    np.testing.assert_allclose(found["distance"], np.sort(dense, axis=1)[:, :5], atol=1e-6)
    assert found.attrs["column"] == "activations.head.input"
    with pytest.raises(NotFoundError, match=r"no column 'activations\.head'; did you mean"):
        neighbours(store, activations="head")


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    where = tmp_path / "s.zarr"
    with pytest.raises(NotFoundError, match="no module 'bodi'; did you mean 'body'"):
        made(where, activations="bodi")
    with pytest.raises(NotFoundError, match=r"no module 'bodi\.input'"):
        made(where, activations="bodi.input")
    with pytest.raises(TrakStoreError, match="computed 2 times"):
        made(where, activations="twice")

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.turn = mlp(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(self.turn(x.T).T)
            return out

    with pytest.raises(TrakStoreError, match="first dimension, got shape"):
        featurize(Turned(), Samples(9), where, activations="turn", progress=False)
    model = Net()
    with torch.no_grad():
        model.body[0].weight.fill_(torch.inf)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        featurize(model, Images(9), where, activations="body.0", progress=False)
    assert not where.exists() or not ts.open_store(where).epochs


def test_a_crash_in_the_middle_leaves_no_hook(tmp_path: Path) -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.body(x.reshape(-1, 1, 8, 8))
            raise RuntimeError("no more")

    model = Fails()
    with pytest.raises(Exception, match="no more"):
        featurize(model, Images(9), tmp_path / "s.zarr", activations="body.0", progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    shutil.rmtree(tmp_path / "s.zarr", ignore_errors=True)


def turned(x: Tensor) -> Tensor:
    return x.flip(0)


class Mixed(nn.Module):
    """A layer whose samples are not where, or what, they would be alone."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.head = nn.Linear(64, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        self.way, self.passes = way, 0
        self.turned: Any = torch.jit.script(turned) if way == "scripted" else None

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        h = self.first(x)
        if self.way == "sorted":
            order = h[:, 0].argsort()
            return self.head(self.layer(h[order])[order.argsort()])
        if self.way == "reversed":
            return self.head(self.layer(h.flip(0)).flip(0))
        if self.way == "centred":
            h = h - 0.5 * h.mean(0)
        if self.way.startswith("asked") and bool((h[:, 0] > 0.3).any()):
            h = (1 if self.way == "asked in vain" else 0.5) * h
        if self.way == "scripted":
            h = h + self.turned(h.detach())
        if self.way == "out of sight":
            h = h + torch.from_numpy(h.detach().numpy()[::-1].copy())
        out: Tensor = self.head(self.layer(h))
        return out


@pytest.mark.parametrize(
    "way",
    [
        "sorted",
        "reversed",
        "centred",
        "asked",
        "asked in vain",
        "out of sight",
        "scripted",
        "plain",
    ],
)
@pytest.mark.parametrize("name", ["layer", "layer.input"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_activations_are_those_of_each_sample_alone(way: str, name: str) -> None:
    model, samples = Mixed(way).eval(), Images(12)
    named = NamedActivations(model, as_output("margin"), name)
    batch = samples.x, samples.y
    rows = named.of(batch)[f"activations.{name}"]
    passes, model.passes = model.passes, 0
    alone = [
        named.of((x[None], y[None]))[f"activations.{name}"] for x, y in zip(*batch, strict=True)
    ]
    torch.testing.assert_close(rows, torch.cat(alone), rtol=1e-5, atol=1e-6)
    # Samples that are surely in their places take one pass, and one sample is compared.
    assert passes == {"plain": 2, "asked": 14, "asked in vain": 3, "scripted": 14}.get(way, 13)
    assert model.passes == 12


def test_a_model_that_cannot_be_watched_is_asked_for_each_sample() -> None:
    class Unwatched(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            if torch.overrides._get_current_function_mode() is not None:
                raise RuntimeError("not while others look")
            return super().forward(x)

    samples, model = Images(5), Unwatched("sorted").eval()
    rows = NamedActivations(model, as_output("margin"), "layer").of((samples.x, samples.y))
    wanted = torch.cat([model.layer(model.first(x[None])) for x in samples.x])
    torch.testing.assert_close(rows["activations.layer"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_activations_of_scripted_modules_are_refused() -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Linear(64, 4))

    for name in ("inner", "inner.input"):
        with pytest.raises(TrakStoreError, match="inner is a module of TorchScript"):
            NamedActivations(Scripted(), as_output("margin"), name)


def test_complex_activations_are_refused(tmp_path: Path) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves, self.head = nn.Identity(), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.waves(torch.fft.fft(x)).abs())
            return out

    with pytest.raises(TrakStoreError, match=r"activations\.waves gives complex numbers"):
        featurize(Waves(), Images(4), tmp_path / "s.zarr", activations="waves", progress=False)


class Ragged(nn.Module):
    """A model whose middle layer is given, and gives, what has no rows of one width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.head = kind, nn.Identity(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sparse":
            return self.head(self.layer(x.to_sparse()).to_dense())
        layout = torch.jagged if self.kind == "jagged" else torch.strided
        texts = torch.nested.as_nested_tensor([row[None].expand(2, -1) for row in x], layout=layout)
        return self.head(torch.nested.to_padded_tensor(self.layer(texts), 0.0).mean(1))


@pytest.mark.filterwarnings("ignore:.*prototype stage")
@pytest.mark.parametrize(
    ("kind", "got"),
    [("strided", "a nested"), ("jagged", "a nested"), ("sparse", "a tensor of layout sparse_coo")],
)
@pytest.mark.parametrize("name", ["layer", "layer.input"])
def test_layers_that_give_no_dense_tensor_are_refused(kind: str, got: str, name: str) -> None:
    model = Ragged(kind).eval()
    activations = NamedActivations(model, as_output("margin"), (name,))
    batch = torch.ones(3, 3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(TrakStoreError, match=rf"{name} gives {got}.*name another layer"):
        activations.of(batch)
    (head,) = NamedActivations(model, as_output("margin"), ("head.input",)).of(batch).values()
    torch.testing.assert_close(head, torch.ones(3, 3))
