"""Layers whose per-sample gradients are known from activations and output gradients.

A new layer is a file whose ``MATCHERS`` say, for some torch functions, which pieces of which
parameters' gradients a call gives, and a line in ``MATCHERS`` below. The function also needs a rule in
``features/axes``, or else the samples are lost behind it. Functions in no file go through the generic
engine.
"""

from __future__ import annotations

from trakstore.features.layers import (
    convolution,
    elementwise,
    embedding,
    experts,
    linear,
    normalisation,
)
from trakstore.features.layers.attention import SEEN_THROUGH
from trakstore.features.layers.derived import Derived
from trakstore.features.layers.layer import Call, Layer, Matcher, Some

__all__ = ["MATCHERS", "SEEN_THROUGH", "Call", "Derived", "Layer", "Some"]

MATCHERS: dict[object, Matcher] = {
    **linear.MATCHERS,
    **convolution.MATCHERS,
    **embedding.MATCHERS,
    **experts.MATCHERS,
    **normalisation.MATCHERS,
    **elementwise.MATCHERS,
}
