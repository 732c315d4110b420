"""What notebooks show of objects: their numbers, escaped, and nothing is computed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import trakstore as ts


def texts(shown: str) -> list[str]:
    """All texts; raises where the markup is not well formed."""
    return [text for one in ElementTree.fromstring(shown).iter() if (text := one.text)]


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    place = tmp_path / "a<b>&.zarr"
    made = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", dim=6))
    for epoch in range(14):
        for split, rows in (("train", 1200), ("test", 4)):
            if (epoch, split) != (13, "test"):
                features = rng.normal(size=(rows, 6)).astype(np.float32)
                made.write_split(epoch, split, features, out_to_loss=np.ones(rows), block_rows=600)
    (place / "12" / "test" / "written" / "c.0.0").unlink()
    return made


def test_a_store(store: ts.FeatureStore) -> None:
    store.status()
    found = texts(store._repr_html_())
    assert str(store.location) in found and "14, the last 12 shown" in found
    assert found.count("1,200 rows") == 12 and found.count("4 rows") == 10
    assert "4 rows, not all written" in found and found[-2:] == ["-", "1,200 rows"]
    empty = ts.FeatureStore.create("memory://", projection=ts.ProjectionSpec("sjlt", dim=6))
    assert "none" in texts(empty._repr_html_())


def test_a_kernel(store: ts.FeatureStore) -> None:
    report = ts.kernel_report(store, 3)
    shown = report._repr_html_()
    assert "train at epoch 3, 1,200 rows x 6" in texts(shown)
    assert f"{report.condition:.3g}, damped {report.damped_condition:.3g}" in texts(shown)
    (line,) = ElementTree.fromstring(shown).iter("polyline")
    heights = [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]
    assert len(heights) == 6 and heights == sorted(heights)  # downwards: y grows
    wanted = np.log10(report.eigenvalues)
    np.testing.assert_allclose(np.corrcoef(heights, wanted)[0, 1], -1, atol=1e-3)
    few = ts.kernel_report(store, 3, "test")
    assert few.warnings and few.warnings[0] in texts(few._repr_html_())


def test_scores(store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ts.grad_dot_scores(store, epochs=[3, 5], of="output")
    monkeypatch.setattr(ts.Scores, "window", _never)
    found = texts(scores._repr_html_())
    assert "4 targets x 1,200 train samples, mean over epochs" in found and "3, 5" in found


def _never(*_: Any) -> None:
    raise AssertionError("scores were computed")
