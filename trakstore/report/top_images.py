"""Pictures of results, drawn by matplotlib without a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAME, OTHER, INK = "#1a7f5a", "#c2452d", "#22262b"


def draw_top_images(
    path: str | os.PathLike[str],
    targets: NDArray[Any],
    target_labels: NDArray[Any],
    train: NDArray[Any],
    train_labels: NDArray[Any],
    helpful: xr.Dataset,
    harmful: xr.Dataset,
    *,
    notes: list[str] | None = None,
    title: str = "",
) -> Path:
    """Draw each target with its most helpful and most harmful train images.

    Parameters
    ----------
    path : str or path
        The PNG file to write.
    targets : array, shape (targets, height, width)
        Target images, in the order of the lists' ``target``.
    target_labels : array, shape (targets,)
        Their classes.
    train : array, shape (n, height, width)
        All train images.
    train_labels : array, shape (n,)
        Their classes.
    helpful, harmful : Dataset
        From ``top_k``, largest and smallest first.
    notes : list of str, optional
        Words beside the class of each target.
    title : str
        Title of the picture.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TrakStoreError
        When there is nothing to draw, or numbers of targets differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(targets)
    sizes = {rows, len(target_labels), helpful.sizes["target"], harmful.sizes["target"]}
    if rows == 0 or len(sizes) > 1:
        raise TrakStoreError(f"a picture needs as many lists as targets, got {sorted(sizes)}")
    lists = [("most helpful", helpful), ("most harmful", harmful)]
    columns = [top.sizes["rank"] for _, top in lists]
    figure = Figure(figsize=(1.05 * (2.3 + sum(columns)), 1.4 * rows + 1.25), facecolor="white")
    FigureCanvasAgg(figure)  # a canvas without a display, whatever backend the user chose
    axes = _grid(figure, rows, columns)
    names = notes or [""] * rows
    for row in range(rows):
        _image(axes[row][0][0], targets[row], INK)
        _caption(axes[row][0][0], str(target_labels[row]), names[row], INK)
        for cells, (_, top) in zip(axes[row][1:], lists, strict=True):
            _top_row(cells, top.isel(target=row), train, train_labels, target_labels[row])
    _headings(figure, axes[0], ["target", *(name for name, _ in lists)], title)
    figure.savefig(path, dpi=160)
    return Path(path)


def _grid(figure: Figure, rows: int, columns: list[int]) -> list[list[list[Axes]]]:
    """Make axes by row, then group (target, helpful, harmful), then place; a gap between groups."""
    height = 1.4 * rows + 1.25
    ratios = [1.15, 0.25, *[1.0] * columns[0], 0.25, *[1.0] * columns[1]]
    margins = {"left": 0.02, "right": 0.98, "bottom": 0.24 / height, "top": 1 - 1.2 / height}
    spaces = {"width_ratios": ratios, "wspace": 0.12, "hspace": 0.58}
    grid = figure.add_gridspec(rows, len(ratios), **margins, **spaces)
    second = 3 + columns[0]  # a column for the target, one for each gap
    groups = [[0], range(2, second - 1), range(second, len(ratios))]
    return [
        [[figure.add_subplot(grid[row, at]) for at in group] for group in groups]
        for row in range(rows)
    ]


def _top_row(
    axes: list[Axes], top: xr.Dataset, train: NDArray[Any], labels: NDArray[Any], own: Any
) -> None:
    places = zip(axes, top["position"].values, top["score"].values, strict=True)
    for axis, position, score in places:
        colour = SAME if labels[position] == own else OTHER
        _image(axis, train[position], colour)
        _caption(axis, str(labels[position]), f"{score:+.2g}", colour)


def _image(axis: Axes, image: NDArray[Any], colour: str) -> None:
    axis.imshow(np.asarray(image), cmap="gray_r", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.2)


def _caption(axis: Axes, first: str, second: str, colour: str) -> None:
    style: dict[str, Any] = {"transform": axis.transAxes, "color": colour, "va": "bottom"}
    axis.text(0.0, 1.06, first, ha="left", fontsize=9, fontweight="bold", **style)
    axis.text(1.0, 1.06, second, ha="right", fontsize=7.5, **style)


def _headings(figure: Figure, groups: list[list[Axes]], names: list[str], title: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.2 / height, title, ha="left", va="top", fontsize=12, color=INK)
    for cells, name in zip(groups, names, strict=True):
        left = cells[0].get_position().x0
        figure.text(
            left, 1 - 0.62 / height, name, fontsize=11, fontweight="bold", color=INK, va="top"
        )
    right = groups[-1][-1].get_position().x1
    for place, (name, colour) in enumerate([("other class", OTHER), ("same class", SAME)]):
        at = right - 0.95 * place / figure.get_figwidth()
        figure.text(
            at, 1 - 0.64 / height, f"■ {name}", ha="right", va="top", fontsize=8.5, color=colour
        )
