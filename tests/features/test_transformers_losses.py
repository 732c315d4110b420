"""Stored losses are those that transformers' own models give for each sample by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from features.test_sample_columns import SMALL, tokenizer

import trakstore as ts
from trakstore.features import CausalLM, MaskedLM, featurize

tf = pytest.importorskip("transformers")

TEXT = {**SMALL, "vocab_size": 20, "pad_token_id": 0, "max_position_embeddings": 16}
SIZES = [5, 7, 9, 6, 8, 4, 3, 9, 11]


def drawn(count: int, low: int, high: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count,), generator=generator).tolist()


def texts(label: Callable[[int, list[int]], Any] | None) -> list[dict[str, Any]]:
    """Rows of tokens of several lengths, with a text beside them, and labels that are made of them."""
    rows = []
    for i, n in enumerate(SIZES):
        ids = drawn(n, 2, 20, i)
        row = {"input_ids": ids, "attention_mask": [1] * n, "text": f"text {i}"}
        rows.append(row if label is None else row | {"labels": label(i, ids)})
    return rows


def some(i: int, ids: list[int]) -> list[int]:
    """Labels of about every other token."""
    return [one if (at + i) % 2 else -100 for at, one in enumerate(ids)]


def t5() -> Any:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return tf.T5ForConditionalGeneration(
        tf.T5Config(**sizes, vocab_size=20, decoder_start_token_id=0)
    )


def gpt2() -> Any:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, vocab_size=20, bos_token_id=1, eos_token_id=1))


def seq2seq(model: Any) -> Any:
    return tf.DataCollatorForSeq2Seq(tokenizer(), model=model)


def lm(_: Any) -> Any:
    return tf.DataCollatorForLanguageModeling(tokenizer(), mlm=False)


def of_tokens(_: Any) -> Any:
    return tf.DataCollatorForTokenClassification(tokenizer())


CASES: dict[str, tuple[Callable[[], Any], Any, Any, type]] = {
    "Llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)), None, lm, CausalLM),
    "GPT-2": (gpt2, None, lm, CausalLM),
    "Llama, prompts": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)),
        lambda _, ids: [-100, -100, *ids[2:]],
        seq2seq,
        CausalLM,
    ),
    "BERT": (lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT)), some, of_tokens, MaskedLM),
    "RoBERTa": (
        lambda: tf.RobertaForMaskedLM(
            tf.RobertaConfig(**TEXT | {"max_position_embeddings": 20, "pad_token_id": 0})
        ),
        some,
        of_tokens,
        MaskedLM,
    ),
    "tags": (
        lambda: tf.BertForTokenClassification(tf.BertConfig(**TEXT, num_labels=5)),
        lambda i, ids: [one % 5 if one > 0 else -100 for one in some(i, ids)],
        of_tokens,
        MaskedLM,
    ),
    "T5": (t5, lambda i, ids: [3, *ids[: 2 + i % 4], 1], seq2seq, CausalLM),
}


@pytest.mark.parametrize("over", ["sequence", "tokens", "loss"])
@pytest.mark.parametrize("case", CASES)
def test_stored_losses_are_the_models_own(case: str, over: Any, tmp_path: Path) -> None:
    make, label, collator, kind = CASES[case]
    torch.manual_seed(0)
    model, data = make(), texts(label)
    output = None if over == "sequence" else kind(over=over)
    collate = collator(model)
    featurize(
        model,
        data,
        tmp_path / "s",
        output=output,
        collate=collate,
        batch_size=4,
        projector=ts.ProjectionSpec("sjlt", dim=8),
        progress=False,
    )
    split = ts.open_store(tmp_path / "s").split(0, "train")
    stored = split.column("loss").read(0, len(data))
    model.eval()
    for row, found in zip(data, stored, strict=True):
        alone = {k: torch.tensor([value]) for k, value in row.items() if k != "text"}
        alone.setdefault("labels", alone["input_ids"])
        with torch.no_grad():
            own = model(**alone).loss.item()
        assert found == pytest.approx(own, rel=1e-5)
    assert len(set(stored.tolist())) == len(data)
