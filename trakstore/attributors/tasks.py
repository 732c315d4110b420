"""The tasks of ``trak.TRAKer``: its names, and objects with its two methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import Margin, ModelOutput, RowOutputs, as_output
from trakstore.features.outputs.function_identity import code_digest
from trakstore.features.parameters import canonical_name
from trakstore.features.projectors import Projector
from trakstore.spec import OutputSpec

__all__ = ["FeatureRows", "PeerTask", "Task", "TextMargin", "as_task"]


class FeatureRows(NamedTuple):
    """Features of a batch, ``(batch, dim)``, and ``out_to_loss``, ``(batch,)``."""

    features: Tensor
    out_to_loss: Tensor


@runtime_checkable
class PeerTask(Protocol):
    """An object with the two methods of that library's ``AbstractModelOutput``."""

    def get_output(self, model: Any, weights: Any, buffers: Any, *sample: Tensor) -> Tensor: ...
    def get_out_to_loss_grad(
        self, model: Any, weights: Any, buffers: Any, batch: Any
    ) -> Tensor: ...


class TextMargin(Margin):
    """The margin of batches ``(input_ids, token_type_ids, attention_mask, label)``."""

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        return super().__call__(model, _keywords(batch))

    def check(self, model: Callable[..., Any], batch: Any) -> int | None:
        """See :meth:`ModelOutput.check`."""
        return super().check(model, _keywords(batch))


def _keywords(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return batch
    names = ("input_ids", "token_type_ids", "attention_mask", "labels")
    if len(batch) != len(names):
        raise TrakStoreError(f"text batches are ({', '.join(names)}), got {len(batch)} tensors")
    return dict(zip(names, batch, strict=True))


class Task(Protocol):
    """Makes features of batches with the model's present weights."""

    @property
    def spec(self) -> OutputSpec: ...
    def engine(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], projector: Projector
    ) -> Callable[[Any], FeatureRows]: ...


class _OwnTask:
    def __init__(self, output: ModelOutput) -> None:
        self._output = output

    @property
    def spec(self) -> OutputSpec:
        return self._output.spec

    def engine(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], projector: Projector
    ) -> Callable[[Any], FeatureRows]:
        engine = FactorisedEngine(model, self._output, parameters, projector)

        def rows(batch: Any) -> FeatureRows:
            found = engine.rows(batch)
            return FeatureRows(found.features, found.outputs.out_to_loss)

        return rows


class _GivenTask:
    """``get_output`` of one sample at a time under ``vmap``, as that library calls it."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task

    @property
    def spec(self) -> OutputSpec:
        code = code_digest(self._task.get_output)
        return OutputSpec("task", (("class", type(self._task).__qualname__), ("code", code)))

    def engine(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], projector: Projector
    ) -> Callable[[Any], FeatureRows]:
        weights = {name: p.detach() for name, p in parameters.items()}
        others = {name: p.detach() for name, p in model.named_parameters() if name not in weights}
        buffers = {**dict(model.named_buffers()), **others}
        gradient = grad(self._task.get_output, argnums=1)

        def rows(batch: Any) -> FeatureRows:
            axes = (None, None, None, *([0] * len(batch)))
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                found = vmap(gradient, in_dims=axes, randomness="different")(
                    model, weights, buffers, *batch
                )
                scale = self._task.get_out_to_loss_grad(model, weights, buffers, batch)
            named = {canonical_name(name): one.detach() for name, one in found.items()}
            return FeatureRows(projector.project(named), scale.detach().reshape(-1).float())

        return rows


_NAMES: dict[str, Callable[[], ModelOutput]] = {
    "image_classification": Margin,
    "iterative_image_classification": Margin,
    "text_classification": TextMargin,
}


def as_task(task: Any) -> Task:
    """A task from that library's names, from an object with its methods, or from an output.

    Raises
    ------
    TrakStoreError
        For anything else.
    """
    if isinstance(task, str) and task in _NAMES:
        return _OwnTask(_NAMES[task]())
    if task == "clip":
        raise TrakStoreError(
            "'clip' contrasts a sample with the rest of its batch; give "
            "trakstore.features.Contrastive(image_bank, text_bank) as the task"
        )
    if isinstance(task, PeerTask):
        return _GivenTask(task)
    if isinstance(task, str):
        raise TrakStoreError(f"there is no task {task!r}{did_you_mean(task, _NAMES)}")
    return _OwnTask(as_output(task))
