"""Charts of findings for notebooks and the report; each returns the axes that it drew on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.markup import one_line
from trakstore.report.top_images import HARMED, HELPED, INK
from trakstore.report.units import evenly_spaced, plain_number, spread_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from trakstore.methods.kernel_report import KernelReport

ACCENT, GRID = "#2f5fa8", "#d5d9de"
# Line styles show whether a sample helped, for people who do not see the colours too.
_LINES: dict[bool, dict[str, Any]] = {
    True: {"color": HELPED, "marker": "o", "linestyle": "solid"},
    False: {"color": HARMED, "marker": "s", "linestyle": "dashed"},
}
_MARKERS = "os^Dv*Xp"  # markers of kernels, as many as a report has
_LABEL = 15  # most characters of a name at the end of a line


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
        When ``top`` lacks variables or the target.

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

    Each line ends in its sample's name. Samples that helped, by the mean of their scores, have solid
    lines and round marks; those that harmed, dashed lines and square marks.

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
    >>> axes = plot_evolution(trajectories(scores, ts.top_k(scores, 4)["position"]))
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('epoch', 'standard deviations')
    """
    one = _one_target(found, target, "analysis.trajectories", ("score", "standard", "train"))
    values, helped = one["standard"].values, one["score"].values.mean(axis=0) > 0
    # Epochs are evenly spaced, in order: names may be words, and 1, 2, 5 and 1000 would crowd.
    axes, places = _axes(ax), np.arange(len(values))
    axes.plot([0, max(places[-1], 1)], [0, 0], color=INK, linewidth=0.8)
    names = [one_line(name, _LABEL) for name in one["train"].values.tolist()]
    looks = [_LINES[bool(up)] for up in helped]
    for line, name, look in zip(values.T, names, looks, strict=True):
        axes.plot(places, line, label=f"train {name}", markersize=3.5, linewidth=1.2, **look)
    _name_lines(axes, values[-1], names, [look["color"] for look in looks], float(places[-1]))
    labelled = evenly_spaced(len(places), 9)
    axes.set_xticks(places[labelled], [str(one["epoch"].values[at]) for at in labelled])
    _label(axes, "epoch", "standard deviations", f"target {one_line(one['target_id'].item())}")
    return axes


def plot_spectrum(reports: KernelReport | Sequence[KernelReport], ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of kernels, first to last, both axes logarithmic; dashed, the damping λ.

    Kernels differ by the marks on their lines.

    Parameters
    ----------
    reports : KernelReport or sequence of them
        From :func:`trakstore.kernel_report`; later ones are drawn darker.
    ax
        As in :func:`plot_top`.

    Raises
    ------
    TrakStoreError
        When there is no report.

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
        # Marks begin at another point of each line, since lines often lie on each other.
        marked = np.geomspace(min(1 + at, len(values)), len(values), 5).astype(int) - 1
        marks = {
            "marker": _MARKERS[(at - 1) % len(_MARKERS)],
            "markevery": np.unique(marked).tolist(),
        }
        axes.loglog(places, values, color=ACCENT, alpha=shade, label=f"epoch {one.epoch}", **marks)
        axes.axhline(one.lam, color=HARMED, alpha=shade, linewidth=0.9, linestyle="--")
    # An empty line for the legend: the λ of the kernels share one entry.
    axes.plot([], [], color=HARMED, linestyle="--", linewidth=0.9, label="λ of each")
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
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
    # Logarithmic counts show the tails, with the samples that matter. The axis starts at 0.5, so that a
    # bin of one is visible.
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.minorticks_off()
    _plain_ticks(axes.yaxis)
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
    # Imported here: only figures of notebooks are pyplot's, and the report makes its own.
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def _plain_ticks(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis without TeX, whose exponents are hard to read."""
    axis.set_major_formatter(lambda value, _: plain_number(value))


def _name_lines(
    axes: Axes, ends: NDArray[Any], names: Sequence[str], colours: Sequence[str], last: float
) -> None:
    """Write the names of lines to the right of their ends, at the epoch ``last``, without overlap."""
    width = max(last, 1.0)
    lead = 0.12 * width
    # The axis extends beyond the last epoch, to make room for the names.
    axes.set_xlim(-0.05 * width, last + lead + 0.95 * width)
    (low, high), size = axes.get_ylim(), float(axes.xaxis.get_label().get_fontsize())
    height = 1.15 * size / (axes.bbox.height / axes.figure.dpi * 72) * (high - low)
    places = spread_apart(ends, height, low + height / 2, high - height / 2)
    axes.set_ylim(low, high)
    for end, place, name, colour in zip(ends, places, names, colours, strict=True):
        axes.plot([last, last + lead], [end, place], color=colour, linewidth=0.5)
        axes.text(
            last + 1.3 * lead, place, name, color=colour, va="center", size=size, parse_math=False
        )


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
