"""``trakstore evaluate lds``: scores against models that were trained on other subsets."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import xarray as xr
from typer import Option

from trakstore.cli.evaluate.trainers import AtOnce, Models, Repeats, TrainerName, load_trainer
from trakstore.cli.output import error_line
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import TrakStoreError
from trakstore.evaluation.lds import LDS, check_subsets
from trakstore.evaluation.lds import lds as linear_datamodeling_score
from trakstore.evaluation.retraining import retrain, retrained_models
from trakstore.progress import ProgressLine
from trakstore.report.evaluation_tables import lds_table
from trakstore.sampling import SubsetPlan
from trakstore.scores.factored import Scores
from trakstore.scores.places import places_of_ids
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
    trains = None if trainer is None else load_trainer(trainer)
    with asked.workplace():
        if trains is None:
            retrained_models(asked.opened, models)  # before kernels are computed and kept
        # Scores are made, and all splits checked, before hours of training.
        matrices: dict[str, Any] = {one: request.scores() for one, request in requests.items()}
        matrices |= {one: _whole(open_scores(asked.opened, one), one) for one in scores or ()}
        if trains is not None:
            pair = asked.pairs()[0]
            rows, masked = pair.train.stored.rows, pair.train.masked.tolist()
            plan = SubsetPlan(rows, share, repeats, seed, without=masked)
            check_subsets(plan, count)
            for matrix in matrices.values():
                _model_columns(matrix, (pair.target.stored.rows, rows), asked)
            with ProgressLine("training", count, unit="models") as line:
                retrain(
                    trains,
                    asked.opened,
                    models,
                    plan,
                    count,
                    at_once=at_once,
                    finished=line.advance,
                    targets={pair.target.rows, pair.target.stored.rows},
                )
        truth = retrained_models(asked.opened, models)
        if truth.sizes["model"] < _FEW:
            said = f"{truth.sizes['model']} models are few: train 200 for an interval to rely on"
            error_line(f"{said} (--trainer and --count 200)", "note")
        results = {one: _score(matrix, truth, asked) for one, matrix in matrices.items()}
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


def _score(scores: Any, truth: xr.Dataset, asked: ScoreRequest) -> LDS:
    shape = (truth.sizes["target"], truth.sizes["train"])
    targets, rows = _model_columns(scores, shape, asked)
    return linear_datamodeling_score(
        scores,
        truth["subset"].values[:, rows],
        truth["output"].values[:, targets],
        memory_limit=asked.memory_limit,
    )


def _model_columns(scores: Any, shape: tuple[int, int], asked: ScoreRequest) -> tuple[Any, Any]:
    """Return the models' columns, of targets and train rows, that saved scores are compared with.

    Saved scores have no masked rows, and know their samples by ids alone: where models have all rows of
    the stored splits, the columns are those of these ids.
    """
    if isinstance(scores, Scores) or scores.shape == shape:
        return slice(None), slice(None)
    pair = asked.pairs()[0]
    targets, rows = (
        slice(None)
        if own == models or models != side.stored.rows
        else places_of_ids(side.stored.column("sample_id"), scores[f"{name}_id"].values, name)
        for name, side, own, models in zip(
            ("target", "train"), (pair.target, pair.train), scores.shape, shape, strict=True
        )
    )
    return targets, rows
