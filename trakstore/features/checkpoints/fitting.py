"""Names of a model found for stored tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.features.checkpoints.stored_weights import Shape
from trakstore.features.parameters import canonical_name

_LISTED = 3  # names that a message lists


def fitted(shapes: Mapping[str, Shape | None], model: nn.Module, where: str) -> dict[str, str]:
    """Find the model's name for each stored name; every tensor of the model must have one.

    Names are compared without the parts that wrappers add (``module.``, ``_orig_mod.``). If all of the
    model's names come after one prefix, such as Lightning's ``model.``, it is removed. For tied
    parameters one name suffices.
    parameters one name suffices.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Stored names, with shapes; None for values that are no tensors.
    model : nn.Module
    where : str
        Where the weights lie, for messages.

    Returns
    -------
    dict of str to str
        Stored names, in their order, and the model's names for them.

    Raises
    ------
    TrakStoreError
        When names are missing or left over, a shape is another, or several prefixes fit.
    """
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    names = {canonical_name(name): name for name in own}
    stored = _by_canonical_name(shapes, where)
    renamings = list(_renamings(stored, names))
    whole = [one for one in renamings if not _missing(one, own, names)]
    if len(whole) > 1:
        raise TrakStoreError(
            f"{where} holds weights of this model twice, among them {whole[0][next(iter(names))]} and "
            f"{whole[1][next(iter(names))]}; give the one that is meant, under the model's names"
        )
    best = max(whole or renamings, key=lambda one: len(one.keys() & names.keys()))
    missing = _missing(best, own, names)
    extra = [name for name in best if name not in names and not _ignored(name, model)]
    if missing or extra:
        difference = _difference(missing, extra, best, names)
        raise TrakStoreError(f"{where} is not of this model: {difference}")
    fits = {best[name]: names[name] for name in best if name in names}
    for name, own_name in fits.items():
        value, shape = own[own_name], shapes[name]
        if isinstance(value, Tensor) and shape is not None and tuple(value.shape) != shape:
            raise TrakStoreError(
                f"{where} is not of this model: {own_name} is {tuple(value.shape)} in the model and "
                f"{shape} there; make the model from the configuration that the weights have"
            )
    return fits


def tied_names(fits: Mapping[str, str], model: nn.Module) -> list[list[str]]:
    """List groups of stored names that go into one tensor of the model."""
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, own_name in fits.items():
        if isinstance(own[own_name], Tensor):
            groups.setdefault(id(own[own_name]), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _by_canonical_name(shapes: Mapping[str, Shape | None], where: str) -> dict[str, str]:
    stored: dict[str, str] = {}
    for name in shapes:
        other = stored.setdefault(canonical_name(name), name)
        if other != name:
            raise TrakStoreError(
                f"{where} holds {other} and {name}, which are one name without what wrappers add; give "
                f"the one that is meant"
            )
    return stored


def _renamings(stored: dict[str, str], names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield stored names as they are, then those after each possible prefix, without it.

    Beside the prefix there may be other weights, such as those of a loss; all after it belongs to the
    model.
    """
    yield stored
    first = next(iter(names), "")
    for name in stored:
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            yield {n.removeprefix(prefix): s for n, s in stored.items() if n.startswith(prefix)}


def _missing(
    renamed: Mapping[str, str], own: Mapping[str, Any], names: Mapping[str, str]
) -> list[str]:
    """Return the model's names that have no stored tensor, under this name or a tied one."""
    filled = {id(own[names[name]]) for name in renamed if name in names}
    return [name for name in names if name not in renamed and id(own[names[name]]) not in filled]


def _ignored(name: str, model: nn.Module) -> bool:
    """Tell whether the model's class ignores a stored name, as lists of transformers' classes say."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _difference(
    missing: list[str], extra: list[str], stored: Mapping[str, str], names: Mapping[str, str]
) -> str:
    if not stored.keys() & names.keys():
        remedy = "give the weights under the model's names"
        if _has_lora(stored) and not _has_lora(names):
            remedy = "it is an adapter of LoRA: give the model the same one (peft.get_peft_model)"
        got, wanted = some_names(list(stored)), some_names(list(names))
        return f"it has {got}, and the model wants {wanted}; {remedy}"
    parts = []
    if missing:
        near = did_you_mean(missing[0], extra) if extra else ""
        parts.append(f"it lacks {some_names(missing)}{near}")
    if extra:
        parts.append(f"the model has no {some_names(extra)}")
    return "; ".join(parts)


def _has_lora(names: Iterable[str]) -> bool:
    return any(".lora_" in name for name in names)


def some_names(names: list[str]) -> str:
    """Write out the first of some names, and how many there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED]) or 'nothing'}{more}"
