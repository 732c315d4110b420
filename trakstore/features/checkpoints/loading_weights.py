"""Loading the weights of a checkpoint into a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.adapter import is_adapter, load_adapter
from trakstore.features.checkpoints.fitting import fitted, some_names, tied_names
from trakstore.features.checkpoints.formats import Checkpoint, opened
from trakstore.features.checkpoints.plain_tensors import plain_tensors
from trakstore.features.checkpoints.stored_weights import StoredWeights, WeightsInMemory
from trakstore.features.parameters import canonical_name, is_pretrained_model
from trakstore.features.sharding import Part, local_part, note_loaded, own_part, unloaded
from trakstore.features.weights import shares_memory
from trakstore.features.wording import first_line
from trakstore.paths import is_file


def load_weights(
    checkpoint: Checkpoint, model: nn.Module, where: str
) -> Literal["whole", "adapter"]:
    """Load the weights of a checkpoint into a model, a few modules at a time.

    Nothing is changed before all names and shapes were compared.

    Parameters
    ----------
    checkpoint : path, mapping of str to Tensor, or callable
        As in :func:`.formats.opened`. An adapter of PEFT goes into the model's active adapter.
    model : nn.Module
        Changed in place; its dtypes and devices stay.
    where : str
        Name of the checkpoint in messages.

    Returns
    -------
    {"whole", "adapter"}
        Whether all weights were loaded, or those of an adapter alone.

    Raises
    ------
    NotFoundError
        When there is no such file or folder.
    TrakStoreError
        When the weights are not of this model, or a function gives the model's own tensors; when a
        parameter of a model that was built without numbers would be left without.
    """
    choices = opened(checkpoint, where)
    if callable(checkpoint) and any(
        isinstance(one, WeightsInMemory) and shares_memory(one.state, model) for one in choices
    ):
        raise TrakStoreError(
            f"the function of {where} gives tensors of the model itself, which are those of whichever "
            f"epoch was loaded last; let it give copies"
        )
    if adapters := [one for one in choices if is_adapter(one, model)]:
        if missing := unloaded(model):
            raise TrakStoreError(
                f"{where} is an adapter, and the weights that it adapts were never loaded "
                f"({some_names(missing)}): the model was built by a function, without numbers; give "
                f"the job the module itself (model=function()), or checkpoints of whole weights"
            )
        load_adapter(adapters[0], model)
        return "adapter"
    weights, names = _weights_of_model(choices, model, checkpoint)
    parts = _own_parts(names, model)
    with plain_tensors(weights.where):
        for tied in tied_names(names, model):
            first, *others = (weights.read([name], parts)[name] for name in tied)
            if not all(torch.equal(first, other) for other in others):
                raise TrakStoreError(
                    f"{weights.where} is not of this model: {' and '.join(tied)} differ there, and are "
                    f"one tensor in the model; make the model without tied weights"
                )
        for piece in weights.pieces(list(names), parts):
            _put({names[name]: value for name, value in piece.items()}, model, weights.where)
    note_loaded(model, names.values())
    if missing := unloaded(model):
        raise TrakStoreError(
            f"{weights.where} has no weights for {some_names(missing)}, and the function that built "
            f"the model gave it none: give the job the module itself, or a checkpoint that has them"
        )
    return "whole"


def _own_parts(names: Mapping[str, str], model: nn.Module) -> dict[str, Part]:
    """Return the parts of a sharded model's tensors that this rank holds, by their stored names."""
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    parts = {
        name: own_part(own[own_name])
        for name, own_name in names.items()
        if isinstance(own[own_name], Tensor)
    }
    return {name: part for name, part in parts.items() if part is not None}


def _weights_of_model(
    choices: Sequence[StoredWeights], model: nn.Module, checkpoint: Checkpoint
) -> tuple[StoredWeights, dict[str, str]]:
    """Return the one state dict that fits the model, and the model's names for its names."""
    fits: list[tuple[StoredWeights, dict[str, str]]] = []
    errors: list[tuple[int, TrakStoreError]] = []
    own = {canonical_name(name) for name in model.state_dict()}
    for one in choices:
        try:
            fits.append((one, fitted(one.shapes(), model, one.where)))
        except TrakStoreError as error:
            errors.append((len(own & set(map(canonical_name, one.shapes()))), error))
    if len(fits) > 1:
        raise TrakStoreError(
            f"{fits[0][0].where} and {fits[1][0].where} both hold weights of this model; give the one "
            f"that is meant as the checkpoint: torch.load(path, weights_only=True)[name]"
        )
    if fits:
        return fits[0]
    if converted := _converted(checkpoint, model):
        return converted, fitted(converted.shapes(), model, converted.where)
    # The error is about the state dict that has most of the model's names.
    raise max(errors, key=lambda known: known[0])[1]


def _converted(checkpoint: Checkpoint, model: nn.Module) -> WeightsInMemory | None:
    """Return weights of a transformers model whose files use other names than its parameters.

    Some architectures, mixtures of experts for one, are saved under the names of their first release,
    which only ``from_pretrained`` can convert. This holds a second model in memory for a while.
    """
    if not isinstance(checkpoint, str | Path) or not is_file(Path(checkpoint) / "config.json"):
        return None
    transformer: Any = model
    if not is_pretrained_model(model) or not _is_of_its_type(Path(checkpoint), transformer):
        return None
    try:
        other, report = type(transformer).from_pretrained(
            checkpoint, dtype=transformer.dtype, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, LookupError) as error:
        raise TrakStoreError(
            f"{checkpoint} is not of this model: transformers says {first_line(error)}"
        ) from error
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            raise TrakStoreError(
                f"{checkpoint} is not of this model: transformers reports {what.replace('_', ' ')}: "
                f"{sorted(map(str, report[what]))[:3]}"
            )
    return WeightsInMemory(other.state_dict(), str(checkpoint))


def _is_of_its_type(folder: Path, model: Any) -> bool:
    """Tell whether a folder has the model's architecture: another may be far too large to build."""
    try:
        named = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError):
        return False
    return bool(named == model.config.model_type)


def _put(piece: dict[str, Any], model: nn.Module, where: str) -> None:
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    spread = {name: own[name] for name in piece if local_part(own[name]) is not own[name]}
    with torch.no_grad():
        for name, one in spread.items():  # of these the piece has this rank's part
            local_part(one).copy_(piece.pop(name))
    try:
        done = model.load_state_dict(piece, strict=False)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrakStoreError(f"{where} is not of this model: {reason}") from None
    if done.unexpected_keys:
        raise TrakStoreError(
            f"{where} is not of this model: the model has no {done.unexpected_keys[0]}"
        )
