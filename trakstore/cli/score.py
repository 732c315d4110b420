"""``trakstore score``: a whole score matrix, streamed to the store."""

from __future__ import annotations

import time
from typing import Annotated, Any

from typer import BadParameter, Option

from trakstore.cli.options import ScoreDevice
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.planning import human_bytes
from trakstore.report.terminal_tables import facts_table
from trakstore.scores.saving import check_new_name, save_scores
from trakstore.storage.backends.location import Location
from trakstore.storage.layout import scores_path


@with_request()
def score(
    save: Annotated[str, Option(metavar="NAME", help="Name of the matrix in the store.")],
    top: Annotated[
        int | None, Option(metavar="K", help="Keep the K largest |score| of each target.")
    ] = None,
    threshold: Annotated[
        float | None, Option(metavar="T", help="Keep the scores with |score| >= T.")
    ] = None,
    half: Annotated[bool, Option("--half", help="Save float16 instead of float32.")] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace scores that are saved under this name.")
    ] = False,
    device: ScoreDevice = "cpu",
    *,
    asked: ScoreRequest,
) -> None:
    """Compute the score of every target with every train row, and save the matrix in the store.

    A save that was stopped goes on where it was: give the same command again.
    """
    if top is not None and threshold is not None:
        raise BadParameter("--top and --threshold exclude each other")
    group, began = scores_path(save), time.monotonic()
    # Refused here, before the features are read.
    if not overwrite:
        check_new_name(asked.opened, save)
    with asked.workplace():
        scores = asked.scores(device)
        save_scores(
            scores,
            asked.opened,
            save,
            top=top,
            threshold=threshold,
            dtype="float16" if half else "float32",
            memory_limit=asked.memory_limit,
            overwrite=overwrite,
        )
    document = {
        "group": group,
        "method": scores.method,
        "targets": asked.targets,
        "train": asked.train,
        "shape": list(scores.shape),
        "dtype": "float16" if half else "float32",
        "top": top,
        "threshold": threshold,
        "epochs": list(scores.epochs),
        "damping": asked.used_damping,
        "seconds": round(time.monotonic() - began, 3),
    }
    asked.answer(document, [facts_table(_facts(document, save, asked.opened.location))])


def _facts(saved: dict[str, Any], name: str, location: Location) -> dict[str, str]:
    rows, columns = saved["shape"]
    if saved["top"] is not None:
        kept = f"top {saved['top']} of each target"
    elif saved["threshold"] is not None:
        kept = f"|score| >= {saved['threshold']:g}"
    else:
        kept = human_bytes((2 if saved["dtype"] == "float16" else 4) * rows * columns)
    return {
        "scores": f"{saved['method']}, {saved['targets']} on {saved['train']}",
        "shape": f"{rows:,} targets x {columns:,} train rows, {kept}",
        "epochs": ", ".join(map(str, saved["epochs"])),
        "damping": f"{saved['damping']:g}",
        "took": f"{saved['seconds']:.1f} s",
        "saved as": f"{saved['group']} in {location}",
        "open with": f'trakstore.open_scores("{location}", "{name}")',
    }
