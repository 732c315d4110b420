"""Values that are made of a key and kept as long as they are used: the last few of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Recent"]

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Recent(Generic[_Key, _Value]):
    """Cache of values by key, which drops the least recently used one first.

    Parameters
    ----------
    most : int
        Number of values that are kept. It should be at least the number of keys that are used in turn:
        with one less, each value would be dropped just before its next use.

    Examples
    --------
    >>> recent = Recent[str, int](2)
    >>> [recent.of(word, lambda word=word: len(word)) for word in ("a", "bb", "a", "ccc")]
    [1, 2, 1, 3]
    >>> list(recent)
    ['a', 'ccc']
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        # A backward pass has a thread for each device, and these may ask at the same time.
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[_Key]:
        return iter(tuple(self._values))

    def of(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
