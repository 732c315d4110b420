from __future__ import annotations

import json

import numpy as np
import pytest
import reference

from trakstore.errors import IncompleteError, NumericsError
from trakstore.kernels.solvers import Damping
from trakstore.methods.kernel_report import kernel_report


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_report_is_the_spectrum(store, columns, c):
    features = columns["final", "train"]["features"]
    report = kernel_report(store, "final", damping=c)
    for name, expected in reference.spectrum(features, c).items():
        np.testing.assert_allclose(getattr(report, name), expected, rtol=1e-4, err_msg=name)
    assert report.condition == pytest.approx(np.linalg.cond(features.astype(float)) ** 2, rel=1e-4)
    assert (report.n, report.dim, report.damping) == (60, 12, c)
    assert report.warnings == ()


def first_rows(columns, count):
    """The columns with fewer train rows at epoch 0."""
    given = {name: values[:count] for name, values in columns[0, "train"].items()}
    return {**columns, (0, "train"): given}


def test_fewer_rows_than_dimensions(columns, store_of):
    columns = first_rows(columns, 9)
    report = kernel_report(store_of(columns), 0)
    assert report.condition == np.inf
    assert report.damped_condition < 100
    assert report.warnings == (
        "singular without damping: rank <= n = 9 < k = 12; keep damping > 0",
    )
    for name, expected in reference.spectrum(columns[0, "train"]["features"], 1.0).items():
        np.testing.assert_allclose(getattr(report, name), expected, 1e-3, 1e-4, err_msg=name)


def test_dependent_columns_are_warned_of_with_and_without_damping(columns, store_of):
    features = columns[0, "train"]["features"]
    features[:, 1] = features[:, 0]
    store = store_of(columns)
    assert "nearly singular" in " ".join(kernel_report(store, 0).warnings) or (
        kernel_report(store, 0).condition == np.inf
    )
    tiny = kernel_report(store, 0, damping=Damping(absolute=1e-9))
    assert tiny.damping is None
    assert tiny.lam == 1e-9
    assert "at this damping" in " ".join(tiny.warnings)


def test_a_report_prints_in_a_few_lines(store, columns, store_of):
    report = kernel_report(store, "final")
    lines = repr(report).splitlines()
    assert len(lines) == 3
    assert "train at epoch final: 60 rows x 12, weights none" in lines[0]
    assert f"λ = {report.lam:.3g}, c = 1; condition {report.condition:.3g}" in lines[1]
    few = store_of(first_rows(columns, 9))
    assert "warning: singular without damping" in repr(kernel_report(few, 0))


def test_to_dict_is_json(store):
    found = json.loads(json.dumps(kernel_report(store, 0, damping=0).to_dict(), allow_nan=False))
    assert found["n"] == 60
    assert len(found["eigenvalues"]) == 12
    assert found["warnings"] == []


def test_refusals(columns, store_of):
    columns["final", "train"]["features"][:] = 0
    store = store_of(columns, lacking=(0, "train"))
    with pytest.raises(IncompleteError):
        kernel_report(store, 0)
    with pytest.raises(NumericsError, match=r"all 60 rows .* are zero"):
        kernel_report(store, "final")
