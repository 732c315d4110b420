"""Tiny language models, and texts of several lengths of which some tokens are to be predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

WORDS = 23
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
SMALL: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 16}


def llama(seed: int = 0) -> nn.Module:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model: nn.Module = tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL))
    return model


def gpt2_with_adapters(seed: int = 0) -> nn.Module:
    """A GPT-2 of which adapters alone are trained, both of whose factors are other than 0."""
    tf, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = tf.GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=8, n_layer=1, n_head=2, **ENDS)
    adapters = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model: nn.Module = peft.get_peft_model(tf.GPT2LMHeadModel(config), adapters)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def texts(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Every other text begins with a prompt of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for at in range(count):
        length = 4 + (3 * at + seed) % 5
        ids = torch.randint(1, WORDS, (length,), generator=generator).tolist()
        prompt = 2 if at % 2 else 0
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def padded_left(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padding at the left, where places in a batch are not those in a text; not for GPT-2."""
    return padded(samples, left=True)


def padded(samples: list[dict[str, list[int]]], *, left: bool = False) -> dict[str, torch.Tensor]:
    width = max(len(one["input_ids"]) for one in samples)

    def row(values: list[int], fill: int) -> list[int]:
        more = [fill] * (width - len(values))
        return more + values if left else values + more

    columns = {
        "input_ids": [row(one["input_ids"], 0) for one in samples],
        "labels": [row(one["labels"], -100) for one in samples],
        "attention_mask": [row([1] * len(one["input_ids"]), 0) for one in samples],
    }
    return {name: torch.tensor(rows) for name, rows in columns.items()}


def counted(sample: dict[str, list[int]]) -> list[int]:
    """Places of the tokens that a causal model is asked for."""
    return [at for at, one in enumerate(sample["labels"]) if at and one != -100]
