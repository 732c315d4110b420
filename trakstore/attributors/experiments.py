"""Experiments of a ``TRAKer``: named sets of targets, scored under several checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.paths import is_file
from trakstore.storage.layout import check_name
from trakstore.storage.staging import StagedSplit


@dataclass(frozen=True)
class Experiment:
    """Targets with staged features, and a note of their number.

    Attributes
    ----------
    place : Path
        Folder with everything that is staged.
    name : str
        Name given by the user.
    """

    place: Path
    name: Any

    @property
    def split(self) -> str:
        """Name of the split of its targets."""
        return f"targets.{check_name(self.name, 'experiment')}"

    @property
    def targets(self) -> int:
        """Number of targets with which it was last begun; 0 if it never was."""
        return int(json.loads(self._note.read_text())["num_targets"]) if is_file(self._note) else 0

    def begin(self, targets: int) -> None:
        """Note the number of its targets."""
        self._note.write_text(json.dumps({"num_targets": targets}))

    def need_all(self, targets: int, dim: int) -> None:
        """Raise if features of more targets are staged, which would stay; they have ``dim`` columns."""
        before = self.targets
        if before <= targets:
            return
        for folder in self.place.glob(f"*/{self.split}"):
            model_id = int(folder.parent.name)
            if StagedSplit(self.place, model_id, self.split, before, dim).there[targets:].any():
                raise TrakStoreError(
                    f"experiment {self.name!r} has features of {before} targets at model ID "
                    f"{model_id}, got num_targets={targets}: give another exp_name for others"
                )

    @property
    def _note(self) -> Path:
        return self.place / f"{self.split}.json"
