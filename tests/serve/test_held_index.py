"""A service that asks an index: exact scores, the recall said, other questions by the exact pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NotFoundError
from trakstore.scores import train_index


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=16)
    )
    for epoch in (1, 2):
        for split, rows in (("train", 400), ("test", 8)):
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            features = rng.standard_normal((rows, 16)).astype(np.float32)
            store.write_split(epoch, split, features, out_to_loss=q)
    return store


def test_an_index_is_asked_about_its_method_and_epochs(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_index, "LEAST_CANDIDATES", 250)
    with pytest.raises(NotFoundError, match="run `trakstore index`"):
        ts.Query(store, index=True)
    scores = ts.trak_scores(store)
    built = ts.build_index(scores, checked=8)
    query, exact = ts.Query(store, index=True).prepare(), ts.Query(store)
    asked = []
    estimate = train_index.EpochIndex.estimate
    monkeypatch.setattr(
        train_index.EpochIndex, "estimate", lambda *given: asked.append(1) or estimate(*given)
    )
    for target in (0, 5):
        answer, wanted = query.ask(target=f"@{target}", k=5), exact.ask(target=f"@{target}", k=5)
        for end in ("proponents", "opponents"):
            found, true = getattr(answer, end), getattr(wanted, end)
            assert [one.id for one in found] == [one.id for one in true]
            np.testing.assert_allclose(
                [one.score for one in found], [one.score for one in true], rtol=1e-4
            )
        said = answer.provenance["index"]
        assert said["recall"] == built.recalls[0].recall and said["checked"] == 8
        assert said["order"] == "largest"
        assert answer.share == 1 and "index" not in wanted.provenance
    # Of two epochs, for each of the ends.
    assert len(asked) == 8
    one = query.ask(target="@0", k=5, epochs=1)
    assert "index" not in one.provenance and len(asked) == 8
    assert one.proponents == exact.ask(target="@0", k=5, epochs=1).proponents
    assert "index" not in query.ask(target="@0", k=5, method="grad-dot").provenance


def test_few_rows_need_no_index(store: ts.FeatureStore) -> None:
    answer = ts.Query(store, index=True).ask(target="@1", k=3)
    assert answer.provenance["index"] == {"recall": 1.0}
    assert answer.proponents == ts.Query(store).ask(target="@1", k=3).proponents
