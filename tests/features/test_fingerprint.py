"""Hashes of checkpoints: each tensor counts, in whatever way it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trakstore.features.fingerprint import (
    _sample_hash,
    checkpoint_hash,
    dataset_fingerprint,
    whole_digest,
)


class Holder(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)


def dense(value: float) -> Tensor:
    return torch.tensor([[0, value, 0, 0], [value, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 3.0]])


def moved(value: float) -> Tensor:
    """Other places of the same values."""
    return dense(value).flip(0).contiguous()


def channels(tensor: Tensor) -> Tensor:
    scales, zeros = torch.tensor([0.1, 0.2, 0.1, 0.1]), torch.zeros(4, dtype=torch.int64)
    return torch.quantize_per_channel(tensor, scales, zeros, 0, torch.qint8)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda t: t,
    "coo": lambda t: t.to_sparse_coo(),
    "csr": lambda t: t.to_sparse_csr(),
    "csc": lambda t: t.to_sparse_csc(),
    "bsr": lambda t: t.to_sparse_bsr((2, 2)),
    "bsc": lambda t: t.to_sparse_bsc((2, 2)),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "channels": channels,
    "complex": lambda t: torch.complex(t, 1 - t),
    "conjugate": lambda t: torch.complex(t, 1 - t).conj(),
    "bfloat16": lambda t: t.bfloat16(),
    "integers": lambda t: t.to(torch.int8),
    "transposed": lambda t: t.t(),
}


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", FORMS)
def test_buffers_of_any_layout_count(form: str) -> None:
    make = FORMS[form]
    hashes = [checkpoint_hash(Holder(make(t))) for t in (dense(1), dense(1), dense(4), moved(1))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    samples = [dataset_fingerprint([make(t)], np.arange(1)) for t in (dense(1), dense(1), dense(4))]
    assert samples[0] == samples[1] != samples[2]


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_scales_of_quantised_tensors_count() -> None:
    tensors = [torch.quantize_per_tensor(dense(1) * s, 0.1 * s, 0, torch.qint8) for s in (1.0, 2.0)]
    assert torch.equal(*(one.int_repr() for one in tensors))
    assert len({checkpoint_hash(Holder(one)) for one in tensors}) == 2


def test_the_order_in_which_sparse_values_are_held_does_not_count() -> None:
    places, values = torch.tensor([[0, 2, 1], [1, 0, 1]]), torch.tensor([3.0, 4.0, 5.0])
    order = torch.tensor([2, 0, 1])
    held = [
        torch.sparse_coo_tensor(places[:, at], values[at], (3, 3), check_invariants=True)
        for at in (torch.arange(3), order)
    ]
    assert len({checkpoint_hash(Holder(one)) for one in held}) == 1


def test_tensors_that_modules_pack_count() -> None:
    class Packed(nn.Linear):
        """A state of its own beside the parameters, as quantised layers have."""

        def __init__(self, value: float) -> None:
            super().__init__(2, 2)
            nn.init.ones_(self.weight)
            nn.init.ones_(self.bias)
            self.value = value

        def get_extra_state(self) -> Any:
            return (torch.full((2,), self.value), torch.float32)

        def set_extra_state(self, state: Any) -> None:
            self.value = float(state[0][0])

    assert len({checkpoint_hash(Packed(value)) for value in (1.0, 1.0, 2.0)}) == 2


def test_hashes_of_dense_weights_are_as_they_were() -> None:
    model = Holder(torch.arange(3, dtype=torch.float32))
    told = b"held torch.float32 (3,);" + np.arange(3, dtype=np.float32).tobytes()
    assert checkpoint_hash(model) == hashlib.sha256(told).hexdigest()


def test_no_other_ids_have_the_same_fingerprint() -> None:
    data = [torch.zeros(2)] * 3
    several = (["a;b", "c", "d"], ["a", "b;c", "d"], ["a\\", ";b;c", "d"], ["a\\;b", "c", "d"])
    for fingerprint in (dataset_fingerprint, whole_digest):
        assert len({fingerprint(data, np.array(ids)) for ids in several}) == len(several)
    # Those of ids without either are as they were.
    digest = hashlib.sha256()
    for index in range(3):
        digest.update(_sample_hash(data[index]))
    digest.update(b"a;b;c;")
    assert whole_digest(data, np.array(["a", "b", "c"])) == digest.hexdigest()
