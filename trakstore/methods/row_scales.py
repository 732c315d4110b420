"""Scales that make a stored output gradient one of the loss, and a row one of unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.methods.epochs import EpochPair, UnmaskedSplit, need_open
from trakstore.passes.rows import RowByRow, Rows
from trakstore.storage.store import FeatureStore

Of: TypeAlias = Literal["output", "loss"]


def check_of(of: str, store: FeatureStore) -> None:
    """Refuse anything but ``"output"`` and ``"loss"``, and a loss that no output determines."""
    if of not in get_args(Of):
        raise TrakStoreError(f"of must be 'output' or 'loss', got {of!r}")
    need_open(store)
    output = store.spec.output
    if of == "loss" and output and dict(output.options).get("loss_of_output") is False:
        raise TrakStoreError(
            f"the output {output.name!r} of this store, over tokens, does not determine the loss, so "
            f"that loss gradients do not follow from the stored ones: use of='output' or another "
            f"method, or featurize with over='sequence'"
        )


def out_to_loss(split: UnmaskedSplit) -> Rows:
    """Return the column q = −dl/d(output), by which loss gradients are −q times the stored ones.

    Raises
    ------
    NotFoundError
        When the features were stored without it.
    """
    try:
        return split.column("out_to_loss")
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}: this method needs the derivative of the loss; featurize writes it, and "
            f"write_split takes out_to_loss="
        ) from None


def gradient_scale(split: UnmaskedSplit, of: Of) -> Rows | None:
    """Return the factor of each stored row, up to the sign that both sides share."""
    # A loss gradient is −q times the stored one. The two signs of a product cancel.
    return None if of == "output" else out_to_loss(split)


def gradient_scales(pair: EpochPair, of: Of = "loss") -> dict[str, Rows | None]:
    """Return the scales of both sides, as a :class:`~trakstore.scores.parts.Part` takes them."""
    return {
        "row_scale": gradient_scale(pair.target, of),
        "column_scale": gradient_scale(pair.train, of),
    }


@dataclass(frozen=True, eq=False)
class InverseRows(RowByRow):
    """1/base, times the sign of ``sign`` where it is given; 0 where the base is 0.

    A row of zeros has no direction: its cosine with anything is taken as 0.
    """

    sign: Rows | None = None

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        # In float64, as the scale multiplies a row of the left factor before it is rounded to float32.
        values = np.asarray(self.base.read(start, stop), dtype=np.float64)
        inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
        if self.sign is not None:
            inverse *= np.sign(self.sign.read(start, stop))
        return inverse
