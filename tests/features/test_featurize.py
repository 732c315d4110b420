"""Features in the store against plain autograd and a materialised P."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch
from features.models import ConvNet, Recurrent, Samples, mlp, seeded
from features.whole_models import Language
from safetensors.torch import save_file
from torch import nn

import trakstore as ts
from trakstore.errors import (
    LocationError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.features import Job, featurize, featurize_job, load_job
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.job_options import JobOptions
from trakstore.features.parameters import canonical_name
from trakstore.features.weights import own_copy
from trakstore.storage.backends.location import Location, open_location
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.tables.runs import planned_runs

SJLT = ts.ProjectionSpec("sjlt", dim=32, seed=1)


def run(model: nn.Module, data: Any, where: Any, **options: Any) -> ts.FeatureStore:
    options = {"projector": SJLT, "batch_size": 8, "progress": False, **options}
    featurize(model, data, where, **options)
    return ts.open_store(where)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}


def column(store: ts.FeatureStore, name: str) -> np.ndarray[Any, Any]:
    split = store.split(0, "train")
    return split.column(name).read(0, split.rows)


MODELS = [mlp, lambda: seeded(ConvNet), lambda: seeded(Recurrent)]
PROJECTIONS = [
    SJLT,
    ts.ProjectionSpec("sjlt", dim=32, s=4),
    ts.ProjectionSpec("rademacher", dim=40),
    ts.ProjectionSpec("identity"),
]


@pytest.mark.parametrize("make", MODELS, ids=["mlp", "conv", "gru"])
@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
@pytest.mark.parametrize("output", ["margin", "cross_entropy"])
def test_features_equal_the_dense_reference(
    tmp_path: Path, make: Any, projection: ts.ProjectionSpec, output: str
) -> None:
    model, data = make(), Samples(21)
    store = run(model, data, tmp_path / "s.zarr", projector=projection, output=output)
    model.eval()
    samples = [data[i] for i in range(len(data))]
    g = reference.gradients(model, getattr(reference, output), samples)
    expected = g @ reference.matrix(projection, shapes(model))
    got = column(store, "features")
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(column(store, "norm"), np.linalg.norm(expected, axis=1), rtol=1e-4)


@pytest.mark.parametrize("epoch", [3, "final"])
def test_an_epoch_may_have_a_projection_of_its_own(tmp_path: Path, epoch: Any) -> None:
    model, data = mlp(), Samples(9)
    own = ts.ProjectionSpec("sjlt", dim=32, seed=1, per_epoch=True)
    store = run(model, data, tmp_path / "own.zarr", projector=own, epoch=epoch)
    seed = int.from_bytes(hashlib.sha256(f"1:{epoch}".encode()).digest()[:8], "little")
    same = ts.ProjectionSpec("sjlt", dim=32, seed=seed)
    expected = run(model, data, tmp_path / "same.zarr", projector=same, epoch=epoch)
    got, wanted = (
        one.split(epoch, "train").column("features").read(0, 9) for one in (store, expected)
    )
    np.testing.assert_array_equal(got, wanted)
    assert ts.open_store(tmp_path / "own.zarr").spec.projection == own
    with pytest.raises(TrakStoreError, match="per_epoch draws a projection for each epoch"):
        ts.ProjectionSpec("identity", per_epoch=True)
    with pytest.raises(TrakStoreError, match="per_epoch is True or False, got 'yes'"):
        ts.ProjectionSpec("sjlt", dim=8, per_epoch="yes")  # type: ignore[arg-type]


def test_language_models_have_a_projection_for_each_epoch_by_default(tmp_path: Path) -> None:
    tokens = [(one,) for one in torch.randint(0, 11, (3, 9))]
    featurize(seeded(Language), tokens, tmp_path / "lm", output="causal_lm", progress=False)
    featurize(mlp(), Samples(3), tmp_path / "mlp", progress=False)
    chosen = [ts.open_store(tmp_path / name).spec.projection for name in ("lm", "mlp")]
    assert chosen == [ts.ProjectionSpec("sjlt", dim=2048, per_epoch=one) for one in (True, False)]


def test_columns_beside_the_features(tmp_path: Path) -> None:
    model, data = mlp(), Samples(21)
    p = torch.softmax(model(data.x), dim=1)[range(21), data.y].detach().double().numpy()
    store = run(model, data, tmp_path / "m.zarr", ids=[f"s{i}" for i in range(21)])
    np.testing.assert_allclose(column(store, "out_to_loss"), 1 - p, rtol=1e-5)
    np.testing.assert_allclose(column(store, "loss"), -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(column(store, "output"), np.log(p / (1 - p)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(column(store, "label"), data.y)
    assert column(store, "sample_id").tolist() == [f"s{i}" for i in range(21)]
    store = run(model, data, tmp_path / "c.zarr", output="cross_entropy")
    np.testing.assert_array_equal(column(store, "out_to_loss"), -1)
    np.testing.assert_allclose(column(store, "output"), -np.log(p), rtol=1e-5)


def test_loss_gradients_are_scaled_output_gradients(tmp_path: Path) -> None:
    """∇loss = -out_to_loss · ∇output: what makes one store serve every method."""
    model, data = mlp(), Samples(21)
    margin = run(model, data, tmp_path / "m.zarr")
    loss = run(model, data, tmp_path / "c.zarr", output="cross_entropy")
    scaled = -column(margin, "out_to_loss")[:, None] * column(margin, "features")
    np.testing.assert_allclose(column(loss, "features"), scaled, rtol=1e-4, atol=1e-6)


def test_batches_and_blocks_change_nothing_but_rounding(tmp_path: Path) -> None:
    model, data = seeded(ConvNet), Samples(29)
    first = column(run(model, data, tmp_path / "0.zarr"), "features")
    for i, (batch, block) in enumerate([(1, 4), (3, 7), (29, 29), (64, None), (5, 100)], start=1):
        where = tmp_path / f"{i}.zarr"
        other = column(run(model, data, where, batch_size=batch, block_rows=block), "features")
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5 * np.abs(first).max())


@pytest.mark.parametrize("make", MODELS, ids=["mlp", "conv", "gru"])
@pytest.mark.filterwarnings("ignore")  # of what the compiler thinks of the model
def test_a_compiled_model_has_the_same_features(tmp_path: Path, make: Any) -> None:
    data = Samples(21)
    first = column(run(make(), data, tmp_path / "0.zarr"), "features")
    compiled: Any = torch.compile(make(), backend="eager")
    again = column(run(compiled, data, tmp_path / "1.zarr"), "features")
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6 * np.abs(first).max())
    run(compiled, data, tmp_path / "0.zarr")  # and it is the same checkpoint


@pytest.mark.filterwarnings("ignore")
def test_hooks_of_a_compiled_model_count_as_those_of_any_other(tmp_path: Path) -> None:
    def hooked(model: Any) -> Any:
        model.register_forward_hook(lambda _module, _given, out: out * 3)
        model.register_forward_pre_hook(lambda _module, given: (given[0] * 2,))
        return model

    data = Samples(21)
    first = column(run(hooked(mlp()), data, tmp_path / "0.zarr"), "features")
    compiled = hooked(torch.compile(mlp(), backend="eager"))
    again = column(run(compiled, data, tmp_path / "1.zarr"), "features")
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6 * np.abs(first).max())
    copied = own_copy(compiled)
    assert torch.equal(copied(data.x), compiled(data.x))
    assert copied._orig_mod[0].weight is not compiled._orig_mod[0].weight


class Wrapped(nn.Module):
    """A model that has a part under the name that ``torch.compile`` gives a whole one."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod, self.head = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self._orig_mod(x)))
        return out


def test_a_part_that_is_called_as_compiled_models_are_is_a_part(tmp_path: Path) -> None:
    options = {"projector": ts.ProjectionSpec("identity"), "output": "cross_entropy"}
    model, data = seeded(Wrapped), Samples(5)
    features = column(run(model, data, tmp_path / "s.zarr", **options), "features")
    loss = nn.functional.cross_entropy(model(data.x[:1]), data.y[:1])
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    own = torch.cat([one.ravel() for one in gradient]).numpy()
    assert features.shape == (5, 12 * 5 + 5 + 5 * 3 + 3)
    np.testing.assert_allclose(features[0], own, rtol=1e-4, atol=1e-6)


def _in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _a_part(model: Any) -> Any:
    model[2] = torch.compile(model[2], backend="eager")
    return model


def _a_part_in_place(model: Any) -> Any:
    model[2].compile(backend="eager")
    return model


def _a_forward(model: Any) -> Any:
    model[2].forward = torch.compile(model[2].forward, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [_in_place, _a_part, _a_part_in_place, _a_forward])
@pytest.mark.filterwarnings("ignore")
def test_compiled_parts_are_watched_like_others(
    tmp_path: Path, compiled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = Samples(21)
    first = column(run(mlp(), data, tmp_path / "0.zarr"), "features")
    with caplog.at_level("INFO", "trakstore"):
        again = column(run(compiled(mlp()), data, tmp_path / "1.zarr"), "features")
    np.testing.assert_array_equal(again, first)
    assert "generic engine" not in caplog.text and "one by one" not in caplog.text
    run(compiled(mlp()), data, tmp_path / "0.zarr")  # and it is the same checkpoint


def test_weights_that_were_saved_from_wrappers(tmp_path: Path) -> None:
    model, data = mlp(), Samples(9)
    first = column(run(model, data, tmp_path / "0.zarr"), "features")
    for at, before in enumerate(("module.", "_orig_mod.module.")):
        state = {before + name: value.clone() for name, value in model.state_dict().items()}
        fresh = mlp(seed=7)
        job = Job(fresh, {"train": data}, checkpoints={0: state}, projector=SJLT, batch_size=8)
        featurize_job(job, tmp_path / f"w{at}.zarr", progress=False)
        again = ts.open_store(tmp_path / f"w{at}.zarr")
        np.testing.assert_array_equal(column(again, "features"), first)


def test_wrappers_of_the_model_change_nothing(tmp_path: Path) -> None:
    model, data = mlp(), Samples(9)
    first = column(run(model, data, tmp_path / "0.zarr"), "features")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.module(x)
            return out

    np.testing.assert_array_equal(
        column(run(Wrapped(), data, tmp_path / "1.zarr"), "features"), first
    )
    run(Wrapped(), data, tmp_path / "0.zarr")  # and it is the same checkpoint
    assert canonical_name("_orig_mod.module.fc.weight") == "fc.weight"


def test_a_recurrent_model_is_done_one_by_one_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        run(seeded(Recurrent), Samples(30), tmp_path / "s.zarr")
    assert [r.message[:32] for r in caplog.records] == ["per-sample gradients one by one,"]


class Counting(Recurrent):
    """A model that asks for a number of its input, which ``vmap`` cannot do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0 * x.sum().item())


def test_the_reason_of_vmap_is_its_first_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        run(seeded(Counting), Samples(4), tmp_path / "s.zarr")
    said = " ".join(record.message for record in caplog.records)
    assert "one by one, since vmap cannot do this model (vmap: It looks like" in said
    assert "internals)" in said and "For (1)" not in said


def test_parameter_patterns_and_frozen_parameters(tmp_path: Path) -> None:
    model, data = mlp(), Samples(9)
    store = run(model, data, tmp_path / "s.zarr", parameters=["2.*"])
    assert dict(store.spec.parameters.shapes) == {"2.weight": (3, 10), "2.bias": (3,)}  # type: ignore[union-attr]
    model[0].requires_grad_(False)  # type: ignore[index]
    frozen = run(model, data, tmp_path / "f.zarr")
    np.testing.assert_array_equal(column(frozen, "features"), column(store, "features"))
    with pytest.raises(TrakStoreError, match=r"matches '0\.\*'.*2\.weight"):
        run(model, data, tmp_path / "n.zarr", parameters=["0.*"])


def test_the_model_is_given_back_as_it_was(tmp_path: Path) -> None:
    model = seeded(ConvNet).train()
    model.norm.eval()  # type: ignore[union-attr, operator]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    run(model, Samples(9), tmp_path / "s.zarr")
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_run_goes_on_and_redoes_nothing(tmp_path: Path) -> None:
    model, data = mlp(), Samples(40)
    whole = run(model, data, tmp_path / "w.zarr", block_rows=8)
    run(model, data, tmp_path / "s.zarr", block_rows=8)
    (tmp_path / "s.zarr/0/train/written/c.3.0").unlink()
    again = featurize(
        model, data, tmp_path / "s.zarr", projector=SJLT, batch_size=8, progress=False
    )
    assert (again.rows, again.blocks) == (8, 1)
    store = ts.open_store(tmp_path / "s.zarr")
    np.testing.assert_array_equal(column(store, "features"), column(whole, "features"))


def nothing_at(where: Path) -> bool:
    return not where.exists() or not any(where.iterdir())


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    where, model, data = tmp_path / "s.zarr", mlp(), Samples(9)
    broken = mlp()
    broken[2].bias.data[:] = torch.nan  # type: ignore[index, operator, union-attr]
    labels = Samples(9)
    labels.y[1] = 3

    class Random(Samples):
        def __getitem__(self, index: int) -> Any:
            return torch.randn(12), self.y[index]

    class Shifting(Samples):
        def __getitem__(self, index: int) -> Any:
            return [super().__getitem__(index)[0]]

    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (broken, data, {}, NumericsError, "2 rows have NaN or infinite"),
        (model, labels, {}, TrakStoreError, "sample 1 has label 3, the model has classes 0 to 2"),
        (model, Random(9), {}, TrakStoreError, "differs when it is read twice"),
        (model, Shifting(9), {}, TrakStoreError, "needs samples"),
        (model, [], {}, TrakStoreError, "empty"),
        (model, iter(data.x), {}, TrakStoreError, "__len__"),
        (model, data, {"output": "margins"}, NotFoundError, "did you mean 'margin'"),
        (model, data, {"split": "../x"}, TrakStoreError, "cannot name a split"),
        (model, data, {"epoch": -1}, TrakStoreError, "non-negative"),
        (
            model,
            data,
            {"batch_size": 0},
            TrakStoreError,
            "batch_size must be an integer, 1 or more",
        ),
        (model, data, {"rank": 2, "world_size": 2}, TrakStoreError, "rank 2 is not in 0..1"),
        (nn.Flatten(), data, {}, TrakStoreError, "no parameter"),
        (nn.Linear(12, 1), data, {}, TrakStoreError, "2 classes or more"),
        (model, data, {"dtype": "int4"}, TrakStoreError, "stored as float32, float16, int8"),
        (model, data, {"ids": [1, 2]}, TrakStoreError, "ids must be 9"),
    ]
    for net, samples, options, error, message in cases:
        with pytest.raises(error, match=message):
            run(net, samples, where, **options)
        assert nothing_at(where), message


def test_another_spec_checkpoint_or_data_set_is_refused_with_both(tmp_path: Path) -> None:
    where, model, data = tmp_path / "s.zarr", mlp(), Samples(9)
    run(model, data, where)
    for net, samples, options, message in [
        (model, data, {"projector": ts.ProjectionSpec("sjlt", dim=33)}, r"dim=32.*dim=33"),
        (model, data, {"output": "cross_entropy"}, r"margin.*cross_entropy"),
        (model, data, {"parameters": ["2.*"]}, r"0\.weight.*2\.weight"),
        (model, data, {"dtype": "float16"}, r"float32, this run has float16"),
        (
            mlp(seed=1),
            data,
            {},
            r"the checkpoint differs .* [0-9a-f]{12}, this run has [0-9a-f]{12};",
        ),
        (
            model,
            Samples(9, seed=1),
            {},
            r"train at epoch 0: the data set differs .* 9:[0-9a-f]{12},",
        ),
        (mlp(seed=1), Samples(9, seed=1), {}, "the checkpoint and the data set differ from those"),
        (model, Samples(8), {}, r"rows 9, this run has 8.*give it another store$"),
        (model, Samples(10), {}, r"another store, or append=True if samples were added"),
        (model, data, {"learning_rate": 0.1}, r"learning_rate None, this run has 0.1"),
    ]:
        with pytest.raises(SpecMismatchError, match=message):
            run(net, samples, where, **options)
    run(model, data, where, projector=None)  # what is left open is as the store has it


def test_bad_rows_in_the_middle_keep_the_blocks_before(tmp_path: Path) -> None:
    data = Samples(40)
    data.x[20] = torch.nan
    with pytest.raises(NumericsError, match=r"^train at epoch 0: 1 row has NaN or inf.*\(row 20\)"):
        run(mlp(), data, tmp_path / "s.zarr", block_rows=8)
    status = ts.open_store(tmp_path / "s.zarr").split(0, "train").status()
    assert status.missing == ((16, 40),)


def test_a_job_of_epochs_and_splits(tmp_path: Path) -> None:
    states = {2: mlp(2).state_dict(), "final": mlp(3).state_dict()}
    torch.save(states[2], tmp_path / "2.pt")
    job = Job(
        mlp(),
        {"train": Samples(30), "test": Samples(7, seed=1)},
        projector=SJLT,
        checkpoints={2: tmp_path / "2.pt", "final": states["final"]},
        learning_rates={2: 0.5},
        batch_size=4,
    )
    done = featurize_job(job, tmp_path / "s.zarr", progress=False)
    store = ts.open_store(tmp_path / "s.zarr")
    assert store.epochs == (2, "final") and store.splits == ("test", "train")
    assert done.rows == 2 * 37 and all(status.complete for status in store.status())
    assert store.split(2, "train").spec.learning_rate == 0.5
    single = run(mlp(3), Samples(30), tmp_path / "one.zarr", batch_size=4)
    np.testing.assert_array_equal(store.features("final", "train"), column(single, "features"))


def test_the_keywords_of_featurize_are_a_jobs_attributes(tmp_path: Path) -> None:
    own = {"model", "datasets", "checkpoints", "ids", "learning_rates", "name"}
    own |= {"sampled", "draw_seed"}  # labels=, draws= and seed= there
    own |= {"tokens"}  # of its one split there
    own |= {"shard"}  # for models that the command shards
    assert own | JobOptions.__annotations__.keys() == {
        field.name for field in fields(Job) if field.init
    }
    for name in ("checkpoints", "batchsize"):
        with pytest.raises(TypeError, match=name):
            featurize(mlp(), Samples(9), tmp_path / "s.zarr", **{name: 1})  # type: ignore[arg-type]
    assert not (tmp_path / "s.zarr").exists()


def test_jobs_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(
        "digits = 3\ndef wrong():\n    return 'no job'\ndef many(n):\n    pass\n"
    )
    jobs = tmp_path / "jobs.py"
    for name, error, message in [
        ("digits", TrakStoreError, "named like"),
        (f"{tmp_path}/nojobs.py:digits", NotFoundError, "no job file"),
        (f"{jobs}:digit", NotFoundError, "did you mean 'digits'"),
        (f"{jobs}:digits", TrakStoreError, "gave a int"),
        (f"{jobs}:wrong", TrakStoreError, "gave a str"),
        (f"{jobs}:many", TrakStoreError, "needs arguments"),
        ("trakstore.nothing:digits", NotFoundError, "no module"),
    ]:
        with pytest.raises(error, match=message):
            load_job(name)


def test_jobs_without_weights_or_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrakStoreError, match=r"checkpoints is an empty .* leave checkpoints out"):
        Job(mlp(), {"train": Samples(3)}, checkpoints={})
    with pytest.raises(TrakStoreError, match=r"the job has no data sets: give some, like \{"):
        featurize_job(Job(mlp(), {}), tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()


def test_a_checkpoint_of_another_model_and_unsafe_files_are_refused(tmp_path: Path) -> None:
    import pickle

    job = Job(mlp(), {"train": Samples(9)}, checkpoints={0: nn.Linear(2, 2).state_dict()})
    with pytest.raises(TrakStoreError, match="checkpoint 0 is not of this model"):
        job.load(0)
    with pytest.raises(NotFoundError, match="no epoch 7"):
        job.load(7)

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Evil()}, tmp_path / "saved.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"hello")
    reasons = {"saved.pt": r"it holds (\w+\.)*getattr, which is code"}
    for name in ("saved.pt", "bare.pt", "named.safetensors", "empty.pt", "text.pt"):
        with pytest.raises(TrakStoreError, match="not a file of plain tensors") as caught:
            Job(mlp(), {"train": Samples(9)}, checkpoints={0: tmp_path / name}).load(0)
        assert re.search(reasons.get(name, ""), str(caught.value))
        assert "weights_only" not in str(caught.value)  # torch advises to let it run
    assert not (tmp_path / "ran").exists()


def test_both_formats_of_checkpoints_give_the_same(tmp_path: Path) -> None:
    state = mlp(5).state_dict()
    torch.save(state, tmp_path / "5.pt")
    save_file(state, tmp_path / "5.safetensors")
    for name in ("5.pt", "5.safetensors"):
        job = Job(mlp(), {"train": Samples(9)}, checkpoints={5: tmp_path / name})
        assert checkpoint_hash(job.load(5)) == checkpoint_hash(mlp(5))


def test_a_data_set_that_grew_is_appended(tmp_path: Path) -> None:
    model, data = mlp(), Samples(40)

    class First(Samples):
        def __len__(self) -> int:
            return 23

    whole = run(model, data, tmp_path / "w.zarr", block_rows=8)
    run(model, First(40), tmp_path / "s.zarr", block_rows=8)
    with pytest.raises(SpecMismatchError, match="rows 23, this run has 40"):
        run(model, data, tmp_path / "s.zarr", block_rows=8)
    with pytest.raises(SpecMismatchError, match="dataset 23:"):
        run(model, Samples(40, seed=5), tmp_path / "s.zarr", append=True)
    store = run(model, data, tmp_path / "s.zarr", append=True)
    np.testing.assert_allclose(
        column(store, "features"), column(whole, "features"), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(column(store, "label"), column(whole, "label"))
    run(model, data, tmp_path / "s.zarr")  # and now it is the split of the longer one


def test_helping_lists_the_store_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = 0
    names = Location.names

    def counted(self: Location, prefix: str) -> list[str]:
        nonlocal listings
        listings += prefix.endswith("written")
        return names(self, prefix)

    monkeypatch.setattr(Location, "names", counted)
    options = {"batch_size": 1, "block_rows": 1, "rank": 0}
    run(mlp(), Samples(64), tmp_path / "s.zarr", **options, world_size=64)  # helps with 63 of them
    assert listings < 30
    assert ts.open_store(tmp_path / "s.zarr").split(0, "train").status().complete


def test_splits_that_are_still_to_come_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {epoch: mlp(seed=epoch).state_dict() for epoch in (1, 2)}
    data = {"train": Samples(8), "test": Samples(4)}
    job = Job(mlp(), data, checkpoints=weights, projector=SJLT, batch_size=4)
    place = open_location(tmp_path / "s.zarr", create=True)
    put, full = Location.put_if_absent, "1/test/zarr.json"

    def failing(self: Location, key: str, value: bytes) -> bytes:
        if key == full:
            raise LocationError("No space left on device")
        return put(self, key, value)

    def to_come() -> list[tuple[int | str, str]]:
        return [(run.epoch, run.split) for run in planned_runs(place)]

    monkeypatch.setattr(Location, "put_if_absent", failing)
    with pytest.raises(LocationError, match="No space left"):
        featurize_job(job, place, progress=False)
    assert to_come() == [(1, "test"), (2, "test"), (2, "train")]
    store = ts.open_store(place)
    assert [(run.epoch, run.split) for run in store.runs()] == [(1, "train")]
    store.drop(2)
    store.drop(1, "test")
    assert to_come() == []
    with pytest.raises(LocationError, match="No space left"):
        featurize_job(job, place, progress=False)
    full = ""
    assert featurize_job(job, place, progress=False).rows == 16
    assert to_come() == [] and len(store.runs()) == 4
    assert verify_store(place).ok


def test_runs_are_recorded(tmp_path: Path) -> None:
    run(mlp(), Samples(20), tmp_path / "s.zarr", rank=0, world_size=1)
    run(mlp(), Samples(20), tmp_path / "s.zarr")  # does nothing, leaves no record
    (one,) = ts.open_store(tmp_path / "s.zarr").runs()
    assert (one.epoch, one.split, one.rows, one.world_size) == (0, "train", 20, 1)
    assert one.versions["torch"] == version("torch") and one.began <= one.ended


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"},
        {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    ],
)
def test_ranks_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run(mlp(), Samples(20), tmp_path / "s.zarr")
    (one,) = ts.open_store(tmp_path / "s.zarr").runs()
    assert (one.rank, one.world_size) == (1, 2)
    monkeypatch.setenv("SLURM_PROCID", "two")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(TrakStoreError, match="SLURM_PROCID must be a number, got 'two'"):
        run(mlp(), Samples(20), tmp_path / "t.zarr")
