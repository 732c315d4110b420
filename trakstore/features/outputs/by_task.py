"""The output that a model's class asks for, where nobody names one."""

from __future__ import annotations

import logging
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.classification import Margin
from trakstore.features.outputs.language import CausalLM, MaskedLM
from trakstore.features.outputs.model_output import ModelOutput, inner_model
from trakstore.features.outputs.regression import SquaredError
from trakstore.features.parameters import is_pretrained_model

log = logging.getLogger("trakstore")

_CHOICES = "ForMultipleChoice"

# Ends of transformers' class names. An encoder-decoder's labels are its target's tokens, which
# CausalLM takes as they stand; a tag for each token is a class for each token.
_TASKS: tuple[tuple[str, type[ModelOutput]], ...] = (
    ("ForCausalLM", CausalLM),
    ("LMHeadModel", CausalLM),
    ("ForConditionalGeneration", CausalLM),
    ("MTModel", CausalLM),  # Marian's translation, an encoder-decoder
    ("EncoderDecoderModel", CausalLM),  # of text, of images (Vision...) and of speech (Speech...)
    ("ForMaskedLM", MaskedLM),
    ("ForTokenClassification", MaskedLM),
    ("ForSequenceClassification", Margin),
    ("ForImageClassification", Margin),
    ("ForAudioClassification", Margin),
    ("ForVideoClassification", Margin),
    (_CHOICES, Margin),
)


def output_for(model: Any) -> ModelOutput:
    """Choose an output by the class of a model, and say in the log which.

    A transformers model is known by the end of its class's name, a classifier of one number as a
    regression; any other model is taken for a classifier.

    Raises
    ------
    TrakStoreError
        For a transformers model of another task.
    """
    inner = inner_model(model)
    name = type(inner).__name__
    if not is_pretrained_model(inner):
        return Margin()
    kind = next((kind for end, kind in _TASKS if name.endswith(end)), None)
    if kind is None:
        raise TrakStoreError(
            f"which output a {name} has is not known: name one (output='causal_lm', 'masked_lm', "
            f"'margin', 'cross_entropy', 'squared_error'), or give a function of model and batch"
        )
    # The classes of a choice are the answers of a sample, whatever the configuration says of labels.
    if kind is Margin and not name.endswith(_CHOICES):
        kind = _of_classifier(inner.config, name)
    log.info("the output is %s, as for a %s; output= chooses another", kind.name, name)
    return kind()


def _of_classifier(config: Any, name: str) -> type[ModelOutput]:
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        raise TrakStoreError(
            f"the {name} has several labels a sample: give output= a function of model and batch that "
            f"returns the loss of each sample"
        )
    if problem == "regression" or getattr(config, "num_labels", 2) == 1:
        return SquaredError
    return Margin
