"""Whole models beside plain autograd, one sample at a time; also where a layer type is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from features.engines import check, engine, error, plain
from features.models import seeded
from features.whole_models import HUGGING_FACE, MODELS
from torch import Tensor

from trakstore.features.layers import MATCHERS, Call, Layer
from trakstore.features.projectors import Piece

SLOW = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EVERY = [
    *(pytest.param(model, id=name) for name, model in MODELS.items()),
    *(pytest.param(model, id=name, marks=SLOW) for name, model in HUGGING_FACE.items()),
]


@pytest.mark.parametrize("model", EVERY)
def test_gradients_are_those_of_autograd(model: Any) -> None:
    make, inputs, unknown = model
    check(seeded(make), *inputs, generic=unknown)


class Wrong(Layer):
    """A layer whose gradients are half as large again."""

    def __init__(self, right: Layer) -> None:
        super().__init__(right.names, right.inputs)
        self._right, self.samples_first = right, right.samples_first

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        return self._right.pieces(inputs, gradient * 1.5)


def layer_types(model: Any, inputs: Any) -> dict[object, set[str]]:
    """The torch functions that a model calls, with the parameters that each is given."""
    used: dict[object, set[str]] = {}

    def noted(function: object, matcher: Any) -> Any:
        def match(call: Call) -> Layer | None:
            layer: Layer | None = matcher(call)
            if layer is not None:
                used.setdefault(function, set()).update(layer.names)
            return layer

        return match

    with pytest.MonkeyPatch.context() as patch:
        for function, matcher in MATCHERS.items():
            patch.setitem(MATCHERS, function, noted(function, matcher))
        engine(model).rows(inputs)
    return used


@pytest.mark.parametrize("model", EVERY)
def test_a_wrong_layer_type_is_found_and_replaced(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each layer type that the model uses in turn: its parameters are named, features are right."""
    make, inputs, unknown = model
    module = seeded(make)
    expected = plain(module, inputs)
    for function, names in layer_types(module, inputs).items():
        matcher = MATCHERS[function]

        def wrong(call: Call, matcher: Any = matcher) -> Layer | None:
            layer = matcher(call)
            return layer and Wrong(layer)

        caplog.clear()
        with (
            pytest.MonkeyPatch.context() as patch,
            caplog.at_level(logging.INFO, logger="trakstore"),
        ):
            patch.setitem(MATCHERS, function, wrong)
            own = engine(module)
            assert error(own.rows(inputs).features, expected) < 1e-5
        found = set(own.generic_parameters) - set(unknown)
        assert found and found <= names
        lines = [r.message for r in caplog.records if "disagree with an ordinary" in r.message]
        assert len(lines) == 1 and sorted(found)[0] in lines[0]
