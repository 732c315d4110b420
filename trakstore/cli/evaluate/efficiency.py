"""``trakstore evaluate efficiency``: costs of featurizing and asking at several sizes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from typer import Option

from trakstore.cli.options import JobName, Json, Targets, Train
from trakstore.cli.output import only_json, print_result
from trakstore.report.evaluation_tables import efficiency_table


def efficiency(
    job: JobName,
    train_rows: Annotated[
        list[int] | None,
        Option(metavar="N", help="Number of train samples, repeatable; default: 1,000."),
    ] = None,
    target_rows: Annotated[
        list[int] | None, Option(metavar="N", help="Number of targets, repeatable; default: 100.")
    ] = None,
    dim: Annotated[
        list[int] | None,
        Option(metavar="N", help="Number of dimensions, repeatable; default: 512."),
    ] = None,
    rounds: Annotated[int, Option(metavar="N", min=1, help="Times that each is measured.")] = 3,
    targets: Targets = "test",
    train: Train = "train",
    as_json: Json = False,
) -> None:
    """Measure a job on the first samples of its splits, each combination of sizes in a new process.

    Seconds are medians, after a warm-up: to compute features, to write them, to do both as featurize
    does, and for the kernel and the top ten of all targets.
    """
    from trakstore.evaluation.efficiency import efficiency_grid

    with only_json(as_json):
        grid = efficiency_grid(
            job,
            train_rows or [1000],
            target_rows or [100],
            dim or [512],
            splits=(train, targets),
            rounds=rounds,
        )
        cells = list(grid)
    document = {"job": job, "rounds": rounds, "cells": [asdict(cell) for cell in cells]}
    print_result(as_json, document, [efficiency_table(cells)])
