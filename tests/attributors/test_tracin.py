"""TracIn as people call it: triples, single samples, a store, sampling; against plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.models import Samples, mlp
from features.test_last_layers import Links
from torch import nn

import trakstore as ts
from trakstore.attributors import TracInAttributor
from trakstore.attributors.triples import with_triples
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features import featurize
from trakstore.features.fingerprint import hashed_rows
from trakstore.storage import catalogue

TRAIN, TEST = Samples(40), Samples(9, seed=1)
N = 60


class Factory:
    """Triples as knowledge graph libraries hold them."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        sizes = (9, 3, 9)
        self.mapped_triples = torch.stack(
            [torch.randint(size, (N,), generator=rng) for size in sizes], dim=1
        )

    def __len__(self) -> int:
        return N


class Distances(nn.Module):
    """A score of a triple from all three of its entries, as TransE has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entity, self.relation = nn.Embedding(9, 4), nn.Embedding(3, 4)

    def forward(self, head: Any, relation: Any, tail: Any) -> Any:
        moved = self.entity(head) + self.relation(relation)
        return 2 - (moved - self.entity(tail)).square().sum(-1)


TRIPLES = [tuple(map(int, row)) for row in Factory().mapped_triples]
ASKED = (3, 1, 7)


def gradient(model: nn.Module, triple: Any, names: Any = None) -> torch.Tensor:
    """The flattened loss gradient of a triple that is true, by plain autograd."""
    head, relation, tail = (torch.tensor([one]) for one in triple)
    if isinstance(model, Links):
        loss = F.cross_entropy(model.eval()(head, relation), tail)
    else:
        loss = F.binary_cross_entropy_with_logits(model(head, relation, tail), torch.ones(1))
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, chosen)])


def expected(model: nn.Module, names: Any = None) -> np.ndarray[Any, Any]:
    """Influence of each triple on the one that is asked about."""
    own = gradient(model, ASKED, names)
    return np.array([float(gradient(model, one, names) @ own) for one in TRIPLES])


@pytest.mark.parametrize("make", [Links, Distances])
@pytest.mark.parametrize("form", ["factory", "tensor", "list"])
def test_triples_in_any_form(make: Any, form: str) -> None:
    forms: dict[str, Any] = {
        "factory": Factory(), "tensor": Factory().mapped_triples, "list": TRIPLES
    }  # fmt: skip
    one = TracInAttributor(make(), device="cpu")
    found = one.compute_influences(test_triple=ASKED, training_triples=forms[form], top_k=7)
    wanted = expected(make())
    order = np.argsort(-np.abs(wanted), kind="stable")[:7]
    assert [entry["train_index"] for entry in found] == order.tolist()
    got = [entry["influence"] for entry in found]
    np.testing.assert_allclose(got, wanted[order], rtol=1e-4, atol=1e-7)
    for asked in (list(ASKED), torch.tensor(ASKED)):
        assert one.compute_influences(asked, forms[form], 7) == found
    largest = one.compute_influences(ASKED, forms[form], 7, order="largest", learning_rate=0.5)
    order = np.argsort(-wanted, kind="stable")[:7]
    assert [entry["train_index"] for entry in largest] == order.tolist()
    got = [entry["influence"] for entry in largest]
    np.testing.assert_allclose(got, wanted[order] / 2, rtol=1e-4, atol=1e-7)


def test_false_triples_have_the_other_loss() -> None:
    model = Distances()
    one = TracInAttributor(model, device="cpu")
    for label in (0, 1):
        found = one.compute_gradient(*ASKED, label=label)
        columns = (torch.tensor([entry]) for entry in ASKED)
        target = torch.tensor([float(label)])
        loss = F.binary_cross_entropy_with_logits(model(*columns), target)
        wanted = torch.autograd.grad(loss, list(model.parameters()))
        for got, own in zip(found.values(), wanted, strict=True):
            torch.testing.assert_close(got, own)
        inner = sum(
            float((g * h).sum()) for g, h in zip(found.values(), gradients(model), strict=True)
        )
        influence = one.compute_influence((*TRIPLES[0], 1.0), (*ASKED, float(label)), 0.1)
        assert influence == pytest.approx(0.1 * inner, rel=1e-4)
    with pytest.raises(TrakStoreError, match="false triples"):
        TracInAttributor(Links(), device="cpu").compute_gradient(*ASKED, label=0)


def test_a_triple_is_a_tensor_an_array_or_a_tuple_everywhere() -> None:
    one = TracInAttributor(Distances(), device="cpu")
    rows = torch.tensor(TRIPLES[:5])
    asked = torch.tensor(ASKED)
    wanted = one.compute_influences(ASKED, TRIPLES[:5], 5)
    forms: list[Any] = [rows, rows.numpy(), list(rows), list(rows.numpy()), TRIPLES[:5]]
    for form in forms:
        for own in (asked, asked.numpy(), tuple(asked.numpy()), ASKED):
            assert one.compute_influences(own, form, 5) == wanted
        several = one.compute_influences(form, form, 5)
        assert several == one.compute_influences(TRIPLES[:5], TRIPLES[:5], 5)
    influence = one.compute_influence(TRIPLES[0], ASKED)
    for change in (torch.tensor, np.array):
        assert one.compute_influence(change(TRIPLES[0]), change(ASKED)) == influence
    for label in (None, 0, 1):
        names = one.compute_gradient(*ASKED, label=label)
        labelled = [] if label is None else [(*ASKED, 1.0)]
        for own in (asked, asked.numpy(), ASKED, list(ASKED), *labelled):
            got = one.compute_gradient(own, label=label)
            assert all(torch.equal(got[name], names[name]) for name in names)


def test_sequences_of_tokens_are_no_triples() -> None:
    sequences = [torch.arange(6), torch.arange(2, 7)]
    assert with_triples(sequences) == sequences
    assert with_triples([torch.zeros(3)])[0].dtype == torch.float32


def gradients(model: nn.Module) -> Any:
    return TracInAttributor(model, device="cpu").compute_gradient(*TRIPLES[0], label=1.0).values()


def test_the_last_layers_are_those_of_the_output(caplog: pytest.LogCaptureFixture) -> None:
    one = TracInAttributor(Links(), use_last_layers_only=True, num_last_layers=2, device="cpu")
    found = one.compute_influences(ASKED, Factory(), top_k=N)
    names = ["entity.weight", "fc.weight", "fc.bias"]
    wanted = expected(Links(), names)
    assert sorted(one.parameters) == sorted(names)
    assert "entity (9 x 4), fc (4 x 8)" in caplog.text
    got = {entry["train_index"]: entry["influence"] for entry in found}
    np.testing.assert_allclose([got[at] for at in range(N)], wanted, rtol=1e-4, atol=1e-7)


def test_a_sample_of_triples_by_relation() -> None:
    one = TracInAttributor(Links(), projection_dim=512, device="cpu")
    ask: dict[str, Any] = {"test_triple": ASKED, "training_triples": Factory(), "top_k": 5}
    found = one.compute_influences_sampled(sample_rate=0.3, stratify_by="relation", **ask)
    assert isinstance(found, list) and len(found) == 5
    sizes = [abs(entry["influence"]) for entry in found]
    assert sizes == sorted(sizes, reverse=True)
    relations = np.array([relation for _, relation, _ in TRIPLES])
    counts = np.bincount(relations)
    assert found.sampled == sum(max(2, round(0.3 * count)) for count in counts)
    assert found.expected_recall == found.sampled / N and set(found.mean_influence) == {0, 1, 2}
    assert (
        one.compute_influences_sampled(sample_rate=0.3, **ask) == found
    )  # relations by themselves
    # Once the features of all are there, those of the drawn ones are taken from them.
    exact = TracInAttributor(Links(), projection_dim=512, device="cpu")
    whole = {
        e["train_index"]: e["influence"] for e in exact.compute_influences(ASKED, Factory(), N)
    }
    again = exact.compute_influences_sampled(sample_rate=0.3, **ask)
    assert again == found
    assert [e["influence"] for e in found] == pytest.approx(
        [whole[e["train_index"]] for e in found], rel=1e-4
    )


class Counted(nn.Module):
    """A network that counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(), 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.inner(x)


@pytest.mark.parametrize("given", [False, True])
def test_nothing_is_computed_twice(tmp_path: Path, given: bool) -> None:
    model = Counted()
    one = TracInAttributor(model, device="cpu", store=tmp_path / "s" if given else None)
    first = one.compute_influences(TEST, TRAIN)
    calls = model.calls
    assert one.compute_influences(TEST, TRAIN) == first and model.calls == calls
    single = one.compute_influences((TEST.x[2], TEST.y[2]), TRAIN)
    # The new target alone is computed: with train samples the first call took more than twice as many.
    assert calls < model.calls < calls + calls // 2
    assert [e["train_index"] for e in single] == [e["train_index"] for e in first[2]]
    # One changed sample of many is another data set, also one that no fingerprint is over.
    changed = Samples(40)
    changed.x[min(set(range(40)) - set(hashed_rows(40)))] *= 3
    other = one.compute_influences(TEST, changed, top_k=40)
    plain = TracInAttributor(mlp(), device="cpu").compute_influences(TEST, changed, top_k=40)
    assert [e["train_index"] for e in other[0]] == [e["train_index"] for e in plain[0]]
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    if given:
        with pytest.raises(SpecMismatchError, match="checkpoint"):
            one.compute_influences(TEST, TRAIN)
    else:
        assert one.compute_influences(TEST, TRAIN) != first


def test_a_store_that_was_written_before_is_read(tmp_path: Path) -> None:
    for split, data in (("train", TRAIN), ("test", TEST)):
        featurize(mlp(), data, tmp_path / "s", split=split, progress=False,
                  projector=ts.ProjectionSpec("sjlt", dim=64))  # fmt: skip
    one = TracInAttributor(mlp(), projection_dim=64, device="cpu", store=tmp_path / "s")
    found = one.compute_influences(TEST, TRAIN, top_k=3)
    store = ts.open_store(tmp_path / "s")
    assert store.splits == ("test", "train")
    top = ts.top_k(ts.tracin_scores(store, learning_rates=1.0), 3, order="magnitude")
    assert [[e["train_index"] for e in row] for row in found] == top["train"].values.tolist()


def test_a_store_of_other_features_is_refused(tmp_path: Path) -> None:
    first = TracInAttributor(mlp(), device="cpu", store=tmp_path / "s")
    wanted = first.compute_influences(TEST, TRAIN)
    others: dict[str, dict[str, Any]] = {
        "holds projection .*identity.*, this run has .*sjlt": {"projection_dim": 64},
        "holds parameters .*, this run has": {"use_last_layers_only": True, "num_last_layers": 1},
        "holds output .*margin.*, this run has .*cross_entropy": {"output": "cross_entropy"},
    }
    for words, options in others.items():
        one = TracInAttributor(mlp(), device="cpu", store=tmp_path / "s", **options)
        for ask in (one.compute_influences, one.compute_influences_sampled):
            with pytest.raises(SpecMismatchError, match=words):
                ask(TEST, TRAIN)
    again = TracInAttributor(mlp(), device="cpu", store=tmp_path / "s")
    assert again.compute_influences(TEST, TRAIN) == wanted


def test_a_temporary_store_begins_anew_with_another_output() -> None:
    one = TracInAttributor(mlp(), device="cpu")
    before = one.compute_influences(TEST, TRAIN)
    one.output = "cross_entropy"
    own = TracInAttributor(mlp(), device="cpu", output="cross_entropy")
    after = one.compute_influences(TEST, TRAIN)
    assert after == own.compute_influences(TEST, TRAIN)
    assert after != before


def test_the_precision_is_that_of_the_store(tmp_path: Path) -> None:
    featurize(mlp(), TRAIN, tmp_path / "s", progress=False, precision="bfloat16",
              projector=ts.ProjectionSpec("identity"))  # fmt: skip
    one = TracInAttributor(mlp(), device="cpu", store=tmp_path / "s")
    one.compute_influences(TEST, TRAIN, top_k=3)
    store = ts.open_store(tmp_path / "s")
    assert store.spec.autocast == "bfloat16"
    assert len(store.splits) == 2 and "train" in store.splits


def test_splits_of_32_samples_and_a_digest_are_told_by_all_and_others_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"few": Samples(32), "many": Samples(40)}
    for split, own in data.items():
        featurize(mlp(), own, tmp_path / "s", split=split, progress=False,
                  projector=ts.ProjectionSpec("identity"))  # fmt: skip
    one = TracInAttributor(mlp(), device="cpu", store=tmp_path / "s")
    one.compute_influences(data["few"], data["few"])
    assert "compared" not in caplog.text
    for _ in range(2):
        one.compute_influences(data["few"], data["many"])
    assert caplog.text.count("of many are used: of its 40 samples, 32 were compared") == 1
    assert ts.open_store(tmp_path / "s").splits == ("few", "many")


@pytest.mark.parametrize("given", [False, True])
def test_a_loop_over_single_samples_opens_no_more_splits_each_time(
    tmp_path: Path, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = TracInAttributor(Distances(), device="cpu", store=tmp_path / "s" if given else None)
    opened: list[int] = []
    own = catalogue.open_splits

    def counted(location: Any, wanted: Any) -> Any:
        opened[-1] += len(wanted)
        return own(location, wanted)

    monkeypatch.setattr(catalogue, "open_splits", counted)
    for triple in dict.fromkeys(TRIPLES[:8]):
        opened.append(0)
        one.compute_influence(triple, ASKED)
    assert len(opened) > 5
    assert opened[-1] == opened[2]  # the first calls made the store and the test sample's split
    sampled: list[int] = []
    for triple in dict.fromkeys(TRIPLES[20:25]):
        opened.append(0)
        one.compute_influences_sampled([triple] * 2, TRIPLES, 0.5, None)
        sampled.append(opened[-1])
    assert sampled[-1] == sampled[2]


def test_bad_use() -> None:
    one = TracInAttributor(mlp(), device="cpu")
    with pytest.raises(TrakStoreError, match="give test or test_triple, got neither"):
        one.compute_influences(train=TRAIN)
    with pytest.raises(TrakStoreError, match="give train or training_triples, got both"):
        one.compute_influences(TEST, TRAIN, training_triples=TRAIN)
    pairs = [(torch.zeros(12), 0), (torch.ones(12), 1)]
    with pytest.raises(TrakStoreError, match="'relation' for triples"):
        one.compute_influences_sampled(TEST, pairs, stratify_by="relation")
