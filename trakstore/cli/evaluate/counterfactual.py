"""``trakstore evaluate counterfactual``: train without what targets are said to owe their output to."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from trakstore.cli.evaluate.trainers import AtOnce, Models, Repeats, load_trainer
from trakstore.cli.options import Target
from trakstore.cli.output import without_nan
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.evaluation.removals import counterfactual as outputs_without
from trakstore.evaluation.removals import removal_kinds
from trakstore.progress import ProgressLine
from trakstore.report.evaluation_tables import removal_table


@with_request("learning_rate")
def counterfactual(
    models: Models,
    trainer: Annotated[
        str, Option(metavar="NAME", help="Trainer of models, such as jobs.py:trainer.")
    ],
    size: Annotated[
        list[int] | None,
        Option(metavar="N", help="Number of samples to take away, repeatable; default: 10 and 50."),
    ] = None,
    repeats: Repeats = 5,
    seed: Annotated[int, Option(metavar="SEED", help="Seed of training and random removals.")] = 0,
    at_once: AtOnce = 50,
    target: Target = None,
    *,
    asked: ScoreRequest,
) -> None:
    """Train again without each target's top samples, and without as many others.

    Shows how much the target's output falls and how often its class changes, beside random removals
    and removals of its own class. Models are kept in the store: a run that is stopped goes on.
    """
    trains, sizes = load_trainer(trainer), size or [10, 50]
    _, rows, _ = asked.chosen_targets(target)
    with asked.workplace():
        scores = asked.scores()
        removals = 1 + len(removal_kinds(scores)) * len(rows) * len(sizes)
        with ProgressLine("training", removals * repeats, unit="models") as line:
            outcome = outputs_without(
                scores,
                trains,
                asked.opened,
                models,
                sizes=sizes,
                targets=rows.tolist(),
                repeats=repeats,
                seed=seed,
                at_once=at_once,
                memory_limit=asked.memory_limit,
                finished=line.advance,
            )
    document = {"method": asked.method, **without_nan(outcome)}
    asked.answer(document, [removal_table(outcome)])
