"""``trakstore dynamics``: samples by what training showed of them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from typer import BadParameter, Option

from trakstore.cli.options import Csv, Json, SampleCount, SampleSplit, StorePath
from trakstore.cli.output import print_csv, print_result, without_nan
from trakstore.errors import NotFoundError, did_you_mean
from trakstore.report.analysis_tables import dynamics_table


def dynamics(
    store: StorePath,
    split: SampleSplit = "train",
    by: Annotated[
        str, Option(metavar="COLUMN", help="Summary to sort by, smallest first.")
    ] = "aum",
    largest: Annotated[bool, Option("--largest", help="Sort the largest first.")] = False,
    k: SampleCount = 20,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List the samples that a tracker found hardest, by one of its summaries.

    A small area under the margin (aum) and many forgetting events are typical of wrong labels.
    """
    from trakstore.analysis.training_dynamics import training_dynamics

    if as_json and as_csv:
        raise BadParameter("--json and --csv exclude each other")
    summaries = training_dynamics(store, split)
    # Names of variables of the dataset, which people type.
    if by not in summaries:
        near = did_you_mean(by, map(str, summaries))
        raise NotFoundError(f"there is no summary {by!r}{near}")
    values = summaries[by].values
    order = np.argsort(-values if largest else values, kind="stable")[:k]
    chosen = summaries.isel(sample=order)
    if as_csv:
        print_csv(chosen)
        return
    document = {"location": store, "samples": summaries.sizes["sample"], **without_nan(chosen)}
    print_result(as_json, document, [dynamics_table(chosen)])
