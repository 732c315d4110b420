"""Model outputs: the scalar of a sample whose gradient becomes a feature.

An output comes with its loss l and ``out_to_loss`` = -dl/d(output), so that a loss gradient is
``-out_to_loss`` times the stored one, and one store serves methods of both kinds.
"""

# Annotations are not postponed: a postponed one of a named tuple is a name that only this module knows.
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.spec import OutputSpec

__all__ = [
    "Model",
    "ModelOutput",
    "RowOutputs",
    "inner_model",
    "inputs_and_target",
    "logits_of",
    "named_arguments",
    "need_keywords",
    "need_tensor",
    "parameters_of",
    "widened",
    "with_target",
]

Model: TypeAlias = Callable[..., Any]


class RowOutputs(NamedTuple):
    """Tensors of shape ``(batch,)``, with a number for each sample of a batch.

    Attributes
    ----------
    output : Tensor
        The scalar that is differentiated.
    loss : Tensor
        The loss l.
    out_to_loss : Tensor
        -dl/d(output).

    Examples
    --------
    >>> loss = torch.tensor([0.5, 2.0])
    >>> RowOutputs(output=loss, loss=loss, out_to_loss=-torch.ones(2)).loss
    tensor([0.5000, 2.0000])
    """

    output: Tensor
    loss: Tensor
    out_to_loss: Tensor


class ModelOutput(ABC):
    """A differentiable scalar of each sample.

    Attributes
    ----------
    name : str
        Name that is stored.
    dtype : torch.dtype or None
        Dtype of the model's products, where it is not its parameters'.
    calls_alone : bool
        Whether the output uses the model by calling it, and by nothing else: the calls are then all
        that has to be watched.
    columns : frozenset of str or None
        Columns that the output itself reads of batches that are dicts; None where they may be any.

    Examples
    --------
    >>> from trakstore.features import Margin
    >>> isinstance(Margin(), ModelOutput), Margin().spec.name
    (True, 'margin')
    """

    name: str
    dtype: torch.dtype | None = None
    calls_alone = False
    columns: frozenset[str] | None = None

    @property
    def spec(self) -> OutputSpec:
        """Name and options that are stored."""
        return OutputSpec(self.name)

    @abstractmethod
    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """Compute outputs of a batch, each a function of its own sample alone.

        Parameters
        ----------
        model : callable
            The model, or the model with other parameters.
        batch : tree of Tensor
            Samples of the data set, collated; every tensor has the batch dimension first.
        """

    def labels(self, batch: Any) -> Tensor | None:  # noqa: ARG002
        """Return classes to store as the ``label`` column, shape ``(batch,)``, or None."""
        return None

    def predictions(self, model: Model, batch: Any) -> Tensor | None:  # noqa: ARG002
        """Return classes that the model says, shape ``(batch,)``, or None where there are none."""
        return None

    def check(self, model: Model, batch: Any) -> int | None:  # noqa: ARG002
        """Raise a :class:`TrakStoreError` if a batch cannot have this output.

        Parameters
        ----------
        model : callable
            The model.
        batch : tree of Tensor
            Samples of the data set, collated.

        Returns
        -------
        int or None
            Number of classes, where labels are classes: every label must be below it.
        """
        return None


def inputs_and_target(batch: Any, task: str, target: str) -> tuple[Any, Tensor]:
    """Take a batch apart into what the model is called with and what is to be predicted.

    Parameters
    ----------
    batch : tuple, list or mapping
        Tuples end in the target; of dicts it is ``labels``, or else ``label``.
    task, target : str
        Names of both for messages.
    """
    keys = [key for key in ("labels", "label") if isinstance(batch, Mapping) and key in batch]
    if keys:
        inputs: Any = {key: value for key, value in batch.items() if key != keys[0]}
        return inputs, need_tensor(batch[keys[0]], keys[0])
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        got = f"one with {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        if isinstance(batch, tuple | list):
            got = f"a {got} of {len(batch)}: the inputs without the {target}"
        raise TrakStoreError(
            f"{task} needs samples (input, ..., {target}), or dicts with 'labels' (or 'label'), "
            f"got {got}"
        )
    return tuple(batch[:-1]), need_tensor(batch[-1], "the last entry of a batch")


def with_target(batch: Any, target: Tensor) -> Any:
    """Return a batch with another target in the place of what :func:`inputs_and_target` gives."""
    if isinstance(batch, Mapping):
        return {**batch, "labels" if "labels" in batch else "label": target}
    return (*batch[:-1], target)


def need_tensor(value: Any, what: str) -> Tensor:
    """Return ``value``, if it is a tensor."""
    if isinstance(value, Tensor):
        return value
    raise TrakStoreError(
        f"{what} must be a tensor, got {type(value).__name__}; rows of tensors of one length give one"
    )


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor as float32 where it is less: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def logits_of(model: Model, inputs: Any) -> Any:
    """Return a model's answer to a tuple of arguments or a dict of keywords, or its ``.logits``."""
    answer = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return getattr(answer, "logits", answer)


def inner_model(model: Any) -> Any:
    """Return the model that wrappers of torch (data parallel) and PEFT hold, with their keywords."""
    while _takes_any(parameters_of(model)):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            break
    return model


def parameters_of(model: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a model's forward; none where Python cannot tell."""
    if isinstance(model, torch.jit.ScriptModule):
        return {}
    return inspect.signature(getattr(model, "forward", model)).parameters


def named_arguments(model: Any) -> frozenset[str]:
    """Return the names of the arguments of a model's forward, and of that of the model it holds."""
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    both = {**parameters_of(model), **parameters_of(inner_model(model))}
    return frozenset(name for name, one in both.items() if one.kind not in unnamed)


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Tell whether a forward has ``**kwargs``, which hide what is taken."""
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
