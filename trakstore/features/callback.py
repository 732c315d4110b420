"""Features while training goes on: a plain function, and a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.data import Subset
from zarr.storage import MemoryStore

from trakstore.errors import TrakStoreError
from trakstore.features.featurize import Featurized, featurize
from trakstore.features.fingerprint import dataset_rows
from trakstore.quantities import as_whole
from trakstore.spec import check_equal
from trakstore.storage.backends.location import Where
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import find_store
from trakstore.storage.store import FeatureStore

__all__ = ["featurize_epoch", "trainer_callback"]

_HOOKS = {"epoch": "on_epoch_end", "step": "on_step_end", "save": "on_save"}
_TRIED = 2  # samples of each split of which features are computed before training begins


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

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> data = {"train": train, "test": test}
    >>> for epoch in range(2):
    ...     network = nn.Linear(4, 3)  # a training would change the weights of one
    ...     done = featurize_epoch(network, data, "memory://epochs", epoch, projector=projection)
    >>> ts.open_store("memory://epochs").epochs
    (0, 1)
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

    Batches are made by the Trainer's own collator, and the model's products are computed in bfloat16
    where the Trainer's are. Before training begins, the features of two samples of each split are
    computed and compared with what the store holds, so that what cannot work is refused then. Where
    several processes train, they share the samples.

    Parameters
    ----------
    datasets : mapping of split to data set
        Samples of each split.
    store : path, FeatureStore or zarr store
        Place of the store; made when it is not there.
    when : {"epoch", "step", "save"}
        After epochs, after optimiser steps, or whenever a checkpoint is saved. Epochs of the store are
        numbers of epochs, or else of steps.
    every : int
        Write only where the number of the epoch, or of the step, is a multiple of this.
    **options
        Further keywords of :func:`trakstore.features.featurize`, in place of what is taken from the
        Trainer. The learning rate is that of the last optimiser step; where groups of parameters have
        rates of their own, none is kept, since TracIn takes one.

    Raises
    ------
    TrakStoreError
        Without transformers, for another ``when``, or for an option that the callback sets.

    Examples
    --------
    ::

        Trainer(model, ..., callbacks=[trainer_callback({"train": data}, "run.zarr")])
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise TrakStoreError(
            f"this callback needs transformers (pip install transformers), and it cannot be imported: "
            f"{error}"
        ) from error
    if given := sorted({"epoch", "split", "learning_rate"} & options.keys()):
        raise TrakStoreError(f"the callback sets {', '.join(given)} itself: leave it out")
    if when not in _HOOKS:
        raise TrakStoreError(f"when is one of {', '.join(_HOOKS)}, got {when!r}")
    writer = _FeatureWriter(datasets, store, when, as_whole(every, "every", 1), options)

    def tried(_self: Any, args: Any, _state: Any, _control: Any, **given: Any) -> None:
        writer.try_out(args, **given)

    def stepping(_self: Any, _args: Any, _state: Any, _control: Any, **given: Any) -> None:
        # The scheduler moves the rate on before the hooks behind a step are called.
        rates = {float(group["lr"]) for group in given["optimizer"].param_groups}
        writer.learning_rate = rates.pop() if len(rates) == 1 else None

    def write(_self: Any, args: Any, state: Any, _control: Any, **given: Any) -> None:
        writer.write(args, state, **given)

    members: dict[str, Any] = {
        "__doc__": "Writes features; see trainer_callback.",
        "on_train_begin": tried,
        "on_pre_optimizer_step": stepping,
        _HOOKS[when]: write,
    }
    return type("FeatureCallback", (TrainerCallback,), members)()


@dataclass
class _FeatureWriter:
    """Writer of features behind a callback; it needs no transformers."""

    datasets: Mapping[str, Any]
    store: Where | FeatureStore
    when: str
    every: int
    options: dict[str, Any]
    learning_rate: float | None = None

    def write(self, args: Any, state: Any, *, model: nn.Module, **given: Any) -> None:
        """Write all splits, where the number of the epoch or step is one to write at."""
        epoch = round(state.epoch) if self.when == "epoch" else state.global_step
        if epoch % self.every == 0:
            rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
            chosen = self._chosen(args, model, given)
            featurize_epoch(model, self.datasets, self.store, epoch, **{**rate, **chosen})

    def try_out(self, args: Any, *, model: nn.Module, **given: Any) -> None:
        """Compute features of the first samples into memory; raise what would go wrong later."""
        there = find_store(self.store)
        for split, dataset in self.datasets.items():
            count = dataset_rows(dataset, f"the data set {split!r}")
            first, place = Subset(dataset, range(min(count, _TRIED))), MemoryStore()
            chosen = self._chosen(args, model, given)
            for option in ("ids", "rank", "world_size"):
                chosen.pop(option, None)
            asked: dict[str, Any] = {}
            if there is not None:
                spec = there.spec
                asked = {
                    "projector": spec.projection,
                    "dtype": spec.dtype,
                    "keep_bits": spec.keep_bits,
                }
            alone = {"split": split, "rank": 0, "world_size": 1}
            featurize(model, first, place, **{**asked, **chosen, **alone})
            made = find_store(place)
            if there is not None and made is not None:
                # These few samples would have another scale: that of the store counts.
                same = replace(made.spec, scale=there.spec.scale)
                check_equal(there.spec, same, str(there.location))

    def _chosen(self, args: Any, model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return keywords of featurize: the Trainer's settings, below those that were asked for."""
        loader = given.get("train_dataloader")
        own: dict[str, Any] = {
            "device": str(next(model.parameters()).device),
            "progress": False,
            "collate": getattr(loader, "collate_fn", None),
        }
        if "precision" not in self.options:
            own["autocast"] = "bfloat16" if getattr(args, "bf16", False) else None
        return own | self.options
