"""Model outputs, one kind a file."""

from __future__ import annotations

from collections.abc import Callable

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.features.outputs.by_task import output_for
from trakstore.features.outputs.classification import CrossEntropy, Margin
from trakstore.features.outputs.contrastive import Contrastive
from trakstore.features.outputs.function import FunctionOutput
from trakstore.features.outputs.language import CausalLM, MaskedLM
from trakstore.features.outputs.model_output import ModelOutput, RowOutputs
from trakstore.features.outputs.preference import DPO
from trakstore.features.outputs.regression import SquaredError
from trakstore.features.outputs.weighted import Weighted

__all__ = [
    "DPO",
    "CausalLM",
    "Contrastive",
    "CrossEntropy",
    "FunctionOutput",
    "Margin",
    "MaskedLM",
    "ModelOutput",
    "RowOutputs",
    "SquaredError",
    "Weighted",
    "as_output",
    "output_for",
]

_OUTPUTS: dict[str, Callable[[], ModelOutput]] = {
    "margin": Margin,
    "cross_entropy": CrossEntropy,
    "squared_error": SquaredError,
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "dpo": DPO,
}


def as_output(output: object) -> ModelOutput:
    """Make an output from its name, or of a function.

    Raises
    ------
    NotFoundError
        With the nearest name.
    TrakStoreError
        When it is neither a name, an output nor a function.
    """
    if isinstance(output, ModelOutput):
        return output
    if isinstance(output, str):
        if output not in _OUTPUTS:
            raise NotFoundError(f"there is no output {output!r}{did_you_mean(output, _OUTPUTS)}")
        return _OUTPUTS[output]()
    if callable(output) and not isinstance(output, type):
        return FunctionOutput(output)
    raise TrakStoreError(
        f"output must be one of {', '.join(_OUTPUTS)}, a ModelOutput or a function of model and "
        f"batch, got {output!r}"
    )
