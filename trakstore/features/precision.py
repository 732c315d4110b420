"""Less precision on request: TF32, or bfloat16 where torch's autocast says so."""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.outputs.model_output import Model, widened
from trakstore.features.outputs.predicted_classes import PredictsClasses, need_classes
from trakstore.spec import OutputSpec

__all__ = ["TF32_UNIT", "Autocast", "are_tf32", "matrix_products"]

TF32_UNIT = 2.0**-10


def are_tf32() -> bool:
    """Tell whether float32 products of matrices on a GPU are computed in TF32."""
    matmul = torch.backends.cuda.matmul
    own = getattr(matmul, "fp32_precision", None)  # torch 2.9
    return bool(matmul.allow_tf32 if own is None else own == "tf32")


@contextmanager
def matrix_products(*, tf32: bool) -> Iterator[None]:
    """Compute float32 products of matrices exactly, or in TF32 if there is one; restore settings."""
    backends: Any = torch.backends
    products = _with_precision(backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None))
    # The setting for all of torch would hold for convolutions too, whatever they are set to later.
    # Restoring it changes theirs, which are therefore restored after it.
    others = [getattr(backends.cudnn, name, None) for name in ("conv", "rnn")]
    touched = _with_precision(backends, *products, *others)
    before, whole = [one.fp32_precision for one in touched], _whole_setting()
    try:
        # Torch has an older setting and newer ones, and raises when the older is read while they
        # differ: it is left alone then.
        if whole is not None:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for one in _with_precision(backends):
            _set_precision(one, "none")
        for one in products:
            _set_precision(one, "tf32" if tf32 else "ieee")
        yield
    finally:
        if whole is not None:
            torch.set_float32_matmul_precision(whole)
        for one, value in zip(touched, before, strict=True):
            _set_precision(one, value)


def _with_precision(*settings: Any) -> list[Any]:
    """Return those of the settings that have a precision of their own, as torch 2.9 introduced it."""
    return [one for one in settings if hasattr(one, "fp32_precision")]


def _set_precision(setting: Any, value: str) -> None:
    # A process may have forbidden changes of settings for good, as torch's own tests do.
    with getattr(torch.backends, "__allow_nonbracketed_mutation")():
        setting.fp32_precision = value


def _whole_setting() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # a newer setting was changed
        return None


class Autocast(ModelOutput, PredictsClasses):
    """An output whose model runs under autocast; the output itself is computed in float32.

    Methods and parts of the model that the output calls also run under autocast; other attributes are
    passed through.

    Parameters
    ----------
    output : ModelOutput
    device : torch.device
        Device of the model.
    dtype : torch.dtype
        Dtype of products in the model, and so of the gradients that go back through them.
    """

    def __init__(
        self, output: ModelOutput, device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.output, self.device = output, device
        self.dtype: torch.dtype = dtype
        self.calls_alone = output.calls_alone
        self.columns = output.columns

    @property
    def spec(self) -> OutputSpec:
        """Spec of the output; the store records the precision in a place of its own."""
        return self.output.spec

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :class:`ModelOutput`."""
        return self.output(_Cast(model, self.device.type, self.dtype), batch)

    def labels(self, batch: Any) -> Tensor | None:
        """See :class:`ModelOutput`."""
        return self.output.labels(batch)

    def predictions(self, model: Model, batch: Any) -> Tensor | None:
        """See :class:`ModelOutput`."""
        return self.output.predictions(model, batch)

    @property
    def averaged(self) -> bool:
        """See :class:`PredictsClasses`."""
        return need_classes(self.output).averaged

    def counted(self, model: Model, batch: Any) -> Tensor:
        """See :class:`PredictsClasses`."""
        return need_classes(self.output).counted(model, batch)

    def predicted(self, model: Model, batch: Any) -> Tensor:
        """See :class:`PredictsClasses`."""
        cast = _Cast(model, self.device.type, self.dtype)
        return need_classes(self.output).predicted(cast, batch)

    def relabelled(self, model: Model, batch: Any, labels: Tensor) -> Any:
        """See :class:`PredictsClasses`."""
        return need_classes(self.output).relabelled(model, batch, labels)

    def check(self, model: Model, batch: Any) -> int | None:
        """See :class:`ModelOutput`."""
        return self.output.check(model, batch)


class _Cast:
    """A model, or a part of one, that runs under autocast and returns float32.

    It passes for the model in ``isinstance`` and in attributes, since outputs may use any of these.
    """

    __slots__ = ("__device", "__dtype", "__model")

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        object.__setattr__(self, "_Cast__model", model)
        object.__setattr__(self, "_Cast__device", device)
        object.__setattr__(self, "_Cast__dtype", dtype)

    # ``isinstance`` asks for this.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.__model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__under(self.__model)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__model, name)
        if isinstance(value, MethodType):
            return self.__under(value)
        return self.__part(value) if isinstance(value, nn.Module) else value

    # Outputs may set attributes of the model too. The wrapper's own three are set past this method.
    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__model, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__given(self.__model[key])

    def __iter__(self) -> Iterator[Any]:
        return map(self.__given, self.__model)

    def __len__(self) -> int:
        return len(self.__model)

    def __bool__(self) -> bool:
        return True

    def __under(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def cast(*args: Any, **kwargs: Any) -> Any:
            # Weights may be other tensors in every call, as under vmap: casts of them must not be
            # cached.
            with torch.autocast(self.__device, self.__dtype, cache_enabled=False):
                return self.__given(function(*args, **kwargs))

        return cast

    def __given(self, answer: Any) -> Any:
        """Return an answer with its tensors in float32 and its modules wrapped."""
        if isinstance(answer, Iterator):
            return map(self.__given, answer)
        if isinstance(answer, ItemsView | ValuesView):
            return [self.__given(one) for one in answer]
        return tree.tree_map(self.__leaf, answer)

    def __leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            return self.__part(leaf)
        return widened(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def __part(self, module: nn.Module) -> Any:
        return _Cast(module, self.__device, self.__dtype)
