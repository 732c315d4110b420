"""Outputs that use more of the model than its forward, featurized: the engines lend them the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import featurize

ROWS, WORDS, LENGTH = 6, 23, 7


class Rows(list[Any]):
    pass


def stored(model: nn.Module, rows: list[Any], output: Any, where: Path, **more: Any) -> Any:
    spec = ts.ProjectionSpec("identity")
    featurize(
        model,
        Rows(rows),
        where,
        output=output,
        projector=spec,
        batch_size=4,
        progress=False,
        **more,
    )
    return np.asarray(ts.open_store(where).features(0, "train").values)


def plain(model: nn.Module, rows: list[Any], scalar: Any) -> np.ndarray[Any, Any]:
    """Gradients by ordinary backward passes, a row at a time."""
    found = []
    for row in rows:
        batch = torch.utils.data.default_collate([row])
        gradients = torch.autograd.grad(
            scalar(model.eval(), batch).sum(),
            list(model.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )
        found.append(torch.cat([one.reshape(-1) for one in gradients]).numpy())
    return np.array(found)


def relative(found: Any, wanted: Any) -> float:
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(6, 5), 2.0
        self.parts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return -(self.first(torch.tanh(self.parts[0](x))) ** 2).sum(1)


USES: dict[str, Any] = {
    "method": lambda m, b: m.log_prob(b[0]),
    "attribute": lambda m, b: m(b[0]).sum(1) * m.scale,
    "part": lambda m, b: m.parts[1](b[0])[:, 1],
    "weights": lambda m, b: (m(b[0]) ** 2).sum(1) + (m.first.weight**2).sum(),
}


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_functions_that_use_the_model(tmp_path: Path, use: Any, autocast: Any) -> None:
    torch.manual_seed(0)
    model, rows = Flow(), [(torch.randn(6),) for _ in range(ROWS)]
    found = stored(model, rows, use, tmp_path / "s", autocast=autocast)
    assert relative(found, plain(model, rows, use)) < (1e-5 if autocast is None else 0.05)


@pytest.mark.parametrize("output", ["causal_lm", "masked_lm"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_rows_of_an_encoder_decoder_with_labels_alone(
    tmp_path: Path, kind: str, output: str
) -> None:
    """Source and target of one length, so that the encoder's mask has the shape of the labels."""
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "t5":
        config = {
            "d_kv": 4,
            "d_ff": 8,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        }
        config |= {"vocab_size": WORDS, "d_model": 8}
        model = tf.T5ForConditionalGeneration(tf.T5Config(**config))
    else:
        config = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers",)}
        config |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
        config |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16}
        model = tf.BartForConditionalGeneration(
            tf.BartConfig(vocab_size=WORDS, d_model=8, **config)
        )
    rows = []
    for row in range(ROWS):
        mask = (torch.arange(LENGTH) < LENGTH - row % 4).long()
        labels = torch.randint(3, WORDS, (LENGTH,))
        labels[LENGTH - row % 3 :] = -100
        ids = torch.randint(3, WORDS, (LENGTH,))
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def odds(model: Any, batch: Any) -> Tensor:
        loss = model(**batch).loss
        return -loss - torch.log(-torch.expm1(-loss))

    found = stored(model, rows, output, tmp_path / "s")
    assert relative(found, plain(model, rows, odds)) < 1e-4


class Nano(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        hidden = self.embed(idx)
        if targets is None:
            return self.head(hidden[:, [-1]]), None
        logits = self.head(hidden)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_a_forward_that_wants_targets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = Nano(), [(torch.randint(0, WORDS, (LENGTH,)),) for _ in range(ROWS)]

    def odds(model: Any, batch: Any) -> Tensor:
        logits = model(batch[0], batch[0])[0][:, :-1]
        loss = F.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:])
        return -loss - torch.log(-torch.expm1(-loss))

    found = stored(model, rows, "causal_lm", tmp_path / "s")
    assert relative(found, plain(model, rows, odds)) < 1e-4
