"""Arrays on their way to a GPU and back, through buffers in pinned memory.

A GPU copies from ordinary memory at about a tenth of its speed, and not while it computes. Here an
array is put into one of two pinned buffers, while the other buffer is copied on a separate stream and
the array before is used in computations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.passes.rows import Rows, scaled_integers
from trakstore.planning import ranges

# Bytes of a large array that travel at a time, since torch keeps all memory that it has pinned.
PIECE_BYTES = 2**24


class Streams(Protocol):
    """The order of copies and computations, kept by events that are recorded and waited for."""

    def computed(self) -> Any:
        """Record an event behind all computations that the device was given so far."""

    def copy(self, there: Tensor, here: Tensor, after: Any) -> Any:
        """Begin a copy to the device after an event; return the event of its end."""

    def arrive(self, copied: Any) -> None:
        """Make later computations wait for a copy."""

    def wait(self, copied: Any) -> None:
        """Block until a copy has ended."""


class GpuStreams:
    """A stream of copies beside the current stream of a GPU, which does the computations."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._copies = device, torch.cuda.Stream(device)

    def computed(self) -> torch.cuda.Event:
        return _recorded(torch.cuda.current_stream(self._device))

    def copy(self, there: Tensor, here: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        self._copies.wait_event(after)
        with torch.cuda.stream(self._copies):
            there.copy_(here, non_blocking=True)
        return _recorded(self._copies)

    def arrive(self, copied: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(copied)

    def wait(self, copied: torch.cuda.Event) -> None:
        copied.synchronize()


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    # A thread that waits for the event sleeps, and leaves its core to threads that read.
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


class OneAfterTheOther:
    """Substitute for streams on a device without them: everything has ended when it returns."""

    def computed(self) -> None:
        return

    def copy(self, there: Tensor, here: Tensor, after: None) -> None:  # noqa: ARG002
        there.copy_(here)

    def arrive(self, copied: None) -> None:  # noqa: ARG002
        return

    def wait(self, copied: None) -> None:  # noqa: ARG002
        return


def streams_of(device: torch.device) -> Streams:
    return GpuStreams(device) if device.type == "cuda" else OneAfterTheOther()


@dataclass
class _Buffers:
    """A pinned buffer and its counterpart on the device, with events of the last copy and last use."""

    here: Tensor
    there: Tensor
    copied: Any = None
    used: Any = None


class Upload:
    """Transfer of arrays to a device, one after the other, through two pairs of buffers in turn.

    The host waits only for the copy before the last one, never for computations. On the device, events
    keep the order: a buffer there is overwritten only after the computations that read it have ended.

    Parameters
    ----------
    device : torch.device
    streams : Streams, optional
        Streams of another upload in the same thread; by default its own. torch has 32 streams for
        copies, and threads that shared one would wait for each other's computations.
    """

    def __init__(self, device: torch.device, streams: Streams | None = None) -> None:
        self._device, self.streams = device, streams or streams_of(device)
        self._pairs: list[_Buffers] = []
        # The scales of rows in 8 bits travel separately, or else a scale would take the turn of a tile.
        self._scales: Upload | None = None

    @contextmanager
    def sent(self, array: NDArray[Any]) -> Iterator[Tensor]:
        """Yield an array on the device, as it is stored, for computations in the ``with`` block."""
        pair, streams = self._next(array.nbytes), self.streams
        dtype = array.dtype.newbyteorder("=")
        here = pair.here[: array.nbytes].numpy().view(dtype).reshape(array.shape)
        np.copyto(here, array)
        pair.copied = streams.copy(pair.there[: array.nbytes], pair.here[: array.nbytes], pair.used)
        streams.arrive(pair.copied)
        there = pair.there[: array.nbytes].view(torch.from_numpy(here[:0]).dtype)
        yield there.view(array.shape)
        pair.used = streams.computed()

    # Only here do stored rows become numbers to compute with on a device.
    @contextmanager
    def widened(
        self, rows: Rows, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> Iterator[Tensor]:
        """Yield rows that travel as they are stored, and are widened on the device."""
        parts = scaled_integers(rows)
        if parts is None:
            with self.sent(rows.read(start, stop)) as stored:
                yield stored.to(dtype)
            return
        if self._scales is None:
            self._scales = Upload(self._device, self.streams)
        integers, scale = (part.read(start, stop) for part in parts)
        with self.sent(integers) as stored, self._scales.sent(scale) as factor:
            # In float32, as on the CPU, whatever follows.
            yield (stored.to(torch.float32) * factor[:, None]).to(dtype)

    def _next(self, size: int) -> _Buffers:
        """Return the pair of buffers whose turn it is, free to be filled with so many bytes."""
        # Both pairs are made before any computation, since making one later would wait for it.
        pair, other = self._pairs or (self._made(size), self._made(size))
        if pair.copied is not None:
            self.streams.wait(pair.copied)
        if pair.here.numel() < size:
            pair = self._made(size)
        self._pairs = [other, pair]
        return pair

    def _made(self, size: int) -> _Buffers:
        pinned = self._device.type == "cuda"
        # The CPU is named, since torch may have another default device.
        here = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        there = torch.empty(size, dtype=torch.uint8, device=self._device)
        # Computations that used this memory before may still be running.
        return _Buffers(here, there, used=self.streams.computed())


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array of floats as a tensor on the device that stays there."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    there, upload = torch.empty(array.shape, dtype=dtype, device=device), Upload(device)
    for low, high in _pieces(there):
        with upload.sent(array[low:high]) as part:
            there[low:high] = part
    return there


def to_host(tensor: Tensor, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return a result as an array in ordinary memory, in ``out`` if given."""
    if out is None:
        out = np.empty(tuple(tensor.shape), dtype=_numpy_dtype(tensor))
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    for low, high in _pieces(rows):
        out.reshape(rows.shape)[low:high] = _fetched(rows[low:high])
    return out


def _pieces(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Cut rows into ranges of at most so many bytes."""
    row = rows[:1].numel() * rows.element_size()
    return ranges(len(rows), max(1, PIECE_BYTES // max(1, row)))


def _fetched(part: Tensor) -> NDArray[Any]:
    """Return a part of a result in pinned memory; every result from a device passes through here."""
    pinned = part.device.type == "cuda"
    here = torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=pinned)
    fetched: NDArray[Any] = here.copy_(part).numpy()
    return fetched


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    dtype: np.dtype[Any] = torch.empty(0, dtype=tensor.dtype, device="cpu").numpy().dtype
    return dtype
