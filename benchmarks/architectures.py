"""Architectures of transformers: what goes by known layers, and what features cost beside training.

    python benchmarks/architectures.py [NAME ...] [--small] [--rounds 5] [--attention eager]

A line for each: parameters that are featurized, the share of them that goes by known layers (the rest
goes by the generic engine), the time of features (``sjlt``, 2,048 numbers) over that of a forward and
backward pass of the mean loss, as training does it without an optimiser, and the kinds of layers by
their calls. Both take batches of 16 and alternate in one process; medians are compared. All models are
small, of random weights and from configurations, but wide enough that products are what takes time.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from models import compared
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import ModelOutput, RowOutputs
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.layers import Layer
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.features.tape import Tape

SMALL = {"width": 16, "layers": 1, "inner": 24, "vocabulary": 50, "time": 8, "batch": 3}
LARGE = {"width": 256, "layers": 4, "inner": 688, "vocabulary": 4096, "time": 128, "batch": 16}
EXPERTS = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2}

# Name in the table, class, what is different about its configuration, and an adapter.
NAMES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", {}, ""),
    "llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}, ""),
    "llama, lora": ("LlamaForCausalLM", {}, "lora"),
    "llama, dora": ("LlamaForCausalLM", {}, "dora"),
    "qwen2": ("Qwen2ForCausalLM", {}, ""),
    "qwen3": ("Qwen3ForCausalLM", {}, ""),
    "mistral": ("MistralForCausalLM", {}, ""),
    "gemma": ("GemmaForCausalLM", {}, ""),
    "gemma2": ("Gemma2ForCausalLM", {}, ""),
    "gemma3": ("Gemma3ForCausalLM", {}, ""),
    "gpt2": ("GPT2LMHeadModel", {}, ""),
    "gpt2, lora": ("GPT2LMHeadModel", {}, "lora"),
    "gpt2, dora": ("GPT2LMHeadModel", {}, "dora"),
    "gpt-neox": ("GPTNeoXForCausalLM", {}, ""),
    "bert": ("BertForSequenceClassification", {}, ""),
    "vit": ("ViTForImageClassification", {}, ""),
    "t5": ("T5ForConditionalGeneration", {}, ""),
    "mixtral": ("MixtralForCausalLM", EXPERTS, ""),
    "qwen2-moe": ("Qwen2MoeForCausalLM", EXPERTS, ""),
    "qwen3-moe": ("Qwen3MoeForCausalLM", EXPERTS, ""),
    "olmoe": ("OlmoeForCausalLM", EXPERTS, ""),
}


class OwnLoss(ModelOutput):
    """Mean cross-entropy of a sample: of its next tokens, its target tokens or its class."""

    name = "own_loss"
    calls_alone = True

    def __call__(self, model: Callable[..., Any], batch: dict[str, Tensor]) -> RowOutputs:
        inputs = dict(batch)
        labels = inputs.pop("labels", None)
        if labels is not None and labels.ndim == 2:  # of an encoder and a decoder
            inputs["decoder_input_ids"] = labels
        logits = model(**inputs).logits
        targets = inputs["input_ids"] if labels is None else labels
        if targets.ndim == 2:
            before, after = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
            losses = F.cross_entropy(before, after, reduction="none")
            loss = losses.reshape(len(targets), -1).mean(1)
        else:
            loss = F.cross_entropy(logits, targets, reduction="none")
        return RowOutputs(loss, loss, -torch.ones_like(loss))


def configuration(kind: Any, sizes: dict[str, int], changes: dict[str, Any]) -> Any:
    """A configuration of these sizes, under the names that this architecture has for them."""
    heads = 2 if sizes["width"] < 64 else 4
    head, inner = sizes["width"] // heads, sizes["inner"]
    given = {
        "vocab_size": sizes["vocabulary"],
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head,
        "intermediate_size": inner,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
        "pad_token_id": 0,
    }
    if kind.model_type == "gpt2":
        given = {"vocab_size": sizes["vocabulary"], "n_embd": sizes["width"], "n_head": heads}
        given |= {"n_layer": sizes["layers"], "n_positions": sizes["time"]}
    if kind.model_type == "t5":
        given = {"vocab_size": sizes["vocabulary"], "d_model": sizes["width"], "d_kv": head}
        given |= {"d_ff": inner, "num_layers": sizes["layers"], "num_heads": heads}
        given |= {"decoder_start_token_id": 0, "pad_token_id": 0}
    if kind.model_type == "vit":
        given.pop("vocab_size")
        given |= {"image_size": 64, "patch_size": 8, "num_labels": 10}
    if kind.model_type == "bert":
        given |= {"num_labels": 10}
    return kind(**(given | changes))


def made(name: str, sizes: dict[str, int], attention: str) -> nn.Module:
    """A model of random weights, in eval mode."""
    import transformers

    torch.manual_seed(0)
    which, changes, adapter = NAMES[name]
    kind = getattr(transformers, which)
    config = configuration(kind.config_class, sizes, changes)
    model = kind._from_config(
        config, attn_implementation="eager" if name == "gemma2" else attention
    )
    if adapter:
        import peft

        targets = ["c_attn", "c_proj", "c_fc"] if which.startswith("GPT2") else "all-linear"
        lora = peft.LoraConfig(
            r=8, target_modules=targets, init_lora_weights=False, use_dora=adapter == "dora"
        )
        model = peft.get_peft_model(model, lora)
    return model.eval()  # type: ignore[no-any-return]


def batch_of(name: str, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Samples without padding."""
    generator = torch.Generator().manual_seed(1)
    size, shape = sizes["batch"], (sizes["batch"], sizes["time"])
    classes = torch.randint(0, 10, (size,), generator=generator)
    if name == "vit":
        return {
            "pixel_values": torch.randn(size, 3, 64, 64, generator=generator),
            "labels": classes,
        }
    ids = {"input_ids": torch.randint(3, sizes["vocabulary"], shape, generator=generator)}
    ids["attention_mask"] = torch.ones(shape, dtype=torch.long)
    if name == "bert":
        return ids | {"labels": classes}
    if name == "t5":
        return ids | {"labels": torch.randint(3, sizes["vocabulary"], shape, generator=generator)}
    return ids


def rules(engine: FactorisedEngine, batch: dict[str, Tensor]) -> Counter[str]:
    """The layers whose gradients are taken in a pass, by their classes."""
    kinds: Counter[str] = Counter()
    watch = Tape._watch

    def counted(tape: Tape, layer: Layer, *rest: Any) -> None:
        kinds[type(layer).__name__] += 1
        watch(tape, layer, *rest)

    Tape._watch = counted  # type: ignore[method-assign]
    try:
        engine.rows(batch)
    finally:
        Tape._watch = watch  # type: ignore[method-assign]
    return kinds


class Warnings(logging.Handler):
    """Lines in which an engine says that some of a batch was not done by known layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def line(name: str, small: bool, rounds: int, attention: str) -> str:
    """One line of the table."""
    sizes = SMALL if small else LARGE
    model, batch, output = made(name, sizes, attention), batch_of(name, sizes), OwnLoss()
    selected = select_parameters(model)
    spec = ts.ProjectionSpec("sjlt", dim=64 if small else 2048)
    engine = FactorisedEngine(
        model, output, selected, make_projector(spec, parameter_spec(selected, "*"))
    )
    noted = Warnings()
    logging.getLogger("trakstore").addHandler(noted)
    engine.rows(batch)
    every = list(selected.values())
    total = sum(p.numel() for p in every)
    slow = sum(engine._parameters[one].numel() for one in engine.generic_parameters)

    def train() -> None:
        torch.autograd.grad(output(model, batch).loss.mean(), every)

    runs = {"training": (train, len(batch)), "features": (lambda: engine.rows(batch), len(batch))}
    seconds = compared(runs, rounds)
    logging.getLogger("trakstore").removeHandler(noted)
    ratio = seconds["features"] / seconds["training"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in rules(engine, batch).most_common())
    mark = f"  {len(noted.lines)} warnings" if noted.lines else ""
    share = 100 * (1 - slow / total)
    return f"{name:12} {total:>12,} {share:>6.1f}% {ratio:>6.2f}  {kinds}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[])
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'architecture':12} {'parameters':>12} {'known':>7} {'time':>6}  layers")
    for name in options.names or NAMES:
        rounds = 2 if options.small else options.rounds
        print(line(name, options.small, rounds, options.attention), flush=True)


if __name__ == "__main__":
    main()
