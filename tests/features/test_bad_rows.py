"""Rows that are not finite are refused when they are written, or stored as masked with the reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp, seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import DamagedError, NumericsError, TrakStoreError
from trakstore.features import Job, featurize, featurize_job
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.kernels.iterative import Dual
from trakstore.storage.arrays import encode, row_document
from trakstore.storage.checking.verification import verify_store

N, DIM = 24, 16
BAD = [7, 8, 20]
SPEC = ts.ProjectionSpec("sjlt", dim=DIM)


class Rows(list[Any]):
    """A data set."""


class LM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.embed(input_ids)))
        return out


def regression(bad: list[int], value: float = torch.nan) -> tuple[nn.Module, Rows]:
    """A model, and samples of which some have no target."""
    generator = torch.Generator().manual_seed(0)
    rows = Rows(
        (torch.randn(6, generator=generator), torch.rand(1, generator=generator)) for _ in range(N)
    )
    for row in bad:
        rows[row][1][:] = value
    return seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))), rows


def tokens(bad: list[int]) -> Rows:
    """Sequences, in some of which no token is to be predicted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (N, 6), generator=generator)
    labels = ids.clone()
    labels[bad] = -100
    return Rows({"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True))


def written(where: Path, model: nn.Module, rows: Any, **options: Any) -> ts.FeatureStore:
    options = {"projector": SPEC, "progress": False, "batch_size": 4, "block_rows": 8, **options}
    featurize(model, rows, where, **options)
    return ts.open_store(where)


def with_targets(where: Path, bad: list[int], **options: Any) -> ts.FeatureStore:
    model, rows = regression(bad)
    options = {"output": "squared_error", "skip_bad_rows": True, **options}
    written(where, model, rows, **options)
    return written(where, model, regression([])[1], split="test", **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 9, N - 1])
def test_a_bad_target_is_refused_in_any_block(tmp_path: Path, row: int, value: float) -> None:
    model, rows = regression([row], value)
    named = [f"x{i}" for i in range(N)]
    message = (
        rf"^train at epoch 0: 1 row has NaN or infinite loss and out_to_loss \(row {row}, sample "
        rf"x{row}\); .*skip_bad_rows=True"
    )
    with pytest.raises(NumericsError, match=message):
        written(tmp_path / "s", model, rows, output="squared_error", ids=named)


def test_a_sequence_without_a_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"1 row has NaN or infinite .*loss.* \(row 7\)"):
        written(tmp_path / "s", seeded(LM), tokens([7]), output="causal_lm")


@pytest.mark.parametrize("bad", [[7], [0, 1, 2, 9], [N - 1]])
def test_sequences_without_labels_are_stored_as_masked(tmp_path: Path, bad: list[int]) -> None:
    model, options = seeded(LM), {"output": "causal_lm", "skip_bad_rows": True}
    store = written(tmp_path / "s", model, tokens(bad), **options)
    good = np.setdiff1d(np.arange(N), bad)
    wanted = written(tmp_path / "w", model, tokens([]), **options).features(0, "train").values
    split = store.split(0, "train")
    np.testing.assert_array_equal(split.masked, bad)
    assert [one.position for one in store.skipped(0, "train")] == bad
    assert all("loss" in one.reason for one in store.skipped(0, "train"))
    found = split.column("features").read(0, N)
    np.testing.assert_allclose(found[good], wanted[good], rtol=1e-5, atol=1e-6)
    for name in ("features", "norm", "loss", "output", "out_to_loss"):
        assert np.isnan(split.column(name).read(0, N)[bad]).all()
    assert verify_store(store).ok


def test_all_methods_leave_bad_rows_out(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD)
    kept = np.setdiff1d(np.arange(N), BAD)
    model, rows = regression([])
    options = {"output": "squared_error", "ids": kept.tolist()}
    wanted = written(tmp_path / "w", model, Rows(rows[i] for i in kept), **options)
    written(tmp_path / "w", model, rows, split="test", output="squared_error")
    methods: list[Any] = [
        ts.trak_scores,
        ts.influence_scores,
        ts.grad_dot_scores,
        ts.grad_cos_scores,
        ts.whitened_cos_scores,
        lambda one: ts.tracin_scores(one, learning_rates=0.1),
        lambda one: ts.influence_scores(one, hessian="loss"),
    ]
    for method in methods:
        for _ in range(2):  # the second time by the stored gram
            found, expected = np.asarray(method(store)), np.asarray(method(wanted))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)
    top, other = ts.top_k(ts.trak_scores(store), 5), ts.top_k(ts.trak_scores(wanted), 5)
    np.testing.assert_array_equal(top["train"], other["train"])
    np.testing.assert_array_equal(top["position"], kept[other["position"]])
    near = ts.neighbours(store, k=3)
    np.testing.assert_array_equal(near["train"], ts.neighbours(wanted, k=3)["train"])
    report, same = (ts.kernel_report(one, 0, "train") for one in (store, wanted))
    assert report.n == same.n == len(kept) and report.lam == pytest.approx(same.lam, rel=1e-5)


@pytest.mark.parametrize("temperature", [None, 1.0, 2.0])
def test_a_weighted_kernel_leaves_bad_rows_out(tmp_path: Path, temperature: float | None) -> None:
    data, good = Samples(N), Samples(N)
    data.x[BAD] = torch.nan
    kept = np.setdiff1d(np.arange(N), BAD)
    good.x, good.y = good.x[kept], good.y[kept]
    model = mlp()
    for where, rows in ((tmp_path / "s", data), (tmp_path / "w", good)):
        written(where, model, rows, skip_bad_rows=True)
        written(where, model, Samples(5, seed=1), split="test", skip_bad_rows=True)
    one, other = (ts.open_store(tmp_path / name) for name in ("s", "w"))
    expected = np.asarray(ts.trak_scores(other, temperature=temperature))
    np.testing.assert_allclose(
        np.asarray(ts.trak_scores(one, temperature=temperature)), expected, rtol=1e-3, atol=1e-5
    )
    one.mask("train", [3])
    other.mask("train", [3])
    masked = np.asarray(ts.trak_scores(one, temperature=temperature))
    expected = np.asarray(ts.trak_scores(other, temperature=temperature))
    np.testing.assert_allclose(masked, expected, rtol=1e-3, atol=1e-5)
    dual: Any = {"temperature": temperature, "solver": Dual()}
    np.testing.assert_allclose(
        np.asarray(ts.trak_scores(one, **dual)), expected, rtol=1e-3, atol=1e-5
    )


class Custom(ModelOutput):
    """Columns that the samples say."""

    name = "custom"

    def __call__(self, model: Any, batch: Any) -> RowOutputs:
        x, told = batch
        out = model(x)[:, 0]
        return RowOutputs(out + told[:, 0], out.detach() + told[:, 1], told[:, 2] + 1)

    def labels(self, batch: Any) -> Tensor:
        found: Tensor = batch[1][:, 3]
        return found


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_every_column_is_looked_at(tmp_path: Path, at: int, value: float) -> None:
    name = ["output", "loss", "out_to_loss", "label"][at]
    model, told = seeded(lambda: nn.Linear(6, 1)), torch.zeros(N, 4)
    told[5, at] = value
    rows = Rows(zip(torch.ones(N, 6), told, strict=True))
    words = "a label that is no class" if name == "label" else f"NaN or infinite {name}"
    with pytest.raises(NumericsError, match=rf"{words}.* \(row 5\)"):
        written(tmp_path / "s", model, rows, output=Custom())
    store = written(tmp_path / "s", model, rows, output=Custom(), skip_bad_rows=True)
    (one,) = store.skipped(0, "train")
    assert (one.position, one.id) == (5, 5) and words in one.reason
    labels = store.split(0, "train").column("label").read(0, N)
    assert labels.tolist() == [-1 if row == 5 else 0 for row in range(N)]


def test_labels_activations_and_narrow_dtypes(tmp_path: Path) -> None:
    data = Samples(N)
    data.y[3], data.y[4] = 3, -100
    data.x[9] *= 1e6
    data.x[10] = torch.nan
    options: Any = {"dtype": "float16", "activations": "0", "skip_bad_rows": True}
    store = written(tmp_path / "s", mlp(), data, **options)
    reasons = {one.position: one.reason for one in store.skipped(0, "train")}
    assert set(reasons) == {3, 4, 9, 10}
    assert reasons[3] == reasons[4] == "a label that is no class of the model"
    assert "the stored dtype cannot hold" in reasons[9]
    assert reasons[10].startswith("NaN or infinite features, output, loss")
    assert "activations" in reasons[10]
    stored = store.split(0, "train").column("activations.0").read(0, N)
    assert np.isnan(stored[[3, 4, 9, 10]]).all() and np.isfinite(stored[[0, 11]]).all()
    assert verify_store(store).ok
    with pytest.raises(TrakStoreError, match="sample 3 has label 3"):
        written(tmp_path / "n", mlp(), data)


def test_a_block_of_bad_rows_alone(tmp_path: Path) -> None:
    data = Samples(N)
    data.x[8:16] = torch.nan
    store = written(tmp_path / "s", mlp(), data, skip_bad_rows=True)
    np.testing.assert_array_equal(store.split(0, "train").masked, np.arange(8, 16))
    assert verify_store(store).ok
    data.x[:] = torch.nan
    store = written(tmp_path / "a", mlp(), data, skip_bad_rows=True)
    assert len(store.skipped(0, "train")) == N
    written(tmp_path / "a", mlp(), Samples(4), split="test")
    with pytest.raises(TrakStoreError, match="'train' of epoch 0 has no rows left"):
        ts.trak_scores(store)


def test_rounded_features(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD, keep_bits=8)
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD)
    assert verify_store(store).ok


def test_a_run_that_was_refused_goes_on_with_skipping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = regression([9, 20])
    job = Job(model, {"train": rows}, "squared_error", SPEC, batch_size=4, block_rows=8)
    with pytest.raises(NumericsError, match="row 9"):
        featurize_job(job, tmp_path / "s", progress=False)
    store = ts.open_store(tmp_path / "s")
    assert store.split(0, "train").status().missing == ((8, 24),)
    with caplog.at_level(logging.WARNING, "trakstore"):
        featurize_job(job, tmp_path / "s", skip_bad_rows=True, progress=False)
    assert sum("row 9" in record.getMessage() for record in caplog.records) == 1
    np.testing.assert_array_equal(store.split(0, "train").masked, [9, 20])


def test_workers_write_what_is_of_their_blocks(tmp_path: Path) -> None:
    model, rows = regression(BAD)
    options: Any = {"output": "squared_error", "skip_bad_rows": True, "world_size": 2}
    written(tmp_path / "s", model, rows, rank=1, **options)
    store = written(tmp_path / "s", model, rows, rank=0, **options)
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD)
    inside = {path.name for path in (tmp_path / "s/0/train/skipped/c").iterdir()}
    assert inside == {"0", "1", "2"}


def test_a_block_that_is_not_committed_has_no_bad_rows_yet(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD)
    (tmp_path / "s/0/train/written/c.2.0").unlink()  # as if it was killed before the marker
    (tmp_path / "s/0/train/norm/c/2").unlink()
    np.testing.assert_array_equal(store.split(0, "train").masked, [7, 8])


def test_appended_rows_keep_the_reasons_before(tmp_path: Path) -> None:
    model, rows = regression([2, 17, 19])
    options: Any = {"output": "squared_error", "skip_bad_rows": True}
    written(tmp_path / "s", model, Rows(rows[:18]), **options)
    store = written(tmp_path / "s", model, rows, append=True, **options)
    told = [(one.position, one.reason) for one in store.skipped(0, "train")]
    assert [row for row, _ in told] == [2, 17, 19]
    assert {reason for _, reason in told} == {"NaN or infinite loss and out_to_loss"}
    assert verify_store(store).ok
    longer = Rows([*rows, *regression([])[1][:2]])
    written(tmp_path / "s", model, longer, append=True, **options)  # good rows behind a bad block
    assert [one.position for one in store.skipped(0, "train")] == [2, 17, 19]
    assert verify_store(store).ok


def test_masking_and_bad_rows_go_together(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD)
    store.mask("train", [0, 7], epochs=[0])
    np.testing.assert_array_equal(store.split(0, "train").masked, [0, *BAD])
    with pytest.raises(TrakStoreError, match="row 7 was bad when it was written"):
        store.mask("train", [7], masked=False)
    store.mask("train", [0], masked=False)
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD)
    store.drop(0, "train")
    assert not (tmp_path / "s/0/train").exists()


def test_verify_knows_what_is_skipped_and_what_is_damage(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD)
    chunk = tmp_path / "s/0/train/skipped/c/2"
    kept = chunk.read_bytes()
    chunk.unlink()
    kinds = {finding.kind for finding in verify_store(store).findings}
    assert kinds == {"missing", "non-finite"}  # what says that row 20 may be NaN is gone
    with pytest.raises(DamagedError, match="0/train/skipped/c/2 was deleted"):
        store.split(0, "train")
    chunk.write_bytes((tmp_path / "s/0/train/skipped/c/0").read_bytes())
    assert "does not say why" in str(verify_store(store).findings)
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD)  # whatever it says
    chunk.write_bytes(kept[:-1] + b"x")
    assert "damaged" in {finding.kind for finding in verify_store(store).findings}
    chunk.write_bytes(kept)
    assert verify_store(store).ok


@pytest.mark.parametrize("damage", ["other reasons", "too many", "no note", "another note"])
def test_reasons_belong_to_their_rows(tmp_path: Path, damage: str) -> None:
    store, split = with_targets(tmp_path / "s", BAD), tmp_path / "s/0/train"
    chunk, note = split / "skipped/c/2", split / "written/skipped.2"
    reasons = np.frombuffer(chunk.read_bytes()[:-4], np.uint8).copy()
    assert np.flatnonzero(reasons).tolist() == [BAD[-1] - 16]
    if damage == "no note":
        note.unlink()
    elif damage == "another note":
        note.write_bytes((split / "written/skipped.0").read_bytes())
    else:
        reasons[BAD[-1] - 16 if damage == "other reasons" else 0] ^= 1
        documents = {"skipped": row_document(store.split(0, "train").spec, "skipped")}
        (value,) = encode(documents, (16, 24), {"skipped": reasons}).values()
        chunk.write_bytes(value)
        note.write_bytes(value[-4:])
    assert {one.block for one in verify_store(store).findings} == {2}
    if damage == "other reasons":
        with pytest.raises(DamagedError, match="does not say why row 20 is bad"):
            store.skipped(0, "train")
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD)


def test_a_block_that_lost_its_reasons_is_written_again(tmp_path: Path) -> None:
    store = with_targets(tmp_path / "s", BAD)
    (tmp_path / "s/0/train/skipped/c/2").unlink()
    assert all(one.repaired for one in verify_store(store, repair=True).findings)
    np.testing.assert_array_equal(store.split(0, "train").masked, BAD[:2])
    again = with_targets(tmp_path / "s", BAD)
    np.testing.assert_array_equal(again.split(0, "train").masked, BAD)
    assert verify_store(again).ok


@pytest.mark.parametrize(("names", "own"), [("x", "x7"), (None, 7), ("integers", 107)])
def test_skipped_rows_have_the_samples_own_ids(tmp_path: Path, names: Any, own: Any) -> None:
    model, rows = regression([7])
    ids = {"x": [f"x{at}" for at in range(N)], "integers": np.arange(100, 100 + N)}.get(names)
    store = written(
        tmp_path / "s", model, rows, output="squared_error", skip_bad_rows=True, ids=ids
    )
    (one,) = store.skipped(0, "train")
    assert (one.position, one.id, type(one.id)) == (7, own, type(own))


def test_info_says_which_rows_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trakstore.cli import main

    with_targets(tmp_path / "s", BAD)
    capsys.readouterr()
    main(["info", str(tmp_path / "s")])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "3 of the masked rows: 3 with NaN or infinite loss and out_to_loss (first 7 of train"
        in told
    )
    main(["info", str(tmp_path / "s"), "--json"])
    train = json.loads(capsys.readouterr().out)["splits"][1]
    assert [one["position"] for one in train["skipped"]] == BAD


def test_a_good_row_beside_a_bad_one_is_as_without_it(tmp_path: Path) -> None:
    data = Samples(N)
    clean = written(tmp_path / "c", mlp(), data).features(0, "train").values
    data.x[BAD] = torch.nan
    found = written(tmp_path / "s", mlp(), data, skip_bad_rows=True)
    good = np.setdiff1d(np.arange(N), BAD)
    rows = found.split(0, "train").column("features").read(0, N)[good]
    np.testing.assert_array_equal(rows, clean[good])
