"""Report of a store: one page to look at, with the samples themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import default_damping, find_method, scores_by_name
from trakstore.methods.epochs import EpochPair, UnmaskedSplit, epoch_pairs
from trakstore.methods.sampled_kernel import KernelRows, sampled_kernel
from trakstore.passes.rows import TakenRows
from trakstore.progress import begin_step, told_on_terminal
from trakstore.quantities import as_whole
from trakstore.report.extras import need_extra
from trakstore.report.page import render_page
from trakstore.report.sample import LETTERS
from trakstore.report.sample_source import Render, SampleSource, name_of, sample_source
from trakstore.report.sections import Findings
from trakstore.report.targets_and_epochs import (
    check_list_length,
    default_rows,
    known_epochs,
    named_rows,
    null_pairs,
    transition_ends,
)
from trakstore.report.terminal_tables import span
from trakstore.report.token_lists import TokenLists
from trakstore.storage.exchange.named_files import check_file_place, writing
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job

MOST_TARGETS, MOST_LISTED = 200, 20
# Most characters of all texts of a page, a quarter of its bytes, and least of one text.
_ALL_LETTERS, _LEAST_LETTERS = 2**23, 600


@dataclass(frozen=True)
class WrittenReport:
    """A written report.

    Attributes
    ----------
    path : Path
        The file.
    bytes : int
        Size of the file.
    targets : int
        Number of targets on the page.
    left_out : mapping of str to str
        Sections for which the store has no data, with the reason.
    token_ids : bool
        Whether samples are shown as token ids, for which ``render`` could give texts.

    Examples
    --------
    >>> written = write_report(store, "report.html")  # doctest: +SKIP
    >>> written.path.name, sorted(written.left_out)  # doctest: +SKIP
    """

    path: Path
    bytes: int
    targets: int
    left_out: Mapping[str, str]
    token_ids: bool


@told_on_terminal
def write_report(
    store: FeatureStore,
    path: str | os.PathLike[str] = "report.html",
    *,
    job: Job | str | None = None,
    render: Render | str | None = None,
    k: int = 8,
    target_ids: str | Sequence[int | str] = (),
    count: int = 24,
    before: Epoch | None = None,
    after: Epoch | None = None,
    null: Sequence[Sequence[Epoch]] = (),
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float | Damping | None = None,
    method: str = "trak",
    kernel: KernelRows = None,
    memory_limit: int | str | None = None,
    allow_other_weights: bool = False,
    tokens: int = 0,
) -> WrittenReport:
    """Write one HTML page: targets with the samples that helped and harmed them, and when.

    The page loads nothing. This needs matplotlib and Jinja, the "report" extra. Errors that can be
    known in advance are raised before scores are computed.

    Parameters
    ----------
    store : FeatureStore
        An open store.
    path : str or path
        File to write; an existing one is replaced.
    job : Job or str, optional
        Job that was featurized, or its name like ``"jobs.py:digits"``: its data sets hold the samples
        that the page shows, and its models predict their classes.
    render : callable, tokenizer or str, optional
        Function that returns a text, an image (an array, a PIL image), a figure, a dict of columns, or
        None for a sample of the data set; or a tokenizer of transformers, which decodes its
        ``input_ids``: tokens whose ``labels`` are -100 are shown as prompt, special tokens dimmed. Or
        the name of either, like ``"jobs.py:tokenizer"``. By default the tokenizer of the job's
        collator, if it has one. Without a job, a function is given the split, id and row of the sample.
    k : int
        Entries of each list, 20 at most.
    target_ids : sequence of int or str, or one str
        Sample ids of the targets to show, or ``"@N"`` for row N; 200 at most.
    count : int
        Number of targets if none is named, at most 200: half by largest loss, the others spread out.
    before, after : int or str, optional
        Epochs at the ends of the transition; by default the first and the last.
    null : sequence of (epoch, epoch)
        Pairs of epochs between which nothing changed: they give false discovery rates.
    targets, train : str
        Split of the targets, and split of the train samples.
    epochs : epoch or sequence of epochs, optional
        Checkpoints whose scores are averaged; by default all that have both splits.
    damping : float or Damping, optional
        c in λ = c · tr(K) / n, or ``Damping(absolute=λ)``; by default 1, for a sampled kernel 0.1.
    method : str
        A method as the command line names it, such as ``"influence"``.
    kernel : {"train", "sampled"}, optional
        Rows of the kernel of ``trak`` and ``influence``, as in those methods.
    memory_limit : int or str, optional
        Most memory, such as ``"600MB"``; by default a quarter of the free memory.
    allow_other_weights : bool
        Whether targets and train rows of an epoch may be of different checkpoints.
    tokens : int
        Number of entries of each list whose texts are shaded by the scores of their tokens, which add
        up to the entry's. Needs the job of a language model, and at each epoch a pass for each token.

    Returns
    -------
    WrittenReport

    Raises
    ------
    NotFoundError
        When a split, epoch, sample, method, job or function does not exist.
    SpecMismatchError
        When the job's data sets are not those from which the features were made.
    LocationError
        When the file cannot be written.
    TrakStoreError
        When the extra is not installed, a number is out of range, epochs are no transition or no null,
        a render function raises or returns something that cannot be shown, or the page has more than 32
        MB.

    Examples
    --------
    >>> import trakstore as ts
    >>> from trakstore.report import write_report
    >>> store = ts.open_store("run.zarr")  # doctest: +SKIP
    >>> write_report(store, "report.html", job="jobs.py:digits").targets  # doctest: +SKIP
    24
    """
    # From here to the scores, everything is refused that can be: scores may take hours.
    begin_step("report: epochs, splits and samples")
    path = Path(path)
    need_extra("a report", "report", "jinja2", "matplotlib", "PIL")
    takes = "kernel" in find_method(method).options
    check_file_place(path)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    known, last = [pair.epoch for pair in pairs], pairs[-1]
    if damping is None:
        damping = default_damping(method, store, train, known, kernel)
    damping = Damping.of(damping)
    sampled = sampled_kernel(store, pairs, train, kernel) if takes else None
    check_list_length(as_whole(k, "k", 1, MOST_LISTED), last.train)
    as_whole(count, "count", 1, MOST_TARGETS)
    as_whole(tokens, "tokens", 0, k)
    if tokens and job is None:
        raise TrakStoreError(
            "tokens have scores by the models of a job: name that too (job=, --job)"
        )
    names = [target_ids] if isinstance(target_ids, str) else list(target_ids)
    rows, chosen = _shown_rows(last.target, names, count)
    ends = transition_ends(known, before, after)
    null_epochs = null_pairs(null, ends)
    known_epochs([epoch for pair in null_epochs for epoch in pair], known)
    letters = _ALL_LETTERS // (len(rows) * (2 * k + 1))
    splits = [last.target.stored, last.train.stored]
    samples = sample_source(job, render, splits, max(_LEAST_LETTERS, min(LETTERS, letters)))
    _try_samples(samples, last, int(rows[0]))
    shades = None
    if tokens and job is not None:
        shades = TokenLists.of(tokens, job, store, pairs, render, samples.letters, memory_limit)
    begin_step("report: kernels of the scores")
    scores = scores_by_name(
        method,
        store,
        targets,
        train,
        known,
        damping=damping,
        kernel=kernel,
        memory_limit=memory_limit,
        allow_other_weights=allow_other_weights,
    )
    asked = {"shown": chosen, "epochs": span(known, most=8), "damping": _in_words(damping)}
    drawn = " and ".join(name_of(one) for one in (job, render) if one is not None)
    provenance = {"samples shown by": drawn or "their ids only"}
    findings = Findings(
        *(
            store,
            scores,
            pairs,
            rows,
            k,
            ends,
            null_epochs,
            damping,
            memory_limit,
            samples,
            asked,
            provenance,
        ),
        sampled=sampled,
        tokens=shades,
    )
    size = _write_page(path, findings)
    token_ids = render is None and samples.token_ids
    return WrittenReport(path, size, len(rows), findings.left_out, token_ids)


def _shown_rows(
    split: UnmaskedSplit, names: Sequence[int | str], count: int
) -> tuple[NDArray[np.int64], str]:
    """Choose rows of the targets to show, and describe the choice."""
    if len(names) > MOST_TARGETS:
        raise TrakStoreError(f"a page shows {MOST_TARGETS} targets at most, got {len(names)}")
    if names:
        return named_rows(split, names), "those that were named"
    rows = default_rows(split, count)
    if "loss" not in split.stored.columns:
        return rows, "evenly spaced"
    return rows, "half by largest loss, the others evenly spaced"


def _try_samples(samples: SampleSource, pair: EpochPair, row: int) -> None:
    """Read one sample of each split, so that a failing render function fails before the scores."""
    for split, at in ((pair.target, row), (pair.train, 0)):
        place, name = (
            TakenRows(column, np.array([at])).read(0, 1).tolist()[0]
            for column in (split.positions, split.column("sample_id"))
        )
        samples(split.stored.name, place, name)


def _in_words(damping: Damping) -> str:
    return f"λ = {damping.absolute:g}" if damping.relative is None else f"c = {damping.relative:g}"


def _write_page(path: Path, findings: Findings) -> int:
    """Write the page; return its bytes."""
    begin_step("report: charts and texts of the page")
    # A path whose bytes are no text has halves of surrogate pairs, which UTF-8 cannot encode.
    page = render_page(findings).encode("utf-8", "replace")
    with writing(path):
        path.write_bytes(page)
    return len(page)
