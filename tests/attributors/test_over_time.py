"""Front-ends over checkpoints and while training: against the functions that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from torch import nn
from torch.utils.data import DataLoader

import trakstore as ts
from trakstore.analysis.evolution import evolution
from trakstore.analysis.transition import transition
from trakstore.attributors import (
    BiasAttributor,
    DelayedGeneralizationTRAK,
    PhaseTransitionAttributor,
    featurize_epoch,
    trainer_callback,
)
from trakstore.errors import TrakStoreError

TRAIN, TEST = Samples(30), Samples(6, seed=1)
EPOCHS: tuple[Any, ...] = (1, 2, 5, 9)


def weights() -> dict[Any, dict[str, torch.Tensor]]:
    return {epoch: mlp(seed).state_dict() for seed, epoch in enumerate(EPOCHS)}


@pytest.fixture(scope="module")
def delayed() -> DelayedGeneralizationTRAK:
    model = mlp()
    made = DelayedGeneralizationTRAK(model, proj_dim=64, device="cpu")
    for epoch, state in weights().items():
        model.load_state_dict(state)
        for split, data in (("train", TRAIN), ("test", TEST)):
            features = made.compute_epoch_features(DataLoader(data, batch_size=7), epoch, split)
            assert features.shape == (len(data), 64)
    return made


def test_the_evolution_of_one_target(delayed: DelayedGeneralizationTRAK) -> None:
    found = delayed.analyze_attribution_evolution(3, top_k=4)
    wanted = evolution(ts.trak_scores(delayed.store, temperature=None).isel(target=[3]), 4).isel(
        target=0
    )
    assert list(found) == list(EPOCHS)
    for at, epoch in enumerate(EPOCHS):
        one = found[epoch]
        assert one["top_indices"].tolist() == wanted["position"][at].values.tolist()
        np.testing.assert_allclose(one["top_scores"], wanted["score"][at], rtol=1e-6)
        for name in ("mean", "max", "std"):
            assert one[name] == pytest.approx(float(wanted[name][at]))
    some = delayed.analyze_attribution_evolution(3, epochs=[2, 9], top_k=4)
    assert list(some) == [2, 9] and some[9]["max"] == found[9]["max"]


def test_examples_of_a_transition(delayed: DelayedGeneralizationTRAK) -> None:
    found = delayed.find_phase_transition_examples(2, 5, top_k=3, null_epochs=[(1, 2), (5, 9)])
    scores = ts.trak_scores(delayed.store, temperature=None)
    at = {epoch: scores.epoch(epoch) for epoch in EPOCHS}
    wanted = transition(at[2], at[5], [(at[1], at[2]), (at[5], at[9])], k=3)
    for side, one in (("gained", wanted.gained), ("lost", wanted.lost)):
        assert found[f"{side}_influence_indices"].tolist() == one["position"].values.tolist()
        np.testing.assert_allclose(found[f"{side}_influence_scores"], one["change"], rtol=1e-5)
        np.testing.assert_allclose(found[f"{side}_influence_p_values"], one["p"], rtol=1e-5)
        assert found[f"{side}_influence_error_rate"] == wanted.error_rate(side)  # type: ignore[arg-type]
        assert found[f"{side}_influence_intervals"].shape == (3, 2)
    raw = delayed.find_phase_transition_examples(2, 5, top_k=3, scale="raw")
    dense = (np.asarray(at[5], "f8") - np.asarray(at[2], "f8")).mean(0)
    assert raw["gained_influence_indices"].tolist() == np.argsort(-dense)[:3].tolist()


def test_a_transition_without_a_null_says_so(
    delayed: DelayedGeneralizationTRAK, caplog: pytest.LogCaptureFixture
) -> None:
    delayed.find_phase_transition_examples(2, 5, top_k=3, null_epochs=[(1, 2)])
    assert not caplog.records
    found = delayed.find_phase_transition_examples(2, 5, top_k=3)
    assert found["gained_influence_p_values"].isnan().all()
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("no null, so p-values are NaN: give null_epochs=[(16, 20)]")
    assert "PhaseTransitionAttributor" not in line


def test_a_transition_that_nobody_named_says_which_it_is(caplog: pytest.LogCaptureFixture) -> None:
    five: dict[Any, Any] = {epoch: mlp(epoch) for epoch in (10, 20, 30, 40, 50)}
    made = PhaseTransitionAttributor(five, TRAIN, TEST, proj_dim=64)
    assert made.transition == (10, 50)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the transition is from 10 to 50, the first and the last of 5 checkpoints" in line
    assert "curve=" in line and "transition=" in line
    caplog.clear()
    found = made.compute_transition_attributions(top_k=2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no null, so p-values are NaN") and "null_epochs" not in line
    assert "the transition from 10 to 50 leaves none" in line
    assert found["p_values"].isnan().all() and found["null_epochs"] == []
    caplog.clear()
    # As that message says, a narrower one has a null.
    found = PhaseTransitionAttributor(
        five, TRAIN, TEST, transition=(20, 30), proj_dim=64
    ).compute_transition_attributions(top_k=2)
    assert found["null_epochs"] == [(10, 20), (30, 40), (40, 50)]
    assert not found["p_values"].isnan().any()
    PhaseTransitionAttributor(five, TRAIN, TEST, curve=[0.1, 0.1, 0.1, 0.9, 0.9], proj_dim=64)
    PhaseTransitionAttributor({0: mlp(0), 1: mlp(1)}, TRAIN, TEST, proj_dim=64)
    assert not caplog.records


def test_a_transition_is_found_in_a_curve() -> None:
    states = {epoch: mlp(seed).state_dict() for seed, epoch in enumerate((1, 2, 3, 5, 9))}
    curve = [0.1, 0.12, 0.11, 0.9, 0.91]
    made = PhaseTransitionAttributor(states, TRAIN, TEST, mlp(), curve=curve, proj_dim=64)
    assert made.transition == (3, 5) and made.change_point is not None
    found = made.compute_transition_attributions(top_k=4)
    assert found["null_epochs"] == [(1, 2), (2, 3), (5, 9)] and found["null_pairs"] == 3
    critical = made.find_critical_examples(found, top_k=5)
    changes = [abs(one["change"]) for one in critical]
    assert changes == sorted(changes, reverse=True) and len(critical) == 5
    named = {one["train_index"]: one["change"] for one in critical}
    indices = found["gained_influence_indices"].tolist()
    assert named[indices[0]] == pytest.approx(float(found["gained_influence_scores"][0]))
    plain = PhaseTransitionAttributor({1: mlp(0), 2: mlp(1)}, TRAIN, TEST, proj_dim=64)
    assert plain.transition == (1, 2)
    assert np.isnan(plain.compute_transition_attributions()["gained_influence_error_rate"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of two checkpoints, as training loops write them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / f"model_epoch_{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.save(mlp(seed).state_dict(), path)
    return paths


@pytest.fixture(scope="module")
def of_named_models() -> tuple[Any, list[Any]]:
    """Changes of a transition, and gaps of two checkpoints, that are models by their epochs."""
    named = PhaseTransitionAttributor({0: mlp(0), 1: mlp(1)}, TRAIN, TEST, proj_dim=64)
    bias = BiasAttributor(mlp(5), TRAIN, TEST, proj_dim=16)
    timeline = bias.analyze_bias_development({0: mlp(0), 1: mlp(1)}, top_k=2)
    changes = named.compute_transition_attributions()["changes"]
    return changes, [one["gap"] for one in timeline.values()]


@pytest.mark.parametrize("form", ["models", "states", "paths", "texts", "named paths"])
def test_checkpoints_in_any_form(
    form: str, saved: list[Path], of_named_models: tuple[Any, list[Any]]
) -> None:
    forms: dict[str, Any] = {
        "models": [mlp(0), mlp(1)],
        "states": [mlp(0).state_dict(), mlp(1).state_dict()],
        "paths": saved,
        "texts": list(map(str, saved)),
        "named paths": {0: saved[0], 1: saved[1]},
    }
    model = None if form == "models" else mlp(5)
    made = PhaseTransitionAttributor(forms[form], TRAIN, TEST, model, proj_dim=64)
    assert made.transition == (0, 1)
    changes, gaps = of_named_models
    found = made.compute_transition_attributions()
    torch.testing.assert_close(found["changes"], changes, rtol=0, atol=0)
    bias = BiasAttributor(mlp(5), TRAIN, TEST, proj_dim=16)
    timeline = bias.analyze_bias_development(forms[form], top_k=2)
    assert list(timeline) == [0, 1]
    assert [one["gap"] for one in timeline.values()] == gaps


def test_as_many_critical_examples_as_are_asked_for() -> None:
    made = PhaseTransitionAttributor([mlp(0), mlp(1)], TRAIN, TEST, proj_dim=64)
    found = made.compute_transition_attributions()  # lists of 10
    critical = made.find_critical_examples(found, top_k=25)
    scores = ts.trak_scores(made.trak.store, temperature=None)
    change = transition(scores.epoch(0), scores.epoch(1)).changes["change"].values
    order = np.argsort(-np.abs(change), kind="stable")[:25]
    assert [one["train_index"] for one in critical] == order.tolist()
    np.testing.assert_allclose([one["change"] for one in critical], change[order], rtol=1e-6)
    assert len(made.find_critical_examples(found, top_k=1000)) == len(TRAIN)


def test_biased_train_data_are_targets_without_themselves() -> None:
    biased, unbiased = Samples(12, seed=2), Samples(5, seed=3)
    made = BiasAttributor(mlp(), biased, unbiased, proj_dim=64)
    found = made.find_spurious_examples("grad_dot", top_k=3)["contrast"]
    dense = np.asarray(ts.grad_dot_scores(made.trak.store), "f8")
    square = dense[:12]
    others = (square.sum(0) - square.diagonal()) / 11
    np.testing.assert_allclose(found, others - dense[12:].mean(0), rtol=1e-4, atol=1e-6)
    # As separate targets the same samples would score themselves.
    apart = BiasAttributor(mlp(), Samples(12, seed=2), unbiased, biased, proj_dim=64)
    own = apart.find_spurious_examples("grad_dot")["contrast"]
    np.testing.assert_allclose(own, square.mean(0) - dense[12:].mean(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(TrakStoreError, match="2 samples or more"):
        BiasAttributor(mlp(), Samples(1), unbiased, proj_dim=16).find_spurious_examples()


def test_the_two_forms_of_trak() -> None:
    """The word "trak" of BiasAttributor is the function's default, a TRAKAttributor has the paper's."""
    made = BiasAttributor(mlp(), Samples(5, seed=2), Samples(4, seed=3), TRAIN, proj_dim=64)
    found = made.find_spurious_examples("trak")["contrast"].numpy()
    dense = {
        t: np.asarray(ts.trak_scores(made.trak.store, temperature=t), "f8") for t in (2.0, None)
    }
    own, paper = (one[:5].mean(0) - one[5:].mean(0) for one in dense.values())
    np.testing.assert_allclose(found, own, rtol=1e-3, atol=1e-4 * np.abs(own).max())
    assert np.abs(found - paper).max() > 0.1 * np.abs(own).max()
    published = made.find_spurious_examples("published_trak")["contrast"].numpy()
    np.testing.assert_allclose(published, paper, rtol=1e-3, atol=1e-4 * np.abs(paper).max())
    store = made.trak.store
    bare = made.trak.compute_attributions(
        *(torch.from_numpy(store.features(0, split).values) for split in ("train", "test"))
    )
    np.testing.assert_allclose(bare, dense[None], rtol=1e-3, atol=1e-4 * np.abs(dense[None]).max())


def test_refusals() -> None:
    for one in (mlp(), mlp().state_dict(), "model.pt"):
        with pytest.raises(TrakStoreError, match="checkpoints are several"):
            PhaseTransitionAttributor(one, TRAIN, TEST)
    with pytest.raises(TrakStoreError, match="2 checkpoints"):
        PhaseTransitionAttributor({1: mlp()}, TRAIN, TEST)
    with pytest.raises(TrakStoreError, match="as many numbers in curve"):
        PhaseTransitionAttributor({1: mlp(), 2: mlp()}, TRAIN, TEST, curve=[1.0])
    with pytest.raises(TrakStoreError, match="need model="):
        PhaseTransitionAttributor(weights(), TRAIN, TEST)
    biased = BiasAttributor(mlp(), TRAIN, TEST, proj_dim=16)
    with pytest.raises(TrakStoreError, match="unknown method 'track'; did you mean 'trak'"):
        biased.find_spurious_examples("track")


@pytest.mark.parametrize("method", ["trak", "influence", "grad_dot", "grad_cos"])
def test_spurious_examples_are_a_contrast(method: str) -> None:
    aligned, conflicting = Samples(5, seed=2), Samples(4, seed=3)
    made = BiasAttributor(mlp(), aligned, conflicting, TRAIN, proj_dim=64)
    found = made.find_spurious_examples(method, top_k=6)
    function: Any = getattr(ts, f"{method}_scores")
    dense = np.asarray(function(made.trak.store), "f8")
    wanted = dense[:5].mean(0) - dense[5:].mean(0)
    np.testing.assert_allclose(found["contrast"], wanted, rtol=1e-3, atol=1e-5)
    assert found["indices"].tolist() == np.argsort(-wanted)[:6].tolist()


def test_bias_is_of_the_samples_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    train, aligned, conflicting = Samples(60), Samples(5, seed=2), Samples(4, seed=3)
    made, computed = BiasAttributor(mlp(), aligned, conflicting, train, proj_dim=16), list[str]()
    compute = made.trak.compute_epoch_features
    monkeypatch.setattr(
        made.trak, "compute_epoch_features", lambda *one: computed.append(one[2]) or compute(*one)
    )
    before = made.find_spurious_examples("grad_dot")["contrast"]
    made.find_spurious_examples("grad_cos")
    assert computed == ["train", "test"]  # once for both methods
    train.y[37] = (train.y[37] + 1) % 3  # none of the 32 samples that a fingerprint is of
    after = made.find_spurious_examples("grad_dot")["contrast"]
    assert (after != before).nonzero()[:, 0].tolist() == [37]
    own = BiasAttributor(mlp(), aligned, conflicting, train, proj_dim=16)
    torch.testing.assert_close(after, own.find_spurious_examples("grad_dot")["contrast"])


def test_bias_over_checkpoints() -> None:
    model, aligned, conflicting = mlp(7), Samples(5, seed=2), Samples(4, seed=3)
    mine = {name: one.clone() for name, one in model.state_dict().items()}
    made = BiasAttributor(model, aligned, conflicting, TRAIN, proj_dim=64)
    found = made.analyze_bias_development({1: mlp(0), "last": mlp(1)}, top_k=3)
    assert list(found) == [1, "last"]
    for name, one in model.state_dict().items():
        assert torch.equal(one, mine[name]), "the model keeps its own weights"
    single = BiasAttributor(mlp(1), aligned, conflicting, TRAIN, proj_dim=64)
    assert (
        found["last"]["indices"].tolist()
        == single.find_spurious_examples(top_k=3)["indices"].tolist()
    )
    margins = [_margins(mlp(1), data) for data in (aligned, conflicting)]
    assert found["last"]["gap"] == pytest.approx(margins[0].mean() - margins[1].mean(), rel=1e-4)


def _margins(model: nn.Module, data: Samples) -> Any:
    with torch.no_grad():
        p = model.eval()(data.x).double().softmax(1)[range(len(data)), data.y]
    return (p.log() - (1 - p).log()).numpy()


def test_features_while_training_goes_on(tmp_path: Path) -> None:
    model = mlp().train()
    done = featurize_epoch(
        model, {"train": TRAIN, "test": TEST}, tmp_path / "s.zarr", 3, progress=False
    )
    assert done.rows == 36 and model.training
    assert ts.open_store(tmp_path / "s.zarr").epochs_of("train", "test") == (3,)


@pytest.mark.parametrize(
    ("when", "every", "epochs"), [("epoch", 1, (1, 2)), ("step", 3, (3, 6, 9))]
)
def test_a_hugging_face_trainer(tmp_path: Path, when: str, every: int, epochs: Any) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from trakstore.features import CausalLM

    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=17, n_positions=6, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(1, 17, (20, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    callback = trainer_callback(
        {"train": data}, tmp_path / "s.zarr", when=when, every=every, output=CausalLM()
    )
    trainer = transformers.Trainer(
        model=transformers.GPT2LMHeadModel(config),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
        callbacks=[callback],
    )
    trainer.train()
    store = ts.open_store(tmp_path / "s.zarr")
    assert store.epochs == epochs
    rates = [store.split(epoch, "train").spec.learning_rate for epoch in epochs]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    with pytest.raises(TrakStoreError, match="when is one of"):
        trainer_callback({"train": data}, tmp_path / "s.zarr", when="never")


@pytest.mark.parametrize("ends", [(1, 7), (2, 1), (1, 1)])
def test_a_transition_leads_from_one_checkpoint_to_a_later_one(ends: tuple[int, int]) -> None:
    checkpoints = {1: mlp(0), 2: mlp(1), 5: mlp(2)}
    with pytest.raises(
        TrakStoreError, match=r"\(before, after\), among 1, 2, 5 in this order, got"
    ):
        PhaseTransitionAttributor(checkpoints, TRAIN, TEST, transition=ends)
