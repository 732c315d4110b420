"""Hugging Face's architectures, small and from configurations: features, and what is slow in them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from features.engines import Bent, engine, error, plain
from features.models import seeded
from torch import nn

from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import RowOutputs

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
IMAGE = {name: TEXT[name] for name in list(TEXT)[1:5]} | {"image_size": 32, "patch_size": 8}
GPT = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
PAIR = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
T5 = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MOE = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MOE |= {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

# class, configuration, what it is given, and patterns of what goes through the generic engine
ARCHITECTURES: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("LlamaForCausalLM", TEXT, "text", ()),
    ("MistralForCausalLM", TEXT | {"num_key_value_heads": 2}, "text", ()),
    ("Qwen2ForCausalLM", TEXT | {"num_key_value_heads": 2}, "text", ()),
    ("Qwen3ForCausalLM", TEXT | {"num_key_value_heads": 2, "head_dim": 8}, "text", ()),
    ("Phi3ForCausalLM", TEXT, "text", ()),
    ("GPTNeoXForCausalLM", TEXT, "text", ()),
    ("GPT2LMHeadModel", GPT, "text", ()),
    ("GemmaForCausalLM", TEXT | GROUPED, "text", ()),
    ("Gemma2ForCausalLM", TEXT | GROUPED, "text", ()),
    ("Gemma3ForCausalLM", TEXT | GROUPED, "text", ()),
    ("BertForSequenceClassification", TEXT, "text", ()),
    ("RobertaForSequenceClassification", TEXT, "text", ()),
    ("DebertaV2ForSequenceClassification", TEXT, "text", ()),
    ("ModernBertForSequenceClassification", TEXT, "text", ()),
    ("MixtralForCausalLM", TEXT | MOE, "text", ()),
    ("Qwen2MoeForCausalLM", TEXT | MOE, "text", ()),
    ("Qwen3MoeForCausalLM", TEXT | MOE | GROUPED, "text", ()),
    ("OlmoeForCausalLM", TEXT | MOE, "text", ()),
    ("MambaForCausalLM", {**TEXT, "state_size": 4}, "text", ("mixer",)),
    ("T5ForConditionalGeneration", T5, "pair", ()),
    ("BartForConditionalGeneration", PAIR, "pair", ()),
    ("ViTForImageClassification", IMAGE, "image", ()),
    ("SwinForImageClassification", SWIN, "image", ("blocks.1.attention.relative_position_bias",)),
    ("ConvNextForImageClassification", {"image_size": 32, **SIZES}, "image", ()),
    ("ResNetForImageClassification", {"embedding_size": 8, **SIZES}, "image", ()),
]


class Logits(Bent):
    """A nonlinear function of the logits of a model that takes keywords."""

    calls_alone = True

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        return super().__call__(lambda: model(**batch).logits, ())


def inputs(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "image":
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}
    ids = {"input_ids": torch.randint(3, 50, (3, 8), generator=generator)}
    if kind.endswith("pair"):
        ids["decoder_input_ids"] = torch.randint(3, 50, (3, 6), generator=generator)
        if kind == "pair":
            return ids
    mask = torch.ones(3, 8, dtype=torch.long)
    if kind.startswith("padded"):  # in one row on the right, in another on the left
        mask[1, 6:] = mask[2, :3] = 0
    return ids | {"attention_mask": mask}


def made(name: str, options: dict[str, Any], **implementations: str) -> nn.Module:
    kind = getattr(transformers, name)
    own = kind.config_class(**options)
    model: nn.Module = seeded(lambda: kind._from_config(own, **implementations))
    return model.eval()


PADDED = [
    (name, sizes, "padded text", slow)
    for name, sizes, kind, slow in ARCHITECTURES
    if kind == "text"
]


@pytest.mark.parametrize(("name", "options", "given", "slow"), [*ARCHITECTURES, *PADDED])
def test_architectures(
    name: str, options: dict[str, Any], given: str, slow: tuple[str, ...]
) -> None:
    model, batch = made(name, options), inputs(given)
    own = engine(model, output=Logits())
    assert error(own.rows(batch).features, plain(model, batch, Logits())) < 1e-5
    found = own.generic_parameters
    assert all(any(part in one for part in slow) for one in found), found
    assert all(any(part in one for one in found) for part in slow), found


def largest_error(model: nn.Module, own: FactorisedEngine, batch: Any) -> float:
    """The largest difference of a sample's features, relative to their norm."""
    expected = plain(model, batch, Logits())
    apart = (own.rows(batch).features - expected).norm(dim=1)
    return float((apart / expected.norm(dim=1)).max())


def alone(model: nn.Module, kinds: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Known layers do all of several batches, and of a single sample."""
    own = engine(model, output=Logits())
    batches = [inputs(kind) for kind in kinds]
    batches.append({name: value[1:2] for name, value in batches[-1].items()})
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        errors = [largest_error(model, own, batch) for batch in batches]
    assert max(errors) < 1e-4
    assert not own.generic_parameters
    assert not [record for record in caplog.records if record.name == "trakstore"]


FAST = {name: (options, kind) for name, options, kind, slow in ARCHITECTURES if not slow}
GIVEN = {"text": ["text", "padded text"], "pair": ["pair", "padded pair"], "image": ["image"]}
ASKED = """
Llama Qwen2 Qwen3 Mistral Gemma Gemma2 Gemma3 GPTNeoX Mixtral Qwen2Moe Qwen3Moe Olmoe
"""
NAMES = [f"{name}ForCausalLM" for name in ASKED.split()] + ["GPT2LMHeadModel"]
NAMES += ["BertForSequenceClassification", "ViTForImageClassification"]
NAMES += ["T5ForConditionalGeneration"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_known_layers_do_all_of_what_people_have(
    name: str, attention: str, caplog: pytest.LogCaptureFixture
) -> None:
    options, kind = FAST[name]
    if name == "Gemma2ForCausalLM" and attention == "sdpa":
        pytest.skip("transformers has no such attention of it")
    model = made(name, options, attn_implementation=attention)
    alone(model, GIVEN[kind], caplog)


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_experts_however_their_products_are_done(
    name: str, experts: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(name, FAST[name][0], experts_implementation=experts)
    alone(model, GIVEN["text"], caplog)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings(tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = made("LlamaForCausalLM", TEXT | {"tie_word_embeddings": tied})
    alone(model, GIVEN["text"], caplog)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("LlamaForCausalLM", ["q_proj", "v_proj", "down_proj"]),
        ("GPT2LMHeadModel", ["c_attn", "c_proj"]),
    ],
)
def test_adapters(
    name: str, targets: list[str], dora: bool, caplog: pytest.LogCaptureFixture
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=dora)
    base = made(name, FAST[name][0])
    alone(seeded(lambda: peft.get_peft_model(base, config)).eval(), GIVEN["text"], caplog)


def test_frozen_weights_stay_the_models_own_after_python_has_read_a_mask() -> None:
    """A mask of attention is only made where some token is masked, which Python reads of the batch."""
    peft = pytest.importorskip("peft")
    base = made("LlamaForCausalLM", TEXT)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = seeded(lambda: peft.get_peft_model(base, config)).eval()
    batch = inputs("padded text")
    own = engine(model, output=Logits())
    assert error(own.rows(batch).features, plain(model, batch, Logits())) < 1e-5
    assert not own.generic_parameters and own.rows(batch).features.any()
