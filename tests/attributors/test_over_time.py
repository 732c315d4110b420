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


def test_refusals() -> None:
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
