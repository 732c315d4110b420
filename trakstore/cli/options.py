"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Argument, Option

from trakstore.errors import TrakStoreError
from trakstore.planning import byte_count
from trakstore.storage.layout import Epoch, as_epoch


def _size(text: str | None) -> str | None:
    """Refuse anything but a size, even if the command would need no memory."""
    if text is not None:
        byte_count(text)
    return text


def _stored_dtype(name: str) -> str:
    """Refuse other precisions before anything is computed."""
    if name not in ("float32", "float16", "int8"):
        raise TrakStoreError(
            f"features are stored as float32 or float16, or as int8 with a scale a row, got {name!r}"
        )
    return name


def target_option(otherwise: str) -> Any:
    """Make the option that names targets; ``otherwise`` describes the default."""
    return Option(
        metavar="ID",
        help=f"A sample id, or @N for row N, repeatable; default: {otherwise}.",
    )


StorePath = Annotated[str, Argument(metavar="STORE", help="Path or address of the store.")]
JobName = Annotated[
    str, Argument(metavar="JOB", help="A job: jobs.py:name or package.module:name.")
]
Epochs = Annotated[
    list[str] | None,
    Option(
        metavar="EPOCH",
        help="A checkpoint, by its number or name, repeatable; default: all.",
    ),
]
Null = Annotated[
    list[str] | None,
    Option(
        metavar="EPOCH,EPOCH",
        help="Two epochs between which nothing happened, for p-values; repeatable.",
    ),
]
LearningRate = Annotated[
    list[str] | None,
    Option(
        metavar="RATE",
        help="Rate for tracin where the store has none: one for all epochs, or EPOCH=RATE, repeatable.",
    ),
]
Target = Annotated[list[str] | None, target_option("all")]
ListLength = Annotated[int, Option("--k", "-k", metavar="N", min=1, help="Entries of each list.")]
Targets = Annotated[str, Option(metavar="SPLIT", help="Split whose samples are the targets.")]
Train = Annotated[str, Option(metavar="SPLIT", help="Split whose samples are scored.")]
Damping = Annotated[
    float | None,
    Option(metavar="C", help="c of lambda = c * tr(K) / n; default: 1, of a sampled kernel 0.1."),
]
Kernel = Annotated[
    str | None,
    Option(
        metavar="ROWS",
        help="Rows of the kernel of trak and influence: train, or sampled, whose labels were drawn "
        "from the model; default: sampled where there are some, but for a margin.",
    ),
]
Method = Annotated[
    str,
    Option(
        metavar="METHOD",
        help="trak, published-trak, influence, tracin, grad-dot, grad-cos or whitened-cos.",
    ),
]
MemoryLimit = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Most memory to take, such as 600MB; default: a quarter of what is free.",
        callback=_size,
    ),
]
AllowOtherWeights = Annotated[
    bool,
    Option(
        "--allow-other-weights",
        help="Targets and train rows of an epoch may be of different checkpoints.",
    ),
]
Workers = Annotated[
    int | None,
    Option(
        metavar="N",
        min=1,
        help="Start N processes that share the work and the cores; default: threads of this one.",
    ),
]
Csv = Annotated[bool, Option("--csv", help="Print all numbers as lines of comma-separated values.")]
Scheduler = Annotated[
    str | None,
    Option(metavar="ADDRESS", help="Work on a running Dask cluster, such as tcp://host:8786."),
]
ScoreDevice = Annotated[
    str,
    Option(
        "--device",
        metavar="DEVICE",
        help="Device that multiplies and sums, such as cuda; reading is the CPU's.",
    ),
]
StoredDtype = Annotated[
    str,
    Option(
        metavar="DTYPE",
        help="Stored precision: float32, float16, or int8 with a scale for each row.",
        callback=_stored_dtype,
    ),
]
SampleSplit = Annotated[str, Option(metavar="SPLIT", help="Split whose samples are listed.")]
SampleCount = Annotated[
    int, Option("--k", "-k", metavar="N", min=1, help="Number of samples to list.")
]
Json = Annotated[bool, Option("--json", help="Print one JSON document.")]


def chosen_epochs(names: Sequence[str] | None) -> list[Epoch] | None:
    """Read epochs from the command line, as the store knows them; None when none were named.

    Examples
    --------
    >>> chosen_epochs(["10", "final"])
    [10, 'final']
    >>> chosen_epochs([]) is None
    True
    """
    return [as_epoch(name) for name in names] if names else None


def learning_rates(texts: Sequence[str] | None) -> dict[Epoch, float] | float | None:
    """Read learning rates from the command line: one for all epochs, or one by epoch.

    Examples
    --------
    >>> learning_rates(["5=0.1", "final=1e-2"])
    {5: 0.1, 'final': 0.01}
    >>> learning_rates(["0.1"])
    0.1
    """
    # The last "=" divides, since names of epochs may contain others. Without one, the epoch is "".
    pairs = [text.rpartition("=") for text in texts or ()]
    try:
        rates = {epoch: float(rate) for epoch, _, rate in pairs}
    except ValueError:
        raise TrakStoreError(
            f"--learning-rate takes a number, or EPOCH=RATE like 5=0.1, got {list(texts or ())}"
        ) from None
    if "" in rates and len(pairs) > 1:
        raise TrakStoreError(
            f"--learning-rate takes one for all epochs, or EPOCH=RATE: got {texts}"
        )
    if "" in rates:
        return rates[""]
    return {as_epoch(epoch): rate for epoch, rate in rates.items()} or None
