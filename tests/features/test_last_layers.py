"""The layers that are used last, whatever the order in which a model registers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from features.models import Recurrent, mlp
from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.last_layers import last_layers
from trakstore.features.parameters import select_parameters


class Links(nn.Module):
    """Scores of all entities, whose embeddings are the input of the model and its output weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entity, self.relation = nn.Embedding(9, 4), nn.Embedding(3, 4)
        self.fc = nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(4)
        self.bias = nn.Parameter(torch.zeros(9))

    def forward(self, head: Any, relation: Any) -> Any:
        both = torch.cat([self.entity(head), self.relation(relation)], -1)
        hidden = self.norm(self.fc(both)).relu()
        return hidden @ self.entity.weight.T + self.bias * len(self.relation.weight)


@pytest.mark.parametrize(
    ("count", "names", "words"),
    [
        (1, ["entity.weight"], "entity (9 x 4)"),
        (2, ["entity.weight", "fc.weight", "fc.bias"], "entity (9 x 4), fc (4 x 8)"),
        (9, ["entity.weight", "relation.weight", "fc.weight", "fc.bias"], None),
    ],
)
def test_entity_embeddings_are_the_output_layer(
    count: int, names: list[str], words: str | None
) -> None:
    model, pair = Links().eval(), (torch.tensor([3]), torch.tensor([1]))
    found = last_layers(model, count, lambda: model(*pair))
    assert sorted(found.patterns) == sorted(names)
    assert list(select_parameters(model, found.patterns)) == names
    assert words is None or found.words == words


def test_the_order_is_that_of_use_not_of_registration() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.first = nn.Linear(5, 3), nn.Linear(12, 5)

        def forward(self, x: Any) -> Any:
            answer = self.out(self.first(x).tanh())
            assert self.first.weight.shape  # a look at a weight is no use of it
            return answer

    model = Backwards()
    found = last_layers(model, 1, lambda: model(torch.ones(2, 12)))
    assert found.patterns == ("out.weight", "out.bias")


def test_recurrent_frozen_and_own_weights() -> None:
    model = Recurrent()
    found = last_layers(model, 2, lambda: model(torch.ones(2, 12)))
    assert found.words == "head (3 x 5), gru (15 x 3)"
    model.head.requires_grad_(False)
    found = last_layers(model, 1, lambda: model(torch.ones(2, 12)))
    assert found.words == "gru (15 x 3)" and len(found.patterns) == 4
    lone = nn.Linear(4, 2)
    assert last_layers(lone, 1, lambda: lone(torch.ones(1, 4))) == (
        ("weight", "bias"),
        "the model (2 x 4)",
    )
    norm = nn.LayerNorm((2, 3))
    with pytest.raises(TrakStoreError, match="no layer with a trainable weight"):
        last_layers(norm, 1, lambda: norm(torch.ones(2, 3)))


def test_the_plain_case_is_the_last_module() -> None:
    model = mlp()
    assert last_layers(model, 1, lambda: model(torch.ones(1, 12))).patterns == (
        "2.weight",
        "2.bias",
    )
