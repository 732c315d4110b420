from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trakstore.passes import gpu
from trakstore.passes.gpu import NoDeviceWarning, torch_tile, usable_device


@pytest.mark.parametrize("average", ["factors", "scores"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiles_through_torch_are_the_tiles(make_scores, average, dtype):
    scores, _ = make_scores(average=average, dtype=dtype)
    window = scores.window(0, 9)
    for start, stop in ((0, 8), (96, 101)):
        found = torch_tile(window, start, stop, "cpu")
        np.testing.assert_allclose(found, window.tile(start, stop), rtol=1e-4, atol=1e-5)
        assert found.dtype == np.float32


def test_a_device_that_is_not_there_is_told_and_not_used(make_scores, monkeypatch):
    torch = pytest.importorskip("torch")

    def missing(*_args, device=None, **_):
        raise RuntimeError(f"no {device} here\nand a trace")

    monkeypatch.setattr(torch, "zeros", missing)
    usable_device.cache_clear()
    scores, _ = make_scores()
    with pytest.warns(NoDeviceWarning, match=r"'cuda' cannot be used here \(no cuda here\)"):
        found = scores.to("cuda").block(0, 9, 0, 8)
    np.testing.assert_array_equal(found, scores.block(0, 9, 0, 8))
    usable_device.cache_clear()


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available() is False", reason="needs a CUDA device"
)
def test_on_a_gpu(make_scores):
    scores, _ = make_scores()
    np.testing.assert_allclose(
        np.asarray(scores.to("cuda")), np.asarray(scores), rtol=1e-4, atol=1e-5
    )


def test_torch_is_not_imported_for_the_cpu():
    script = (
        "import sys, numpy as np; from trakstore.scores.factored import *;"
        "from trakstore.scores.parts import *;"
        "from trakstore.passes.rows import ArrayRows as A;"
        "part = Part(0, A(np.ones((2, 2))), A(np.ones((3, 2))));"
        "Scores('x', (part,), A(np.arange(2)), A(np.arange(3))).block(0, 2, 0, 3);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert gpu.__doc__
