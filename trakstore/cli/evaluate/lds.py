"""``trakstore evaluate lds``: whether scores tell what training on other subsets would have given."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.evaluate.trainers import AtOnce, Models, Repeats, TrainerName, load_trainer
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json
from trakstore.errors import TrakStoreError
from trakstore.methods.epochs import epoch_pairs
from trakstore.progress import ProgressLine
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

__all__ = ["lds"]


def lds(
    store: StorePath,
    models: Models,
    method: Annotated[
        list[str] | None,
        typer.Option(help="As of `trakstore score`; several times for several. trak if not given."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Saved scores too; several times for several."),
    ] = None,
    trainer: TrainerName = None,
    count: Annotated[int, typer.Option(min=3, help="Models there shall be, with --trainer.")] = 200,
    share: Annotated[float, typer.Option(help="Of the train rows in each subset.")] = 0.5,
    repeats: Repeats = 1,
    seed: Annotated[int, typer.Option(help="Of subsets and training.")] = 0,
    at_once: AtOnce = 50,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Compare scores with models that were trained on random subsets: the linear datamodeling score.

    With --trainer, the models that are missing are trained first and kept in the store.
    """
    from trakstore.evaluation.lds import lds as judged
    from trakstore.evaluation.retraining import retrained_models
    from trakstore.report.evaluations import lds_table
    from trakstore.scores.saving import open_scores

    opened, epochs = open_store(store), chosen_epochs(epoch)
    names = method or ([] if scores else ["trak"])
    for name in names:
        find_method(name)
    with workplace(workers, scheduler):
        if trainer is not None:
            plan = (share, repeats, seed)
            allowed = {"allow_other_weights": allow_other_weights}
            pairs = epoch_pairs(opened, targets, train, epochs, **allowed)  # before hours go by
            rows = pairs[0].train.stored.spec.rows
            _train(opened, models, trainer, count, plan, at_once, rows)
        truth = retrained_models(opened, models)
        common: dict[str, Any] = {"targets": targets, "train": train, "damping": damping}
        common |= {"epochs": epochs, "memory_limit": memory_limit}
        common["allow_other_weights"] = allow_other_weights
        matrices: dict[str, Any] = {one: make_scores(one, opened, **common) for one in names}
        matrices |= {one: open_scores(opened, one) for one in scores or ()}
        found = {
            one: judged(
                _matrix(matrix, one),
                truth["subset"].values,
                truth["output"].values,
                memory_limit=memory_limit,
            )
            for one, matrix in matrices.items()
        }
    if as_json:
        told = [
            {"scores": one, "lds": x.mean, "low": x.low, "high": x.high, "per_target": x.per_target}
            for one, x in found.items()
        ]
        size = {"models": truth.sizes["model"], "subsets": next(iter(found.values())).subsets}
        print_json({"location": str(opened.location), "set": models, **size, "lds": told})
    else:
        console().print(lds_table(found))


def _matrix(scores: Any, name: str) -> Any:
    if getattr(scores, "dims", None) != ("target", "train"):
        raise TrakStoreError(f"scores {name!r} are lists or sparse: save the whole matrix for this")
    return scores


def _train(
    store: FeatureStore,
    name: str,
    trainer: str,
    count: int,
    plan: tuple[float, int, int],
    at_once: int,
    rows: int,
) -> None:
    from trakstore.evaluation.retraining import retrain
    from trakstore.sampling import SubsetPlan

    subsets = SubsetPlan(rows, *plan)
    with ProgressLine("training", count, unit="models") as line:
        retrain(
            load_trainer(trainer),
            store,
            name,
            subsets,
            count,
            at_once=at_once,
            finished=line.advance,
        )
