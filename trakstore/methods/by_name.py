"""Attribution methods by the names that people type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.kernels.solvers import Damping
from trakstore.methods.influence import influence_scores
from trakstore.methods.sampled_kernel import (
    SAMPLED_DAMPING,
    TRAIN_DAMPING,
    KernelRows,
    takes_sampled,
)
from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores, whitened_cos_scores
from trakstore.methods.tracin import tracin_scores
from trakstore.methods.trak import trak_scores
from trakstore.quantities import shown
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

# Options of the methods that factor a kernel.
_KERNEL = ("damping", "memory_limit", "device")


@dataclass(frozen=True)
class NamedMethod:
    """A method, and its options beyond those that all methods have."""

    scores: Callable[..., Scores]
    options: tuple[str, ...] = ()


METHODS: dict[str, NamedMethod] = {
    "trak": NamedMethod(trak_scores, (*_KERNEL, "kernel")),
    "published-trak": NamedMethod(partial(trak_scores, temperature=None), _KERNEL),
    "influence": NamedMethod(influence_scores, (*_KERNEL, "kernel")),
    "tracin": NamedMethod(tracin_scores, ("learning_rates",)),
    "grad-dot": NamedMethod(grad_dot_scores),
    "grad-cos": NamedMethod(grad_cos_scores),
    "whitened-cos": NamedMethod(whitened_cos_scores, _KERNEL),
}


def find_method(name: str) -> NamedMethod:
    """Find the method of a name; ``grad_dot`` is ``grad-dot``.

    Raises
    ------
    NotFoundError
        With the nearest name, when there is no such method.
    """
    if not isinstance(name, str):
        raise NotFoundError(f"there is no method {shown(name)}{did_you_mean(name, METHODS)}")
    # Names of functions have underscores, those of the command line have dashes.
    known = name.replace("_", "-")
    if known not in METHODS:
        raise NotFoundError(f"there is no method {name!r}{did_you_mean(known, METHODS)}")
    return METHODS[known]


def default_damping(
    name: str,
    store: FeatureStore,
    train: str,
    epochs: Sequence[Epoch] | None,
    kernel: KernelRows,
) -> float:
    """Return the default c in λ = c·tr(K)/n, which depends on the rows of the method's kernel."""
    takes = "kernel" in find_method(name).options
    sampled = takes and takes_sampled(store, train, kernel, epochs)
    return SAMPLED_DAMPING if sampled else TRAIN_DAMPING


def scores_by_name(
    name: str,
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    damping: float | Damping | None = None,
    kernel: KernelRows = None,
    memory_limit: int | str | None = None,
    learning_rates: Mapping[Epoch, float] | float | None = None,
    device: str = "cpu",
    allow_other_weights: bool = False,
) -> Scores:
    """Compute the scores of a method that is named.

    Parameters
    ----------
    name : str
        One of :data:`METHODS`.
    store : FeatureStore
    targets, train, epochs, damping, memory_limit, allow_other_weights
        As in the method; one without a kernel ignores damping and limit.
    kernel : {"train", "sampled"}, optional
        Only for ``trak`` and ``influence``.
    learning_rates : mapping of epoch to float, or float, optional
        Only for TracIn.
    device : str
        Device of grams and of tiles of scores.

    Raises
    ------
    NotFoundError
        With the nearest name, when there is no such method.
    TrakStoreError
        When learning rates are given for another method than TracIn, or a kernel for a method without
        one.
    """
    method = find_method(name)
    if learning_rates is not None and "learning_rates" not in method.options:
        raise TrakStoreError(f"learning rates are for tracin, got the method {name!r}")
    if kernel is not None and "kernel" not in method.options:
        raise TrakStoreError(f"kernel= is for trak and influence, got the method {name!r}")
    # A method takes the options that it names, and no others.
    given: dict[str, Any] = {
        "damping": damping,
        "kernel": kernel,
        "memory_limit": memory_limit,
        "learning_rates": learning_rates,
        "device": device,
    }
    options = {name: given[name] for name in method.options if given[name] is not None}
    scores = method.scores(
        store, targets, train, epochs, allow_other_weights=allow_other_weights, **options
    )
    return scores.to(device)
