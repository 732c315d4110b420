"""``trakstore evaluate checks``: a search for what makes scores wrong without an error."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit

from trakstore.cli.output import console, only_json
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.report.evaluation_tables import check_lines, passed_lines

FAILED = 1  # exit code


@with_request(
    *("targets", "kernel", "method", "learning_rate", "allow_other_weights", "workers", "scheduler")
)
def checks(
    job: Annotated[str, Argument(metavar="JOB", help="The job that the store was made with.")],
    asked: ScoreRequest,
) -> None:
    """Look for dropout left on, shuffled data, wrong checkpoints, copies, singular kernels and more.

    Each check passes, warns or fails, with what was measured and what to do; exit code 1 if any fails.
    What passes comes last, one line for all its epochs; --json tells each by itself.
    """
    from trakstore.evaluation.checks import check_setup
    from trakstore.features.load_job import load_job

    out, done = console(), []
    with only_json(asked.as_json):
        each = check_setup(
            load_job(job),
            asked.opened,
            train=asked.train,
            epochs=asked.epochs,
            damping=asked.used_damping,
            memory_limit=asked.memory_limit,
        )
        for check in each:
            done.append(check)
            # Checks take minutes, so that faults are printed at once.
            for line in [] if asked.as_json or check.verdict == "pass" else check_lines(check):
                out.print(line)
    counts = {v: sum(check.verdict == v for check in done) for v in ("pass", "warn", "fail")}
    documents = [check.to_dict() for check in done]
    passed = passed_lines(check for check in done if check.verdict == "pass")
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    asked.answer({"location": asked.store, **counts, "checks": documents}, [*passed, total])
    if counts["fail"]:
        raise Exit(FAILED)
