"""Conversion of JSON values to the form of an example: the same tree, dtypes and dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trakstore.serve.question import BadQuestionError

PREPARE = "a function that makes samples (prepare=, --prepare)"
# Most numbers of a row of any length, if it is unknown how many the model takes.
MOST_NUMBERS = 2**15


def like(example: Any, given: Any, where: str) -> Any:
    """Convert JSON values to the form of an example: the same tree, dtypes and dimensions.

    Parameters
    ----------
    example : object
        A sample of the job, or a part of one.
    given : object
        JSON values, or a sample.
    where : str
        Name of the part, for messages.

    Raises
    ------
    BadQuestionError
        When they cannot be converted.
    """
    if isinstance(example, Mapping):
        if not isinstance(given, Mapping):
            raise BadQuestionError(f"{where} must be an object with {', '.join(map(str, example))}")
        missing = [str(name) for name in example if name not in given]
        if missing:
            raise BadQuestionError(f"{where} lacks {', '.join(missing)}")
        return {name: like(one, given[name], f"{where}.{name}") for name, one in example.items()}
    if isinstance(example, list) and example and all(type(one) in (int, float) for one in example):
        # A row of a table, such as token ids.
        row: list[Any] = _array(np.asarray(example), given, where).tolist()
        return row
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        if not isinstance(given, list | tuple) or len(given) != len(example):
            raise BadQuestionError(f"{where} must be a list of {len(example)}")
        pairs = enumerate(zip(example, given, strict=True))
        return type(example)(like(one, value, f"{where}[{at}]") for at, (one, value) in pairs)
    if hasattr(example, "dtype"):
        return _array(example, given, where)
    if isinstance(example, bool | int | float | str):
        return _plain(example, given, where)
    raise BadQuestionError(
        f"{where} is a {type(example).__name__} in this job: serve it with {PREPARE}"
    )


def _plain(example: bool | int | float | str, given: Any, where: str) -> Any:
    wanted = type(example)
    if hasattr(given, "item"):
        given = given.item()
    is_whole = isinstance(given, int) and not isinstance(given, bool)
    fits = isinstance(given, wanted) and isinstance(given, bool) == (wanted is bool)
    if not fits and not (wanted is float and is_whole):
        raise BadQuestionError(f"{where} must be a {wanted.__name__}")
    try:
        made = wanted(given)
    except OverflowError:
        raise BadQuestionError(f"{where} is too large for a float") from None
    if wanted is int:
        # Collators make tensors of int64 of them.
        need_in_dtype(np.asarray(made, dtype=object), np.dtype(np.int64), where)
    return made


def _array(example: Any, given: Any, where: str) -> Any:
    shape, dtype = tuple(int(one) for one in example.shape), dtype_name(example)
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    try:
        values = np.asarray(given)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BadQuestionError(f"{where} must be numbers of shape {shape}") from error
    integers = not any(kind in dtype for kind in ("float", "complex"))
    # Python integers beyond 64 bits become objects here: the error says that they are too large.
    if integers and _are_whole(values):
        need_in_dtype(values, dtype, where)
    # True is not 1: it counts as a number only if the job's samples have booleans.
    kinds = "biu" if dtype == "bool" else "iu" if integers else "iuf"
    # Rows of numbers, such as tokens, may have any length.
    same = values.shape == shape or (len(shape) == 1 and values.ndim == 1 and integers)
    if values.dtype.kind not in kinds or not same or not values.size:
        what = "integers" if integers else "numbers"
        got = values.dtype if values.dtype.kind in "biuf" else "no numbers"
        raise BadQuestionError(
            f"{where} must be {what} of shape {shape} ({dtype}), got shape {values.shape} ({got})"
        )
    # Lists are nested as in the example by now. Beside numbers, NumPy would read true as 1.
    if dtype != "bool" and _has_switch(given):
        raise BadQuestionError(f"{where} must be numbers ({dtype}), got true or false")
    most = max(MOST_NUMBERS, *shape) if shape else 1
    if values.ndim == 1 and len(values) > most:
        raise BadQuestionError(f"{where} has {len(values):,} numbers, {most:,} is the most")
    return typed(example, values, where)


def _has_switch(given: Any) -> bool:
    """Tell whether a boolean is in lists of numbers."""
    if isinstance(given, list | tuple):
        return any(map(_has_switch, given))
    return isinstance(given, bool | np.bool_)


def _are_whole(values: Any) -> bool:
    if values.dtype.kind == "O":
        return all(type(one) is int for one in values.flat)
    return values.dtype.kind in "biu"


def dtype_name(example: Any) -> str:
    """Return the name of the dtype of a tensor or an array, such as "int64"."""
    return str(example.dtype).removeprefix("torch.")


def need_in_dtype(values: Any, dtype: Any, where: str) -> None:
    """Raise a :class:`BadQuestionError` for integers that do not fit a dtype: they would wrap."""
    low, high = (0, 1) if str(dtype) == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if values.size and (values.min() < low or values.max() > high):
        raise BadQuestionError(f"{where} must be from {low} to {high} ({dtype})")


def typed(example: Any, values: Any, where: str) -> Any:
    """Convert numbers of the example's kind to its dtype: a tensor, an array or a list.

    Parameters
    ----------
    example : tensor, ndarray or list
    values : array_like
        Numbers of the example's kind.
    where : str
        Name of the values, for messages.

    Raises
    ------
    BadQuestionError
        When an integer does not fit the dtype.
    """
    if not hasattr(example, "dtype"):
        return list(values)
    values = np.array(values)
    if _are_whole(values) and not any(one in dtype_name(example) for one in ("float", "complex")):
        need_in_dtype(values, dtype_name(example), where)
    if hasattr(example, "detach"):
        import torch

        return torch.as_tensor(values, dtype=example.dtype)
    return np.asarray(values, dtype=example.dtype)
