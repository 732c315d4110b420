"""Options of a query, which a later query of the same store keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trakstore.kernels.solvers import Damping
from trakstore.methods.sampled_kernel import KernelRows, need_kernel_rows
from trakstore.quantities import as_flag
from trakstore.report.sample_source import Render
from trakstore.serve.store_stamp import StoreStamp
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.layout import Epoch
from trakstore.storage.selections import as_epochs


@dataclass(frozen=True)
class QueryOptions:
    """Options of a :class:`~trakstore.serve.Query`, as it takes them."""

    targets: str
    train: str
    epochs: Epoch | Sequence[Epoch] | None
    method: str
    damping: float | Damping | None
    kernel: KernelRows
    index: bool
    render: Render | str | None
    prepare: Callable[[dict[str, Any]], Any] | str | None
    device: str | None
    memory_limit: int | str | None

    def __post_init__(self) -> None:
        # Without this check, an option that a method refuses would fail with the first question only.
        if self.damping is not None:
            Damping.of(self.damping)
        need_kernel_rows(self.kernel)
        as_flag(self.index, "index")

    def stamp(self, location: Location) -> StoreStamp:
        """Return the stamp of everything in a store on which answers depend."""
        splits = dict.fromkeys((self.targets, self.train))
        # The kernel may use rows with drawn labels, which rows of tokens do not have.
        if layout.own_split(self.train) == self.train:
            splits[layout.sampled_split(self.train)] = None
        epochs = None if self.epochs is None else as_epochs(self.epochs)
        return StoreStamp(location, tuple(splits), epochs)
