from __future__ import annotations

import json

import numpy as np
import pytest
import reference

from trakstore.errors import IncompleteError, NumericsError
from trakstore.kernels.solvers import Damping
from trakstore.methods.kernel_report import kernel_report


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_report_is_the_spectrum(store, c):
    features = store.splits["final", "train"].columns["features"]
    report = kernel_report(store, "final", damping=c)
    for name, expected in reference.spectrum(features, c).items():
        np.testing.assert_allclose(getattr(report, name), expected, rtol=1e-4, err_msg=name)
    assert report.condition == pytest.approx(np.linalg.cond(features.astype(float)) ** 2, rel=1e-4)
    assert (report.n, report.dim, report.damping) == (60, 12, c)
    assert report.warnings == ()


def test_fewer_rows_than_dimensions(store):
    split = store.splits[0, "train"]
    split.columns["features"] = split.columns["features"][:9]
    report = kernel_report(store, 0)
    assert report.condition == np.inf
    assert report.damped_condition < 100
    assert report.warnings == (
        "singular without damping: rank <= n = 9 < k = 12; keep damping > 0",
    )
    for name, expected in reference.spectrum(split.columns["features"], 1.0).items():
        np.testing.assert_allclose(getattr(report, name), expected, 1e-3, 1e-4, err_msg=name)


def test_dependent_columns_are_warned_of_with_and_without_damping(store):
    features = store.splits[0, "train"].columns["features"]
    features[:, 1] = features[:, 0]
    assert "nearly singular" in " ".join(kernel_report(store, 0).warnings) or (
        kernel_report(store, 0).condition == np.inf
    )
    tiny = kernel_report(store, 0, damping=Damping(absolute=1e-9))
    assert tiny.damping is None
    assert tiny.lam == 1e-9
    assert "at this damping" in " ".join(tiny.warnings)


def test_a_report_prints_in_a_few_lines(store):
    report = kernel_report(store, "final")
    lines = repr(report).splitlines()
    assert len(lines) == 3
    assert "train at epoch final: 60 rows x 12, weights none" in lines[0]
    assert f"λ = {report.lam:.3g}, c = 1; condition {report.condition:.3g}" in lines[1]
    store.splits[0, "train"].columns["features"] = store.splits[0, "train"].columns["features"][:9]
    assert "warning: singular without damping" in repr(kernel_report(store, 0))


def test_to_dict_is_json(store):
    found = json.loads(json.dumps(kernel_report(store, 0, damping=0).to_dict(), allow_nan=False))
    assert found["n"] == 60
    assert len(found["eigenvalues"]) == 12
    assert found["warnings"] == []


def test_refusals(store):
    store.splits[0, "train"].complete = False
    with pytest.raises(IncompleteError):
        kernel_report(store, 0)
    store.splits["final", "train"].columns["features"][:] = 0
    with pytest.raises(NumericsError, match=r"all 60 rows .* are zero"):
        kernel_report(store, "final")
