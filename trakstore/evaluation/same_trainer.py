"""Trainers as they describe themselves: a set of models is continued by the one that began it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.storage.tables.retrained import ModelPart

_TRAINER = "trainer"  # key in a stored plan of the trainer's own description
_CODE = "code"  # key in a description of the digests of functions


def check_plan(parts: list[ModelPart], name: str, plan: dict[str, Any]) -> None:
    """Raise a :class:`SpecMismatchError` unless a set goes on by the plan and trainer it began with.

    Models brought from elsewhere, and those of a trainer that does not describe itself, have no
    trainer to compare.
    """
    for part in parts:
        stored, wanted = dict(part.plan), dict(plan)
        by, wanted_by = stored.pop(_TRAINER, None), wanted.pop(_TRAINER, None)
        if by is not None and wanted_by is not None:
            by, wanted_by = _comparable(by, wanted_by)
        if stored != wanted:
            raise SpecMismatchError(
                f"models named {name!r} are of {stored}, not of {wanted}: choose another name"
            )
        if None not in (by, wanted_by) and by != wanted_by:
            raise SpecMismatchError(
                f"models named {name!r} were made by another trainer: "
                f"{'; '.join(_differences(by, wanted_by))}; choose another name"
            )


def description(trainer: Any) -> dict[str, Any]:
    """A trainer's own description, as it will be read back from JSON; empty where it has none."""
    to_dict = getattr(trainer, "to_dict", None)
    if to_dict is None:
        return {}
    try:
        return {_TRAINER: json.loads(json.dumps(to_dict(), allow_nan=False))}
    except (TypeError, ValueError) as error:
        raise TrakStoreError(
            f"to_dict() of a trainer gives plain values for JSON, without NaN: {error}"
        ) from error


def _comparable(by: Any, wanted: Any) -> tuple[Any, Any]:
    """Return two trainers' descriptions, without the digests of code where these tell nothing.

    Descriptions of before have none, and another version of Python has others of equal functions.
    """
    both = isinstance(by, dict) and isinstance(wanted, dict)
    if not both or _python(by) == _python(wanted):
        return by, wanted
    by, wanted = ({k: v for k, v in one.items() if k != _CODE} for one in (by, wanted))
    return by, wanted


def _python(trainer: dict[str, Any]) -> Any:
    """Return the version of Python that made the digests of code; None where there are none."""
    code = trainer.get(_CODE)
    return code.get("python") if isinstance(code, dict) else None


def _differences(stored: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Yield each value that differs, by its place: ``optimizer.lr: theirs has 0.1, this one 0.2``."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**stored, **wanted}:
            at = f"{where}.{key}" if where else str(key)
            yield from _differences(stored.get(key), wanted.get(key), at)
    elif stored != wanted:
        yield f"{where}: theirs has {stored!r}, this one {wanted!r}"
