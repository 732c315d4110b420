"""Features while training goes on: a plain function, and a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.featurize import Featurized, featurize
from trakstore.quantities import as_whole
from trakstore.storage.backends.location import Where
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

__all__ = ["featurize_epoch", "trainer_callback"]

_HOOKS = {"epoch": "on_epoch_end", "step": "on_step_end", "save": "on_save"}


def featurize_epoch(
    model: nn.Module,
    datasets: Mapping[str, Any],
    store: Where | FeatureStore,
    epoch: Epoch,
    **options: Any,
) -> Featurized:
    """Write the features of all splits under the weights that the model has now.

    The model is given back as it was, in train mode if it was in train mode. Splits that are there
    with these weights are passed over.

    Parameters
    ----------
    model : nn.Module
        Model in training.
    datasets : mapping of split to data set
        Samples of each split.
    store : path, FeatureStore or zarr store
        Where features are written.
    epoch : int or str
        Name of these weights in the store.
    **options
        Further keywords of :func:`trakstore.features.featurize`.

    Returns
    -------
    Featurized
        Rows, blocks and bytes that were written, and the time that it took.
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
    """Make a callback for ``transformers.Trainer`` that writes features as training goes on.

    Parameters
    ----------
    datasets, store
        As in :func:`featurize_epoch`.
    when : {"epoch", "step", "save"}
        After epochs, after optimiser steps, or whenever a checkpoint is saved. Epochs of the store are
        numbers of epochs, or else of steps.
    every : int
        Write only where the number of the epoch, or of the step, is a multiple of this.
    **options
        Further keywords of :func:`trakstore.features.featurize`, such as ``output=CausalLM()``;
        ``learning_rate`` is that of the moment.

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
    if when not in _HOOKS:
        raise TrakStoreError(f"when is one of {', '.join(_HOOKS)}, got {when!r}")
    every = as_whole(every, "every", 1)

    def write(
        _self: Any, _args: Any, state: Any, _control: Any, *, model: nn.Module, **rest: Any
    ) -> None:
        epoch = round(state.epoch) if when == "epoch" else state.global_step
        if epoch % every:
            return
        # The trainer has its own progress, and the model where it is.
        chosen = {"device": str(next(model.parameters()).device), "progress": False}
        if (optimizer := rest.get("optimizer")) is not None:
            chosen["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        featurize_epoch(model, datasets, store, epoch, **{**chosen, **options})

    members = {_HOOKS[when]: write, "__doc__": "Writes features; see trainer_callback."}
    return type("FeatureCallback", (TrainerCallback,), members)()
