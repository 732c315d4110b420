"""Requests for scores: options that commands share, and the scores themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import RenderableType
from typer import BadParameter

from trakstore.cli.cluster import workplace
from trakstore.cli.options import (
    AllowOtherWeights,
    Csv,
    Damping,
    Epochs,
    Json,
    Kernel,
    LearningRate,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
    learning_rates,
)
from trakstore.cli.output import print_csv, print_result
from trakstore.methods.by_name import default_damping, find_method, scores_by_name
from trakstore.methods.epochs import EpochPair, epoch_pairs
from trakstore.report.targets_and_epochs import named_rows
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

Command: TypeAlias = Callable[..., None]


@dataclass
class ScoreRequest:
    """Shared options of one command, with its store open and the name of its method checked.

    Each field is an option of the command line (``store`` an argument) with its help and default;
    :func:`with_request` gives them to a command.
    """

    store: StorePath
    targets: Targets = "test"
    train: Train = "train"
    epoch: Epochs = None
    damping: Damping = None
    kernel: Kernel = None
    method: Method = "trak"
    learning_rate: LearningRate = None
    memory_limit: MemoryLimit = None
    allow_other_weights: AllowOtherWeights = False
    workers: Workers = None
    scheduler: Scheduler = None
    as_json: Json = False
    as_csv: Csv = False
    opened: FeatureStore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.as_json and self.as_csv:
            raise BadParameter("--json and --csv exclude each other")
        find_method(self.method)
        self.opened = open_store(self.store)

    @property
    def epochs(self) -> list[Epoch] | None:
        """Epochs that were named; None for all."""
        return chosen_epochs(self.epoch)

    @property
    def used_damping(self) -> float:
        """Given damping, or the default of the method and its kernel."""
        if self.damping is not None:
            return self.damping
        rows: Any = self.kernel
        return default_damping(self.method, self.opened, self.train, self.epochs, rows)

    def pairs(self) -> tuple[EpochPair, ...]:
        """Open the splits of each epoch, all checked before anything is computed."""
        return epoch_pairs(
            self.opened,
            self.targets,
            self.train,
            self.epochs,
            allow_other_weights=self.allow_other_weights,
        )

    def scores(self, device: str = "cpu") -> Scores:
        """Compute the scores in factored form; a device computes grams and tiles."""
        return scores_by_name(
            self.method,
            self.opened,
            self.targets,
            self.train,
            self.epochs,
            damping=self.used_damping,
            kernel=self.kernel,  # type: ignore[arg-type]
            memory_limit=self.memory_limit,
            learning_rates=learning_rates(self.learning_rate),
            device=device,
            allow_other_weights=self.allow_other_weights,
        )

    def chosen_targets(
        self, names: Sequence[str] | None, most: int | None = None
    ) -> tuple[EpochPair, NDArray[np.int64], int]:
        """Find the targets that were named, or all of them.

        Returns
        -------
        pair : EpochPair
            Splits of the first epoch.
        rows : ndarray of int64
            Rows of the targets; for people at most ``most`` of them.
        hidden : int
            Number of targets beyond these.
        """
        pair = self.pairs()[0]
        rows = named_rows(pair.target, names)
        answered = rows if self.as_json or self.as_csv else rows[:most]
        return pair, answered, len(rows) - len(answered)

    def workplace(self) -> AbstractContextManager[None]:
        """Threads, processes or the cluster on which the work runs."""
        return workplace(self.workers, self.scheduler)

    def answer(
        self,
        document: Mapping[str, Any],
        tables: Iterable[RenderableType],
        columns: xr.Dataset | None = None,
    ) -> None:
        """Print the document, with the store's location, for programs; or tables for people.

        For lines of values, ``columns`` are printed.
        """
        if self.as_csv and columns is not None:
            print_csv(columns)
            return
        print_result(self.as_json, {"location": str(self.opened.location), **document}, tables)


def with_request(*left_out: str, csv: bool = False) -> Callable[[Command], Command]:
    """Give a command the options of a :class:`ScoreRequest`, which it receives as ``asked``.

    In its help they appear at the position of ``asked`` among its parameters.

    Parameters
    ----------
    *left_out : str
        Options that this command lacks.
    csv : bool
        Whether it has ``--csv``, and passes its columns to :meth:`ScoreRequest.answer`.
    """
    left_out = left_out if csv else (*left_out, "as_csv")
    shared = [one for one in _parameters(ScoreRequest) if one.name not in left_out]

    def decorated(command: Command) -> Command:
        @wraps(command)
        def run(**given: Any) -> None:
            chosen = {one.name: given.pop(one.name) for one in shared}
            if "kernel" in left_out:
                chosen["kernel"] = "train"
            asked = ScoreRequest(**chosen)
            command(asked=asked, **given)

        # Typer reads options from the signature, and calls the command with keywords.
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                option
                for own in _parameters(command)
                for option in (shared if own.name == "asked" else [own])
            ]
        )
        return run

    return decorated


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Return the parameters of a function or class as keywords, with evaluated annotations."""
    # As keywords, an option with a default may stand before one without.
    given = inspect.signature(function, eval_str=True).parameters.values()
    return [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in given]
