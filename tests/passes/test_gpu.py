from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from trakstore.errors import MemoryLimitError, TrakStoreError
from trakstore.passes import gpu
from trakstore.passes.gpu import NoDeviceWarning, free_bytes, usable_device, working_on_gpu


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


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_products_are_exact_until_the_last_thread_has_left(allowed):
    torch = pytest.importorskip("torch")
    torch.set_float32_matmul_precision(allowed)
    try:
        with working_on_gpu("cpu:0"):
            with working_on_gpu("cpu:0"):
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_that_was_allowed_in_the_new_way_is_put_back():
    torch = pytest.importorskip("torch")
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one way alone")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with working_on_gpu("cpu:0"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_a_device_without_room_is_told():
    torch = pytest.importorskip("torch")
    told = pytest.raises(MemoryLimitError, match=r"cpu:0 has no room left.*device='cpu'")
    with told, working_on_gpu("cpu:0"):
        raise torch.OutOfMemoryError


@pytest.mark.parametrize("name", ["cdua", "meta", "cuda:x", ""])
def test_what_is_no_device_is_refused(make_scores, name):
    scores, _ = make_scores()
    with pytest.raises(TrakStoreError, match=rf"device is 'cuda'.*got '{name}'"):
        scores.to(name).block(0, 9, 0, 8)


class _Called:
    """Stands for torch's streams and events: what is asked of them, in order."""

    log: ClassVar[list[tuple[object, ...]]] = []

    def __init__(self, *given, **how):
        self.given = given or tuple(how.items())

    def __getattr__(self, name):
        return lambda *given: self.log.append((self.given, name, *(x.given for x in given)))

    def __enter__(self):
        self.log.append((self.given, "begin"))

    def __exit__(self, *_):
        self.log.append((self.given, "end"))


def test_events_order_copies_and_computations_of_a_gpu(monkeypatch):
    torch = pytest.importorskip("torch")
    from trakstore.passes.pinned import GpuStreams

    _Called.log.clear()
    device, current = torch.device("cuda"), _Called("current")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: _Called("copies"))
    monkeypatch.setattr(torch.cuda, "Event", _Called)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    streams, there = GpuStreams(device), torch.zeros(3)
    event = (("blocking", True),)
    copied = streams.copy(there, torch.ones(3), streams.computed())
    streams.arrive(copied)
    streams.wait(copied)
    assert there.tolist() == [1, 1, 1]
    assert _Called.log == [
        (event, "record", ("current",)),
        (("copies",), "wait_event", event),
        (("copies",), "begin"),
        (("copies",), "end"),
        (event, "record", ("copies",)),
        (("current",), "wait_event", event),
        (event, "synchronize"),
    ]


def test_only_a_gpu_has_memory_of_its_own():
    assert free_bytes("cpu") is None and free_bytes("cpu:0") is None


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
