"""Outputs that nobody named: what the class of a model asks for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Job, featurize
from trakstore.features.outputs import output_for

tf = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {**SMALL, "vocab_size": 20}
T5 = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 20}

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
