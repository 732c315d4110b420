"""Labels drawn from the model's own predictions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.engines import engine, error, plain
from features.models import Samples, mlp, seeded
from features.whole_models import Language
from torch import nn

import trakstore as ts
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize, featurize_job
from trakstore.features.draws import LabelDraws
from trakstore.features.outputs import CausalLM, CrossEntropy, MaskedLM, RowOutputs
from trakstore.features.own_predictions import OwnPredictions

IDENTITY = ts.ProjectionSpec("identity")


def read(store: ts.FeatureStore, name: str, split: str = "train~sampled") -> Any:
    one = store.split(0, split)
    return one.column(name).read(0, one.rows)


def sampled(model: nn.Module, data: Any, where: Any, **options: Any) -> ts.FeatureStore:
    options = {"projector": IDENTITY, "batch_size": 12, "progress": False, **options}
    featurize(model, data, where, labels="sampled", **options)
    return ts.open_store(where)


def test_rows_are_the_samples_with_other_labels(tmp_path: Path) -> None:
    model, data = mlp().eval(), Samples(20)
    store = sampled(model, data, tmp_path / "s.zarr", draws=3, output="cross_entropy")
    labels, features = read(store, "label"), read(store, "features")
    assert read(store, "sample_id")[:4].tolist() == ["0~0", "0~1", "0~2", "1~0"]
    for row in range(60):
        loss = -model(data.x[row // 3][None]).log_softmax(1)[0, labels[row]]
        gradient = torch.cat(
            [g.ravel() for g in torch.autograd.grad(loss, list(model.parameters()))]
        )
        np.testing.assert_allclose(features[row], gradient, atol=1e-5)
    # Other seeds, draws and samples have other labels; the same run has the same.
    again = sampled(model, data, tmp_path / "again.zarr", draws=3, output="cross_entropy")
    other = sampled(model, data, tmp_path / "other.zarr", draws=3, seed=1, output="cross_entropy")
    np.testing.assert_array_equal(read(again, "features"), features)
    assert (read(other, "label") != labels).any()
    # Batches of another size, and more draws, leave each draw as it is.
    more = sampled(
        model, data, tmp_path / "more.zarr", draws=5, batch_size=7, output="cross_entropy"
    )
    kept = read(more, "label").reshape(20, 5)[:, :3].ravel()
    np.testing.assert_array_equal(kept, labels)


class Counted(nn.Module):
    """A language model that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.calls = Language(), 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.model(ids)
        return out


def test_all_draws_of_a_sample_take_one_forward_pass() -> None:
    model = seeded(Counted).eval()
    output, ids = (
        CausalLM(),
        torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0)),
    )
    draws = LabelDraws(model, output, np.arange(4), 3, 0)
    repeated = (ids.repeat_interleave(3, 0),)
    batch = draws.labelled(np.arange(12), repeated)
    own = engine(model, IDENTITY, output)
    apart = own.rows(batch)
    before = model.calls
    together = own.rows(batch, draws=3)
    assert model.calls == before + 1
    assert error(together.features, apart.features) < 1e-6
    for one, other in zip(together.outputs, apart.outputs, strict=True):
        torch.testing.assert_close(one, other)
    # A hook of the model sees each answer: such a model is called for each draw.
    model.register_forward_hook(lambda *_: None)
    assert error(own.rows(batch, draws=3).features, apart.features) < 1e-6
    assert "forward" not in vars(model)


def test_classes_are_drawn_as_often_as_the_model_says() -> None:
    model, data, draws = mlp().eval(), Samples(4), 3000
    labels = LabelDraws(model, CrossEntropy(), np.arange(4), draws, 0)
    rows = np.arange(4 * draws)
    batch = tuple(one.repeat_interleave(draws, 0) for one in (data.x, data.y))
    drawn = labels.labelled(rows, batch)[1].reshape(4, draws)
    p = model(data.x).softmax(1).detach().numpy()
    counts = np.stack([(drawn == c).sum(1).numpy() for c in range(3)], 1)
    chi_square = ((counts - draws * p) ** 2 / (draws * p)).sum()
    assert chi_square < 26.1  # 0.1% of a chi-square with 8 degrees is above


@pytest.mark.parametrize("output", ["cross_entropy", "margin"])
def test_the_kernel_of_drawn_labels_is_the_gauss_newton_matrix(tmp_path: Path, output: str) -> None:
    model, data = mlp().eval(), Samples(30)
    parameters = list(model.parameters())
    exact: Any = 0
    for x in data.x:
        logits = model(x[None])[0]
        rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in logits]
        jacobian = torch.stack([torch.cat([g.ravel() for g in row]) for row in rows])
        p = logits.softmax(0).detach()
        exact = exact + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    errors = []
    for draws in (8, 128):
        where = tmp_path / f"{draws}.zarr"
        store = sampled(model, data, where, draws=draws, output=output, batch_size=240)
        g = read(store, "features") * read(store, "out_to_loss")[:, None]
        errors.append(float(torch.norm(torch.from_numpy(g.T @ g / draws) - exact) / exact.norm()))
    # One over the root of the draws: 16 times as many have a quarter of the error.
    assert errors[1] < 0.1
    assert 2.5 < errors[0] / errors[1] < 6


def test_sequences_have_drawn_labels_where_labels_count() -> None:
    model = seeded(Language).eval()
    ids = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))
    asked = ids.clone()
    asked[:, :4] = -100
    asked[2, 6:] = -100
    draws = LabelDraws(model, CausalLM(), np.array(["a", "b", "c"]), 1, 0)
    drawn = draws.labelled(np.arange(3), (ids, asked))
    assert torch.equal(drawn[0], ids)
    assert torch.equal(drawn[1] == -100, asked == -100)
    assert not torch.equal(drawn[1], asked)
    # Left out positions do not shift the draws of others: they are numbered among those that count.
    padded = (
        torch.cat([torch.zeros(3, 2, dtype=torch.int64), ids], 1),
        torch.cat([torch.full((3, 2), -100), asked], 1),
    )
    again = draws.labelled(np.arange(3), padded)
    assert torch.equal(again[1][:, 2:], drawn[1])


def transformers_model(kind: str) -> nn.Module:
    import transformers

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 16}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **small))
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **small))
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=20, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_transformers_models_are_asked_for_drawn_tokens(tmp_path: Path, kind: str) -> None:
    model = seeded(lambda: transformers_model(kind)).eval()
    ids = torch.randint(5, 20, (6, 8), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, ::2] = -100
    data = [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]
    output = MaskedLM() if kind == "bert" else CausalLM()
    store = sampled(
        model, data, tmp_path / "s.zarr", output=output, projector=ts.ProjectionSpec("sjlt", dim=64)
    )
    # The mean of the loss over draws is the mean entropy of the model's predictions.
    draws = LabelDraws(model, output, np.arange(6), 400, 0)
    batch = {name: torch.stack([one[name] for one in data]) for name in data[0]}
    repeated = {name: one.repeat_interleave(400, 0) for name, one in batch.items()}
    with torch.no_grad():
        losses = output(model, draws.labelled(np.arange(2400), repeated)).loss.reshape(6, 400)
        logits, counted = output.predicted(model, batch), output.counted(model, batch)
        p = logits.softmax(2)
        entropy = -(p * p.log()).sum(2)
        expected = (entropy * counted).sum(1) / counted.sum(1)
    spread = losses.std(1) / 20
    assert bool(((losses.mean(1) - expected).abs() < 4 * spread).all())
    assert read(store, "loss").shape == (48,)  # 8 draws by default


def test_draws_that_cannot_be_had(tmp_path: Path) -> None:
    where = tmp_path / "s.zarr"
    for options, raised, said in (
        ({"draws": 0}, TrakStoreError, "draws of 'train' must be an integer, 1 or more, got 0"),
        ({"labels": "drawn"}, TrakStoreError, "labels are 'given' or 'sampled', got 'drawn'"),
        ({"seed": -1}, TrakStoreError, "draw_seed must be an integer, 0 or more, got -1"),
    ):
        with pytest.raises(raised, match=said):
            featurize(mlp(), Samples(9), where, **{"labels": "sampled", **options})
    with pytest.raises(TrakStoreError, match="'train~sampled' names samples with drawn labels"):
        featurize(mlp(), Samples(9), where, split="train~sampled")
    with pytest.raises(NotFoundError, match="drawn for the split 'training'"):
        Job(mlp(), {"train": Samples(9)}, sampled={"training": 2})
    with pytest.raises(
        TrakStoreError, match="labels cannot be drawn for the output 'squared_error'"
    ):
        sampled(nn.Linear(12, 1), [(x, x[0]) for x in Samples(9).x], where, output="squared_error")
    assert not where.exists()


def test_rows_of_other_samples_make_no_kernel(tmp_path: Path) -> None:
    model, where = mlp(), tmp_path / "s.zarr"
    options = {"projector": ts.ProjectionSpec("sjlt", dim=16), "progress": False}
    for split in ("train", "test"):
        featurize(model, Samples(40), where, split=split, **options)
    half = torch.utils.data.Subset(Samples(40), range(20))
    featurize(model, half, where, labels="sampled", draws=4, **options)
    with pytest.raises(SpecMismatchError, match=r"sampled of epoch 0 has 80 rows, data .*~4x0"):
        ts.trak_scores(ts.open_store(where), kernel="sampled")


def test_drawn_rows_with_other_ids_say_which_ids_they_need(tmp_path: Path) -> None:
    model, where = mlp(), tmp_path / "s.zarr"
    options = {"projector": ts.ProjectionSpec("sjlt", dim=16), "progress": False}
    names = [f"n{at}" for at in range(12)]
    featurize(model, Samples(12), where, split="train", ids=names, **options)
    featurize(model, Samples(12), where, split="test", **options)
    featurize(model, Samples(12), where, labels="sampled", draws=2, **options)
    store = ts.open_store(where)
    with pytest.raises(
        SpecMismatchError, match=r"with the ids of train \(ids=\), whose first is 'n0'.* '0~0'"
    ):
        ts.trak_scores(store, kernel="sampled")
    # And with these ids it is one of its kernels.
    store.drop(0, "train~sampled")
    featurize(model, Samples(12), where, labels="sampled", draws=2, ids=names, **options)
    assert ts.trak_scores(ts.open_store(where), kernel="sampled").shape == (12, 12)


class Narrow(nn.Module):
    """A model that has no memory for more than four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("out of memory")
        out: torch.Tensor = self.model(x)
        return out


def test_labels_are_drawn_of_as_many_samples_as_memory_suffices_for(tmp_path: Path) -> None:
    options: dict[str, Any] = {"output": "cross_entropy", "draws": 1, "projector": None}
    narrow = sampled(seeded(Narrow), Samples(20), tmp_path / "narrow", **options)
    wide = sampled(mlp(), Samples(20), tmp_path / "wide", **options)
    np.testing.assert_array_equal(read(narrow, "label"), read(wide, "label"))


class Twice(CrossEntropy):
    """An output that asks the model twice."""

    name = "twice"

    def __call__(self, model: Any, batch: Any) -> Any:
        x, label = batch
        logits = model(x) + model(2 * x)
        loss = torch.nn.functional.cross_entropy(logits, label, reduction="none")
        return RowOutputs(loss, loss, -torch.ones_like(loss))


def test_an_output_that_asks_the_model_twice_gets_two_answers() -> None:
    model, data = mlp().eval(), Samples(4)
    batch = (data.x.repeat_interleave(3, 0), torch.arange(12) % 3)
    own = engine(model, IDENTITY, Twice())
    assert error(own.rows(batch, draws=3).features, plain(model, batch, Twice())) < 1e-5


def test_sampled_rows_grow_with_their_samples(tmp_path: Path) -> None:
    model, options = mlp(), {"projector": IDENTITY, "batch_size": 8, "block_rows": 8}
    whole = Job(model, {"train": Samples(20)}, sampled=2, **options)
    featurize_job(whole, tmp_path / "whole.zarr", progress=False)
    first = torch.utils.data.Subset(Samples(20), range(12))
    featurize_job(
        Job(model, {"train": first}, sampled=2, **options), tmp_path / "s.zarr", progress=False
    )
    more = Job(model, {"train": Samples(20)}, sampled=2, append=True, **options)
    featurize_job(more, tmp_path / "s.zarr", progress=False)
    for split in ("train", "train~sampled"):
        one, other = (ts.open_store(tmp_path / n) for n in ("whole.zarr", "s.zarr"))
        for name in ("features", "label", "sample_id"):
            np.testing.assert_array_equal(read(one, name, split), read(other, name, split))


class Meeting(nn.Module):
    """A language model whose samples see one another in batches in which one of them is marked."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.model, self.how, self.calls = (
            nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)),
            how,
            0,
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits: torch.Tensor = self.model(ids)
        marked = ids[:, 0] == 0
        if self.how == "question":
            return -logits if marked.any() else logits
        if self.how == "sum":
            return logits + (logits * marked[:, None, None]).sum(0) * ~marked[:, None, None]
        if self.how == "scripted":
            return scripted(logits, marked)
        return logits


def turned(logits: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    return -logits if bool(marked.any()) else logits


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripts are deprecated, and there
    scripted = torch.jit.script(turned)


@pytest.mark.parametrize(
    ("how", "calls"), [("apart", 2), ("question", 2 + 3), ("sum", 2 + 8), ("scripted", 2 + 4)]
)
def test_labels_are_drawn_from_what_a_sample_predicts_alone(how: str, calls: int) -> None:
    model, output = seeded(lambda: Meeting(how)).eval(), CausalLM()
    ids = torch.randint(1, 11, (8, 7), generator=torch.Generator().manual_seed(0))
    ids[5, 0] = 0
    draws, alone = (LabelDraws(model, output, np.arange(8), 2, 0) for _ in range(2))
    model.calls = 0  # type: ignore[assignment]
    drawn = [
        draws.labelled(np.arange(lo, lo + 8), (ids[lo // 2 : lo // 2 + 4].repeat_interleave(2, 0),))
        for lo in (0, 8)
    ]
    assert model.calls == calls
    for row in range(16):
        (own,) = alone.labelled(np.array([row]), (ids[row // 2][None],))[1:]
        assert torch.equal(drawn[row // 8][1][row % 8], own[0])


@pytest.mark.parametrize("make", [lambda: Meeting("sum"), Language])
def test_what_differs_by_rounding_alone_stays_as_it_is(make: Any) -> None:
    model = seeded(make).eval()
    ids = torch.randint(1, 11, (4, 7), generator=torch.Generator().manual_seed(0))
    output = CausalLM()
    own = OwnPredictions(model, output).of((ids,), torch.ones(4, 6, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(own, output.predicted(model, (ids,)))
