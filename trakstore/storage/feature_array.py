"""Lazy features, which say where the other columns of their split are."""

from __future__ import annotations

from typing import Any

import xarray as xr

from trakstore.errors import NotFoundError


class FeatureArray(xr.DataArray):  # type: ignore[no-untyped-call]
    """Features of a split; asked for a column that they lack, they name the way to it."""

    # xarray asks subclasses for it. There is no room for the names of the columns either: xarray makes
    # new arrays of a result, selected or computed, without what a subclass adds.
    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        """Select as xarray does, or raise a :class:`NotFoundError`, which is a KeyError as well."""
        try:
            return super().__getitem__(key)
        except KeyError:
            if not isinstance(key, str):
                raise
            here = ", ".join(map(str, dict.fromkeys((*self.dims, *self.coords))))
            raise NotFoundError(
                f"features have {here}, and no {key!r}; other columns of the samples, such as their "
                f"label, output and loss, are in store.split(epoch, split).to_xarray()[{key!r}]"
            ) from None
