"""Attribution methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:
    from trakstore.scores.factored import Scores

__all__ = ["METHODS", "Question", "find_method", "make_scores"]


@dataclass(frozen=True)
class Question:
    """What a command was asked for, whatever the method."""

    store: FeatureStore
    targets: str
    train: str
    epochs: Sequence[Epoch] | None
    damping: float
    memory_limit: str | None
    learning_rates: Mapping[Epoch, float] | float | None = None
    allow_other_weights: bool = False

    @property
    def where(self) -> tuple[FeatureStore, str, str, Sequence[Epoch] | None]:
        return self.store, self.targets, self.train, self.epochs

    @property
    def limits(self) -> dict[str, Any]:
        """Options of methods that have a kernel."""
        return {
            "memory_limit": self.memory_limit,
            "allow_other_weights": self.allow_other_weights,
        }


Method: TypeAlias = "Callable[[Question], Scores]"


def _trak(asked: Question) -> Scores:
    from trakstore.methods.trak import trak_scores

    return trak_scores(*asked.where, asked.damping, **asked.limits)


def _published_trak(asked: Question) -> Scores:
    from trakstore.methods.trak import trak_scores

    return trak_scores(*asked.where, asked.damping, temperature=None, **asked.limits)


def _influence(asked: Question) -> Scores:
    from trakstore.methods.influence import influence_scores

    return influence_scores(*asked.where, asked.damping, **asked.limits)


def _whitened_cos(asked: Question) -> Scores:
    from trakstore.methods.similarity import whitened_cos_scores

    return whitened_cos_scores(*asked.where, asked.damping, **asked.limits)


def _tracin(asked: Question) -> Scores:
    from trakstore.methods.tracin import tracin_scores

    return tracin_scores(
        *asked.where,
        learning_rates=asked.learning_rates,
        allow_other_weights=asked.allow_other_weights,
    )


def _grad_dot(asked: Question) -> Scores:
    from trakstore.methods.similarity import grad_dot_scores

    return grad_dot_scores(*asked.where, allow_other_weights=asked.allow_other_weights)


def _grad_cos(asked: Question) -> Scores:
    from trakstore.methods.similarity import grad_cos_scores

    return grad_cos_scores(*asked.where, allow_other_weights=asked.allow_other_weights)


METHODS: dict[str, Method] = {
    "trak": _trak,
    "published-trak": _published_trak,
    "influence": _influence,
    "tracin": _tracin,
    "grad-dot": _grad_dot,
    "grad-cos": _grad_cos,
    "whitened-cos": _whitened_cos,
}


def make_scores(
    method: str,
    store: FeatureStore,
    *,
    targets: str,
    train: str,
    epochs: Sequence[Epoch] | None,
    damping: float,
    memory_limit: str | None,
    learning_rates: Mapping[Epoch, float] | float | None = None,
    allow_other_weights: bool = False,
) -> Scores:
    """Scores of a method that is named.

    Raises
    ------
    NotFoundError
        With the nearest name, when there is no such method.
    TrakStoreError
        Learning rates for another method than TracIn.
    """
    make = find_method(method)
    if learning_rates is not None and make is not _tracin:
        raise TrakStoreError(f"learning rates are for tracin, got the method {method!r}")
    where = store, targets, train, epochs
    return make(Question(*where, damping, memory_limit, learning_rates, allow_other_weights))


def find_method(name: str) -> Method:
    """The method of a name; ``grad_dot`` is ``grad-dot``."""
    known = name.replace("_", "-")
    if known not in METHODS:
        raise NotFoundError(f"there is no method {name!r}{did_you_mean(known, METHODS)}")
    return METHODS[known]
