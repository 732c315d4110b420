"""The output folder of a Hugging Face ``Trainer``: its checkpoints as epochs, their learning rates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.paths import is_file, is_folder

_FOLDER = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class TrainerFolder:
    """Checkpoints that a Trainer saved.

    Attributes
    ----------
    checkpoints : mapping of int to Path
        Folders ``checkpoint-N`` by their optimiser steps N, ascending.
    learning_rates : mapping of int to float
        Rates with which those steps were made, where the Trainer logged one at the step or before.
    """

    checkpoints: Mapping[int | str, Path]
    learning_rates: Mapping[int | str, float]

    @classmethod
    def of(cls, path: Path) -> TrainerFolder:
        """Look through a folder.

        Raises
        ------
        NotFoundError
            When it is not there, or holds no ``checkpoint-N``.
        """
        if not is_folder(path):
            raise NotFoundError(f"there is no folder {path} with checkpoints of a Trainer")
        folders: dict[int | str, Path] = {
            int(match[1]): one
            for one in path.iterdir()
            if (match := _FOLDER.fullmatch(one.name)) and is_folder(one)
        }
        if not folders:
            raise NotFoundError(
                f"the folder {path} holds no checkpoint-N of a Trainer; give checkpoints as "
                f"{{epoch: path}}, or save some (save_strategy='steps')"
            )
        ascending = {step: folders[step] for step in sorted(folders, key=int)}
        rates = {step: _learning_rate(one, int(step)) for step, one in ascending.items()}
        return cls(ascending, {step: rate for step, rate in rates.items() if rate is not None})


def _learning_rate(folder: Path, step: int) -> float | None:
    """Return the last rate that the Trainer logged up to a step, which the step used."""
    if not is_file(folder / _STATE):
        return None
    try:
        history = json.loads((folder / _STATE).read_text("utf-8"))["log_history"]
        logged = {
            int(entry["step"]): float(entry["learning_rate"])
            for entry in history
            if "learning_rate" in entry and int(entry["step"]) <= step
        }
    except (ValueError, KeyError, TypeError) as error:
        raise TrakStoreError(
            f"{folder / _STATE} is not what a Trainer writes ({type(error).__name__}: {error}); give "
            f"learning_rates={{step: rate}}"
        ) from None
    return logged[max(logged)] if logged else None
