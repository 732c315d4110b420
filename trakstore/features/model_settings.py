"""Settings of a model's modules on which its features depend, beside its weights.

To refuse by mistake a run that goes on elsewhere would be worse than to miss a change. So only plain
values and tensors under public names count. Left out are those that libraries keep for themselves, that
say where and how a model runs, that training changes or uses alone, and that a forward pass changes.
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

# Words in attributes' names, between underscores, which show that features do not depend on them: first
# the course of training and what acts in training alone, then where and how a model runs, then names,
# and outputs beside the main one.
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
# Further words, in a configuration's names: the generation of text is no part of a forward pass.
_GENERATION = frozenset(("temperature", "top", "typical", "penalty"))
# Sizes that the shapes of parameters show already, and that another library's layer may lack.
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
        Whether ranks divide layers between them: sizes and numbers of heads are then those of a rank.

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
        """Return the settings that passes did not change, and that are no buffers which were put back.

        A value that a pass changes, such as a counter or the last output, differs between processes.
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
        """Return marks that differ after a pass changed a value: a tensor was replaced, or written to.

        Writing does not count for buffers, since they are put back after passes by writing to them.
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

    Splits with another checkpoint hash are not compared: another error reports that.

    Raises
    ------
    SpecMismatchError
        When a setting that both have differs.
    """
    for name in store.splits_of(epoch):
        spec = store.split(epoch, name).spec
        if spec.checkpoint == checkpoint and spec.settings:
            check_settings(spec.settings, settings, f"{store.location}: {name} at epoch {epoch}")
            return  # the others were compared with this one when they were written


def _read(model: nn.Module, *, divided: bool) -> dict[str, list[tuple[str, Any]]]:
    """Return the values of settings by name, each with its path in the model, sorted by path."""
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
    """Return the name of a module's class; None for a wrapper, or a module that acts in training alone.

    Where sharding or parametrizations replaced the class, the original one is named.
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
    """Yield a module's own settings: plain attributes, tensors outside the state dict, and layers."""
    for name, value in vars(module).items():
        if _counts(name) and (_is_plain(value) or _is_held(value)):
            yield name, value
        elif name == "scaling" and isinstance(value, dict):  # of low-rank adapters
            numbers = {key: one for key, one in value.items() if type(one) in (int, float)}
            yield from ((f"{name}.{adapter}", one) for adapter, one in numbers.items())
    # Frequencies of these kinds are stretched to the longest sample so far: the original ones count.
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
    """Tell whether a text names a device or an attention implementation, which change no features."""
    return text in _WAYS or "flash" in text or "flex_attention" in text or "paged" in text


def _is_held(value: Any) -> bool:
    """Tell whether an attribute is a tensor kept beside the weights, and not computed from them."""
    return isinstance(value, Tensor) and not value.requires_grad and _is_whole(value)


def _is_whole(tensor: Tensor | None) -> bool:
    """Tell whether this process can read all of a tensor now, without other ranks."""
    return (
        tensor is not None
        and not (is_lazy(tensor) or tensor.is_meta or tensor.is_quantized or tensor.is_nested)
        and tensor.layout is torch.strided
        and local_part(tensor) is tensor
        and not is_traceable_wrapper_subclass(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _is_function(module: nn.Module) -> bool:
    """Tell whether a module is a torch function without weights, such as an activation."""
    kind = type(module)
    own = kind.__module__.startswith("torch.nn.modules") and not (
        module._modules or module._buffers
    )
    return (
        own and not module._parameters and "Drop" not in kind.__name__ and kind is not nn.Identity
    )


def _of_config(config: Any) -> Iterator[tuple[str, float]]:
    """Yield numbers of a configuration that a forward pass may use, such as a softcap."""
    given = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    for name, value in given.items():
        public = isinstance(name, str) and _counts(name)
        if public and type(value) is float and value == value and not _generates(name):
            yield name, value


def _generates(name: str) -> bool:
    """Tell by its name whether a number of a configuration is about generating text."""
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
    """Return a plain value as text, in which 2 and 2.0 are the same."""
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
    # Integers come out the same on every processor, so that a digest can compare them.
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
    """Summarise numbers so that rounding on another processor makes no difference.

    Buffers are often made by functions such as powers, whose last bit depends on the processor, and a
    digest would show it. The sums have evenly spread weights that depend on the position alone, so that
    a permutation changes them.
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
