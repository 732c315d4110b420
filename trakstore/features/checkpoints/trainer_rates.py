"""Learning rates of the steps at which a Hugging Face ``Trainer`` saved checkpoints.

TracIn's weight of a checkpoint is the rate between it and the one before (Pruthi et al. 2020, section
3.2): the rate of the optimiser step that made these weights, not of the step that follows. The two
differ by a factor where a schedule drops at a checkpoint, and where it ends at zero.

A step's rate is logged at the step itself since transformers 4.51; before, the log of a step has the
rate of the next one. A scheduler moves on before the checkpoint is saved, so that ``_last_lr`` in
``scheduler.pt``, as the rates in ``optimizer.pt``, is that of the next step in all versions.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.plain_tensors import plain_tensors
from trakstore.features.checkpoints.torch_file import torch_file
from trakstore.paths import is_file

log = logging.getLogger("trakstore")

_STATE, _SCHEDULER, _CONFIG = "trainer_state.json", "scheduler.pt", "config.json"
_LOGS_OWN_RATE = (4, 51)  # version of transformers
_LISTED = 8


@dataclass(frozen=True)
class StepRates:
    """Learning rates of the steps of some checkpoints.

    Attributes
    ----------
    known : mapping of int to float
        Rates with which the steps were made, exactly.
    unknown : mapping of int to str
        Reasons why there is none of the other steps.
    """

    known: Mapping[int | str, float]
    unknown: Mapping[int | str, str]

    @classmethod
    def of(cls, folders: Mapping[int, Path]) -> StepRates:
        """Read what the folders of a Trainer's checkpoints, by their steps, tell of their rates.

        Raises
        ------
        TrakStoreError
            When a ``trainer_state.json`` is not what a Trainer writes.
        """
        saved = {step: _SavedRates.of(folder) for step, folder in folders.items()}
        known: dict[int | str, float] = {}
        unknown: dict[int | str, str] = {}
        schedule_moves = len({one.following for one in saved.values()}) > 1
        for step, own in saved.items():
            rate = own.rate(step, saved.get(step - 1), schedule_moves)
            if own.groups_differ or rate is None:
                unknown[step] = own.reason()
            else:
                known[step] = rate
        return cls(known, unknown)

    def warn_of_unknown(self, path: Path, given: Mapping[Any, float]) -> None:
        """Log which checkpoints have no rate, neither here nor among the given ones."""
        names = {str(epoch) for epoch in given}
        steps = [step for step in self.unknown if str(step) not in names]
        if not steps:
            return
        listed = "; ".join(f"{step}: {self.unknown[step]}" for step in steps[:_LISTED])
        more = f"; and {len(steps) - _LISTED} more" if len(steps) > _LISTED else ""
        log.warning(
            "%s does not tell the learning rates of all checkpoints, which TracIn needs (other methods "
            "do not): give learning_rates={%s: rate}, or train with logging_steps=1 (%s%s)",
            *(path, steps[0], listed, more),
        )


@dataclass(frozen=True)
class _SavedRates:
    """Rates that one folder of a checkpoint tells."""

    logged: Mapping[int, float]
    # Rates of the groups of parameters: of the step after the checkpoint, and before any schedule.
    following: tuple[float, ...] = ()
    initial: tuple[float, ...] = ()
    version: tuple[int, int] | None = None

    @classmethod
    def of(cls, folder: Path) -> _SavedRates:
        logged = _logged(folder / _STATE) if is_file(folder / _STATE) else {}
        following, initial = _scheduled(folder / _SCHEDULER)
        return cls(logged, following, initial, _version(folder / _CONFIG))

    @property
    def groups_differ(self) -> bool:
        # A schedule that ended has all groups at zero, which does not make their rates one.
        return len({*self.following}) > 1 or len({*self.initial}) > 1

    def rate(self, step: int, before: _SavedRates | None, schedule_moves: bool) -> float | None:
        """Rate of the step itself, by its log, else by the schedule saved one step before."""
        logged, last = self.logged.get(step), self.logged.get(step - 1)
        if self.version is not None and self.version < _LOGS_OWN_RATE:
            logged = last
        elif self.version is None and schedule_moves and logged in self.following[:1]:
            # Either the log is of the next step, as old versions have it, or the schedule stood still.
            logged = logged if logged == last else None
        if logged is None and before is not None and before.following:
            return before.following[0]
        return logged

    def reason(self) -> str:
        if self.groups_differ:
            rates = ", ".join(f"{rate:g}" for rate in self.initial or self.following)
            return f"groups of parameters have rates of their own ({rates}), and TracIn takes one"
        if self.following:
            return f"not logged; the next step's is {self.following[0]:g}"
        return "not logged"


def _logged(path: Path) -> dict[int, float]:
    """Read the log of a Trainer's state: rates by the steps at which they were logged."""
    try:
        history = json.loads(path.read_text("utf-8"))["log_history"]
        return {
            int(entry["step"]): float(entry["learning_rate"])
            for entry in history
            if "learning_rate" in entry
        }
    except (ValueError, KeyError, TypeError) as error:
        raise TrakStoreError(
            f"{path} is not what a Trainer writes ({type(error).__name__}: {error}); give "
            f"learning_rates={{step: rate}}"
        ) from None


def _scheduled(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read the rates of the next step and those before any schedule, of each group of parameters.

    Schedulers of a trainer's own may keep more than plain numbers, which is not loaded: nothing is
    known of them then, as where DeepSpeed keeps the schedule elsewhere.
    """
    if not is_file(path):
        return (), ()
    try:
        with plain_tensors(path):
            state = torch_file(path)
            return tuple(map(float, state["_last_lr"])), tuple(
                map(float, state.get("base_lrs", ()))
            )
    except TrakStoreError as error:
        log.info("no learning rates of the scheduler: %s", error)
        return (), ()


def _version(path: Path) -> tuple[int, int] | None:
    """Version of transformers that saved a model; None where its configuration does not say it."""
    if not is_file(path):
        return None
    try:
        text = json.loads(path.read_text("utf-8"))["transformers_version"]
        match = re.match(r"(\d+)\.(\d+)", text)
    except (ValueError, KeyError, TypeError):
        return None
    return (int(match[1]), int(match[2])) if match else None
