"""Features while training goes on: a plain function, and a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features import Featurized, featurize
from trakstore.quantities import as_whole
from trakstore.storage.backends.location import Where
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

__all__ = ["featurize_epoch", "trainer_callback"]


def featurize_epoch(
    model: nn.Module,
    datasets: Mapping[str, Any],
    store: Where | FeatureStore,
    epoch: Epoch,
    **options: Any,
) -> Featurized:
    """Features of all splits under the weights that the model has now.

    The model is given back as it was, in train mode if it was in train mode. Splits that are there
    with these weights are passed over.

    Parameters
    ----------
    model : nn.Module
    datasets : mapping of split to data set
    store : path, FeatureStore or zarr store
    epoch : int or str
    **options
        Of :func:`trakstore.features.featurize`.
    """
    done = Featurized(0, 0, 0.0)
    for split, dataset in datasets.items():
        done += featurize(model, dataset, store, epoch=epoch, split=split, **options)
    return done


def trainer_callback(
    datasets: Mapping[str, Any],
    store: Where | FeatureStore,
    *,
    when: str = "epoch",
    every: int = 1,
    **options: Any,
) -> Any:
    """A callback for ``transformers.Trainer`` that writes features as training goes on.

    Parameters
    ----------
    datasets : mapping of split to data set
    store : path, FeatureStore or zarr store
    when : {"epoch", "step", "save"}
        After epochs, after optimiser steps, or whenever a checkpoint is saved. Epochs of the store are
        numbers of epochs, or else of steps.
    every : int
        Only each so many-th of them.
    **options
        Of :func:`trakstore.features.featurize`, such as ``output=CausalLM()``; ``learning_rate`` is
        that of the moment.

    Raises
    ------
    TrakStoreError
        Without transformers, or for another ``when``.

    Examples
    --------
    ::

        Trainer(model, ..., callbacks=[trainer_callback({"train": data}, "run.zarr")])
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise TrakStoreError("this callback needs transformers: pip install transformers") from None
    hooks = {"epoch": "on_epoch_end", "step": "on_step_end", "save": "on_save"}
    if when not in hooks:
        raise TrakStoreError(f"when is one of {', '.join(hooks)}, got {when!r}")
    every = as_whole(every, "every", 1)
    write = _writer(datasets, store, when, every, options)
    members = {hooks[when]: write, "__doc__": "Writes features; see trainer_callback."}
    return type("FeatureCallback", (TrainerCallback,), members)()


def _writer(
    datasets: Mapping[str, Any],
    store: Where | FeatureStore,
    when: str,
    every: int,
    options: Mapping[str, Any],
) -> Callable[..., None]:
    def write(
        _self: Any, _args: Any, state: Any, _control: Any, *, model: nn.Module, **rest: Any
    ) -> None:
        epoch = round(state.epoch) if when == "epoch" else state.global_step
        if epoch % every:
            return
        rates = {}
        if (optimizer := rest.get("optimizer")) is not None:
            rates = {"learning_rate": float(optimizer.param_groups[0]["lr"])}
        chosen = {"device": str(next(model.parameters()).device), "progress": False, **rates}
        featurize_epoch(model, datasets, store, epoch, **{**chosen, **options})

    return write
