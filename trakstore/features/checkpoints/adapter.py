"""Weights of a PEFT adapter, which go into a model that has the adapter; its base is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.fitting import some_names
from trakstore.features.checkpoints.stored_weights import StoredWeights
from trakstore.features.parameters import canonical_name
from trakstore.paths import is_file

_PREFIX = "base_model.model."
_LORA = ".lora_"
_COMPARED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora"),
    *("alpha_pattern", "rank_pattern"),
)


def is_adapter(stored: StoredWeights, model: nn.Module) -> bool:
    """Tell whether the weights are those of an adapter alone, and PEFT has put one into the model."""
    if not hasattr(model, "peft_config"):
        return False
    names = {_bare(name) for name in stored.shapes()}
    whole = {_bare(name) for name in model.state_dict()}
    wanted = _wanted(model)
    if whole <= names:
        return False
    # LoRA weights may be for other modules than the model's adapter; a whole checkpoint would have the
    # base's weights.
    if _lora_modules(names) and not any(".base_layer." in name for name in names):
        return True
    # A whole checkpoint has some of an adapter's names too, of modules that are saved with it.
    return len(names & wanted) > len(names - wanted)


def load_adapter(stored: StoredWeights, model: nn.Module) -> None:
    """Load an adapter's weights into the model's active adapter.

    Raises
    ------
    TrakStoreError
        When names are missing or left over, or a shape is another.
    """
    from peft import set_peft_model_state_dict

    names = {_bare(name): name for name in stored.shapes()}
    _check_modules(stored.where, set(names), _wanted(model))
    # A state dict in memory comes without a configuration file.
    if is_file(Path(stored.where)):
        _check_configuration(Path(stored.where).parent / "adapter_config.json", model)
    state = stored.read(list(names.values()))
    prefix = (
        _PREFIX if any(name.startswith(_PREFIX) for name, _ in model.named_parameters()) else ""
    )
    given = {prefix + name: state[stored_name] for name, stored_name in names.items()}
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


def _bare(name: str) -> str:
    """Return a name without wrappers and without PEFT's prefix, which transformers' own models lack."""
    return canonical_name(name).removeprefix(_PREFIX)


def _check_modules(where: str, names: set[str], wanted: set[str]) -> None:
    """Refuse an adapter that lacks names, or has modules that the model lacks."""
    own, given = _lora_modules(wanted), _lora_modules(names)
    reasons = []
    if missing := sorted(wanted - names):
        reasons.append(f"it lacks {some_names(missing)}")
    if own and given and own != given:
        modules, others = ", ".join(sorted(own)), ", ".join(sorted(given))
        reasons.append(f"the model's adapter is on {modules}, the checkpoint's on {others}")
    if reasons:
        raise TrakStoreError(
            f"{where} is not of the model's adapter: {'; '.join(reasons)}; make the model with the "
            f"configuration that lies beside the adapter (adapter_config.json)"
        )


def _lora_modules(names: set[str]) -> set[str]:
    """Return the modules that LoRA adapts, each by the last part of its name."""
    return {name.partition(_LORA)[0].rpartition(".")[2] for name in names if _LORA in name}


def _check_configuration(path: Path, model: Any) -> None:
    """Refuse an adapter that scales or combines its weights otherwise than the model's.

    The tensors do not show it: with another ``lora_alpha`` the same ones give another function.
    """
    if not is_file(path):
        return
    try:
        stored = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError):
        raise TrakStoreError(f"{path} is no configuration of PEFT") from None
    own = json.loads(json.dumps(model.peft_config[_active(model)].to_dict(), default=str))
    for name in _COMPARED:
        if name in stored and name in own and stored[name] != own[name]:
            raise TrakStoreError(
                f"{path} has {name} {stored[name]!r}, the model's adapter {own[name]!r}; make the "
                f"model with the adapter's configuration"
            )


def _wanted(model: nn.Module) -> set[str]:
    """Return the names in a file of the model's active adapter."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub for the base's configuration.
    adapter = get_peft_model_state_dict(
        model, adapter_name=_active(model), save_embedding_layers=False
    )
    return {_bare(name) for name in adapter}


def _active(model: Any) -> str:
    active = model.active_adapters
    names = active() if callable(active) else active  # transformers has a method, PEFT a property
    if len(names) != 1:
        raise TrakStoreError(
            f"the model has {len(names)} active adapters ({', '.join(names)}), and the checkpoint is "
            f"of one: choose it by model.set_adapter(name)"
        )
    return str(names[0])
