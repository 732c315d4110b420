"""Drawn labels of sequences of different lengths: their kernel is the losses' Gauss-Newton matrix."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.engines import engine
from features.models import seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.features import Job, featurize, featurize_job, pad_tokens
from trakstore.features.outputs import CausalLM, MaskedLM
from trakstore.features.sampled_moments import sampled_moments
from trakstore.features.split_samples import SplitSamples

IDENTITY, WORDS = ts.ProjectionSpec("identity"), 3
LENGTHS, DRAWS = (2, 60, 3, 41, 5, 2, 17, 9), 512


class Running(nn.Module):
    """A language model that reads the mean of the tokens so far."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(words, 4), nn.Linear(4, words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        read = self.token(input_ids).cumsum(1)
        out: Tensor = self.head(
            torch.tanh(read / torch.arange(1, read.shape[1] + 1)[None, :, None])
        )
        return out


class Translating(Running):
    """One that reads one sequence, and writes another."""

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:  # type: ignore[override]
        read = self.token(input_ids).mean(1, keepdim=True)
        out: Tensor = self.head(torch.tanh(read + self.token(decoder_input_ids)))
        return out


def gauss_newton(model: nn.Module, logits: Tensor, mean: bool) -> Any:
    """Σⱼ Jⱼᵀ Hⱼ Jⱼ over the positions of one sample, divided by their number for a mean; float64."""
    total: Any = 0
    for own in logits:
        rows = [
            torch.autograd.grad(
                one, list(model.parameters()), retain_graph=True, materialize_grads=True
            )
            for one in own
        ]
        jacobian = torch.stack([torch.cat([g.ravel() for g in row]) for row in rows]).double()
        p = own.detach().double().softmax(0)
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return (total / len(logits) if mean else total).numpy()


def apart(one: Any, other: Any) -> float:
    return float(np.linalg.norm(np.asarray(one) - other) / np.linalg.norm(other))


def sample(kind: str, count: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, and a batch of one sample of which ``count`` tokens count."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(0, WORDS, (1, count + 2), generator=generator)
    labels = ids.clone()
    labels[0, : 2 if kind == "causal" else 1] = -100
    if kind == "masked":
        labels[0, -1] = -100
    if kind != "translating":
        return seeded(Running).double(), {"input_ids": ids, "labels": labels}
    labels[0, 1] = -100
    return seeded(Translating).double(), {
        "input_ids": ids[:, :2],
        "decoder_input_ids": ids,
        "labels": labels,
    }


@pytest.mark.parametrize("over", ["sequence", "loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["causal", "masked", "translating"])
def test_the_mean_over_all_labels_is_the_gauss_newton_matrix(
    kind: str, reduction: Any, over: Any
) -> None:
    output = (MaskedLM if kind == "masked" else CausalLM)(over, reduction)
    for count in (1, 2, 3):
        model, batch = sample(kind, count)
        (counted,) = output.counted(model, batch)
        assert int(counted.sum()) == count
        logits = output.predicted(model, batch)[0][counted]
        # Every sequence of labels, with its probability, in place of some that are drawn.
        words = torch.tensor(list(itertools.product(range(WORDS), repeat=count)))
        p = logits.softmax(1)[range(count), words].prod(1).detach()
        labels = torch.zeros(len(words), len(counted), dtype=torch.int64)
        labels[:, counted] = words
        every = {name: one.repeat_interleave(len(words), 0) for name, one in batch.items()}
        draws = SplitSamples(every, np.arange(len(words)), 1).labels(model, output)
        assert draws is not None
        batches = output.relabelled(model, every, labels)
        rows = draws.scaled(batches, engine(model, IDENTITY, output).rows(batches))
        q = rows.outputs.out_to_loss.double()
        gradients = (q[:, None] * rows.features.double()).detach()
        mean = (gradients.T * p) @ gradients
        assert apart(mean, gauss_newton(model, logits, reduction == "mean")) < 1e-5
        # The loss is scaled as its slope is: it is that of the rows' own function of the output.
        root = count**0.5 if reduction == "mean" else 1.0
        wanted = root * output(model, batches).loss
        torch.testing.assert_close(rows.outputs.loss, wanted)


def texts(lengths: Any = LENGTHS, words: int = 5) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, words, (n,), generator=generator)} for n in lengths]


def job(**options: Any) -> Job:
    data = {"train": texts(), "test": texts((7,) * 4)}
    options = {"sampled": DRAWS, "output": "causal_lm", "projector": IDENTITY} | options
    model = options.pop("model", None) or seeded(lambda: Running(5))
    return Job(model, data, collate=pad_tokens, batch_size=8, **options)


def stored(where: Path, splits: Any = None, **options: Any) -> tuple[Job, ts.FeatureStore]:
    made = job(**options)
    featurize_job(made, where, splits=splits, progress=False)
    return made, ts.open_store(where)


def read(store: ts.FeatureStore, name: str, split: str = "train~sampled") -> Any:
    one = store.split(store.epochs_of(split)[0], split)
    return one.column(name).read(0, one.rows).astype(np.float64)


def exact(model: nn.Module, mean: bool = True) -> list[Any]:
    """The Gauss-Newton matrix of each train sample, alone."""
    return [gauss_newton(model, model(one["input_ids"][None])[0, :-1], mean) for one in texts()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kernel_and_scores_of_sequences_are_those_of_the_losses(
    tmp_path: Path, reduction: Any
) -> None:
    made, store = stored(tmp_path / "s.zarr", output=CausalLM(reduction=reduction))
    each = exact(made.model, reduction == "mean")
    g = read(store, "features") * read(store, "out_to_loss")[:, None]
    for rows, own in zip(g.reshape(len(LENGTHS), DRAWS, -1), each, strict=True):
        # Of each length alone: a factor of its tokens would be one of 60.
        assert (rows**2).sum() / DRAWS == pytest.approx(np.trace(own), rel=0.1)
    whole = np.sum(each, axis=0)
    assert apart(g.T @ g / DRAWS, whole) < 0.1
    lam = 0.1 * np.trace(whole) / len(LENGTHS)
    rows, targets = (
        read(store, "features", split) * read(store, "out_to_loss", split)[:, None]
        for split in ("train", "test")
    )
    wanted = targets @ np.linalg.solve(whole + lam * np.eye(len(whole)), rows.T)
    scores = np.asarray(ts.influence_scores(store, kernel="sampled", damping=0.1))
    assert apart(scores, wanted) < 0.1


def test_sequences_of_one_length_differ_from_the_mean_by_their_number_alone(tmp_path: Path) -> None:
    data, model = texts((6,) * 5), seeded(lambda: Running(5))
    for name, options in (("mean", {}), ("sum", {"reduction": "sum"})):
        featurize(model, data, tmp_path / name, labels="sampled", draws=2, projector=IDENTITY,
                  output=CausalLM("loss", **options), collate=pad_tokens, progress=False)  # fmt: skip
    mean, total = (ts.open_store(tmp_path / name) for name in ("mean", "sum"))
    np.testing.assert_allclose(read(mean, "out_to_loss"), -(5**0.5), rtol=1e-6)
    np.testing.assert_allclose(read(total, "out_to_loss"), -1)
    np.testing.assert_allclose(
        read(total, "features"), 5 * read(mean, "features"), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(read(total, "loss"), 5**0.5 * read(mean, "loss"), rtol=1e-5)


def test_rows_in_lower_precision_are_scaled_alike(tmp_path: Path) -> None:
    _, store = stored(tmp_path / "s.zarr", sampled=2, precision="bfloat16", output=CausalLM("loss"))
    wanted = -np.sqrt(np.array(LENGTHS) - 1).repeat(2)
    np.testing.assert_allclose(read(store, "out_to_loss"), wanted, rtol=1e-6)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a store as versions of before did: rows are those of the mean."""

    def write(where: Path, **options: Any) -> tuple[Job, ts.FeatureStore]:
        with monkeypatch.context() as patch:
            patch.setattr(SplitSamples, "loss_scale", lambda *_: "")
            return stored(where, **options)

    return write


def test_a_store_of_before_has_its_scores_and_says_what_they_are(
    tmp_path: Path, before: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made, store = before(tmp_path / "s.zarr", sampled=2)
    assert "loss_scale" not in store.split(store.epochs[0], "train~sampled").spec.to_dict()
    g = read(store, "features") * read(store, "out_to_loss")[:, None]
    k = g.T @ g / 2
    lam = 0.5 * np.trace(k) / len(LENGTHS)
    rows, targets = (
        read(store, "features", split) * read(store, "out_to_loss", split)[:, None]
        for split in ("train", "test")
    )
    wanted = targets @ np.linalg.solve(k + lam * np.eye(len(k)), rows.T)
    scores = ts.influence_scores(store, damping=0.5)
    assert apart(scores, wanted) < 1e-5
    assert "train~sampled: a sequence of n tokens weighs n times too little" in caplog.text
    # Gradients that are computed again are scaled as those of the store are.
    again = ts.attributors.unprojected_scores(made, store, damping=0.5, iterations=0)
    assert apart(again, wanted) < 1e-4
    caplog.clear()
    new, store = stored(tmp_path / "new.zarr", sampled=2)
    assert store.split(store.epochs[0], "train~sampled").spec.to_dict()["loss_scale"] == "root"
    assert not ts.verify_store(store.location).findings
    scores = ts.influence_scores(store, damping=0.5)
    assert apart(scores, wanted) > 0.1
    again = ts.attributors.unprojected_scores(new, store, damping=0.5, iterations=0)
    assert apart(again, np.asarray(scores)) < 1e-4
    assert not caplog.text


REFUSED = (
    r"train~sampled at epoch 1 is of an earlier version.* \(store.drop\(1, 'train~sampled'\)\)"
)


def test_splits_of_before_are_not_gone_on_with(tmp_path: Path, before: Any) -> None:
    where = tmp_path / "s.zarr"
    model = seeded(lambda: Running(5))
    states = {1: dict(model.state_dict()), 2: seeded(lambda: Running(5), 1).state_dict()}
    both: dict[str, Any] = {"checkpoints": states, "sampled": 2}
    made, _ = before(where, checkpoints={1: states[1]}, sampled=2, block_rows=4)
    as_it_was = np.asarray(ts.influence_scores(ts.open_store(where)))
    longer = job(**both, block_rows=4, append=True)
    longer.datasets = {**longer.datasets, "train": texts((*LENGTHS, 4))}
    for again, epochs in ((made, [1]), (job(**both), [2]), (longer, [1])):
        with pytest.raises(SpecMismatchError, match=REFUSED):
            featurize_job(again, where, epochs=epochs, splits="train~sampled", progress=False)
    np.testing.assert_array_equal(np.asarray(ts.influence_scores(ts.open_store(where))), as_it_was)
    # All else of the job goes on, and once the split was dropped, it does.
    featurize_job(job(**both), where, splits=["train", "test"], progress=False)
    ts.open_store(where).drop(1, "train~sampled")
    featurize_job(job(**both), where, progress=False)
    scores = ts.influence_scores(ts.open_store(where), epochs=1)
    assert apart(scores, as_it_was) > 0.1


def test_a_stopped_split_of_before_is_not_gone_on_with(
    tmp_path: Path, before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    where, weights = tmp_path / "s.zarr", seeded(lambda: Running(5)).state_dict()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trakstore.features.task.SplitTask.write", stop)
        before(where, sampled=2, checkpoints={1: weights}, splits="train~sampled")
    assert not ts.open_store(where).split(1, "train~sampled").complete
    with pytest.raises(SpecMismatchError, match=REFUSED):
        featurize_job(job(sampled=2, checkpoints={1: weights}), where, progress=False)


@pytest.mark.parametrize("output", [CausalLM(reduction="sum"), CausalLM("loss", "sum")])
def test_splits_whose_rows_are_the_same_as_before_go_on(
    tmp_path: Path, before: Any, output: Any
) -> None:
    where, first = tmp_path / "s.zarr", seeded(lambda: Running(5))
    states = {1: dict(first.state_dict()), 2: seeded(lambda: Running(5), 1).state_dict()}
    before(where, checkpoints={1: states[1]}, sampled=2, output=output)
    both = job(checkpoints=states, sampled=2, output=output)
    featurize_job(both, where, progress=False)
    assert ts.influence_scores(ts.open_store(where), kernel="sampled").shape == (4, len(LENGTHS))


def test_epochs_of_both_kinds_are_not_put_together(
    tmp_path: Path, before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, first = tmp_path / "s.zarr", seeded(lambda: Running(5))
    states = {1: dict(first.state_dict()), 2: seeded(lambda: Running(5), 1).state_dict()}
    before(where, checkpoints={1: states[1]}, sampled=2)
    # As a version of before, which does not look, would go on with a store of this one, or this one.
    with monkeypatch.context() as patch:
        patch.setattr("trakstore.features.task.need_same_loss_scale", lambda *_: None)
        featurize_job(job(checkpoints=states, sampled=2), where, epochs=2, progress=False)
    store = ts.open_store(where)
    with pytest.raises(SpecMismatchError, match=r"epoch 1 is of an earlier .* epoch 2 is not"):
        ts.influence_scores(store)
    for epoch in (1, 2):
        assert ts.influence_scores(store, epochs=epoch).shape == (4, len(LENGTHS))


@pytest.mark.parametrize("count", [2, 20])
def test_sampled_moments_of_means_are_those_of_sums_by_the_number_of_tokens(count: int) -> None:
    model, data = seeded(lambda: Running(5)).eval(), texts((count + 1,) * 9)
    # The diagonal of Σⱼ Jⱼᵀ Hⱼ Jⱼ, by the same draws of labels and signs, and of a mean its n-th part.
    mean, total = (
        sampled_moments(
            Job(model, {"train": data}, output=output, collate=pad_tokens),
            output,
            "train",
            torch.device("cpu"),
        )
        for output in (CausalLM(), CausalLM(reduction="sum"))
    )
    for name, own in total.items():
        torch.testing.assert_close(mean[name].rows, own.rows / count, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(mean[name].columns, own.columns / count, rtol=1e-4, atol=1e-9)


def test_rows_that_were_made_elsewhere_go_with_those_of_any_version(tmp_path: Path) -> None:
    where, first = tmp_path / "s.zarr", seeded(lambda: Running(5))
    states = {1: dict(first.state_dict()), 2: seeded(lambda: Running(5), 1).state_dict()}
    made = job(checkpoints=states, sampled=2)
    featurize_job(made, where, splits=["train", "test"], progress=False)
    rows = ts.open_store(where).split(1, "train")
    features, q = (rows.column(name).read(0, rows.rows) for name in ("features", "out_to_loss"))
    twice = {"features": features.repeat(2, 0), "out_to_loss": q.repeat(2)}
    ts.open_store(where).write_split(1, "train~sampled", **twice, checkpoint=rows.spec.checkpoint)
    featurize_job(made, where, epochs=2, progress=False)
    store = ts.open_store(where)
    assert [store.split(one, "train~sampled").spec.loss_scale for one in (1, 2)] == ["", "root"]
    scores = ts.influence_scores(store, kernel="sampled")
    assert scores.shape == (4, len(LENGTHS))
