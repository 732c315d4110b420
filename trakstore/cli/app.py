"""The ``trakstore`` command: its list of commands, and its exit codes and error lines."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer import Option

import trakstore
from trakstore.cli.demo import demo
from trakstore.cli.drop import drop
from trakstore.cli.dynamics import dynamics
from trakstore.cli.estimate import estimate
from trakstore.cli.evaluate.checks import checks
from trakstore.cli.evaluate.counterfactual import counterfactual
from trakstore.cli.evaluate.efficiency import efficiency
from trakstore.cli.evaluate.lds import lds
from trakstore.cli.evaluate.mislabels import mislabels
from trakstore.cli.evaluate.stability import stability
from trakstore.cli.evolve import evolve
from trakstore.cli.export import export
from trakstore.cli.featurize import featurize
from trakstore.cli.groups import groups
from trakstore.cli.import_traker import import_
from trakstore.cli.info import info
from trakstore.cli.kernel import kernel
from trakstore.cli.neighbours import neighbours
from trakstore.cli.output import error_line, tolerant_streams
from trakstore.cli.report import report
from trakstore.cli.score import score
from trakstore.cli.topk import topk
from trakstore.cli.transitions import transitions
from trakstore.cli.verify import verify
from trakstore.errors import NO_THREADS, TrakStoreError, lacks_threads

BAD_USE, INTERRUPTED = 2, 130

# Commands in the order of the help, each with an example that its own help ends with. Modules of
# commands import torch and plotting only when they run: help must come at once.
EXAMPLES: dict[Callable[..., None], str] = {
    demo: "trakstore demo --out trakstore-demo",
    featurize: "trakstore featurize jobs.py:digits --store run.zarr --split train --split test",
    estimate: "trakstore estimate --rows 1000000 --dim 2048 --targets 1000",
    info: "trakstore info run.zarr",
    kernel: "trakstore kernel run.zarr --epoch 10 --damping 1",
    score: "trakstore score run.zarr --targets test --train train --save test-on-train",
    drop: "trakstore drop run.zarr --scores test-on-train",
    topk: "trakstore topk run.zarr --k 10 --target 17 --memory-limit 600MB",
    neighbours: "trakstore neighbours run.zarr --epoch 10 --k 5 --metric cosine",
    evolve: "trakstore evolve run.zarr --target 17 --k 5",
    transitions: "trakstore transitions run.zarr --before 100 --after 1000 --null 50,100",
    groups: "trakstore groups run.zarr --method trak",
    dynamics: "trakstore dynamics run.zarr --by aum --k 20",
    report: "trakstore report run.zarr --job jobs.py:digits -o report.html",
    verify: "trakstore verify run.zarr --repair",
    export: "trakstore export run.zarr --epoch 10 --split train --to train.parquet",
    import_: "trakstore import trak_results --store run.zarr --parameters 11173962",
}
EVALUATIONS: dict[Callable[..., None], str] = {
    checks: "trakstore evaluate checks jobs.py:digits run.zarr",
    lds: "trakstore evaluate lds run.zarr --models halves --trainer jobs.py:trainer --count 200",
    counterfactual: "trakstore evaluate counterfactual run.zarr --models removed "
    "--trainer jobs.py:trainer --target 17",
    mislabels: "trakstore evaluate mislabels run.zarr --wrong wrong-ids.txt",
    efficiency: "trakstore evaluate efficiency jobs.py:digits --train-rows 1000 --dim 512 --dim 2048",
    stability: "trakstore evaluate stability run.zarr --other seed1.zarr --k 10",
}

app = typer.Typer(
    name="trakstore",
    help="Which training examples made the model do this, and when did it learn it?",
    epilog="Start with: trakstore demo",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluate = typer.Typer(name="evaluate", help="Are the scores true? Checks, and comparisons.")
for group, examples in ((app, EXAMPLES), (evaluate, EVALUATIONS)):
    for command, example in examples.items():
        group.command(command.__name__.rstrip("_"), epilog=f"Example: {example}")(command)
app.add_typer(evaluate)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"trakstore {trakstore.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


# Since 0.26 typer brings its own copy of click; before it used the installed one.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0; 2 for bad use, every :class:`~trakstore.errors.TrakStoreError` and what the system
        refuses, after one line on standard error; 130 when interrupted. Any other exception is a
        fault and is not caught.
    """
    tolerant_streams()
    try:
        with _warnings_as_lines():
            return _run(arguments)
    except TrakStoreError as error:
        error_line(error)
    except _ClickException as error:
        error_line(_usage(error))
    except OSError as error:
        # Without a number it is not the system's error, but some library's: a fault.
        if error.errno is None:
            raise
        error_line(_refused(error))
    except RuntimeError as error:
        if not lacks_threads(error):
            raise
        error_line(NO_THREADS)
    return BAD_USE


def command_line() -> Any:
    """Build the command line: every command with its options."""
    group = typer.main.get_command(app)
    _hide_missing_defaults(group)
    return group


def _hide_missing_defaults(command: Any) -> None:
    """Leave out "[default: None]", which older releases of typer write where there is none."""
    for option in command.params:
        option.show_default = option.show_default and option.default is not None
    for below in getattr(command, "commands", {}).values():
        _hide_missing_defaults(below)


def _run(arguments: Sequence[str] | None) -> int:
    given = None if arguments is None else list(arguments)
    # Not standalone: typer would print errors in its own way and end the process.
    try:
        code = command_line().main(given, prog_name="trakstore", standalone_mode=False)
        # A closed pipe shows when what was printed is written out: here, where it is expected.
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return _closed_pipe()
    if code == INTERRUPTED:
        error_line("committed blocks are kept; the same command goes on", "interrupted")
    return int(code or 0)


def _refused(error: OSError) -> str:
    """A message that says what the system refused, and for which file."""
    file = "" if error.filename is None else f" ({error.filename})"
    return f"the system refuses: {error.strerror}{file}; choose another place, or make it possible"


def _closed_pipe() -> int:
    """End quietly where nobody reads any more (``| head``), the interpreter's last flush too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _usage(error: Any) -> str:
    """Write what was wrong on the command line, and which help to read."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "trakstore"
    return f"{error.format_message().rstrip('.')}; see {path} --help"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings as one line each, without Python's place and source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: error_line(message, "warning")
        yield
