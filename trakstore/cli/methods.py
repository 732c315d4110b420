"""Attribution methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from trakstore.errors import NotFoundError, did_you_mean
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:
    from trakstore.linalg.factored import Scores

__all__ = ["METHODS", "find_method", "make_scores"]

Method: TypeAlias = (
    "Callable[[FeatureStore, str, str, Sequence[Epoch] | None, float, str | None], Scores]"
)


def _trak(
    store: FeatureStore,
    targets: str,
    train: str,
    epochs: Sequence[Epoch] | None,
    damping: float,
    memory_limit: str | None,
) -> Scores:
    from trakstore.scores.trak import trak_scores

    return trak_scores(store, targets, train, epochs, damping, memory_limit=memory_limit)


METHODS: dict[str, Method] = {"trak": _trak}


def make_scores(
    method: str,
    store: FeatureStore,
    *,
    targets: str,
    train: str,
    epochs: Sequence[Epoch] | None,
    damping: float,
    memory_limit: str | None,
) -> Scores:
    """Scores of a method that is named.

    Raises
    ------
    NotFoundError
        With the nearest name, when there is no such method.
    """
    return find_method(method)(store, targets, train, epochs, damping, memory_limit)


def find_method(name: str) -> Method:
    """The method of a name."""
    if name not in METHODS:
        raise NotFoundError(f"there is no method {name!r}{did_you_mean(name, METHODS)}")
    return METHODS[name]
