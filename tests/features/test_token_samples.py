"""Rows of tokens: they are the parts of their samples' rows, by every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.engines import engine, error, generic, plain
from features.models import Samples, mlp, seeded
from features.stopped import stopped_after
from features.token_models import counted, gpt2_with_adapters, llama, padded, padded_left, texts
from features.whole_models import Language
from numpy.typing import NDArray
from torch import nn

import trakstore as ts
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import (
    DPO,
    CausalLM,
    Job,
    MaskedLM,
    Streamed,
    Weighted,
    featurize,
    featurize_job,
)
from trakstore.features.outputs.tokens import OfTokens

SPEC = ts.ProjectionSpec("sjlt", dim=48, per_epoch=True)


def job(model: nn.Module, **options: Any) -> Job:
    """Two epochs of a model, and texts with and without prompts."""
    state = {name: one.detach().clone() for name, one in model.state_dict().items()}
    later = {name: 1.2 * one if one.is_floating_point() else one for name, one in state.items()}
    options = {"projector": SPEC, "tokens": 1, "batch_size": 5, "block_rows": 8, **options}
    options = {"collate": padded_left, **options}
    return Job(
        model,
        {"train": texts(9), "test": texts(4, seed=1)},
        checkpoints={1: state, 2: later},
        ids={"test": ["a", "b#2", "c", "d"]},
        **options,
    )


def read(store: ts.FeatureStore, name: str, split: str, epoch: int = 1) -> NDArray[Any]:
    one = store.split(epoch, split)
    return np.asarray(one.column(name).read(0, one.rows))


def added_up(values: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
    """Sums over the tokens of each sample, in order."""
    samples = [one.rpartition("#")[0] for one in ids.tolist()]
    names = list(dict.fromkeys(samples))
    places = np.array([names.index(one) for one in samples])
    return np.stack([values[places == at].sum(0) for at in range(len(names))])


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float((np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)).max())


@pytest.mark.parametrize(("make", "collate"), [(llama, padded_left), (gpt2_with_adapters, padded)])
def test_scores_of_tokens_add_up_to_the_samples(tmp_path: Path, make: Any, collate: Any) -> None:
    own, where = job(make(), collate=collate), tmp_path / "s.zarr"
    featurize_job(own, where, progress=False)
    store = ts.open_store(where)
    ids = read(store, "sample_id", "test~tokens")
    wanted = [
        f"{name}#{at}"
        for name, one in zip(own.ids["test"], own.datasets["test"], strict=True)
        for at in counted(one)
    ]
    assert ids.tolist() == wanted
    for epoch in (1, 2):
        rows, whole = (read(store, "features", one, epoch) for one in ("test~tokens", "test"))
        assert apart(added_up(rows, ids), whole) < 1e-5
        loss, of_sample = (read(store, "loss", one, epoch) for one in ("test~tokens", "test"))
        np.testing.assert_allclose(added_up(loss, ids), of_sample, rtol=1e-5)
    # Both epochs together, by a kernel and by plain products, with Q of the train rows.
    for method in (ts.trak_scores, ts.influence_scores, ts.grad_dot_scores):
        scores = method(store, targets="test~tokens")
        documents = np.asarray(method(store, targets="test"))
        assert apart(added_up(np.asarray(scores), ids), documents) < 1e-5
    first = ts.top_k(ts.trak_scores(store, targets="test~tokens"), 2)
    assert first["target_id"].values.tolist() == wanted


@pytest.mark.parametrize("over", ["sequence", "tokens", "loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", [CausalLM, MaskedLM])
def test_gradients_of_tokens_are_those_of_their_own_losses(
    kind: Any, over: Any, reduction: Any
) -> None:
    model, batch, output = llama().eval(), padded_left(texts(1)), kind(over, reduction)
    numbers = output.tokens(model, batch)
    places = (numbers[0] >= 0).nonzero()[:, 0]
    own = torch.eye(numbers.shape[1], dtype=torch.bool)[places]
    repeated = {name: one.expand(len(places), -1) for name, one in batch.items()}
    rows, whole = output(model, OfTokens(own, repeated)), output(model, batch)
    parameters = list(model.parameters())

    def gradient(one: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(one, parameters, retain_graph=True)
        return torch.cat([part.ravel() for part in parts])

    each = torch.stack([gradient(one) for one in rows.output])
    total = gradient(whole.output[0])
    assert (each.sum(0) - total).norm() < 1e-5 * total.norm()
    # The direction of each is that of one label's cross entropy or margin, computed plainly.
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[0]
    labels = batch["labels"][0]
    for row, at in zip(each, places.tolist(), strict=True):
        seen, label = (logits[at], labels[at + 1]) if kind is CausalLM else (logits[at], labels[at])
        alone = -seen.log_softmax(0)[label]
        if over == "tokens":
            p = (-alone).exp()
            alone = (p / (1 - p)).log()
        plain = gradient(alone)
        cosine = row @ plain / row.norm() / plain.norm()
        assert abs(cosine) > 1 - 1e-4
        assert (cosine > 0) == (over != "sequence")


def test_engines_agree_on_rows_of_tokens() -> None:
    model, output = seeded(Language), CausalLM()
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    batch = OfTokens(torch.eye(4, dtype=torch.bool).repeat(2, 1), (ids.repeat_interleave(4, 0),))
    expected = plain(model, batch, output)
    whole = plain(model, (ids,), output)
    assert error(expected.reshape(2, 4, -1).sum(1), whole) < 1e-5
    own = engine(model, output=output)
    assert error(own.rows(batch).features, expected) < 1e-5
    assert own.generic_parameters == ()
    assert error(generic(model, output=output).rows(batch).features, expected) < 1e-5


def test_runs_of_tokens_add_up_as_well(tmp_path: Path) -> None:
    own, where = job(llama(), tokens={"train": 3}), tmp_path / "s.zarr"
    featurize_job(own, where, epochs=1, progress=False)
    store = ts.open_store(where)
    ids = read(store, "sample_id", "train~tokens")
    assert ids.tolist()[:4] == ["0#1", "1#2", "1#5", "2#1"]
    rows, whole = read(store, "features", "train~tokens"), read(store, "features", "train")
    assert apart(added_up(rows, ids), whole) < 1e-5


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = job(llama())
    one, other = tmp_path / "one.zarr", tmp_path / "other.zarr"
    asked: dict[str, Any] = {"epochs": 1, "splits": "test~tokens", "progress": False}
    with stopped_after(1, monkeypatch):
        featurize_job(own, one, **asked)
    rows = ts.open_store(one).split(1, "test~tokens").rows
    done = featurize_job(own, one, **asked)
    assert rows == sum(len(counted(text)) for text in own.datasets["test"])
    assert done.rows == rows - 8
    featurize_job(own, other, **asked)
    again, whole = (read(ts.open_store(where), "features", "test~tokens") for where in (one, other))
    np.testing.assert_array_equal(again, whole)
    # Other labels are other tokens, also of a text that no fingerprint looks at.
    own.datasets["test"][3]["labels"][-1] = -100
    with pytest.raises(SpecMismatchError, match="dataset"):
        featurize_job(own, one, **asked)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"scale": "samples"}])
def test_other_stores(tmp_path: Path, options: Any) -> None:
    own, where = job(llama(), **options), tmp_path / "s.zarr"
    featurize_job(own, where, epochs=2, progress=False)
    store = ts.open_store(where)
    tokens, whole = (np.asarray(store.features(2, one)) for one in ("test~tokens", "test"))
    rounding = 0.03 if "dtype" in options else 1e-5
    assert apart(added_up(tokens, read(store, "sample_id", "test~tokens", 2)), whole) < rounding


def test_an_encoder_decoder_and_a_weighted_output(tmp_path: Path) -> None:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = tf.T5Config(
        vocab_size=23,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    model = tf.T5ForConditionalGeneration(config)
    data = [
        {"input_ids": torch.tensor([3, 4, 5]), "labels": labels, "weights": torch.tensor(weight)}
        for labels, weight in ((torch.tensor([6, 7, 8]), 2.0), (torch.tensor([9, -100, 2]), -1.0))
    ]
    made: dict[str, Any] = {"output": Weighted(CausalLM()), "projector": SPEC, "progress": False}
    featurize(model, data, tmp_path / "s.zarr", split="test", **made)
    featurize(model, data, tmp_path / "s.zarr", split="test", tokens=1, **made)
    store = ts.open_store(tmp_path / "s.zarr")
    ids = read(store, "sample_id", "test~tokens", 0)
    assert ids.tolist() == ["0#0", "0#1", "0#2", "1#0", "1#2"]
    for name in ("features", "loss"):
        rows, whole = (read(store, name, one, 0) for one in ("test~tokens", "test"))
        np.testing.assert_allclose(added_up(rows, ids), whole, atol=1e-5)


def test_appended_samples_bring_their_tokens(tmp_path: Path) -> None:
    data, where = texts(5), tmp_path / "s.zarr"
    made: dict[str, Any] = {"collate": padded_left, "projector": SPEC, "progress": False}
    made |= {"split": "test", "tokens": 1, "output": "causal_lm"}
    model = llama()
    featurize(model, data[:3], where, **made)
    featurize(model, data, where, append=True, **made)
    featurize(model, data, tmp_path / "whole.zarr", **made)
    grown, whole = (
        read(ts.open_store(one), "features", "test~tokens", 0)
        for one in (where, tmp_path / "whole.zarr")
    )
    assert len(grown) == len(whole)
    assert apart(grown, whole) < 1e-5


def test_samples_without_tokens_may_be_the_first_that_are_appended(tmp_path: Path) -> None:
    empty = [{"input_ids": [1, 2, 3], "labels": [-100] * 3}]
    old, where = texts(3) + empty, tmp_path / "s.zarr"
    data = old + 2 * empty + texts(2, seed=1)
    made: dict[str, Any] = {"collate": padded_left, "projector": SPEC, "progress": False}
    made |= {"split": "test", "tokens": 1, "output": "causal_lm"}
    model = llama()
    featurize(model, old, where, **made)
    other = [*data[:3], texts(4)[3], *data[4:]]
    with pytest.raises(SpecMismatchError, match="dataset"):
        featurize(model, other, where, append=True, **made)
    featurize(model, data, where, append=True, **made)
    ids = read(ts.open_store(where), "sample_id", "test~tokens", 0).tolist()
    assert ids == [f"{at}#{token}" for at, one in enumerate(data) for token in counted(one)]


def test_rows_of_tokens_have_a_mask_of_their_own(tmp_path: Path) -> None:
    own, where = job(llama()), tmp_path / "s.zarr"
    featurize_job(own, where, epochs=1, progress=False)
    store = ts.open_store(where)
    ids = read(store, "sample_id", "test~tokens").tolist()
    masked = [one for one in ids if one.startswith("a#")]

    def targets() -> list[str]:
        scores = ts.grad_dot_scores(store, targets="test~tokens")
        named: list[str] = ts.top_k(scores, 1)["target_id"].values.tolist()
        return named

    store.mask("test", ["a"])
    assert targets() == ids
    assert store.mask("test~tokens", masked) == len(masked) > 1
    assert targets() == [one for one in ids if one not in masked]


def test_what_has_no_tokens_is_refused(tmp_path: Path) -> None:
    data = {"train": Samples(4), "test": Samples(4)}
    with pytest.raises(TrakStoreError, match="'margin' is not made of one sequence's tokens"):
        Job(mlp(), data, tokens=1)
    with pytest.raises(TrakStoreError, match="'dpo' is not made"):
        Job(mlp(), data, output=DPO(), tokens=1)
    with pytest.raises(TrakStoreError, match="'test~tokens' names rows of tokens"):
        Job(mlp(), {"test~tokens": Samples(4)})
    for none in ([], None, False):
        with pytest.raises(TrakStoreError, match="tokens of 'test' must be an integer, 1 or more"):
            Job(llama(), {"test": texts(2)}, tokens=none)  # type: ignore[arg-type]
        with pytest.raises(TrakStoreError, match="tokens must be an integer, 0 or more, got"):
            featurize(llama(), texts(2), tmp_path / "s", tokens=none)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="rows of tokens are asked of the split 'test'"):
        Job(llama(), {"train": texts(2)}, tokens=1)
    with pytest.raises(TrakStoreError, match="give one at a time"):
        featurize(llama(), texts(2), tmp_path / "s", tokens=1, labels="sampled")
    made: dict[str, Any] = {"collate": padded_left, "progress": False, "tokens": 1}
    with pytest.raises(TrakStoreError, match="is a stream"):
        featurize(llama(), Streamed(texts(3)), tmp_path / "s", **made)
    empty = [{"input_ids": [1, 2], "labels": [1, -100]}]
    with pytest.raises(TrakStoreError, match="no token of the data set 'train' counts"):
        featurize(llama(), empty, tmp_path / "s", **made)
    assert not (tmp_path / "s").exists()
    weighted = Job(mlp(), data, output=Weighted(DPO()), tokens=1)
    with pytest.raises(TrakStoreError, match="'dpo' is not made"):
        weighted.output.tokens(weighted.model, {"weights": torch.ones(1)})
