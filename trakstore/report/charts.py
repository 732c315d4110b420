"""Charts of findings for notebooks and the report; each returns the axes that it drew on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.markup import one_line
from trakstore.report.top_images import HARMED, HELPED, INK
from trakstore.report.units import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trakstore.methods.kernel_report import KernelReport

ACCENT, GRID = "#2f5fa8", "#d5d9de"


def plot_top(top: xr.Dataset, target: int = 0, ax: Axes | None = None) -> Axes:
    """Draw one target's list as bars, the first one on top.

    Parameters
    ----------
    top : Dataset
        From :func:`trakstore.top_k`.
    target : int
        Position of the target among those of ``top``.
    ax : matplotlib Axes, optional
        Axes to draw on; a new figure by default.

    Returns
    -------
    Axes

    Raises
    ------
    NotFoundError
        Variables or targets that ``top`` does not have.

    Examples
    --------
    >>> plot_top(ts.top_k(ts.trak_scores(store), 5)).get_xlabel()
    'score'
    """
    one = _one_target(top, target, "top_k", ("score", "train"))
    score, places = one["score"].values, np.arange(one.sizes["rank"])
    axes = _axes(ax)
    axes.barh(places, score, color=np.where(score > 0, HELPED, HARMED).tolist(), height=0.7)
    axes.set_yticks(places, [one_line(name) for name in one["train"].values.tolist()])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # between dollar signs in ids, matplotlib would read TeX
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    _label(axes, "score", "train sample", f"target {one_line(one['target_id'].item())}")
    return axes


def plot_evolution(found: xr.Dataset, target: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the train samples of one target over epochs as lines, in standard deviations of its scores.

    Parameters
    ----------
    found : Dataset
        From :func:`trakstore.analysis.trajectories`.
    target, ax
        As in :func:`plot_top`.

    Examples
    --------
    >>> from trakstore.analysis import trajectories
    >>> scores = ts.trak_scores(store)
    >>> len(plot_evolution(trajectories(scores, ts.top_k(scores, 4)["position"])).lines)
    5
    """
    one = _one_target(found, target, "analysis.trajectories", ("standard", "train"))
    values = one["standard"].values  # (epoch, rank)
    # Epochs stand evenly, by their place: names may be words, and 1, 2, 5 and 1000 would crowd.
    axes, places = _axes(ax), np.arange(len(values))
    axes.axhline(0, color=INK, linewidth=0.8)
    for line, name in zip(values.T, one["train"].values.tolist(), strict=True):
        colour = HELPED if line[-1] > 0 else HARMED
        label = f"train {one_line(name)}"
        axes.plot(places, line, color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
    labelled = evenly_spaced(len(places), 9)
    axes.set_xticks(places[labelled], [str(one["epoch"].values[at]) for at in labelled])
    _label(axes, "epoch", "standard deviations", f"target {one_line(one['target_id'].item())}")
    return axes


def plot_spectrum(reports: KernelReport | Sequence[KernelReport], ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of kernels, first to last, both axes logarithmic; dashed, the damping λ.

    Parameters
    ----------
    reports : KernelReport or sequence of them
        From :func:`trakstore.kernel_report`; later ones are drawn darker.
    ax
        As in :func:`plot_top`.

    Raises
    ------
    TrakStoreError
        No report.

    Examples
    --------
    >>> plot_spectrum(ts.kernel_report(store, 15)).get_yscale()
    'log'
    """
    several = list(reports) if isinstance(reports, Sequence) else [reports]
    if not several:
        raise TrakStoreError("a spectrum needs a kernel report, got none")
    axes = _axes(ax)
    for at, one in enumerate(several, 1):
        shade, values = 0.25 + 0.75 * at / len(several), one.eigenvalues
        values = values[values > 1e-9 * values[0]]  # the rest is rounding noise
        places = np.arange(1, len(values) + 1)
        axes.loglog(places, values, color=ACCENT, alpha=shade, label=f"epoch {one.epoch}")
        axes.axhline(one.lam, color=HARMED, alpha=shade, linewidth=0.9, linestyle="--")
    # An empty line, for the legend alone: each kernel's own λ has no entry of its own.
    axes.plot([], [], color=HARMED, linestyle="--", linewidth=0.9, label="λ of each")
    for text in axes.legend(frameon=False, fontsize="small").get_texts():
        text.set_parse_math(False)
    _label(axes, "place", "eigenvalue", "")
    return axes


def plot_distribution(found: xr.Dataset, target: int | None = 0, ax: Axes | None = None) -> Axes:
    """Draw a histogram of one target's scores, or of those of all targets; counts are logarithmic.

    Parameters
    ----------
    found : Dataset
        From :func:`trakstore.analysis.distribution`.
    target : int or None
        Position of the target; None for all, in standard deviations from each one's mean.
    ax
        As in :func:`plot_top`.

    Examples
    --------
    >>> from trakstore.analysis import distribution
    >>> plot_distribution(distribution(ts.trak_scores(store), bins=8)).get_yscale()
    'log'
    """
    pooled = target is None
    names = ("pooled", "pooled_edge") if pooled else ("count", "edge")
    one = _one_target(found, target or 0, "analysis.distribution", names)
    axes = _axes(ax)
    axes.stairs(one[names[0]].values, one[names[1]].values, fill=True, color=ACCENT, alpha=0.85)
    # Logarithmic counts show the tails, where the samples are that matter; a bin of one is above 0.5.
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.minorticks_off()
    axes.axvline(0, color=INK, linewidth=0.8)
    title = "all targets" if pooled else f"target {one_line(one['target_id'].item())}"
    _label(axes, "standard deviations" if pooled else "score", "train samples", title)
    return axes


def _one_target(found: xr.Dataset, target: int, source: str, needed: tuple[str, ...]) -> xr.Dataset:
    missing = [name for name in needed if name not in found]
    if missing or "target" not in found.dims:
        names = ", ".join(map(str, found.variables))
        raise NotFoundError(
            f"this chart takes what {source} gives, with {' and '.join(needed)}; got {names}"
        )
    if not 0 <= target < found.sizes["target"]:
        raise NotFoundError(f"target {target} is outside of {found.sizes['target']} targets")
    return found.isel(target=target)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # Only here: a notebook's figures are pyplot's, the report draws on axes of its own.
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
