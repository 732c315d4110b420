"""``trakstore report``: one page to look at, with the samples themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Option

from trakstore.cli.options import Null, target_option
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.planning import counted, human_bytes
from trakstore.progress import StepLine
from trakstore.report.write import MOST_LISTED, MOST_TARGETS, WrittenReport, write_report


@with_request("learning_rate")
def report(
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
    job: Annotated[
        str | None,
        Option(metavar="JOB", help="jobs.py:name, whose data sets hold the samples to show."),
    ] = None,
    render: Annotated[
        str | None,
        Option(
            metavar="FUNCTION",
            help="file.py:name of a tokenizer (prompts are told from what is learned), or of a "
            "function of a sample (without --job, of its split, id and row) that returns a text, an "
            "image, a figure or a dict; as in --render jobs.py:tokenizer.",
        ),
    ] = None,
    k: Annotated[
        int, Option("--k", "-k", metavar="N", min=1, max=MOST_LISTED, help="Entries of each list.")
    ] = 8,
    target: Annotated[list[str] | None, target_option("--count of them")] = None,
    count: Annotated[
        int,
        Option(
            metavar="N",
            min=1,
            max=MOST_TARGETS,
            help="Targets where none is named: half by largest loss, the others spread out.",
        ),
    ] = 24,
    before: Annotated[
        str | None, Option(metavar="EPOCH", help="Start of the transition; default: the first.")
    ] = None,
    after: Annotated[
        str | None, Option(metavar="EPOCH", help="End of the transition; default: the last.")
    ] = None,
    null: Null = None,
    tokens: Annotated[
        int,
        Option(
            min=0,
            metavar="N",
            help="Shade the texts of the first N entries of each list by the scores of their tokens.",
        ),
    ] = 0,
    *,
    asked: ScoreRequest,
) -> None:
    """Write one HTML page: targets with the samples that helped and harmed them, and when.

    The page loads nothing. Needs matplotlib and Jinja, the "report" extra.
    """
    with asked.workplace(), StepLine():
        written = write_report(
            asked.opened,
            out,
            job=job,
            render=render,
            k=k,
            target_ids=target or (),
            count=count,
            before=before,
            after=after,
            null=[text.split(",") for text in null or ()],
            targets=asked.targets,
            train=asked.train,
            epochs=asked.epochs,
            damping=asked.damping,
            method=asked.method,
            kernel=asked.kernel,  # type: ignore[arg-type]
            memory_limit=asked.memory_limit,
            allow_other_weights=asked.allow_other_weights,
            tokens=tokens,
        )
    document = {
        "report": str(out),
        "bytes": written.bytes,
        "targets": written.targets,
        "left_out": written.left_out,
    }
    asked.answer(document, _lines(written))


def _lines(written: WrittenReport) -> Iterator[str]:
    for section, reason in written.left_out.items():
        yield f"left out: {section}: {reason}"
    size, shown = human_bytes(written.bytes), counted(written.targets, "target")
    yield f"wrote {written.path}, {size}, {shown}: open it in a browser"
    if written.token_ids:
        yield "samples are numbers: --render jobs.py:tokenizer, or a function, shows their text"
