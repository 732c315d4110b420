"""``trakstore estimate``: bytes, memory, flops and time before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from typer import BadParameter, Option

from trakstore.cli.options import Json, MemoryLimit, StoredDtype
from trakstore.cli.output import print_result
from trakstore.planning import byte_count, human_bytes, human_time

if TYPE_CHECKING:
    from trakstore.scores.costs import Problem, Speed

BEYOND = (10**6, 10**8, 10**9)  # rows that are estimated besides those asked for
MOST = 10**12  # of anything: more is a slip of the finger
MOST_DIM = 2**31 - 1


def _number(help_text: str, *names: str, most: int = MOST) -> Any:
    """Make an option that takes a number from 1 to ``most``."""

    # A callback checks it, since with `max=` the help would show the limit beside each option.
    def checked(number: int) -> int:
        if number > most:
            raise BadParameter(f"{number} is more than {most:,}, the most that is estimated")
        return number

    return Option(*names, metavar="N", min=1, help=help_text, callback=checked)


def estimate(
    rows: Annotated[int, _number("Train rows.")] = 10**6,
    dim: Annotated[int, _number("Dimension of the features.", most=MOST_DIM)] = 2048,
    targets: Annotated[int, _number("Targets that are asked about.")] = 1000,
    epochs: Annotated[int, _number("Checkpoints.")] = 1,
    k: Annotated[int, _number("Entries of each list.", "--k", "-k")] = 100,
    dtype: StoredDtype = "float32",
    workers: Annotated[int, _number("Processes as fast as this one.")] = 1,
    rate: Annotated[
        float | None, Option(metavar="RATE", min=0, help="Samples a second that featurize makes.")
    ] = None,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Estimate bytes on disk, peak memory, flops and time, also for far more rows.

    With --epochs 2 or more also for `evolve` of all targets, and for `transitions` with all other
    neighbouring epochs as a null.

    Times come from a calibration of a second on this machine, at its page cache's speed.
    """
    from trakstore.scores.costs import Problem, calibrate

    if rate is not None and not math.isfinite(rate):
        raise BadParameter(f"--rate is a number of samples, got {rate}")
    itemsize = {"float32": 4, "float16": 2}.get(dtype, 1)
    limit = None if memory_limit is None else byte_count(memory_limit)
    asked = Problem(rows, dim, targets, epochs, k, itemsize, workers, limit)
    speed = calibrate()
    sizes = [asked, *(replace(asked, rows=more) for more in BEYOND if more != rows)]
    lines = [line for problem in sizes for line in _lines(problem, speed, rate)]
    document = {"problem": asdict(asked), "speed": asdict(speed), "estimates": lines}
    print_result(as_json, document, _shown(lines, asked, speed))


def _lines(problem: Problem, speed: Speed, rate: float | None) -> list[dict[str, Any]]:
    from trakstore.analysis.costs_over_epochs import costs_over_time
    from trakstore.scores.costs import costs

    lines, over_time = [], costs_over_time(problem) if problem.epochs > 1 else ()
    for cost in (*costs(problem), *over_time):
        seconds: float | None = speed.seconds(cost, problem.workers)
        # The time of gradients depends on the model: without a measured rate, no time is given.
        if cost.operation == "featurize":
            samples = problem.rows * problem.epochs
            seconds = samples / (rate * problem.workers) if rate else None
        lines.append({"rows": problem.rows, **asdict(cost), "seconds": seconds})
    return lines


def _shown(lines: list[dict[str, Any]], asked: Problem, speed: Speed) -> Iterator[RenderableType]:
    from trakstore.passes.memory import memory_budget

    yield (
        f"k={asked.dim}, m={asked.targets}, {asked.epochs} epochs, {asked.workers} workers; measured "
        f"{speed.flops / 1e9:.0f} GFLOP/s, read {human_bytes(int(speed.read))}/s, write "
        f"{human_bytes(int(speed.write))}/s"
    )
    table = Table(box=None, pad_edge=False)  # fits into 80 columns
    for name in ("rows", "operation", "on disk", "read", "memory", "flops", "time"):
        table.add_column(name, no_wrap=True)
    for line in lines:
        table.add_row(
            f"{line['rows']:,}",
            line["operation"],
            *(human_bytes(line[name]) for name in ("disk", "read", "memory")),
            f"{line['flops']:.1e}",
            "-" if line["seconds"] is None else human_time(line["seconds"]),
        )
    yield table
    limit = memory_budget(asked.memory_limit)
    if any(line["memory"] > limit for line in lines):
        yield (
            f"what needs more than the memory limit, {human_bytes(limit)}, needs a larger one: give "
            f"--memory-limit"
        )
    if lines[0]["seconds"] is None:
        yield "the model decides how long featurize takes: give --rate, samples a second"
