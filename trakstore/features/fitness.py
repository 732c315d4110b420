"""Models that cannot have per-sample gradients as they are: errors name the module and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.outputs import ModelOutput
from trakstore.features.wording import first_line

__all__ = ["explained", "fit_modules", "need_apart", "need_pass", "need_weights"]

_DYNAMIC = "torch.ao.nn.quantized.dynamic"
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_SPARSE = (nn.Embedding, nn.EmbeddingBag)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def need_weights(model: nn.Module) -> None:
    """Raise a :class:`TrakStoreError` for a model whose weights cannot be exchanged.

    Scripted and traced models run with their own weights alone; lazy modules may have none yet.
    """
    if torch.get_default_device().type == "meta":
        raise TrakStoreError(
            "torch's default device is 'meta', on which tensors have no numbers: leave "
            "torch.device('meta') before features are computed"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TrakStoreError(
            "the model is a scripted or traced one (torch.jit), which takes no other weights; give "
            "the nn.Module that it was made from"
        )
    for name, module in model.named_modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(map(is_lazy, own)):
            raise TrakStoreError(
                f"{_named(name, module)} has no weights yet; call the model once on a batch, and then "
                f"train or load it"
            )


def need_apart(model: nn.Module) -> None:
    """Raise a :class:`TrakStoreError` for modules in which samples see one another in eval mode too.

    No sample has a gradient of its own then: a BatchNorm without running statistics normalises by those
    of the batch, dynamic quantisation scales by the batch's range.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise TrakStoreError(
                f"{_named(name, module)} has no running statistics and takes those of the batch, so "
                f"that samples see one another; use track_running_stats=True, or GroupNorm"
            )
        if type(module).__module__.startswith(_DYNAMIC):
            raise TrakStoreError(
                f"{_named(name, module)} quantises by the range of the batch, so that samples see one "
                f"another; give the model as it was before"
            )


def _named(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"the module {name!r} ({kind})" if name else f"the model ({kind})"


@contextmanager
def fit_modules(model: nn.Module) -> Iterator[None]:
    """Set modules as per-sample gradients need them; set each back as it was.

    Every module is in eval mode, even one that keeps itself in training mode. Embeddings give dense
    gradients, which have the same numbers as the sparse ones that optimisers may want. Low-rank
    adapters that eval mode would merge into other weights, where they have no gradients, stay apart.
    Plain tensors that a module keeps during the passes are removed from it.
    """
    with ExitStack() as back:
        for module in model.modules():
            back.callback(setattr, module, "training", module.training)
            back.callback(_forget, module, _own_attributes(module))
            if isinstance(module, _SPARSE) and module.sparse:
                back.callback(setattr, module, "sparse", True)
                module.sparse = False
        own = _own_tensors(model)
        training, values = model.training, [one.detach().clone() for one in own]
        # A model may override ``eval`` or ``train`` and leave some of its modules in training mode:
        # these are set afterwards, one by one.
        try:
            _evaluate(model, own)
        except NotImplementedError as error:  # an exported program
            raise TrakStoreError(
                f"the model cannot be put in eval mode ({error}); give the nn.Module that it was "
                f"made from"
            ) from error
        back.callback(_return, model, training, own, values)
        for module in model.modules():
            module.training = False
        yield


def _own_attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the attributes that a module's class keeps in it, each with a copy if a dict or list."""
    return {
        name: (value, copy(value) if isinstance(value, dict | list) else None)
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE
    }


def _forget(module: nn.Module, before: dict[str, tuple[Any, Any]]) -> None:
    """Remove plain tensors that a module, or a dict or list of it, did not have before.

    A forward may cache a value made from its weights. Under the next checkpoint's weights that value
    would be wrong, and no error would tell.
    """
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and name not in before and name not in _OF_EVERY_MODULE:
            delattr(module, name)
    for name, (value, content) in before.items():
        now = vars(module).get(name)
        if isinstance(now, Tensor) and now is not value:
            setattr(module, name, value)
        elif isinstance(value, dict) and _tensors_of(value.values()) != _tensors_of(
            content.values()
        ):
            value.clear()
            value.update(content)
        elif isinstance(value, list) and _tensors_of(value) != _tensors_of(content):
            value[:] = content


def _tensors_of(values: Iterable[Any]) -> list[int]:
    """Return the identities of those values that are tensors."""
    return [id(value) for value in values if isinstance(value, Tensor)]


def _own_tensors(model: nn.Module) -> list[Tensor]:
    """Return weights of modules that do something of their own when their mode changes."""
    return [
        tensor
        for module in model.modules()
        if type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta
    ]


def _evaluate(model: nn.Module, own: list[Tensor]) -> None:
    """Set eval mode by the model's own methods; if these change weights, by flags alone."""
    if any(type(module).train is not nn.Module.train for module in model.modules()):
        model.train()  # makes modules drop what they cached from other weights in an earlier evaluation
    before = [tensor.detach().clone() for tensor in own]
    model.eval()
    if not all(map(_same_bits, own, before)):
        model.train()
        _put_back(own, before)


def _return(model: nn.Module, training: bool, own: list[Tensor], values: list[Tensor]) -> None:
    """Restore the mode of modules that act on a change of it, and the weights that this altered."""
    if own:
        model.train(training)
        _put_back(own, values)


@torch.no_grad()
def _put_back(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        if not _same_bits(tensor, value):
            tensor.data.copy_(value)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    left, right = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(left, right.to(left.device))


@contextmanager
def explained(
    model: nn.Module, output: ModelOutput, batch: Any, samples: str = "the first samples"
) -> Iterator[None]:
    """Raise instead of an error that the model does not take ``samples``, where that is the cause."""
    try:
        yield
    except (TrakStoreError, torch.OutOfMemoryError):
        raise
    except Exception:
        # The model alone is run on the samples. If that fails too, its error is raised; if not, the
        # first error is a fault of this package and stays as it is.
        need_pass(model, output, batch, samples)
        raise


def need_pass(
    model: nn.Module, output: ModelOutput, batch: Any, samples: str, *, backward: bool = True
) -> None:
    """Raise a :class:`TrakStoreError` if the model by itself does not take these samples.

    A backward pass holds a gradient of each parameter, for which a large model may leave no memory.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            total = output(model, batch).output.sum()
            if not total.requires_grad:
                raise TrakStoreError(
                    "the output depends on no parameter that requires a gradient; is it computed "
                    "under no_grad, or detached?"
                )
            if backward:
                torch.autograd.grad(total, parameters, allow_unused=True)
    except (TrakStoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "backward through the graph a second time" in str(error):
            raise TrakStoreError(
                "the model keeps tensors with their graph from one call to the next (a cache of what "
                "it makes of its weights, parametrize.cached()), so that no second sample has "
                "gradients: leave the cache while features are computed, or detach what it keeps"
            ) from error
        got = ", ".join(map(_described, tree.tree_leaves(batch)))
        advice = "give samples of the shape and dtype that it was trained on"
        if any(hasattr(parameter, "placements") for parameter in parameters):
            advice += (
                "; where ranks divide layers, heads and widths must be multiples of their number"
            )
        raise TrakStoreError(
            f"the model does not take {samples} ({got}): {_reason(error)}; {advice}"
        ) from error


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of {tuple(tensor.shape)}"


def _reason(error: Exception) -> str:
    """Return the first line of an error, with its kind unless that is torch's usual RuntimeError."""
    line, kind = first_line(error), type(error).__name__
    if line == kind:
        return f"a {kind}"
    return line if isinstance(error, RuntimeError) else f"{kind}: {line}"[:200]
