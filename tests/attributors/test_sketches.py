"""Programs as people write them for sketches of these classes: the same calls, answers that are right.

They call as five documents of people who want this do. What has to be written otherwise stands in the
docstring of ``trakstore.attributors``.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attributors.test_tracin import ASKED, TRIPLES, Factory, expected
from features.models import mlp
from features.test_last_layers import Links
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import trakstore as ts
from trakstore import attributors
from trakstore.attributors import (
    BiasAttributor,
    DelayedGeneralizationTRAK,
    PhaseTransitionAttributor,
    TracInAttributor,
    TrainingDynamicsTracker,
    TRAKAttributor,
    WithIds,
    compute_attribution_stability,
)
from trakstore.errors import TrakStoreError

device = torch.device("cpu")
EPOCHS = [0, 1000, 2000]


def samples(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (n,), generator=generator))


train_dataset, test_dataset = samples(120, 0), samples(45, 1)
train_loader = DataLoader(train_dataset, batch_size=32)
test_loader = DataLoader(test_dataset, batch_size=32)


@pytest.fixture
def model() -> nn.Module:
    return mlp()


def trak_of(store: ts.FeatureStore) -> torch.Tensor:
    return torch.from_numpy(np.asarray(ts.trak_scores(store, temperature=None)))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_basic_attribution(model: nn.Module) -> None:
    attributor = TRAKAttributor(model=model, task="classification", proj_dim=512, device=device)
    train_features = attributor.compute_train_features(
        dataloader=train_loader, num_samples=len(train_dataset)
    )
    test_features = attributor.compute_test_features(dataloader=test_loader)
    attributions = attributor.compute_attributions(
        train_features=train_features, test_features=test_features
    )
    close(attributions, trak_of(attributor.store))
    indices, scores = attributor.find_top_attributions(
        attributions, 0, top_k=10, return_scores=True
    )
    assert len(indices) == 10
    for train_idx, score in zip(indices, scores):  # noqa: B905 (as people write it)
        assert attributions[0][train_idx] == score and f"{train_idx}: {score:.4f}"
    assert scores[0] == attributions[0].max()


def test_loaders_that_shuffle_are_refused_with_the_remedy(model: nn.Module) -> None:
    shuffled = DataLoader(train_dataset, batch_size=32, shuffle=True)
    with pytest.raises(TrakStoreError, match="make it with shuffle=False"):
        TRAKAttributor(model, device=device).compute_train_features(shuffled)


def test_delayed_generalization(model: nn.Module, tmp_path: Path) -> None:
    for seed, epoch in enumerate(EPOCHS):
        torch.save(mlp(seed).state_dict(), tmp_path / f"model_epoch_{epoch}.pt")
    dg_trak = DelayedGeneralizationTRAK(
        model=model, task="classification", proj_dim=512, device=device
    )
    for epoch in EPOCHS:
        model.load_state_dict(torch.load(tmp_path / f"model_epoch_{epoch}.pt"))
        dg_trak.compute_epoch_features(dataloader=train_loader, epoch=epoch, split="train")
        dg_trak.compute_epoch_features(dataloader=test_loader, epoch=epoch, split="test")
    evolution = dg_trak.analyze_attribution_evolution(test_idx=42, epochs=EPOCHS, top_k=20)
    scores = ts.trak_scores(dg_trak.store, temperature=None)
    for epoch in EPOCHS:
        row = np.asarray(scores.epoch(epoch))[42]
        assert evolution[epoch]["top_indices"].tolist() == np.argsort(-row)[:20].tolist()
        assert evolution[epoch]["max"] == pytest.approx(float(row.max()))
    found = dg_trak.find_phase_transition_examples(
        pre_transition_epoch=1000, post_transition_epoch=2000, top_k=50
    )
    pairs = [found["gained_influence_indices"][:10], found["gained_influence_scores"][:10]]
    assert [f"{idx} {score:.4f}" for idx, score in zip(*pairs, strict=True)]
    before, after = (np.asarray(scores.epoch(epoch), "f8") for epoch in (1000, 2000))
    before, after = ((one - one.mean(1)[:, None]) / one.std(1)[:, None] for one in (before, after))
    assert int(pairs[0][0]) == (after - before).mean(0).argmax()


class Sums(Dataset[Any]):
    """Modular sums as texts, beside what a model takes."""

    def __len__(self) -> int:
        return 49

    def __getitem__(self, at: int) -> dict[str, Any]:
        a, b = int(at) % 7, int(at) // 7
        x = torch.cat([F.one_hot(torch.tensor(one), 7) for one in (a, b)]).float()
        return {"text": f"{a} + {b} = {(a + b) % 7}", "x": x, "label": (a + b) % 7}


class SumModel(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 7))

    def forward(self, x: Any) -> Any:
        return self.net(x)


def test_grokking_with_samples_that_carry_a_text() -> None:
    dataset, model = Sums(), SumModel()
    loader = DataLoader(dataset, batch_size=16)
    trak = DelayedGeneralizationTRAK(
        model=model, task="classification", proj_dim=256, device=device
    )
    model_checkpoints = {500: SumModel(1).state_dict(), 1500: SumModel(2).state_dict()}
    for epoch in (500, 1500):
        model.load_state_dict(model_checkpoints[epoch])
        trak.compute_epoch_features(loader, epoch, "train")
        trak.compute_epoch_features(
            DataLoader(Subset(dataset, range(9)), batch_size=4), epoch, "test"
        )
    found = trak.find_phase_transition_examples(
        pre_transition_epoch=500, post_transition_epoch=1500, top_k=100
    )
    indices = found["gained_influence_indices"]
    assert len(indices) == 49  # all there are
    for idx in indices:
        a, op, b, _, result = dataset[idx]["text"].split()
        assert op == "+" and (int(a) + int(b)) % 7 == int(result)
    bare = [
        {name: one[name] for name in ("x", "label")} for one in map(dataset.__getitem__, range(49))
    ]
    plain = TRAKAttributor(model, proj_dim=256, device=device).compute_train_features(bare)
    np.testing.assert_allclose(
        plain, trak.store.features(1500, "train").values, rtol=1e-4, atol=1e-5
    )


def test_loops_over_labels(model: nn.Module) -> None:
    trak = TRAKAttributor(model=model, task="classification", proj_dim=512, device=device)
    attributions = trak.compute_attributions(
        trak.compute_train_features(train_loader), trak.compute_test_features(test_loader)
    )
    train_labels = torch.tensor([example[1] for example in train_loader.dataset])
    test_labels = torch.tensor([example[1] for example in test_loader.dataset])
    found = trak.analyze_attribution_patterns(attributions, train_labels, test_labels)
    positive = attributions.clamp(min=0)
    own = train_labels == test_labels[:, None]
    share = (positive * own).sum(1) / positive.sum(1)
    base = torch.stack([(train_labels == label).float().mean() for label in test_labels])
    assert found.get("same_class_bias", 0) == pytest.approx(float((share - base).mean()), abs=1e-5)
    assert 0 < found.get("attribution_concentration", 0) < 1
    for test_idx in range(attributions.size(0)):
        mask = train_labels != test_labels[test_idx]
        scores, local = torch.topk(attributions[test_idx][mask], 5)
        at = torch.where(mask)[0][local]
        assert torch.equal(attributions[test_idx][at], scores)


def test_quality_loop(model: nn.Module) -> None:
    attributor = TRAKAttributor(model=model, proj_dim=64, device=device)
    attributions = attributor.compute_attributions(
        attributor.compute_train_features(train_loader),
        attributor.compute_test_features(test_loader),
    )
    model.eval()
    with torch.no_grad():
        predictions = [torch.softmax(model(batch[0].to(device)), dim=1) for batch in train_loader]
    weighted = torch.zeros(3, device=device)
    for weight, prediction in zip(attributions[0], torch.cat(predictions), strict=True):
        weighted += weight * prediction
    assert attributions.shape == (45, 120) and weighted.isfinite().all()
    metrics: dict[str, Any] = {}
    metrics.update(compute_attribution_stability(attributor, train_loader, num_runs=3))
    assert metrics["num_runs"] == 3 and 0.5 < metrics["spearman"] < 1


def test_efficiency_loop() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    data = TensorDataset(torch.randn(20, 3, 8, 8), torch.randint(0, 10, (20,)))
    loader = DataLoader(data, batch_size=32, shuffle=False)
    for proj_dim in (16, 32):
        attributor = TRAKAttributor(model=model, proj_dim=proj_dim, device=device)
        sides = attributor.compute_train_features(loader), attributor.compute_test_features(loader)
        assert attributor.compute_attributions(*sides).shape == (20, 20)


def test_features_in_chunks(model: nn.Module, tmp_path: Path) -> None:
    attributor = TRAKAttributor(model=model, proj_dim=64, device=device)
    all_features = []
    for start in range(0, len(train_loader.dataset), 50):  # type: ignore[arg-type]
        end = min(start + 50, len(train_loader.dataset))  # type: ignore[arg-type]
        chunk = torch.utils.data.Subset(train_loader.dataset, list(range(start, end)))
        chunk_loader = DataLoader(chunk, batch_size=32, shuffle=False)
        features = attributor.compute_train_features(chunk_loader, num_samples=end - start)
        torch.save(features.cpu(), path := tmp_path / f"features_chunk_{start}_{end}.pt")
        all_features.append(torch.load(path))
    found = attributor.compute_attributions(
        torch.cat(all_features, dim=0), attributor.compute_test_features(test_loader)
    )
    whole = TRAKAttributor(model=model, proj_dim=64, device=device)
    sides = whole.compute_train_features(train_loader), whole.compute_test_features(test_loader)
    close(found, whole.compute_attributions(*sides))


def test_validation(model: nn.Module) -> None:
    attributor = TRAKAttributor(model=model, proj_dim=64, device=device)
    matrix = attributor.projection_matrix
    assert matrix.shape == (attributor.total_params, 64)
    assert matrix.norm().item() == pytest.approx(attributor.total_params**0.5, rel=1e-5)
    batch = next(iter(train_loader))
    data, targets = batch[0][:1].to(attributor.device), batch[1][:1].to(attributor.device)
    loss = F.cross_entropy(attributor.model(data), targets)
    vector = attributor._compute_gradient_vector(loss)
    assert vector.shape[0] == attributor.total_params
    assert attributor._project_gradient(vector).shape[0] == attributor.proj_dim
    attributions = attributor.compute_attributions(
        attributor.compute_train_features(train_loader, num_samples=10),
        attributor.compute_test_features(test_loader, num_samples=5),
    )
    assert attributions.shape == (5, 10)


@pytest.mark.parametrize("ids", [False, True])
def test_a_tracker_in_a_loop_that_shuffles(model: nn.Module, tmp_path: Path, ids: bool) -> None:
    tracker = TrainingDynamicsTracker(
        dataset=train_dataset, save_interval=100, store=tmp_path / "dynamics.zarr"
    )
    dataset: Any = WithIds(train_dataset) if ids else train_dataset
    loader = DataLoader(dataset, batch_size=32, shuffle=True)
    for epoch in range(3):
        for batch_idx, (data, targets, *own) in enumerate(loader):
            predictions = model(data)
            losses = F.cross_entropy(predictions, targets, reduction="none")
            more = {"ids": own[0]} if ids else {}
            tracker.update(
                epoch=epoch,
                batch_idx=batch_idx,
                data=data,
                targets=targets,
                predictions=predictions,
                losses=losses,
                **more,
            )
    analysis = tracker.analyze()
    with torch.no_grad():
        x, y = train_dataset.tensors
        p = model(x).softmax(1)[torch.arange(120), y]
    np.testing.assert_allclose(analysis["confidence"], p, rtol=1e-4)
    assert analysis["epochs"].values.tolist() == [3] * 120


def test_phase_transition_and_bias(tmp_path: Path) -> None:
    checkpoints: Any = [mlp(0), mlp(1)]
    pt_attributor = PhaseTransitionAttributor(
        model_checkpoints=checkpoints, train_data=train_dataset, test_data=test_dataset
    )
    influences = pt_attributor.compute_transition_attributions()
    critical = pt_attributor.find_critical_examples(influences, top_k=100)
    assert len({one["train_index"] for one in critical}) == 100
    paths = [tmp_path / "before.pt", tmp_path / "after.pt"]
    for one, path in zip(checkpoints, paths, strict=True):
        torch.save(one.state_dict(), path)
    with pytest.raises(TrakStoreError, match="need model=, which takes them"):
        PhaseTransitionAttributor(paths, train_dataset, test_dataset)
    again = PhaseTransitionAttributor(
        model_checkpoints=paths, train_data=train_dataset, test_data=test_dataset, model=mlp(3)
    )
    others = again.find_critical_examples(again.compute_transition_attributions(), 100)
    for name in ("train_index", "change"):
        assert [one[name] for one in others] == [one[name] for one in critical]
    bias_attributor = BiasAttributor(
        model=mlp(), biased_data=train_dataset, unbiased_data=test_dataset
    )
    spurious = bias_attributor.find_spurious_examples(attribution_method="trak", top_k=20)
    assert spurious["scores"][0] == spurious["contrast"].max() and len(spurious["indices"]) == 20
    timeline = bias_attributor.analyze_bias_development(model_checkpoints=checkpoints)
    assert list(timeline) == [0, 1]


def test_the_fast_configuration_of_tracin() -> None:
    from trakstore.attributors import TracInAttributor as TracInAnalyzerOptimized

    analyzer = TracInAnalyzerOptimized(
        model=Links(),
        use_last_layers_only=True,
        num_last_layers=2,
        projection_dim=256,
        device="cpu",
    )
    influences = analyzer.compute_influences_sampled(
        test_triple=ASKED, training_triples=Factory(), sample_rate=0.5, top_k=10
    )
    assert len(influences) == 10 and isinstance(influences, list)
    sizes = [abs(one["influence"]) for one in influences]
    assert sizes == sorted(sizes, reverse=True)
    wanted = expected(Links(), ["entity.weight", "fc.weight", "fc.bias"])
    own = [wanted[one["train_index"]] for one in influences]
    found = [one["influence"] for one in influences]
    assert np.corrcoef(own, found)[0, 1] > 0.95  # the projection's noise


class WithProjection(TracInAttributor):
    """A sketch that projects gradients by itself."""

    def __init__(self, model: Any, projection_dim: int = 128, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.projection_dim, self.matrix = projection_dim, None

    def project_gradient(self, gradients: Any) -> Any:
        flat = torch.cat([g.flatten() for g in gradients.values()])
        if self.matrix is None:
            torch.manual_seed(0)
            self.matrix = torch.randn(len(flat), self.projection_dim) / self.projection_dim**0.5
            self.matrix = self.matrix.to(self.device)
        return flat @ self.matrix

    def compute_influence_fast(self, train: Any, test: Any, learning_rate: float = 1e-3) -> float:
        one, other = (self.project_gradient(self.compute_gradient(*t)) for t in (train, test))
        return torch.dot(one, other).item() * learning_rate


class WithCaching(TracInAttributor):
    """A sketch that goes through train triples one by one, with a heap."""

    def first(self, test_triple: Any, training_triples: Any, top_k: int) -> Any:
        own = {
            name: g.flatten() for name, g in self.compute_gradient(*test_triple, label=1.0).items()
        }
        heap: list[Any] = []
        for at, triple in enumerate(training_triples.mapped_triples):
            found = self.compute_gradient(*triple, label=1.0)
            value = sum(torch.dot(found[name].flatten(), own[name]).item() for name in found)
            heapq.heappush(heap, (abs(value), at, value))
        return heapq.nlargest(top_k, heap)


def test_sketches_that_extend_an_analyzer() -> None:
    wanted = expected(Links())
    rough = WithProjection(Links(), projection_dim=4096, device="cpu")
    found = [rough.compute_influence_fast(one, ASKED, 0.1) for one in TRIPLES[:20]]
    assert np.corrcoef(found, wanted[:20])[0, 1] > 0.9
    one = WithCaching(Links(), device="cpu")
    listed = one.first(ASKED, Factory(), 5)
    exact = one.compute_influences(test_triple=ASKED, training_triples=Factory(), top_k=5)
    for (_, at, value), entry in zip(listed, exact, strict=True):  # ties may come in another order
        assert value == pytest.approx(entry["influence"], rel=1e-4)
        single = one.compute_influence(train_triple=tuple(TRIPLES[at]), test_triple=ASKED)
        assert single == pytest.approx(value, rel=1e-4)


def test_the_page_tells_of_what_has_to_change() -> None:
    """Each line that the page shows is of something that is there."""
    page = attributors.__doc__ or ""
    for name in ("WithIds", "compute_gradient", "compute_influence", "expected_recall", "lds"):
        assert name in page
    for name in attributors.__all__:
        if name.endswith(("Attributor", "TRAK", "er")):
            assert name in page, name
