"""Questions that the demo asks of its store, with the answers as a table, a picture and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.report.terminal_tables import example_table
from trakstore.report.top_images import draw_top_images
from trakstore.storage.store import FeatureStore

# Ten scores tell how much comes from the own class; five fit a line of the table and the picture.
IN_CHECK, IN_PICTURE = 10, 5
UNSURE, TYPICAL = 4, 2  # numbers of targets that are shown


@dataclass(frozen=True)
class Images:
    """Images of a split, shape (rows, height, width), their classes and their ids."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def at(self, rows: NDArray[np.int64]) -> Images:
        """Take some rows."""
        return Images(self.images[rows], self.labels[rows], self.ids[rows])


@dataclass(frozen=True)
class Answers:
    """Answers to the demo's questions.

    Attributes
    ----------
    train : Images
        All train images.
    targets : Images
        The targets that are shown: those the model is least sure of, then typical ones.
    predicted : array of int
        Classes that the model gives them.
    helpful, harmful : Dataset
        The largest and the smallest scores of each.
    same_class : dict
        Share of train samples of the target's own class, over all targets: among the ten largest and
        the ten smallest scores, and at random.
    """

    train: Images
    targets: Images
    predicted: NDArray[np.int64]
    helpful: xr.Dataset
    harmful: xr.Dataset
    same_class: dict[str, float]

    def table(self) -> Any:
        """A table of the targets, with the classes of their lists."""
        own, ids = self.targets.labels, self.targets.ids
        names = [f"{label} ({name})" for label, name in zip(own, ids, strict=True)]
        read = [str(one) for one in self.predicted]
        return example_table(names, read, own, self.train.labels, self.helpful, self.harmful)

    def draw(self, path: Path) -> Path:
        """Draw the same as a picture."""
        return draw_top_images(
            path,
            self.targets.images,
            self.targets.labels,
            self.train.images,
            self.train.labels,
            self.helpful,
            self.harmful,
            notes=[f"read as {one}" for one in self.predicted],
            title="Which training digits made the network read these test digits so?",
        )

    def documents(self) -> list[dict[str, Any]]:
        """Documents of the same, for JSON."""
        columns = {
            "target": self.targets.ids,
            "label": self.targets.labels,
            "predicted": self.predicted,
            "most_helpful": self.helpful["train"].values,
            "most_harmful": self.harmful["train"].values,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


def ask(store: FeatureStore, train: Images, test: Images, predicted: NDArray[np.int64]) -> Answers:
    """Score the test split on the train split over all epochs, and sum the scores up."""
    from trakstore.methods.trak import trak_scores
    from trakstore.scores.top_k import top_k

    scores = trak_scores(store, targets="test", train="train")
    helpful = top_k(scores, IN_CHECK, order="largest")
    harmful = top_k(scores, IN_CHECK, order="smallest")
    shares = {
        "most_helpful": _own_class(helpful, train, test),
        "most_harmful": _own_class(harmful, train, test),
        "base_rate": float((test.labels[:, None] == train.labels).mean()),
    }
    last = store.split(store.epochs[-1], "test")
    rows = _shown_rows(last.column("output").read(0, last.rows))
    some = {"target": rows, "rank": slice(IN_PICTURE)}
    lists = helpful.isel(some), harmful.isel(some)
    return Answers(train, test.at(rows), predicted[rows], *lists, shares)


def _own_class(top: xr.Dataset, train: Images, test: Images) -> float:
    return float((train.labels[top["position"].values] == test.labels[:, None]).mean())


def _shown_rows(margin: NDArray[np.floating]) -> NDArray[np.int64]:
    """Choose rows: the targets that the model is least sure of, and some typical ones."""
    order, middle = np.argsort(margin, kind="stable"), len(margin) // 2
    return np.concatenate([order[:UNSURE], order[middle : middle + TYPICAL]])
