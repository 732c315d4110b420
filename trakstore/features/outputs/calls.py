"""How a model is called: its own forward below wrappers, what that takes, and its logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import Model

__all__ = ["inner_model", "logits_of", "need_keywords", "parameters_of"]


def logits_of(model: Model, inputs: Any) -> Any:
    """The model's answer to a tuple of arguments or a dict of keywords; ``.logits`` where it has it."""
    answer = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return getattr(answer, "logits", answer)


def inner_model(model: Any) -> Any:
    """The model that wrappers of torch (data parallel) and PEFT hold, and pass all keywords to."""
    while _takes_any(parameters_of(model)):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            break
    return model


def parameters_of(model: Any) -> Mapping[str, inspect.Parameter]:
    """What a model's forward takes; nothing where Python cannot tell."""
    if isinstance(model, torch.jit.ScriptModule):
        return {}
    return inspect.signature(getattr(model, "forward", model)).parameters


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def need_keywords(model: Model, inputs: Any) -> None:
    """Raise a :class:`TrakStoreError` if a dict has keys that the model's forward does not take."""
    taken = parameters_of(inner_model(model))
    if not taken or not isinstance(inputs, Mapping) or _takes_any(taken):
        return
    strange = sorted(set(inputs) - set(taken) - set(parameters_of(model)))  # a wrapper's own
    if strange:
        raise TrakStoreError(
            f"the model's forward takes {', '.join(taken)}, the rows also have "
            f"{', '.join(map(repr, strange))}: leave them out, name them as forward does, or give "
            f"tuples"
        )
