"""``trakstore evaluate mislabels``: samples whose labels may be wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from typer import Option

from trakstore.cli.options import SampleCount, SampleSplit
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.evaluation.wrong_labels import detection
from trakstore.methods.influence import self_scores
from trakstore.paths import is_file
from trakstore.report.evaluation_tables import detection_lines, suspects_table


@with_request("targets", "train", "kernel", "method", "learning_rate", "allow_other_weights")
def mislabels(
    wrong: Annotated[
        Path | None,
        Option(metavar="FILE", help="Ids of samples that are known to be wrong, one a line."),
    ] = None,
    split: SampleSplit = "train",
    k: SampleCount = 20,
    *,
    asked: ScoreRequest,
) -> None:
    """List the samples with the largest self-scores, which wrong labels tend to have.

    With --wrong, also how well these scores find the samples that are known to be wrong.
    """
    named, limit = None if wrong is None else _named(wrong), asked.memory_limit
    with asked.workplace():
        scores = self_scores(
            asked.opened, split, asked.epochs, asked.used_damping, memory_limit=limit
        )
    known = None if named is None else _known(named, scores["train_id"].values, split)
    measured = None if known is None else detection(scores.values, known)
    # By self-score, largest first: a large one means that only the sample itself explains its label.
    first = np.argsort(-scores.values, kind="stable")[:k]
    suspects = scores.isel(train=first)
    document: dict[str, Any] = {
        "split": split,
        "suspects": {
            "train": suspects["train_id"].values.tolist(),
            "score": suspects.values.tolist(),
        },
        **({} if measured is None else {"detection": asdict(measured)}),
    }
    table = suspects_table(suspects, None if known is None else known[first])
    asked.answer(document, [table, *([] if measured is None else detection_lines(measured))])


def _named(path: Path) -> set[str]:
    """Read the ids in a file."""
    if not is_file(path):
        raise NotFoundError(f"there is no file {path}; give one of sample ids, one a line")
    try:
        lines = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError:
        raise TrakStoreError(f"{path} is not text: give sample ids, one a line") from None
    return {line.strip() for line in lines if line.strip()}


def _known(named: set[str], ids: NDArray[Any], split: str) -> NDArray[np.bool_]:
    """Mark the named samples; refuse ids that no sample has."""
    names = [str(one) for one in ids.tolist()]
    if not named or named >= set(names):
        raise TrakStoreError(
            f"{'all' if named else 'none'} of the {len(names)} samples are named: to see whether "
            f"scores tell wrong labels from others, the file must name some, one id a line"
        )
    missing = sorted(named - set(names))
    if missing:
        near = did_you_mean(missing[0], names[:1000])
        raise NotFoundError(f"{split} has no sample {missing[0]!r}, which the file names{near}")
    return np.array([name in named for name in names])
