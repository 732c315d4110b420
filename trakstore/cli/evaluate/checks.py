"""``trakstore evaluate checks``: what makes scores wrong without an error."""

from __future__ import annotations

from typing import Annotated

import typer

from trakstore.cli.options import (
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    StorePath,
    Train,
    chosen_epochs,
)
from trakstore.cli.output import console, only_json, print_json

__all__ = ["checks"]

FAILED = 1  # exit code


def checks(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB", help="What the store was made with.", show_default=False),
    ],
    store: StorePath,
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Look for dropout left on, shuffled data, wrong checkpoints, copies, singular kernels and more.

    Each check passes, warns or fails, with what was measured and what to do; exit code 1 if any fails.
    What passes comes last, one line for all its epochs; --json tells each by itself.
    """
    from trakstore.evaluation.checks import check_setup
    from trakstore.features.job import load_job
    from trakstore.report.evaluations import check_lines, passed_lines

    out, found = console(), []
    with only_json(as_json):
        made = check_setup(
            load_job(job),
            store,
            train=train,
            epochs=chosen_epochs(epoch),
            damping=damping,
            memory_limit=memory_limit,
        )
        for check in made:
            found.append(check)
            for line in [] if as_json or check.verdict == "pass" else check_lines(check):
                out.print(line, soft_wrap=True)
    counts = {v: sum(check.verdict == v for check in found) for v in ("pass", "warn", "fail")}
    if as_json:
        print_json({"location": store, **counts, "checks": [check.to_dict() for check in found]})
    else:
        for line in passed_lines(check for check in found if check.verdict == "pass"):
            out.print(line, soft_wrap=True)
        out.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if counts["fail"]:
        raise typer.Exit(FAILED)
