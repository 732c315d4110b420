"""Questions that the demo asks of its store, with the answers as a table, a picture and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.report.pictures import draw_top_images
from trakstore.report.tables import example_table
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:
    from trakstore.methods.kernel_report import KernelReport

__all__ = ["Answers", "Images", "ask", "kernels"]

IN_PICTURE, IN_CHECK = 5, 10
UNSURE, TYPICAL = 4, 2  # numbers of targets that are shown


@dataclass(frozen=True)
class Images:
    """Images of a split, shape (rows, height, width), their classes and their ids."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """Answers to the demo's questions.

    Attributes
    ----------
    helpful, harmful : Dataset
        The ten largest and smallest scores of every target.
    same_class : dict
        Share of train samples of the target's own class: among those ten, and at random.
    chosen : array of int
        Rows of the targets that are shown: those the model is least sure of, then typical ones.
    """

    train: Images
    test: Images
    predicted: NDArray[np.int64]
    helpful: xr.Dataset
    harmful: xr.Dataset
    same_class: dict[str, float]
    chosen: NDArray[np.int64]

    def table(self) -> Any:
        """A table of the targets that are shown, with the classes of their lists."""
        helpful, harmful = (self._shown(top) for top in (self.helpful, self.harmful))
        names = [f"{label} ({self.test.ids[row]})" for row, label in self._shown_labels()]
        read = [str(self.predicted[row]) for row in self.chosen]
        own = self.test.labels[self.chosen]
        return example_table(names, read, own, self.train.labels, helpful, harmful)

    def draw(self, path: Path) -> Path:
        """Draw the same as a picture."""
        return draw_top_images(
            path,
            self.test.images[self.chosen],
            self.test.labels[self.chosen],
            self.train.images,
            self.train.labels,
            self._shown(self.helpful),
            self._shown(self.harmful),
            notes=[f"read as {self.predicted[row]}" for row in self.chosen],
            title="Which training digits made the network read these test digits so?",
        )

    def documents(self) -> list[dict[str, Any]]:
        """Documents of the same, for JSON."""
        return [
            {
                "target": int(self.test.ids[row]),
                "label": int(label),
                "predicted": int(self.predicted[row]),
                "most_helpful": self.helpful["train"].values[row, :IN_PICTURE].tolist(),
                "most_harmful": self.harmful["train"].values[row, :IN_PICTURE].tolist(),
            }
            for row, label in self._shown_labels()
        ]

    def _shown_labels(self) -> list[tuple[int, int]]:
        return [(int(row), int(self.test.labels[row])) for row in self.chosen]

    def _shown(self, top: xr.Dataset) -> xr.Dataset:
        return top.isel(target=self.chosen, rank=slice(IN_PICTURE))


def kernels(store: FeatureStore) -> list[KernelReport]:
    """The kernel of the train split at each epoch."""
    from trakstore.methods.kernel_report import kernel_report

    return [kernel_report(store, epoch, "train") for epoch in store.epochs]


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
    margin = last.column("output").read(0, last.rows)
    return Answers(train, test, predicted, helpful, harmful, shares, _shown_rows(margin))


def _own_class(top: xr.Dataset, train: Images, test: Images) -> float:
    return float((train.labels[top["position"].values] == test.labels[:, None]).mean())


def _shown_rows(margin: NDArray[np.floating]) -> NDArray[np.int64]:
    """Choose rows: the targets that the model is least sure of, and some typical ones."""
    order, middle = np.argsort(margin, kind="stable"), len(margin) // 2
    return np.concatenate([order[:UNSURE], order[middle : middle + TYPICAL]])
