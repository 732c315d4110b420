"""Findings of a report, as analysis and scores gave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.report.sample import Shown
from trakstore.report.store_facts import StoreContents
from trakstore.storage.layout import Epoch

if TYPE_CHECKING:
    from trakstore.analysis.transition import Transition
    from trakstore.methods.kernel_report import KernelReport

# split, row of the stored split and sample id -> how the sample is shown, if it can be
ShowSample: TypeAlias = Callable[[str, int, Any], Shown | None]


@dataclass(frozen=True)
class TargetFindings:
    """Findings about the targets that the page shows, m of ``total``.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
        Rows of the stored split.
    proponents, opponents : Dataset
        From ``top_k``, largest and smallest first, with ``label`` and ``target_label`` where known.
    spread : Dataset
        From ``analysis.distribution``.
    paths : Dataset or None
        From ``analysis.trajectories``: the first ``path_length`` of each list, one after the other.
    path_length : int
    measured : mapping of str to array, shape (m,)
        Stored columns of the targets at the last epoch, such as their loss.
    predicted : array of int64, shape (m,), or None
        Classes that the model of the last epoch predicts.
    """

    rows: NDArray[np.int64]
    total: int
    proponents: xr.Dataset
    opponents: xr.Dataset
    spread: xr.Dataset
    paths: xr.Dataset | None
    path_length: int
    measured: Mapping[str, NDArray[Any]]
    predicted: NDArray[np.int64] | None


@dataclass(frozen=True)
class Classes:
    """Mean scores between classes, and how much of the shown targets' scores is from their own.

    Attributes
    ----------
    targets, train : sequence
        Names of the classes.
    means : ndarray of float64, shape (targets, train)
    share, base : float
        Share of positive score from the own class, and of train samples that are of that class.
    """

    targets: Sequence[object]
    train: Sequence[object]
    means: NDArray[np.float64]
    share: float
    base: float


@dataclass(frozen=True)
class Findings:
    """Findings of one page.

    Attributes
    ----------
    contents : StoreContents
        What the store holds.
    asked : mapping of str to str
        Method, splits, epochs and damping, for people.
    targets, train : str
        Names of the splits.
    answers : TargetFindings
    kernels : sequence of KernelReport
    transition : (before, after, Transition) or None
    classes : Classes or None
    suspects : Dataset or None
        Dimension ``rank``: ``train`` (ids), ``position``, ``score`` (on itself), maybe ``label``.
    left_out : mapping of str to str
        Name of a section that is not there, and why.
    show : callable
        Shows a sample.
    made : str
        Time and version of the program.
    """

    location: str
    contents: StoreContents
    asked: Mapping[str, str]
    targets: str
    train: str
    answers: TargetFindings
    kernels: Sequence[KernelReport]
    transition: tuple[Epoch, Epoch, Transition] | None
    classes: Classes | None
    suspects: xr.Dataset | None
    left_out: Mapping[str, str]
    show: ShowSample
    made: str
