"""Tasks and projectors of ``trak.TRAKer`` in our terms: its names, and its kinds of objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.features.outputs import as_output
from trakstore.features.outputs.classification import Margin
from trakstore.features.outputs.function_identity import code_digest
from trakstore.features.outputs.model_output import ModelOutput, RowOutputs
from trakstore.spec import OutputSpec, ProjectionKind, ProjectionSpec

__all__ = ["GivenTask", "as_projection", "as_task"]


class GivenTask(ModelOutput):
    """Output of an object with the two methods of that library's ``AbstractModelOutput``.

    As there, ``get_output`` is called for one sample at a time. The loss is not known, and NaN.

    Parameters
    ----------
    task : object
        Object with ``get_output`` and ``get_out_to_loss_grad``.
    """

    name = "task"

    def __init__(self, task: Any) -> None:
        self._task = task

    @property
    def spec(self) -> OutputSpec:
        """Class of the task, and a digest of its code."""
        code = code_digest(self._task.get_output)
        return OutputSpec(self.name, (("class", type(self._task).__qualname__), ("code", code)))

    def __call__(self, model: Any, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        state = model, dict(model.named_parameters()), dict(model.named_buffers())
        samples = zip(*batch, strict=True)  # without a batch dimension, as that library gives them
        output = torch.stack([self._task.get_output(*state, *one).reshape(()) for one in samples])
        scale = self._task.get_out_to_loss_grad(*state, batch).detach().reshape(-1).float()
        return RowOutputs(output, torch.full_like(output, torch.nan), scale)


class _TextMargin(Margin):
    """The margin of batches ``(input_ids, token_type_ids, attention_mask, labels)``."""

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        return super().__call__(model, _keywords(batch))


def _keywords(batch: Any) -> Any:
    """Return a batch as keywords of the model, which that library gives by their places."""
    if isinstance(batch, Mapping):
        return batch
    names = ("input_ids", "token_type_ids", "attention_mask", "labels")
    if len(batch) != len(names):
        raise TrakStoreError(f"text batches are ({', '.join(names)}), got {len(batch)} tensors")
    return dict(zip(names, batch, strict=True))


_NAMES: dict[str, Callable[[], ModelOutput]] = {
    "image_classification": Margin,
    "iterative_image_classification": Margin,
    "text_classification": _TextMargin,
}


def as_task(task: Any) -> ModelOutput:
    """Make an output of that library's names, of an object with its methods, or of an output.

    Raises
    ------
    TrakStoreError
        For anything else.
    """
    if isinstance(task, str) and task in _NAMES:
        return _NAMES[task]()
    if task == "clip":
        raise TrakStoreError(
            "'clip' contrasts a sample with the rest of its batch; give "
            "trakstore.features.Contrastive(image_bank, text_bank) as the task"
        )
    if isinstance(task, str):
        raise TrakStoreError(f"there is no task {task!r}{did_you_mean(task, _NAMES)}")
    if hasattr(task, "get_output") and hasattr(task, "get_out_to_loss_grad"):
        return GivenTask(task)
    return as_output(task)


# That library's names for the entries of a dense matrix; all its other projections become an sjlt.
_KINDS: dict[str, ProjectionKind] = {"normal": "gaussian", "rademacher": "rademacher"}


def as_projection(projector: Any, dim: int, seed: int) -> ProjectionSpec:
    """Make a projection of an object with ``proj_dim``, ``proj_type`` and ``seed``, where there is one.

    Raises
    ------
    TrakStoreError
        For an object without ``proj_dim``.
    """
    if isinstance(projector, ProjectionSpec):
        return projector
    if projector is None:
        return ProjectionSpec("sjlt", dim=dim, seed=seed)
    if not hasattr(projector, "proj_dim"):
        raise TrakStoreError(
            f"projector must be a ProjectionSpec or have proj_dim, got {type(projector).__name__}"
        )
    if projector.proj_dim == 0:  # that library's word for no projection
        return ProjectionSpec("identity")
    kind = _KINDS.get(str(getattr(projector.proj_type, "value", projector.proj_type)), "sjlt")
    return ProjectionSpec(kind, dim=projector.proj_dim, seed=projector.seed)
