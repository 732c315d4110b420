"""The commands of ``trakstore evaluate``, each with an example."""

from __future__ import annotations

from collections.abc import Callable

import typer

from trakstore.cli.evaluate.checks import checks
from trakstore.cli.evaluate.counterfactual import counterfactual
from trakstore.cli.evaluate.efficiency import efficiency
from trakstore.cli.evaluate.lds import lds
from trakstore.cli.evaluate.mislabels import mislabels
from trakstore.cli.evaluate.stability import stability

__all__ = ["EVALUATIONS", "evaluate"]

EVALUATIONS: dict[Callable[..., None], str] = {
    checks: "checks jobs.py:digits run.zarr",
    lds: "lds run.zarr --models halves --trainer jobs.py:trainer --count 200",
    counterfactual: "counterfactual run.zarr --models removed --trainer jobs.py:trainer --target 17",
    mislabels: "mislabels run.zarr --wrong wrong-ids.txt",
    efficiency: "efficiency jobs.py:digits --train-rows 1000 --dim 512 --dim 2048",
    stability: "stability run.zarr --other seed1.zarr --k 10",
}

evaluate = typer.Typer(name="evaluate", help="Are the scores true? Checks, and comparisons.")
for command, example in EVALUATIONS.items():
    told = f"Example: trakstore evaluate {example}"
    evaluate.command(command.__name__, epilog=told)(command)
