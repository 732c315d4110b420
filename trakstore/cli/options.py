"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import typer

from trakstore.errors import TrakStoreError
from trakstore.planning import byte_count
from trakstore.storage.layout import Epoch, as_epoch

__all__ = [
    "AllowOtherWeights",
    "Damping",
    "Epochs",
    "Json",
    "MemoryLimit",
    "Method",
    "Scheduler",
    "StorePath",
    "Target",
    "Targets",
    "Train",
    "Workers",
    "chosen_epochs",
]


def _size(text: str | None) -> str | None:
    """Refuses what is not a size, also where nothing needs memory."""
    if text is not None:
        byte_count(text)
    return text


StorePath: TypeAlias = Annotated[
    str, typer.Argument(metavar="STORE", help="Where the store is.", show_default=False)
]
Epochs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--epoch",
        metavar="EPOCH",
        help="A checkpoint: a number or a name. Give it several times for several; else all.",
        show_default=False,
    ),
]
Null: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--null",
        metavar="EPOCH,EPOCH",
        help="Two epochs between which nothing happened, for p-values. Several times for several.",
        show_default=False,
    ),
]
LearningRate: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--learning-rate",
        metavar="RATE",
        help="Of tracin where the store has none: for all epochs, or EPOCH=RATE several times.",
        show_default=False,
    ),
]


def target_option(otherwise: str) -> Any:
    """The option that names targets; ``otherwise``: which are taken where none is named."""
    told = f"A sample id, or @N for row N. Several times for several; else {otherwise}."
    return typer.Option("--target", metavar="ID", help=told, show_default=False)


Target: TypeAlias = Annotated[list[str] | None, target_option("all")]
Targets: TypeAlias = Annotated[
    str, typer.Option("--targets", metavar="SPLIT", help="The split that is asked about.")
]
Train: TypeAlias = Annotated[
    str, typer.Option("--train", metavar="SPLIT", help="The split that is held responsible.")
]
Damping: TypeAlias = Annotated[
    float,
    typer.Option("--damping", metavar="C", help="c of lambda = c * tr(K) / n."),
]
Method: TypeAlias = Annotated[
    str,
    typer.Option(
        "--method",
        help="trak, published-trak, influence, tracin, grad-dot, grad-cos or whitened-cos.",
    ),
]
MemoryLimit: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="Most memory to take, such as 600MB; else a quarter of what is free.",
        show_default=False,
        callback=_size,
    ),
]
AllowOtherWeights: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights",
        help="Targets and train rows of an epoch may be of different checkpoints.",
    ),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Start N processes that share the work and the cores; else threads of this one.",
        show_default=False,
    ),
]
Scheduler: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on a running Dask cluster, such as tcp://host:8786.",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def chosen_epochs(names: Sequence[str] | None) -> list[Epoch] | None:
    """Epochs as the store knows them, from the command line; None when none were named.

    Examples
    --------
    >>> chosen_epochs(["10", "final"])
    [10, 'final']
    >>> chosen_epochs([]) is None
    True
    """
    return [as_epoch(name) for name in names] if names else None


def null_pairs(
    texts: Sequence[str] | None, ends: tuple[Epoch, Epoch] | None
) -> list[tuple[Epoch, Epoch]]:
    """Pairs of epochs from the command line, for the null of a transition between the ``ends``.

    Examples
    --------
    >>> null_pairs(["100,200"], (200, 1000))
    [(100, 200)]
    """
    found = []
    for text in texts or ():
        names = text.split(",")
        if len(names) != 2:
            raise TrakStoreError(f"--null takes two epochs, like --null 100,200, got {text!r}")
        pair = (as_epoch(names[0]), as_epoch(names[1]))
        if pair[0] == pair[1]:
            raise TrakStoreError(f"--null takes two epochs, got one twice: {text!r}")
        if ends is not None and set(pair) == set(ends):
            raise TrakStoreError(
                f"--null {text} is the transition itself: name two epochs between which nothing "
                f"happened"
            )
        found.append(pair)
    return found


def learning_rates(texts: Sequence[str] | None) -> dict[Epoch, float] | float | None:
    """Learning rates from the command line.

    Examples
    --------
    >>> learning_rates(["5=0.1", "final=1e-2"])
    {5: 0.1, 'final': 0.01}
    >>> learning_rates(["0.1"])
    0.1
    """
    pairs = [text.rpartition("=") for text in texts or ()]
    try:
        found = {epoch: float(rate) for epoch, _, rate in pairs}
    except ValueError:
        raise TrakStoreError(
            f"--learning-rate takes a number, or EPOCH=RATE like 5=0.1, got {list(texts or ())}"
        ) from None
    if "" in found and len(pairs) > 1:
        raise TrakStoreError(
            f"--learning-rate takes one for all epochs, or EPOCH=RATE: got {texts}"
        )
    if "" in found:
        return found[""]
    return {as_epoch(epoch): rate for epoch, rate in found.items()} or None
