"""Weights of a PEFT adapter, which go into a model that has the adapter; its base is kept."""

from __future__ import annotations

from typing import Any

from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.fitting import some_names
from trakstore.features.checkpoints.stored_weights import StoredWeights
from trakstore.features.parameters import canonical_name


def is_adapter(stored: StoredWeights, model: nn.Module) -> bool:
    """Tell whether the weights are those of an adapter alone, and PEFT has put one into the model."""
    if not hasattr(model, "peft_config"):
        return False
    names = {canonical_name(name) for name in stored.shapes()}
    whole = {canonical_name(name) for name in model.state_dict()}
    return not whole <= names and bool(names & _wanted(model))


def load_adapter(stored: StoredWeights, model: nn.Module) -> None:
    """Load an adapter's weights into the model's active adapter.

    Raises
    ------
    TrakStoreError
        When names are missing or left over, or a shape is another.
    """
    from peft import set_peft_model_state_dict

    names = {canonical_name(name): name for name in stored.shapes()}
    if missing := sorted(_wanted(model) - names.keys()):
        raise TrakStoreError(
            f"{stored.where} is not of the model's adapter: it lacks {some_names(missing)}; make the "
            f"model with the configuration that lies beside the adapter (adapter_config.json)"
        )
    state = stored.read(list(names.values()))
    given = {name: state[stored_name] for name, stored_name in names.items()}
    try:
        done: Any = set_peft_model_state_dict(model, given, adapter_name=_active(model))
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrakStoreError(f"{stored.where} is not of the model's adapter: {reason}") from None
    if done.unexpected_keys:
        raise TrakStoreError(
            f"{stored.where} is not of the model's adapter: the model has no "
            f"{some_names(done.unexpected_keys)}"
        )


def _wanted(model: nn.Module) -> set[str]:
    """Names that the file of the model's active adapter has."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub for the base's configuration.
    adapter = get_peft_model_state_dict(
        model, adapter_name=_active(model), save_embedding_layers=False
    )
    return {canonical_name(name) for name in adapter}


def _active(model: Any) -> str:
    active = model.active_adapters
    names = active() if callable(active) else active  # transformers has a method, PEFT a property
    if len(names) != 1:
        raise TrakStoreError(
            f"the model has {len(names)} active adapters ({', '.join(names)}), and the checkpoint is "
            f"of one: choose it by model.set_adapter(name)"
        )
    return str(names[0])
