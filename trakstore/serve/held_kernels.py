"""Kernels of a few methods, factored once and kept for all questions."""

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

_MOST = 3  # methods whose kernels are kept in memory


@dataclass
class HeldKernels:
    """Scores of the train rows with themselves, by method: their kernels serve any target.

    Attributes
    ----------
    store : FeatureStore
    train : str
        Split of the train rows.
    epochs : tuple of epochs
    method : str
        Method of the service; if it has no scores, its own error is raised.
    damping, kernel, memory_limit
        As in the score methods.
    ids : Rows
        Ids of the train rows, in memory, since every answer lists some.
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
        """Make the kernels for a query with some options; with an index, rows are not kept."""
        limit = asked.memory_limit
        rows = HeldRows(0 if asked.index else memory_budget(limit) // 4)
        given = (asked.train, epochs, asked.method, asked.damping, asked.kernel, limit)
        return cls(store, *given, ids, rows)

    def scores(self, method: str) -> Scores:
        """Return the scores of a method, made when they are first needed.

        Raises
        ------
        BadQuestionError
            When the store has no scores by this method.
        """
        with self._lock:
            held = self._held(method)
            making = self._making.setdefault(method, threading.Lock())
        if held is not None:
            return held
        # One thread factors a kernel, and others that need the same one wait. Methods with a kernel are
        # not held up.
        with making:
            with self._lock:
                held = self._held(method)
            return self._keep(method, self._new(method)) if held is None else held

    def _held(self, method: str) -> Scores | None:
        """Return the scores of a kept method, which becomes the one used last."""
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
        """Bytes of the kept factors and rows."""
        with self._lock:
            made = [*self._made.values()]
        return self.rows.nbytes + sum(held_bytes(scores.parts) for scores in made)

    def let_go(self) -> None:
        """Drop everything; it is made again when needed."""
        with self._lock:
            self._made.clear()
        self.rows.let_go()

    def c(self, method: str) -> float | Damping:
        """Return the damping of a method: the one asked for, or its default."""
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
            # The error's message may name paths: it goes to the log only.
            raise BadQuestionError(f"this store has no scores by {method!r}") from error
        return self.rows.held(replace(scores, train_ids=self.ids))
