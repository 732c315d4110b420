"""Options about retrained models, and trainers that are named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Option

from trakstore.errors import TrakStoreError
from trakstore.named import call_named, load_named, needs_arguments

if TYPE_CHECKING:
    from trakstore.evaluation.retraining import Trainer

Models = Annotated[str, Option(metavar="NAME", help="Name of the set of models in the store.")]
TrainerName = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Trainer of models on subsets, such as jobs.py:trainer or package.module:name.",
    ),
]
Repeats = Annotated[
    int, Option(metavar="N", min=1, help="Models of each subset; their outputs are averaged.")
]
AtOnce = Annotated[int, Option(metavar="N", min=1, help="Models that are trained together.")]


def load_trainer(name: str) -> Trainer:
    """Load a trainer by name, which may be that of a function without arguments that returns it.

    Raises
    ------
    NotFoundError
        When there is no such file, module or name.
    TrakStoreError
        When it cannot be called with subsets and seeds.
    """
    loaded = load_named(name, "trainer")
    # A function that needs no argument cannot be a trainer: it makes one.
    if callable(loaded) and not needs_arguments(loaded):
        loaded = call_named(loaded, name, "trainer")
    if not callable(loaded):
        raise TrakStoreError(
            f"{name} gave a {type(loaded).__name__}; it must be or return a SubsetTrainer, or a "
            f"function of (subsets, seeds) that gives a Retrained"
        )
    trainer: Trainer = loaded
    return trainer
