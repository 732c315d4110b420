"""Settings of a model's modules, read from the model: what its features depend on beside its weights.

A run that goes on elsewhere must not be refused by mistake, which would be worse than a change that is
missed. So plain values and tensors count, under public names; but none that libraries keep for
themselves, that say where and how a model runs, that training changes, or that act in training alone;
and none that a forward pass changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trakstore.features.parameters import canonical_name, uncompiled
from trakstore.features.sharding import local_part
from trakstore.spec import Settings, check_settings, summary
from trakstore.storage.store import FeatureStore

__all__ = ["ModelSettings", "need_same_settings"]

# Words of attributes' names, between underscores, that tell that features do not depend on them: the
# course of training and what acts in training alone, then where and how a model runs, then names and
# what a model gives beside its outputs.
_WORDS = frozenset(
    """
    training step steps epoch epochs iter iters iteration iterations count counter counts calls seen
    updates loss losses acc accuracy metric metrics best last prev previous current ema lr grad grads
    gradient time momentum drop dropout pdrop layerdrop droppath frozen freeze init initializer
    initialized initialised checkpointing noise
    device devices dtype rank world backend implementation impl fused flash sdpa kernels inplace sparse
    deterministic compile compiled offload parallel parallelizable quantized loaded cache cached nested
    check
    name names path dir folder file filename url version id uuid seed verbose debug log logging tag
    attentions dict
    """.split()  # noqa: SIM905
)
# Words of a configuration's names besides: what generates text is no part of a forward pass.
_GENERATION = frozenset(("temperature", "top", "typical", "penalty"))
# Sizes that shapes of parameters tell, and that layers of other libraries in the same place may lack.
_SHAPES = frozenset(
    """
    in_features out_features num_features in_channels out_channels num_embeddings embedding_dim nf nx
    normalized_shape vocab_size layer_idx
    """.split()  # noqa: SIM905
)
_LONGEST = re.compile(r"(^|_)max_(seq|pos|len|source|target|token|context)")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")  # texts that choose a variant, such as "zeros"
_WAYS = frozenset(("eager", "sdpa", "cpu", "cuda", "mps", "xpu", "meta"))
_STRETCHED = re.compile("dynamic|longrope")
_ENTRIES = 1000  # of a split's document
_PIECE = 2**20  # numbers that are summed up at once
_SUMS = (0.6180339887498949, 0.41421356237309515, 0.7320508075688772)
_PLAIN = (bool, int, float, str)


class ModelSettings:
    """Settings of a model before any pass.

    Parameters
    ----------
    model : nn.Module
    divided : bool
        Whether ranks divide layers between them: sizes and numbers of heads are a rank's own then.

    Attributes
    ----------
    all : tuple of (name, text)
        Settings as the model has them now, sorted by name.
    """

    def __init__(self, model: nn.Module, *, divided: bool = False) -> None:
        self._model, self._divided = model, divided
        read = self._now()
        self._marks = {name: self._marks_of(values) for name, values in read.items()}
        texts = {name: _text([value for _, value in values]) for name, values in read.items()}
        known = sorted((name, text) for name, text in texts.items() if text is not None)
        self.all: Settings = tuple(known[:_ENTRIES])

    def unchanged(self, put_back: Collection[str] = ()) -> Settings:
        """Return those that passes have not changed; without the buffers that were put back.

        What a pass changes, such as a counter or the last output, differs from process to process.
        """
        now = self._now()
        restored = set(map(canonical_name, put_back))
        return tuple(
            (name, text)
            for name, text in self.all
            if name in now
            and self._marks_of(now[name]) == self._marks[name]
            and restored.isdisjoint(path for path, _ in now[name])
        )

    def _now(self) -> dict[str, list[tuple[str, Any]]]:
        return _read(self._model, divided=self._divided)

    def _marks_of(self, values: list[tuple[str, Any]]) -> list[Any]:
        """Return what shows that a pass changed a value: that a tensor is another, or was written to.

        Buffers are put back after passes, which writes to them.
        """
        buffers = set(map(id, self._model.buffers()))
        marks: list[Any] = []
        for path, value in values:
            if not isinstance(value, Tensor):
                marks.append((path, type(value), value))
            else:
                fixed = id(value) in buffers or value.is_inference()
                marks.append((path, id(value), 0 if fixed else value._version))
        return marks


def need_same_settings(
    store: FeatureStore, epoch: int | str, checkpoint: str | None, settings: Settings
) -> None:
    """Refuse a model that has other settings than the one of an epoch's splits.

    Splits of other weights than those of this hash are not compared: another error tells of those.

    Raises
    ------
    SpecMismatchError
        When a setting differs that both have.
    """
    for name in store.splits_of(epoch):
        spec = store.split(epoch, name).spec
        if spec.checkpoint == checkpoint and spec.settings:
            check_settings(spec.settings, settings, f"{store.location}: {name} at epoch {epoch}")
            return  # the others were compared with this one


def _read(model: nn.Module, *, divided: bool) -> dict[str, list[tuple[str, Any]]]:
    """Return the values of settings by name, each with its path in the model, sorted by these."""
    found = defaultdict[str, list[tuple[str, Any]]](list)
    configs = set[int]()
    modules = [(canonical_name(path), module) for path, module in model.named_modules()]
    for path, module in sorted(modules, key=lambda one: one[0]):
        kind = _class_name(module)
        if kind is None:
            continue
        for name, value in _values(module):
            if divided and isinstance(value, int | tuple) and not isinstance(value, bool):
                continue
            found[f"{kind}.{name}"].append((f"{path}.{name}".lstrip("."), value))
        config = getattr(module, "config", None)
        if config is not None and id(config) not in configs:
            configs.add(id(config))
            for name, value in _of_config(config):
                found[f"{type(config).__name__}.{name}"].append((path, value))
    return found


def _class_name(module: nn.Module) -> str | None:
    """Return the name of a module's own class; None of those that act in training alone, or wrap.

    Sharding and parametrizations put classes of their own in the place of a module's.
    """
    own = type(module)
    for one in type(module).__mro__:
        if not one.__module__.startswith(("torch.distributed", "torch.nn.utils")):
            own = one
            break
    name = own.__name__
    passed = "Drop" in name or name.endswith("Loss") or hasattr(module, "_orig_mod")
    return None if passed else name


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's own settings: plain attributes, tensors that no state dict has, and layers."""
    for name, value in vars(module).items():
        if _counts(name) and (_is_plain(value) or _is_held(value)):
            yield name, value
        elif name == "scaling" and isinstance(value, dict):  # of low-rank adapters
            numbers = {key: one for key, one in value.items() if type(one) in (int, float)}
            yield from ((f"{name}.{adapter}", one) for adapter, one in numbers.items())
    # Frequencies of these kinds are those of the longest sample so far; the first ones are beside them.
    stretched = _STRETCHED.search(str(getattr(module, "rope_type", ""))) is not None
    for name in sorted(module._non_persistent_buffers_set):
        buffer = module._buffers.get(name)
        moves = stretched and name.endswith("inv_freq") and "original" not in name
        if buffer is not None and _counts(name) and _is_whole(buffer) and not moves:
            yield name, buffer
    for name, child in module._modules.items():
        layer = None if child is None else uncompiled(child)
        if layer is not None and _is_function(layer):
            yield name, type(layer).__name__


def _counts(name: str) -> bool:
    """Tell whether features may depend on an attribute, by its name."""
    if name.startswith("_") or name in _SHAPES or _LONGEST.search(name):
        return False
    return _WORDS.isdisjoint(name.lower().split("_"))


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return len(value) <= 64 and all(type(one) in _PLAIN and _is_plain(one) for one in value)
    if type(value) is str:
        return _WORD.fullmatch(value) is not None and not _is_way(value)
    return type(value) in _PLAIN and value == value  # no NaN


def _is_way(text: str) -> bool:
    """Tell whether a text names a device, or an implementation of attention: it changes no features."""
    return text in _WAYS or "flash" in text or "flex_attention" in text or "paged" in text


def _is_held(value: Any) -> bool:
    """Tell whether an attribute is a tensor that is held beside the weights, and not made of them."""
    return isinstance(value, Tensor) and not value.requires_grad and _is_whole(value)


def _is_whole(tensor: Tensor | None) -> bool:
    """Tell whether a tensor can be read here and now, without other ranks."""
    return (
        tensor is not None
        and not (is_lazy(tensor) or tensor.is_meta or tensor.is_quantized or tensor.is_nested)
        and tensor.layout is torch.strided
        and local_part(tensor) is tensor
        and not is_traceable_wrapper_subclass(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _is_function(module: nn.Module) -> bool:
    """Tell whether a module is a function of torch's own without weights, as activations are."""
    kind = type(module)
    own = kind.__module__.startswith("torch.nn.modules") and not (
        module._modules or module._buffers
    )
    return (
        own and not module._parameters and "Drop" not in kind.__name__ and kind is not nn.Identity
    )


def _of_config(config: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a configuration that modules may read in a pass, such as a softcap."""
    given = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    for name, value in given.items():
        public = isinstance(name, str) and _counts(name)
        if public and type(value) is float and value == value and not _generates(name):
            yield name, value


def _generates(name: str) -> bool:
    """Tell whether a number of a configuration is about the generation of text, by its name."""
    return not _GENERATION.isdisjoint(name.lower().split("_"))


def _text(values: list[Any]) -> str | None:
    """Return the text of a setting; None where its modules have values of several kinds."""
    if all(isinstance(value, Tensor) for value in values):
        return _text_of_tensors(values)
    if any(isinstance(value, Tensor) for value in values):
        return None
    texts = [_plain_text(value) for value in values]
    if len(set(texts)) == 1 and len(texts[0]) <= 200:
        return texts[0]
    if all(type(value) in (bool, int, float) for value in values):
        return _summed([np.array([float(value)]) for value in values])
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return f"{len(texts)} values, digest {digest[:16]}"


def _plain_text(value: Any) -> str:
    """Return a plain value as text, a whole number alike whether it is an int or a float."""
    if type(value) is tuple:
        return f"({', '.join(map(_plain_text, value))})"
    if type(value) is float and value.is_integer():
        return repr(int(value))
    return str(value)


def _text_of_tensors(tensors: list[Tensor]) -> str | None:
    if all(one.is_floating_point() or one.is_complex() for one in tensors):
        return _summed([_floats(one) for one in tensors])
    if any(one.is_floating_point() or one.is_complex() for one in tensors):
        return None
    # Whole numbers are the same wherever they are computed.
    digest, count = hashlib.sha256(), 0
    for one in tensors:
        digest.update(one.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())
        count += one.numel()
    return f"{count} integers, digest {digest.hexdigest()[:16]}"


def _floats(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    real = torch.view_as_real(plain) if plain.is_complex() else plain
    return real.to(torch.promote_types(real.dtype, torch.float32)).reshape(-1).numpy()


def _summed(parts: list[NDArray[Any]]) -> str:
    """Summarise numbers so that those of another processor, which differ by rounding, are alike.

    A digest would tell apart what one last bit tells apart, and functions such as powers, which
    buffers are made by, have other last bits from processor to processor. The sums are weighted by
    sequences that are spread evenly and follow from the place alone.
    """
    squares, sums, place = 0.0, np.zeros(len(_SUMS)), 0
    for part in parts:
        for first in range(0, len(part), _PIECE):
            piece = part[first : first + _PIECE].astype(np.float64)
            piece = np.nan_to_num(piece, nan=1.5, posinf=2.5, neginf=-2.5)
            places = np.arange(place + 1, place + 1 + len(piece), dtype=np.float64)
            squares += float(piece @ piece)
            sums += [float(((places * step) % 1.0 - 0.5) @ piece) for step in _SUMS]
            place += len(piece)
    return summary(place, squares**0.5, sums.tolist())
