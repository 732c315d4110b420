"""Outputs that nobody named: what the class of a model asks for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Job, Margin, RowOutputs, featurize
from trakstore.features.outputs import output_for

tf = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {**SMALL, "vocab_size": 20}
T5 = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 20}

MARIAN = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 8,
    "vocab_size": 20,
}
MARIAN |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
MARIAN |= {"pad_token_id": 0, "decoder_start_token_id": 0, "max_position_embeddings": 16}


def composed(kind: str, encoder: Any) -> Any:
    decoder = {**TEXT, "is_decoder": True, "add_cross_attention": True}
    model = getattr(tf, kind)(encoder=encoder, decoder=tf.BertLMHeadModel(tf.BertConfig(**decoder)))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model


def vision_encoder() -> Any:
    return tf.ViTModel(tf.ViTConfig(**SMALL, image_size=8, patch_size=4))


MODELS: dict[str, tuple[Any, str]] = {
    "a causal language model": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)), "causal_lm"),
    "GPT-2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20)),
        "causal_lm",
    ),
    "a masked language model": (lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT)), "masked_lm"),
    "tags": (lambda: tf.BertForTokenClassification(tf.BertConfig(**TEXT)), "masked_lm"),
    "an encoder and a decoder": (
        lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)),
        "causal_lm",
    ),
    "a classifier of text": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT, num_labels=3)),
        "margin",
    ),
    "a regression on text": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT, num_labels=1)),
        "squared_error",
    ),
    "a classifier of images": (
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**SMALL, image_size=8, patch_size=4)),
        "margin",
    ),
    "translation": (lambda: tf.MarianMTModel(tf.MarianConfig(**MARIAN)), "causal_lm"),
    "two texts": (
        lambda: composed("EncoderDecoderModel", tf.BertModel(tf.BertConfig(**TEXT))),
        "causal_lm",
    ),
    "an image and a text": (
        lambda: composed("VisionEncoderDecoderModel", vision_encoder()),
        "causal_lm",
    ),
    "a choice": (lambda: tf.BertForMultipleChoice(tf.BertConfig(**TEXT)), "margin"),
    "a choice of one label": (
        lambda: tf.BertForMultipleChoice(tf.BertConfig(**TEXT, num_labels=1)),
        "margin",
    ),
    "any other model": (lambda: nn.Linear(3, 2), "margin"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_class_of_a_model_tells_its_output(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, name = MODELS[kind]
    model = make()
    with caplog.at_level(logging.INFO, logger="trakstore"):
        assert output_for(model).name == name
    said = [r.message for r in caplog.records if f"the output is {name}" in r.message]
    assert len(said) == (not isinstance(model, nn.Linear))


def test_a_wrapped_model_is_known_by_what_it_wraps() -> None:
    peft = pytest.importorskip("peft")
    model = MODELS["a causal language model"][0]()
    assert output_for(nn.DataParallel(model)).name == "causal_lm"
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert Job(adapted, {}).output.name == "causal_lm"  # type: ignore[union-attr]


def test_features_are_those_of_the_output_that_the_model_has(tmp_path: Path) -> None:
    model = MODELS["a causal language model"][0]()
    rows = [{"input_ids": torch.arange(i, i + 6)} for i in range(5)]
    named = {"projector": ts.ProjectionSpec("identity"), "progress": False}
    featurize(model, rows, tmp_path / "chosen.zarr", **named)
    featurize(model, rows, tmp_path / "named.zarr", output="causal_lm", **named)
    chosen, asked = (ts.open_store(tmp_path / f"{one}.zarr") for one in ("chosen", "named"))
    assert chosen.spec == asked.spec
    torch.testing.assert_close(
        chosen.features(0, "train").values, asked.features(0, "train").values
    )


TOKENS = {"input_ids": torch.arange(3, 9), "labels": torch.tensor([5, 4, 9, 2])}
IMAGE = {"pixel_values": torch.linspace(-1, 1, 192).reshape(3, 8, 8), "labels": TOKENS["labels"]}
ANSWERS = {"input_ids": torch.arange(3, 18).reshape(3, 5), "labels": torch.tensor(2)}


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("translation", TOKENS),
        ("two texts", TOKENS),
        ("an image and a text", IMAGE),
        ("a choice", ANSWERS),
        ("a choice of one label", ANSWERS),
    ],
)
def test_rows_are_of_the_loss_that_the_model_trains_on(
    kind: str, row: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = MODELS[kind][0]().double().eval()
    row = {k: v.double() if v.is_floating_point() else v for k, v in row.items()}
    other = torch.zeros_like(row["labels"]) + 1
    rows = [row, {**row, "labels": other}]
    featurize(
        model, rows, tmp_path / "a.zarr", projector=ts.ProjectionSpec("identity"), progress=False
    )
    store = ts.open_store(tmp_path / "a.zarr")
    named = dict(model.named_parameters())
    parameters = [named[name] for name, _ in store.spec.parameters.shapes]
    for one, features in zip(rows, store.features(0, "train").values, strict=True):
        loss = model(**{name: value[None] for name, value in one.items()}).loss
        # Both outputs are the log-odds of p = exp(-loss).
        log_odds = -loss - torch.log(-torch.expm1(-loss))
        gradients = torch.autograd.grad(
            log_odds, parameters, allow_unused=True, materialize_grads=True
        )
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        assert float(whole.norm()) > 0.01
        torch.testing.assert_close(
            torch.from_numpy(features).double(), whole, rtol=1e-5, atol=1e-6 * float(whole.norm())
        )


def test_the_advice_for_one_logit_is_the_margin_of_two_classes(tmp_path: Path) -> None:
    data = [(torch.randn(3), i % 2) for i in range(6)]
    number, where = nn.Linear(3, 1), tmp_path / "a.zarr"
    message = r"'squared_error' where it is a regression's; .*of x = \(2 \* y - 1\) \* z"
    for rows in (data, [(x, float(y)) for x, y in data]):
        for output in ("margin", "cross_entropy"):
            with pytest.raises(TrakStoreError, match=message):
                featurize(number, rows, where, output=output, progress=False)

    def advised(model: Any, batch: Any) -> RowOutputs:
        z, y = model(batch[0])[:, 0], batch[1]
        x = (2 * y - 1) * z
        return RowOutputs(x, F.softplus(-x), torch.sigmoid(-x))

    # The same classifier with two logits, of which the first is zero.
    two = nn.Linear(3, 2)
    with torch.no_grad():
        for whole, own in zip(two.parameters(), number.parameters(), strict=True):
            whole.zero_()
            whole[1:] = own
    batch = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
    for got, wanted in zip(advised(number, batch), Margin()(two, batch), strict=True):
        torch.testing.assert_close(got, wanted)
    loss = F.binary_cross_entropy_with_logits(
        number(batch[0])[:, 0], batch[1].float(), reduction="none"
    )
    torch.testing.assert_close(advised(number, batch).loss, loss)
    rows = []
    for model, output in ((number, advised), (two, "margin")):
        place = tmp_path / f"{len(rows)}.zarr"
        whole_rows = ts.ProjectionSpec("identity")
        featurize(model, data, place, output=output, projector=whole_rows, progress=False)
        rows.append(ts.open_store(place).features(0, "train").values)
    # Weights of the second class, then its bias.
    np.testing.assert_allclose(rows[0], rows[1][:, [3, 4, 5, 7]], rtol=1e-5)


def test_what_cannot_be_known_says_what_to_name(tmp_path: Path) -> None:
    config = tf.BertConfig(**TEXT, num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(TrakStoreError, match=r"several labels a sample: give output= a function"):
        output_for(tf.BertForSequenceClassification(config))
    with pytest.raises(
        TrakStoreError, match=r"which output a BertModel has is not known: name one"
    ):
        output_for(tf.BertModel(config))
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    rows: list[tuple[torch.Tensor, Any]] = [(torch.arange(5), 1) for _ in range(4)]
    where = tmp_path / "a.zarr"
    with pytest.raises(TrakStoreError, match=r"asked by output='causal_lm' or 'masked_lm'"):
        featurize(tokens, rows, where, progress=False)
    with pytest.raises(TrakStoreError, match=r"asked by output='squared_error'"):
        featurize(nn.Linear(3, 1), [(torch.ones(3), 0)] * 4, where, progress=False)
    with pytest.raises(TrakStoreError, match=r"asked by output='margin'"):
        data = [(torch.ones(3), torch.tensor([1, 2]))] * 4
        featurize(nn.Linear(3, 2), data, where, output="causal_lm", progress=False)
    assert not where.exists()
