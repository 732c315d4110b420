"""Kernels of a few methods, factored once and held for all questions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from trakstore.errors import TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import default_damping, find_method, scores_by_name
from trakstore.methods.sampled_kernel import KernelRows
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import Rows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import held_bytes
from trakstore.serve.held_rows import HeldRows
from trakstore.serve.query_options import QueryOptions
from trakstore.serve.question import BadQuestionError
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

_MOST = 3  # methods whose kernels are in memory


@dataclass
class HeldKernels:
    """Scores of the train rows with themselves, by method: their kernels serve any target.

    Attributes
    ----------
    store : FeatureStore
    train : str
        Split that is held responsible.
    epochs : tuple of epochs
    method : str
        Method of the service: that it has no scores is an error as it is.
    damping, kernel, memory_limit
        As the methods take them.
    ids : Rows
        Ids of the train rows, in memory, as every answer lists some.
    rows : HeldRows
    """

    store: FeatureStore
    train: str
    epochs: tuple[Epoch, ...]
    method: str
    damping: float | Damping | None
    kernel: KernelRows
    memory_limit: int | str | None
    ids: Rows
    rows: HeldRows
    _made: OrderedDict[str, Scores] = field(default_factory=OrderedDict)
    _making: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(
        cls, store: FeatureStore, epochs: tuple[Epoch, ...], asked: QueryOptions, ids: Rows
    ) -> HeldKernels:
        """Make one as a query was asked to be; with an index, rows are not held."""
        limit = asked.memory_limit
        rows = HeldRows(0 if asked.index else memory_budget(limit) // 4)
        given = (asked.train, epochs, asked.method, asked.damping, asked.kernel, limit)
        return cls(store, *given, ids, rows)

    def scores(self, method: str) -> Scores:
        """Return the scores of a method, made when it is first asked for.

        Raises
        ------
        BadQuestionError
            The store has no scores by this method.
        """
        with self._lock:
            held = self._held(method)
            making = self._making.setdefault(method, threading.Lock())
        if held is not None:
            return held
        # One thread factors a kernel, and others that need the same one wait for that: those of
        # methods that are held go on.
        with making:
            with self._lock:
                held = self._held(method)
            return self._keep(method, self._new(method)) if held is None else held

    def _held(self, method: str) -> Scores | None:
        """Return the scores of a method that is held, which was the last to be used then."""
        if method in self._made:
            self._made.move_to_end(method)
        return self._made.get(method)

    def _keep(self, method: str, scores: Scores) -> Scores:
        with self._lock:
            self._made[method] = scores
            while len(self._made) > _MOST:
                self._made.popitem(last=False)
        return scores

    @property
    def nbytes(self) -> int:
        """Bytes of the factors and rows that are held."""
        with self._lock:
            made = [*self._made.values()]
        return self.rows.nbytes + sum(held_bytes(scores.parts) for scores in made)

    def let_go(self) -> None:
        """Hold nothing any more; what is asked for again is made again."""
        with self._lock:
            self._made.clear()
        self.rows.let_go()

    def c(self, method: str) -> float | Damping:
        """Return the damping of a method: what was asked for, or its default."""
        if self.damping is not None:
            return self.damping
        return default_damping(method, self.store, self.train, self.epochs, self.kernel)

    def _new(self, method: str) -> Scores:
        takes = "kernel" in find_method(method).options
        try:
            scores = scores_by_name(
                method,
                self.store,
                self.train,
                self.train,
                self.epochs,
                damping=self.c(method),
                kernel=self.kernel if takes else None,
                memory_limit=self.memory_limit,
            )
        except TrakStoreError as error:
            if method == self.method:
                raise
            # Its message may name places: it is for the log alone.
            raise BadQuestionError(f"this store has no scores by {method!r}") from error
        return self.rows.held(replace(scores, train_ids=self.ids))
