"""The output folder of a Hugging Face ``Trainer``: its checkpoints as epochs, their learning rates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trakstore.errors import NotFoundError
from trakstore.features.checkpoints.trainer_rates import StepRates
from trakstore.paths import is_folder

_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class TrainerFolder:
    """Checkpoints that a Trainer saved.

    Attributes
    ----------
    checkpoints : mapping of int to Path
        Folders ``checkpoint-N`` by their optimiser steps N, ascending.
    rates : StepRates
        Learning rates with which those steps were made, where the folder tells them exactly.
    """

    checkpoints: Mapping[int | str, Path]
    rates: StepRates

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
        folders = sorted(
            (int(match[1]), one)
            for one in path.iterdir()
            if (match := _FOLDER.fullmatch(one.name)) and is_folder(one)
        )
        if not folders:
            raise NotFoundError(
                f"the folder {path} holds no checkpoint-N of a Trainer; give checkpoints as "
                f"{{epoch: path}}, or save some (save_strategy='steps')"
            )
        return cls(dict(folders), StepRates.of(dict(folders)))
