"""Gradients divided by the fourth root of factored second moments, before any projection."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch
import torch.distributed.checkpoint as dcp
from features.models import ConvNet, Recurrent, Samples, mlp, seeded
from features.padded_texts import Pad, Placed, Texts
from features.whole_models import Language, hugging_face
from torch import nn

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    MemoryLimitError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.features import Job, featurize, featurize_job, task
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import peak_bytes
from trakstore.features.optimizer_moments import adam_moments, optimizer_file
from trakstore.features.outputs import CrossEntropy, as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.sampled_moments import sampled_moments
from trakstore.features.second_moments import factored, scale_factors
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.opening import find_store

featurizing = importlib.import_module("trakstore.features.featurize")
SJLT = ts.ProjectionSpec("sjlt", dim=32, seed=1)
PROJECTIONS = [
    SJLT,
    ts.ProjectionSpec("sjlt", dim=32, s=4),
    ts.ProjectionSpec("kronecker", dim=32, side=4),
    ts.ProjectionSpec("rademacher", dim=40),
    ts.ProjectionSpec("gaussian", dim=40),
    ts.ProjectionSpec("identity"),
]


class Tokens:
    """Sequences of 9 tokens of 11."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randint(0, 11, (n, 9), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (self.x[index],)


def drawn_moments(model: nn.Module, seed: int = 5) -> dict[str, torch.Tensor]:
    """Second moments over three powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 10 ** (3 * torch.rand(p.shape, generator=generator) - 5)
        for name, p in model.named_parameters()
    }


def run(model: nn.Module, data: Any, where: Any, **options: Any) -> ts.FeatureStore:
    options = {"projector": SJLT, "batch_size": 8, "progress": False, **options}
    featurize(model, data, where, **options)
    return ts.open_store(where)


def column(
    store: ts.FeatureStore, name: str = "features", split: str = "train", epoch: int = 0
) -> Any:
    one = store.split(epoch, split)
    return one.column(name).read(0, one.rows)


def factors(moments: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    """1/v^(1/4) of the factored moments, all parameters one behind the other, by plain arithmetic."""
    whole = []
    for v in moments.values():
        v = v.double().reshape(v.shape[0], -1)
        rows, columns = v.mean(1, keepdim=True), v.mean(0, keepdim=True)
        rows = rows.clamp(min=1e-4 * v.mean())
        columns = columns.clamp(min=1e-4 * v.mean())
        whole.append((rows * columns / rows.mean()).reshape(-1))
    v = torch.cat(whole).numpy()
    return np.sqrt(v.sum() / np.sqrt(v).sum()) / v**0.25


@pytest.mark.parametrize("make", [mlp, lambda: seeded(ConvNet), lambda: seeded(Recurrent)])
@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
def test_a_scale_folded_into_factors_is_the_scaled_dense_gradient(
    tmp_path: Path, make: Any, projection: ts.ProjectionSpec
) -> None:
    model, data = make(), Samples(11)
    moments = drawn_moments(model)
    store = run(model, data, tmp_path / "s.zarr", projector=projection, scale=moments)
    model.eval()
    gradients = reference.gradients(model, reference.margin, [data[i] for i in range(len(data))])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = gradients * factors(moments) @ reference.matrix(projection, shapes)
    error = np.abs(column(store) - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    assert store.spec.scale is not None and store.spec.scale.source == "given"


@pytest.mark.parametrize("make", [Language, lambda: hugging_face("gpt2")], ids=["own", "gpt2"])
def test_embeddings_norms_and_tied_weights_are_scaled(tmp_path: Path, make: Any) -> None:
    model, data = seeded(make), Tokens(5)
    moments = drawn_moments(model)
    identity = ts.ProjectionSpec("identity")
    plain = run(model, data, tmp_path / "plain", projector=identity, output="causal_lm")
    scaled = run(
        model, data, tmp_path / "scaled", projector=identity, output="causal_lm", scale=moments
    )
    expected = column(plain) * factors(moments)
    assert np.abs(column(scaled) - expected).max() < 1e-5 * np.abs(expected).max()


def test_scaled_gradients_are_as_long_in_the_mean_as_moments_say() -> None:
    model = mlp()
    parameters = parameter_spec(select_parameters(model), ("*",))
    moments = {
        n: torch.outer(torch.rand(p.shape[0]), torch.rand(p[0].numel())).reshape(p.shape) + 0.1
        for n, p in model.named_parameters()
    }
    made = factored(moments, parameters)
    total = sum(float(v.sum()) for v in moments.values())
    scaled = 0.0
    for name, (rows, columns) in scale_factors(made).items():
        v = torch.outer(made[name].rows, made[name].columns) / made[name].rows.mean()
        scaled += float((v * torch.outer(rows.double(), columns.double()).square()).sum())
    assert scaled == pytest.approx(total, rel=1e-6)


def test_rows_that_were_never_seen_are_bounded_and_parameters_without_moments_left() -> None:
    parameters = ts.spec.ParameterSpec((("embedding", (4, 3)), ("unused", (2, 2))))
    moments = {"embedding": torch.zeros(4, 3), "unused": torch.zeros(2, 2)}
    moments["embedding"][0] = 1.0
    rows, columns = scale_factors(factored(moments, parameters))["embedding"]
    # The mean is 1/4, rows without moments count as 1e-4 of it: (4e4)^(1/4) times the first.
    assert float(rows[1] / rows[0]) == pytest.approx((1.0 / (1e-4 * 0.25)) ** 0.25, rel=1e-5)
    assert bool(columns.isfinite().all())
    unused = scale_factors(factored(moments, parameters))["unused"]
    assert [one.tolist() for one in unused] == [[1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(NumericsError, match=r"second moments sum to 0\.0"):
        scale_factors(factored({n: torch.zeros(v.shape) for n, v in moments.items()}, parameters))


@pytest.mark.parametrize("make", [mlp, lambda: seeded(ConvNet), lambda: seeded(Recurrent)])
def test_sampled_moments_are_those_of_the_fisher_matrix(make: Any) -> None:
    model, data = make().eval(), Samples(400)
    job = Job(model, {"train": data}, output="cross_entropy")
    got = sampled_moments(job, CrossEntropy(), "train", torch.device("cpu"))
    # The mean over labels is taken exactly here, with the model's probabilities as weights.
    exact = {
        name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()
    }
    for x, _ in (data[i] for i in range(len(data))):
        logits = model(x[None])[0]
        for label, p in enumerate(logits.softmax(0).tolist()):
            loss = -logits.log_softmax(0)[label]
            for (name, _), g in zip(
                model.named_parameters(),
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True),
                strict=True,
            ):
                exact[name] += p * g.double() ** 2 / len(data)
    for name, v in exact.items():
        matrix = v.reshape(v.shape[0], -1)
        for mine, true in ((got[name].rows, matrix.mean(1)), (got[name].columns, matrix.mean(0))):
            # 50 draws of signs: a relative error of about √(2/50) of each, and so in the mean.
            assert float((mine / true).log().square().mean().sqrt()) < 0.3


class Sized(nn.Module):
    """A model that has no memory for more than some samples."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most, self.asked = model, most, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.asked.append(len(x))
        return self.model(x)  # type: ignore[no-any-return]


def moments_of(model: nn.Module, count: int = 40, **options: Any) -> Any:
    job = Job(model.eval(), {"train": Samples(count)}, output="cross_entropy", **options)
    return sampled_moments(job, CrossEntropy(), "train", torch.device("cpu"))


def assert_alike(got: Any, wanted: Any) -> None:
    for name, one in wanted.items():
        for mine, true in zip(got[name], one, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("most", [8, 3, 2])
def test_moments_are_estimated_from_as_many_samples_at_once_as_memory_suffices_for(
    most: int,
) -> None:
    """Signs are those of a group of 8 samples, however many of them are computed at once."""
    model = Sized(mlp(), most)
    assert_alike(moments_of(model), moments_of(Sized(mlp(), 8)))
    assert max(model.asked) == {8: 8, 3: 2, 2: 2}[most]


def test_moments_are_of_samples_as_they_are_without_padding() -> None:
    moments = []
    # The places of tokens are the same in both, by the model or by the collator; the texts' order is
    # such that signs are shared by the same ones.
    for collate in (Pad("left"), Pad("left", places=True)):
        job = Job(Placed(), {"train": Texts(range(3, 96, 4))}, output="causal_lm", collate=collate)
        output = as_output("causal_lm")
        moments.append(sampled_moments(job, output, "train", torch.device("cpu")))
    for name, (rows, columns) in moments[1].items():
        torch.testing.assert_close(moments[0][name].rows, rows, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(moments[0][name].columns, columns, rtol=1e-4, atol=1e-9)


def test_moments_that_no_memory_suffices_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(FactorisedEngine, "rows", full)
        with pytest.raises(MemoryLimitError, match="not suffice for the gradient of one sample"):
            moments_of(mlp())
    with pytest.raises(MemoryLimitError, match="estimating second moments of gradients"):
        moments_of(mlp(), memory_limit="1KB")


class Bulky(Sized):
    """A model of which each sample takes some 200 KB on the way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x[..., None] * torch.ones(2000)).mean(-1))


def test_moments_keep_to_the_memory_limit_of_a_job() -> None:
    """Bytes are counted while they are estimated: fewer samples at once need fewer."""
    needs, wanted = dict[int, int](), moments_of(Bulky(mlp(), 8), 16)
    for limit in (10_000_000, 700_000, 500_000):
        model = Bulky(mlp(), 8)
        needs[limit] = peak_bytes(lambda m=model, n=limit: moments_of(m, 16, memory_limit=n))  # type: ignore[misc]
        assert_alike(moments_of(model, 16, memory_limit=limit), wanted)
    assert needs[500_000] < 500_000 < needs[700_000] < 700_000 < needs[10_000_000]


def test_a_store_keeps_its_scale_and_refuses_another(tmp_path: Path) -> None:
    model, data, where = mlp(), Samples(20), tmp_path / "s.zarr"
    store = run(model, data, where, scale="samples")
    assert store.spec.scale is not None
    first = column(store)
    # What is left open, and what asks for the same source, takes the store's.
    for split, scale in (("test", None), ("more", "samples")):
        run(model, data, where, split=split, scale=scale)
        np.testing.assert_array_equal(column(store, split=split), first)
    for scale, said in (
        ("adam", "has one from 'samples' as the scale of its gradients, and 'adam' is asked"),
        (drawn_moments(model), "'given' is asked"),
    ):
        with pytest.raises(SpecMismatchError, match=said):
            run(model, data, where, split="other", scale=scale)
    plain = run(model, data, tmp_path / "plain.zarr")
    assert plain.spec.scale is None
    with pytest.raises(SpecMismatchError, match="has none as the scale"):
        run(model, data, tmp_path / "plain.zarr", split="other", scale="samples")
    given = tmp_path / "given.zarr"
    run(model, data, given, scale=drawn_moments(model))
    run(model, data, given, split="test", scale=drawn_moments(model))
    with pytest.raises(SpecMismatchError, match="scaled by factors"):
        run(model, data, given, split="other", scale=drawn_moments(model, seed=6))


def test_factors_that_are_gone_or_damaged_are_errors(tmp_path: Path) -> None:
    model, data, where = mlp(), Samples(20), tmp_path / "s.zarr"
    store = run(model, data, where, scale=drawn_moments(model))
    assert store.spec.scale is not None
    table = where / "_scales" / store.spec.scale.digest
    assert not verify_store(where).findings
    chunk = table / "rows" / "c" / "0"
    value = bytearray(chunk.read_bytes())
    value[0] ^= 1
    chunk.write_bytes(value)
    assert [one.kind for one in verify_store(where).findings] == ["damaged"]
    with pytest.raises(DamagedError):
        run(model, data, where, split="test")
    for path in sorted(table.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    table.rmdir()
    with pytest.raises(NotFoundError, match="factors of the store's scale"):
        run(model, data, where, split="test")
    found = verify_store(where).findings
    assert [one.kind for one in found] == ["document"] and "are not there" in found[0].message


def test_rows_that_are_not_finite_do_not_reach_the_scale(tmp_path: Path) -> None:
    data = Samples(40)
    data.x[3] = torch.nan
    store = run(mlp(), data, tmp_path / "s.zarr", scale="samples", skip_bad_rows=True)
    assert [row.position for row in store.skipped(0, "train")] == [3]
    data.x[:] = torch.nan
    with pytest.raises(NumericsError, match="none of the 40 samples"):
        run(mlp(), data, tmp_path / "none.zarr", scale="samples", skip_bad_rows=True)


def test_the_scale_of_the_worker_that_came_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, model = tmp_path / "s.zarr", mlp()
    first = run(model, Samples(20, seed=5), where, split="other", scale="samples")
    # This worker looked before the first one's store was there, and has another scale of its own.
    looks: dict[str, int] = {"featurizing": 0, "task": 0}

    def unseen(module: str) -> Any:
        def find(place: Any) -> Any:
            looks[module] += 1
            return None if looks[module] == 1 else find_store(place)

        return find

    monkeypatch.setattr(featurizing, "find_store", unseen("featurizing"))
    monkeypatch.setattr(task, "find_store", unseen("task"))
    store = run(model, Samples(20), where, scale="samples")
    assert looks == {"featurizing": 2, "task": 2} and store.spec == first.spec
    monkeypatch.undo()
    same = run(model, Samples(20), where, split="again")
    np.testing.assert_array_equal(column(store), column(same, split="again"))


def test_other_parameters_than_the_stores_are_told_before_anything_else(tmp_path: Path) -> None:
    where = tmp_path / "s.zarr"
    run(mlp(), Samples(20), where, scale="samples", parameters="2.*")
    with pytest.raises(SpecMismatchError, match="parameters"):
        run(mlp(), Samples(20), where, split="test")


def test_a_scale_for_data_that_the_model_does_not_take_is_refused_in_words(tmp_path: Path) -> None:
    data = [(x[:5], y) for x, y in zip(Samples(9).x, Samples(9).y, strict=True)]
    with pytest.raises(TrakStoreError, match="does not take the first samples"):
        run(mlp(), data, tmp_path / "s.zarr", scale="samples")


@pytest.mark.parametrize(
    ("scale", "error", "said"),
    [
        (3, TrakStoreError, "scale is 'samples', 'adam', the path"),
        ({"0.weight": torch.ones(10, 12)}, TrakStoreError, "no second moments of '0.bias'"),
        ("nowhere.pt", NotFoundError, "no file nowhere.pt of an optimizer's state"),
        ("adam", NotFoundError, r"needs a checkpoint's folder with optimizer\.pt"),
    ],
)
def test_scales_that_cannot_be_had(tmp_path: Path, scale: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        run(mlp(), Samples(9), tmp_path / "s.zarr", scale=scale)
    assert not (tmp_path / "s.zarr" / "zarr.json").exists()


def test_a_negative_moment_is_refused(tmp_path: Path) -> None:
    model = mlp()
    moments = drawn_moments(model)
    moments["2.bias"][0] = -1
    with pytest.raises(NumericsError, match=r"of '2\.bias' are negative, or not finite"):
        run(model, Samples(9), tmp_path / "s.zarr", scale=moments)


def test_labels_that_cannot_be_drawn_have_no_sampled_scale(tmp_path: Path) -> None:
    model = nn.Linear(12, 1)
    data = [(x, torch.zeros(())) for x in Samples(9).x]
    with pytest.raises(
        TrakStoreError, match="labels cannot be drawn for the output 'squared_error'"
    ):
        run(model, data, tmp_path / "s.zarr", output="squared_error", scale="samples")


@pytest.mark.parametrize("groups", [1, 2])
def test_adams_own_moments_are_read_by_name(tmp_path: Path, groups: int) -> None:
    model, data = (
        seeded(lambda: nn.Sequential(nn.Linear(12, 6), nn.LayerNorm(6), nn.Linear(6, 3))),
        Samples(32),
    )
    named = dict(model.named_parameters())
    parts = [list(named.values())]
    if groups == 2:  # as transformers' Trainer deals them: what is decayed, then biases and norms
        parts = [
            [named["0.weight"], named["2.weight"]],
            [named[n] for n in ("0.bias", "1.weight", "1.bias", "2.bias")],
        ]
    optimizer = torch.optim.AdamW([{"params": one} for one in parts])
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    got = adam_moments(tmp_path / "optimizer.pt", model)
    for name, p in named.items():
        assert torch.equal(got[name], optimizer.state[p]["exp_avg_sq"]), name
    store = run(model, data, tmp_path / "s.zarr", scale=tmp_path / "optimizer.pt")
    assert store.spec.scale is not None and store.spec.scale.source == "adam"
    same = run(model, data, tmp_path / "same.zarr", scale=got)
    np.testing.assert_array_equal(column(store), column(same))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_trainers_folder_has_the_moments_of_its_last_checkpoint(
    tmp_path: Path, kind: str
) -> None:
    import transformers as tf

    small = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 12}

    def model() -> Any:
        if kind == "llama":
            return seeded(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**small)))
        return seeded(lambda: tf.BertForSequenceClassification(tf.BertConfig(**small)))

    ids = torch.randint(0, 20, (8, 5), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": one, "labels": one if kind == "llama" else one[0] % 2} for one in ids]
    options: Any = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
    options |= {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    trained = model()
    trainer = tf.Trainer(
        trained, tf.TrainingArguments(tmp_path / "out", **options), train_dataset=data
    )
    trainer.train()
    state = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    got = adam_moments(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", model())
    for name, p in trained.named_parameters():
        assert torch.equal(got[name], state[p]["exp_avg_sq"]), name
    stores = []
    for scale in ("adam", got):
        job = Job(model(), {"train": data}, checkpoints=tmp_path / "out", scale=scale)
        stores.append(tmp_path / str(len(stores)))
        featurize_job(job, stores[-1], progress=False)
    one, other = (column(ts.open_store(where), epoch=4) for where in stores)
    np.testing.assert_array_equal(one, other)


def test_moments_in_the_shards_of_a_trainer_are_read_by_name(tmp_path: Path) -> None:
    model, moments = mlp(), drawn_moments(mlp())
    state = {
        f"_orig_mod.{n}": {"exp_avg_sq": v, "step": torch.ones(())} for n, v in moments.items()
    }
    folder = tmp_path / "checkpoint-3" / "optimizer_0"
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"optimizer": {"state": state}}, checkpoint_id=folder)
    assert optimizer_file(tmp_path / "checkpoint-3") == folder
    got = adam_moments(folder, model)
    assert got.keys() == moments.keys() and all(torch.equal(got[n], moments[n]) for n in moments)
    with pytest.raises(TrakStoreError, match=r"has no exp_avg_sq of 'conv\.weight'"):
        adam_moments(folder, seeded(ConvNet))


def test_files_that_are_no_state_of_adam(tmp_path: Path) -> None:
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    nn.functional.cross_entropy(model(Samples(4).x), Samples(4).y).backward()
    sgd.step()
    other = torch.optim.Adam(nn.Linear(3, 3).parameters())
    for state, said in (
        (sgd.state_dict(), "has no exp_avg_sq, Adam's second moments, it has momentum_buffer"),
        (other.state_dict(), "the state of 2 parameters, which are not the 4"),
        (model.state_dict(), "is not the state of an optimizer"),
    ):
        torch.save(state, tmp_path / "optimizer.pt")
        with pytest.raises(TrakStoreError, match=said):
            adam_moments(tmp_path / "optimizer.pt", model)


def test_a_job_scales_and_draws_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    weights = {epoch: mlp(epoch).state_dict() for epoch in (1, 2)}
    job = Job(
        mlp(),
        {"train": Samples(40), "test": Samples(7, seed=1)},
        checkpoints=weights,
        scale="samples",
        sampled=3,
        projector=SJLT,
        batch_size=8,
        block_rows=8,
    )
    stores = []
    for world in (1, 3):
        where = tmp_path / f"{world}.zarr"
        for rank in reversed(range(world)):
            featurize_job(job, where, rank=rank, world_size=world, progress=False)
        stores.append(ts.open_store(where))
    one, three = stores
    assert one.spec == three.spec
    assert one.splits == ("test", "train", "train~sampled")
    for epoch in (1, 2):
        for split in one.splits:
            for name in one.split(epoch, split).columns:
                rows = one.split(epoch, split).rows
                mine, its = (s.split(epoch, split).column(name).read(0, rows) for s in stores)
                np.testing.assert_array_equal(mine, its)
