"""Pictures of results, drawn by matplotlib without a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.markup import one_line
from trakstore.report.units import number_form, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELPED, HARMED, INK, SOFT = "#1a7f5a", "#c2452d", "#22262b", "#5b636d"
# Frames are solid for a sample of the target's class, and dashed for one of another class.
_SAME: Any = "solid"
_OTHER: Any = (0, (2.2, 1.3))
# Inches of a row of images, and of the space above the first one.
_LINE, _HEAD = 1.62, 1.05


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

    A class and score stand above each image, and its id below. Colours show which samples helped and
    which harmed; a dashed frame marks another class than the target's.

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
        When there is nothing to draw, or the numbers of targets differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(targets)
    sizes = {rows, len(target_labels), helpful.sizes["target"], harmful.sizes["target"]}
    if rows == 0 or len(sizes) > 1:
        raise TrakStoreError(f"a picture needs as many lists as targets, got {sorted(sizes)}")
    lists = [("most helpful", helpful, HELPED), ("most harmful", harmful, HARMED)]
    columns = [top.sizes["rank"] for _, top, _ in lists]
    size = (1.05 * (2.3 + sum(columns)), _LINE * rows + _HEAD)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)  # a canvas without a display, whatever backend the user chose
    axes = _grid(figure, rows, columns)
    names = notes or [""] * rows
    # One format for the whole picture, so that its scores can be compared.
    form = number_form(np.concatenate([top["score"].values.ravel() for _, top, _ in lists]))
    for row in range(rows):
        own, target_id = target_labels[row], helpful["target_id"].values[row]
        _image(axes[row][0][0], targets[row], INK, _SAME)
        _caption(axes[row][0][0], str(own), names[row], f"id {one_line(target_id, 14)}", INK)
        for cells, (_, top, colour) in zip(axes[row][1:], lists, strict=True):
            _top_row(cells, top.isel(target=row), train, train_labels, own, colour, form)
    headings = [("target", INK), *((name, colour) for name, _, colour in lists)]
    _headings(figure, axes[0], headings, title)
    figure.savefig(path, dpi=160)
    return Path(path)


def _grid(figure: Figure, rows: int, columns: list[int]) -> list[list[list[Axes]]]:
    """Make axes by row, then group (target, helpful, harmful), then place; a gap between groups."""
    height = figure.get_figheight()
    ratios = [1.15, 0.25, *[1.0] * columns[0], 0.25, *[1.0] * columns[1]]
    margins = {"left": 0.02, "right": 0.98, "bottom": 0.34 / height, "top": 1 - 1.2 / height}
    spaces = {"width_ratios": ratios, "wspace": 0.12, "hspace": 0.66}
    grid = figure.add_gridspec(rows, len(ratios), **margins, **spaces)
    second = 3 + columns[0]  # a column for the target, one for each gap
    groups = [[0], range(2, second - 1), range(second, len(ratios))]
    return [
        [[figure.add_subplot(grid[row, at]) for at in group] for group in groups]
        for row in range(rows)
    ]


def _top_row(
    axes: list[Axes],
    top: xr.Dataset,
    train: NDArray[Any],
    labels: NDArray[Any],
    own: Any,
    colour: str,
    form: str,
) -> None:
    columns = (top[name].values.tolist() for name in ("position", "score", "train"))
    for axis, position, score, name in zip(axes, *columns, strict=True):
        _image(axis, train[position], colour, _SAME if labels[position] == own else _OTHER)
        _caption(
            axis, str(labels[position]), written(form, score), f"id {one_line(name, 14)}", colour
        )


def _image(axis: Axes, image: NDArray[Any], colour: str, line: Any) -> None:
    axis.imshow(np.asarray(image), cmap="gray_r", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.2, linestyle=line)


def _caption(axis: Axes, label: str, note: str, below: str, colour: str) -> None:
    """Write the class and a note above an image, and its id below."""
    style: dict[str, Any] = {"transform": axis.transAxes, "parse_math": False}
    axis.text(
        0.0, 1.06, label, ha="left", va="bottom", fontsize=10, fontweight="bold", color=INK, **style
    )
    axis.text(1.0, 1.06, note, ha="right", va="bottom", fontsize=8.5, color=colour, **style)
    axis.text(0.0, -0.06, below, ha="left", va="top", fontsize=8, color=SOFT, **style)


def _headings(
    figure: Figure, groups: list[list[Axes]], names: list[tuple[str, str]], title: str
) -> None:
    from matplotlib.lines import Line2D

    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.2 / height, title, ha="left", va="top", fontsize=13, color=INK)
    for cells, (name, colour) in zip(groups, names, strict=True):
        left = cells[0].get_position().x0
        figure.text(
            left, 1 - 0.6 / height, name, fontsize=12, fontweight="bold", color=colour, va="top"
        )
    key = [
        Line2D([], [], color=SOFT, linewidth=2.2, linestyle=line, label=name)
        for name, line in (("the target's class", _SAME), ("another class", _OTHER))
    ]
    place = (groups[-1][-1].get_position().x1, 1 - 0.58 / height)
    style: dict[str, Any] = {"frameon": False, "labelcolor": SOFT, "fontsize": 9, "ncols": 2}
    figure.legend(
        handles=key,
        loc="upper right",
        bbox_to_anchor=place,
        borderaxespad=0,
        handlelength=2.6,
        **style,
    )
