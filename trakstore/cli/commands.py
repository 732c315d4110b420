"""Commands by name, with their help texts; only a command that runs is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

KEPT = "what was committed is kept; give the same command again"
NO_RESULT = "there is no result yet; give the same command again"


@dataclass(frozen=True)
class Command:
    """A command in the list of commands.

    Attributes
    ----------
    name : str
        The word that people type.
    place : str
        Module below ``trakstore.cli`` and name of the function: ``"import_traker:import_"``.
    summary : str
        First paragraph of the function's docstring.
    example : str
        Last line of its help.
    interrupted : str
        State after Ctrl-C, and what to do then.
    """

    name: str
    place: str
    summary: str
    example: str
    interrupted: str = NO_RESULT

    @property
    def path(self) -> str:
        """Words that call it, such as ``"trakstore evaluate lds"``."""
        group = "evaluate " if self.place.startswith("evaluate.") else ""
        return f"trakstore {group}{self.name}"

    def load(self) -> Callable[..., None]:
        """Import the function that runs the command."""
        module, _, function = self.place.partition(":")
        loaded: Callable[..., None] = getattr(import_module(f"trakstore.cli.{module}"), function)
        return loaded


# In the order of the help.
COMMANDS = (
    Command(
        "demo",
        "demo:demo",
        "Train on digits, store features, and draw what helped and what harmed: under a minute.",
        "trakstore demo --out trakstore-demo",
        KEPT,
    ),
    Command(
        "featurize",
        "featurize:featurize",
        "Write the features of a job's data sets to a store, going on where an earlier "
        "run stopped.",
        "trakstore featurize jobs.py:digits --store run.zarr",
        KEPT,
    ),
    Command(
        "estimate",
        "estimate:estimate",
        "Estimate bytes on disk, peak memory, flops and time, also for far more rows.",
        "trakstore estimate --rows 1000000 --dim 2048 --targets 1000",
    ),
    Command(
        "info",
        "info:info",
        "Show what a store holds on one screen; the last line says whether it can be used now.",
        "trakstore info run.zarr",
    ),
    Command(
        "kernel",
        "kernel:kernel",
        "Show spectrum, condition and ranks of the kernel of a split, one line an epoch.",
        "trakstore kernel run.zarr --epoch 10 --damping 1",
    ),
    Command(
        "score",
        "score:score",
        "Compute the score of every target with every train row, and save the matrix in the store.",
        "trakstore score run.zarr --save test-on-train",
        KEPT,
    ),
    Command(
        "drop",
        "drop:drop",
        "Delete saved scores, or rows with drawn labels whose gram is kept, from a store.",
        "trakstore drop run.zarr --scores test-on-train",
        KEPT,
    ),
    Command(
        "topk",
        "topk:topk",
        "List the train samples with the largest scores for each target.",
        "trakstore topk run.zarr --k 10 --target 17 --memory-limit 600MB",
    ),
    Command(
        "index",
        "index:index",
        "Build an index of the train rows, or add the rows that were appended since.",
        "trakstore index run.zarr --method trak",
        KEPT,
    ),
    Command(
        "neighbours",
        "neighbours:neighbours",
        "List the train samples nearest to each target, by features or activations of a "
        "checkpoint.",
        "trakstore neighbours run.zarr --epoch 10 --k 5 --metric cosine",
    ),
    Command(
        "evolve",
        "evolve:evolve",
        "Show the scores of targets epoch by epoch, each epoch alone.",
        "trakstore evolve run.zarr --target 17 --k 5",
    ),
    Command(
        "transitions",
        "transitions:transitions",
        "List the train samples whose influence on the targets grew and shrank most.",
        "trakstore transitions run.zarr --before 10 --after 100 --null 5,10",
    ),
    Command(
        "groups",
        "groups:groups",
        "Show the mean score of each class of targets with each class of train samples.",
        "trakstore groups run.zarr --method trak",
    ),
    Command(
        "dynamics",
        "dynamics:dynamics",
        "List the samples that a tracker found hardest, by one of its summaries.",
        "trakstore dynamics run.zarr --by aum --k 20",
    ),
    Command(
        "report",
        "report:report",
        "Write one HTML page: targets with the samples that helped and harmed them, and when.",
        "trakstore report run.zarr --job jobs.py:digits -o report.html",
        "no page was written; give the same command again",
    ),
    Command(
        "serve",
        "serve:serve",
        "Answer over HTTP, and on a page, which train samples made the model do this.",
        "trakstore serve run.zarr --job jobs.py:digits --port 8765",
        "the service had not started; give the same command again",
    ),
    Command(
        "verify",
        "verify:verify",
        "Read every byte of a store and report what is damaged; exit code 1 when something is.",
        "trakstore verify run.zarr --repair",
        "the rest of the store was not read; give the same command again",
    ),
    Command(
        "export",
        "export:export",
        "Copy a split to a .npy (one column) or Parquet (all columns) file, block by block.",
        "trakstore export run.zarr --epoch 10 --split train --to train.parquet",
        "no file was made; give the same command again",
    ),
    Command(
        "import",
        "import_traker:import_",
        "Copy the features of a finished traker 0.3 run into a store, an epoch for each model id.",
        "trakstore import trak_results --store run.zarr --parameters 11173962",
        KEPT,
    ),
)

EVALUATIONS = (
    Command(
        "checks",
        "evaluate.checks:checks",
        "Look for dropout left on, shuffled data, wrong checkpoints, copies, singular "
        "kernels and more.",
        "trakstore evaluate checks jobs.py:digits run.zarr",
    ),
    Command(
        "lds",
        "evaluate.lds:lds",
        "Compare scores with models that were trained on random subsets: the linear "
        "datamodeling score.",
        "trakstore evaluate lds run.zarr --models halves --trainer jobs.py:new",
        KEPT,
    ),
    Command(
        "counterfactual",
        "evaluate.counterfactual:counterfactual",
        "Train again without each target's top samples, and without as many others.",
        "trakstore evaluate counterfactual run.zarr --models removed --trainer "
        "jobs.py:trainer --target 17",
        KEPT,
    ),
    Command(
        "mislabels",
        "evaluate.mislabels:mislabels",
        "List the samples with the largest self-scores, which wrong labels tend to have.",
        "trakstore evaluate mislabels run.zarr --wrong wrong-ids.txt",
    ),
    Command(
        "efficiency",
        "evaluate.efficiency:efficiency",
        "Measure a job on the first samples of its splits, each combination of sizes in "
        "a new process.",
        "trakstore evaluate efficiency jobs.py:digits --dim 512 --dim 2048",
    ),
    Command(
        "stability",
        "evaluate.stability:stability",
        "Show how alike the scores of several stores are, or without --other, those of "
        "single epochs.",
        "trakstore evaluate stability run.zarr --other seed1.zarr --k 10",
    ),
)


def named_command(words: Sequence[str]) -> Command | None:
    """Find the command that a line's first words name, if they name one.

    Examples
    --------
    >>> named_command(["evaluate", "lds", "run.zarr"]).name
    'lds'
    >>> named_command(["--version"]) is None
    True
    """
    first, second = (*words, "", "")[:2]
    among, name = (EVALUATIONS, second) if first == "evaluate" else (COMMANDS, first)
    return next((one for one in among if one.name == name), None)
