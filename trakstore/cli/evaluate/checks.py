"""``trakstore evaluate checks``: what makes scores wrong without an error."""

from __future__ import annotations

from typing import Annotated

import typer

from trakstore.cli.options import Json
from trakstore.cli.output import console, only_json, print_json
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.report.evaluations import check_lines, passed_lines

__all__ = ["checks"]

FAILED = 1  # exit code


@with_request("targets", "method", "learning_rate", "allow_other_weights", "workers", "scheduler")
def checks(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB", help="The job that the store was made with."),
    ],
    asked: ScoreRequest,
    as_json: Json = False,
) -> None:
    """Look for dropout left on, shuffled data, wrong checkpoints, copies, singular kernels and more.

    Each check passes, warns or fails, with what was measured and what to do; exit code 1 if any fails.
    What passes comes last, one line for all its epochs; --json tells each by itself.
    """
    from trakstore.evaluation.checks import check_setup
    from trakstore.features.job import load_job

    out, found = console(), []
    with only_json(as_json):
        made = check_setup(
            load_job(job),
            asked.opened,
            train=asked.train,
            epochs=asked.epochs,
            damping=asked.damping,
            memory_limit=asked.memory_limit,
        )
        for check in made:
            found.append(check)
            for line in [] if as_json or check.verdict == "pass" else check_lines(check):
                out.print(line)
    counts = {v: sum(check.verdict == v for check in found) for v in ("pass", "warn", "fail")}
    if as_json:
        documents = [check.to_dict() for check in found]
        print_json({"location": asked.store, **counts, "checks": documents})
    else:
        for line in passed_lines(check for check in found if check.verdict == "pass"):
            out.print(line)
        out.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if counts["fail"]:
        raise typer.Exit(FAILED)
