"""Devices: which a worker takes, what is refused, mixed precision, memory that does not suffice."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import ConvNet, Samples, mlp, seeded
from torch import Tensor, nn
from torch.backends import cudnn

import trakstore as ts
from trakstore.errors import MemoryLimitError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize
from trakstore.features.block_rows import RowComputer
from trakstore.features.devices import check_determinism, need_one_device, worker_device, working_on
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.precision import are_tf32

OPTIONS: dict[str, Any] = {
    "projector": ts.ProjectionSpec("sjlt", dim=32, seed=1),
    "batch_size": 16,
    "progress": False,
}


def features(where: Path) -> Any:
    split = ts.open_store(where).split(0, "train")
    return split.column("features").read(0, split.rows)


@pytest.mark.parametrize(
    ("gpus", "local", "expected"), [(0, 3, "cpu"), (1, 3, "cuda:0"), (4, 3, "cuda:3")]
)
def test_a_worker_takes_the_gpu_of_its_number(
    gpus: int, local: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert worker_device() == torch.device(expected)
    assert worker_device("cpu") == torch.device("cpu")


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrakStoreError, match=r"worker 2 of its machine.* 2 GPUs; start 2 workers"):
        worker_device()


def test_a_model_that_is_not_on_one_device_is_refused(tmp_path: Path) -> None:
    model = mlp()
    model.append(nn.Linear(2, 2, device="meta"))  # type: ignore[operator]
    with pytest.raises(TrakStoreError, match="meta device, which have no numbers"):
        featurize(model, Samples(4), tmp_path / "s.zarr", **OPTIONS)

    class Spread(nn.Module):
        def parameters(self, recurse: bool = True) -> Any:  # noqa: ARG002
            return iter([torch.empty(1), _On("cuda:1")])

    with pytest.raises(TrakStoreError, match="spread over cpu, cuda:1; each worker"):
        need_one_device(Spread())


class _On:
    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


def test_the_cpu_needs_no_settings() -> None:
    with working_on(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    check_determinism(torch.device("cpu"), lambda: 1 / 0)


def test_operations_that_differ_from_run_to_run_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        raise RuntimeError(
            "cumsum_cuda_kernel does not have a deterministic implementation, but x. Y"
        )

    before = torch.are_deterministic_algorithms_enabled()
    try:
        with caplog.at_level(logging.WARNING):
            check_determinism(torch.device("cuda"), run)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
    assert "may differ in their last bits" in caplog.text and "cumsum" in caplog.text
    with pytest.raises(RuntimeError, match="another"):
        check_determinism(torch.device("cuda"), lambda: _raise(RuntimeError("another")))


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("make", [mlp, lambda: seeded(ConvNet)], ids=["mlp", "conv"])
def test_autocast_is_near_and_the_store_says_so(make: Any, tmp_path: Path) -> None:
    model, data = make(), Samples(32)
    featurize(model, data, tmp_path / "s.zarr", **OPTIONS)
    featurize(model, data, tmp_path / "b.zarr", autocast="bfloat16", **OPTIONS)
    exact, near = features(tmp_path / "s.zarr"), features(tmp_path / "b.zarr")
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 3e-2
    assert ts.open_store(tmp_path / "b.zarr").spec.autocast == "bfloat16"
    assert ts.open_store(tmp_path / "s.zarr").spec.autocast is None
    with pytest.raises(SpecMismatchError, match="autocast bfloat16, this run has None"):
        featurize(model, data, tmp_path / "b.zarr", epoch=1, **OPTIONS)


def test_autocast_is_trusted_to_its_own_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers are not sent to the generic engine because bfloat16 rounds."""
    with caplog.at_level(logging.INFO, logger="trakstore"):
        featurize(mlp(), Samples(32), tmp_path / "b.zarr", autocast="bfloat16", **OPTIONS)
    assert "generic engine" not in caplog.text


def test_precision_is_another_name_of_autocast(tmp_path: Path) -> None:
    model, data = mlp(), Samples(32)
    featurize(model, data, tmp_path / "a.zarr", autocast="bfloat16", **OPTIONS)
    featurize(model, data, tmp_path / "p.zarr", precision="bfloat16", **OPTIONS)
    np.testing.assert_array_equal(features(tmp_path / "a.zarr"), features(tmp_path / "p.zarr"))
    specs = [ts.open_store(tmp_path / name).spec for name in ("a.zarr", "p.zarr")]
    assert specs[0] == specs[1]
    job = Job(model, {"train": data}, autocast="bfloat16")
    assert (job.precision, job.autocast) == ("bfloat16", None)
    assert replace(job, precision="float32").precision == "float32"


def test_the_store_knows_of_tf32(tmp_path: Path) -> None:
    place = tmp_path / "t.zarr"
    featurize(mlp(), Samples(32), place, precision="tf32", **OPTIONS)
    assert ts.open_store(place).spec.autocast == "tf32"
    for other in ("float32", "bfloat16"):
        with pytest.raises(SpecMismatchError, match="holds autocast tf32"):
            featurize(mlp(), Samples(32), place, precision=other, epoch=1, **OPTIONS)  # type: ignore[arg-type]
    assert featurize(mlp(), Samples(32), place, precision="tf32", epoch=1, **OPTIONS).rows == 32


class Settings(nn.Module):
    """Notes how torch is told to multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.seen: set[Any] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((torch.get_float32_matmul_precision(), are_tf32()))
        return self.linear(x)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_products_are_as_asked_and_settings_are_put_back(tmp_path: Path, before: str) -> None:
    torch.set_float32_matmul_precision(before)
    try:
        whole = _settings()
        for precision, seen in (("float32", ("highest", False)), ("tf32", ("high", True))):
            model = Settings()
            place = tmp_path / f"{precision}.zarr"
            featurize(model, Samples(8), place, precision=precision, **OPTIONS)  # type: ignore[arg-type]
            assert model.seen == {seen}
            assert _settings() == whole
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="older than these settings"
)
def test_newer_settings_are_put_back() -> None:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with working_on(torch.device("cpu")):
            assert not are_tf32() and torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert are_tf32()
        with working_on(torch.device("cpu"), "tf32"):
            assert are_tf32() and torch.backends.mkldnn.matmul.fp32_precision == "tf32"
        assert are_tf32() and torch.backends.mkldnn.matmul.fp32_precision != "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older than this setting")
def test_convolutions_do_not_take_what_holds_for_all_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends: Any = torch.backends
    # Whoever imports torch's own test tools may not change its settings any more.
    settings = backends.disable_global_flags.__globals__
    monkeypatch.setitem(settings, "__allow_nonbracketed_mutation_flag", True)
    parts = (backends, backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn)
    plain = [one.fp32_precision for one in parts]
    backends.fp32_precision = "tf32"
    before = [one.fp32_precision for one in parts]
    try:
        # The second is what a GPU has besides.
        with working_on(torch.device("cpu")), cudnn.flags(enabled=True, allow_tf32=False):
            assert "tf32" not in [one.fp32_precision for one in parts]
        assert [one.fp32_precision for one in parts] == before
    finally:
        for one, value in zip(parts, plain, strict=True):
            one.fp32_precision = value


def _settings() -> tuple[Any, ...]:
    return (
        torch.get_float32_matmul_precision(),
        getattr(torch.backends.cuda.matmul, "fp32_precision", None),
        getattr(torch.backends.mkldnn.matmul, "fp32_precision", None),
    )


def test_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrakStoreError, match="precision is one of float32, tf32, bfloat16, got 'half'"
    ):
        featurize(mlp(), Samples(4), tmp_path / "s.zarr", precision="half", **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="contradict"):
        Job(mlp(), {"train": Samples(4)}, precision="tf32", autocast="bfloat16")
    with pytest.raises(TrakStoreError, match="autocast is bfloat16 or None, got 'float8'"):
        featurize(mlp(), Samples(4), tmp_path / "s.zarr", autocast="float8", **OPTIONS)  # type: ignore[arg-type]


def limited(most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An engine that runs out of memory above so many samples; sizes that it did."""
    rows, done = FactorisedEngine.rows, []

    def some(self: FactorisedEngine, batch: Any) -> Any:
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        done.append(len(batch[0]))
        return rows(self, batch)

    monkeypatch.setattr(FactorisedEngine, "rows", some)
    return done


def test_fewer_samples_at_once_when_memory_does_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = mlp(), Samples(45)
    featurize(model, data, tmp_path / "whole.zarr", **OPTIONS)
    done = limited(5, monkeypatch)
    with caplog.at_level(logging.WARNING):
        featurize(model, data, tmp_path / "parts.zarr", **OPTIONS)
    whole, parts = features(tmp_path / "whole.zarr"), features(tmp_path / "parts.zarr")
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    assert done == [2, *[4] * 11, 1], "the sizes that fit, in order, and every sample once"
    assert [record.getMessage() for record in caplog.records] == [
        "memory did not suffice: going on with 8 samples at once",
        "memory did not suffice: going on with 4 samples at once",
    ]


def test_one_sample_that_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(0, monkeypatch)
    with pytest.raises(MemoryLimitError, match=r"one sample \(CUDA out of memory"):
        featurize(mlp(), Samples(9), tmp_path / "s.zarr", **OPTIONS)


def test_free_memory_suggests_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[RowComputer] = []
    begin = RowComputer.begin
    monkeypatch.setattr(
        RowComputer, "begin", lambda self, *a: found.append(self) or begin(self, *a)
    )
    featurize(mlp(), Samples(32), tmp_path / "s.zarr", **OPTIONS)
    rows = found[0]
    one, two = rows._peaks(rows.reader.together(np.arange(2)))
    assert rows.fitting(one + 4 * (two - one)).at_once == 5
    assert rows.fitting(10**12).at_once == rows.at_once == 16
    assert rows.fitting(1).at_once == 1
