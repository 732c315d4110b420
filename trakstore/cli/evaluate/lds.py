"""``trakstore evaluate lds``: scores against models that were trained on other subsets."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from typer import Option

from trakstore.cli.evaluate.trainers import AtOnce, Models, Repeats, TrainerName, load_trainer
from trakstore.cli.output import error_line
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import TrakStoreError
from trakstore.evaluation.lds import lds as linear_datamodeling_score
from trakstore.evaluation.retraining import retrain, retrained_models
from trakstore.progress import ProgressLine
from trakstore.report.evaluation_tables import lds_table
from trakstore.sampling import SubsetPlan
from trakstore.scores.saving import open_scores

_FEW = 50  # models below which the interval says little


@with_request("method", "learning_rate")
def lds(
    models: Models,
    method: Annotated[
        list[str] | None,
        Option(metavar="METHOD", help="As `trakstore score --method`, repeatable; default: trak."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Saved scores to compare too; repeatable."),
    ] = None,
    trainer: TrainerName = None,
    count: Annotated[int, Option(metavar="N", min=3, help="Models in all, with --trainer.")] = 200,
    share: Annotated[
        float, Option(metavar="SHARE", help="Share of the train rows in each subset.")
    ] = 0.5,
    repeats: Repeats = 1,
    seed: Annotated[int, Option(metavar="SEED", help="Seed of subsets and training.")] = 0,
    at_once: AtOnce = 50,
    *,
    asked: ScoreRequest,
) -> None:
    """Compare scores with models that were trained on random subsets: the linear datamodeling score.

    With --trainer, the models that are missing are trained first and kept in the store.
    """
    methods = method or ([] if scores else ["trak"])
    requests = {one: replace(asked, method=one) for one in methods}
    with asked.workplace():
        if trainer is not None:
            # All epochs and splits are checked first, before hours of training.
            rows = asked.pairs()[0].train.stored.spec.rows
            plan = SubsetPlan(rows, share, repeats, seed)
            with ProgressLine("training", count, unit="models") as line:
                retrain(
                    load_trainer(trainer),
                    asked.opened,
                    models,
                    plan,
                    count,
                    at_once=at_once,
                    finished=line.advance,
                )
        truth = retrained_models(asked.opened, models)
        if truth.sizes["model"] < _FEW:
            said = f"{truth.sizes['model']} models are few: train 200 for an interval to rely on"
            error_line(f"{said} (--trainer and --count 200)", "note")
        matrices: dict[str, Any] = {one: request.scores() for one, request in requests.items()}
        matrices |= {one: open_scores(asked.opened, one) for one in scores or ()}
        results = {
            one: linear_datamodeling_score(
                _whole(matrix, one),
                truth["subset"].values,
                truth["output"].values,
                memory_limit=asked.memory_limit,
            )
            for one, matrix in matrices.items()
        }
    document = {
        "set": models,
        "models": truth.sizes["model"],
        "subsets": next(iter(results.values())).subsets,
        "lds": [
            {"scores": one, "lds": x.mean, "low": x.low, "high": x.high, "per_target": x.per_target}
            for one, x in results.items()
        ],
    }
    asked.answer(document, [lds_table(results)])


def _whole(scores: Any, name: str) -> Any:
    if getattr(scores, "dims", None) != ("target", "train"):
        raise TrakStoreError(f"scores {name!r} are lists or sparse: save the whole matrix for this")
    return scores
