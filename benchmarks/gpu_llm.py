"""The part `llm` of gpu.py: features of a Llama-like model with random weights, by the engine alone."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from card import Card
from torch import nn

import trakstore as ts
from trakstore.features.devices import working_on
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector

TINY = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "vocab_size": 512}
# Sizes of 1.3e8 and 1.1e9 parameters, their dtypes, batches and tokens.
MODELS: dict[str, tuple[dict[str, int], str, int, int]] = {
    "1.1e9": (
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
        "bfloat16",
        8,
        512,
    ),
    "1.3e8": (
        {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "vocab_size": 32000,
        },
        "float32",
        16,
        512,
    ),
}
KINDS: tuple[tuple[str, dict[str, int]], ...] = (
    ("sjlt", {"dim": 4096}),
    ("sjlt", {"dim": 32768}),
    ("kronecker", {"dim": 4096, "side": 16}),
    ("kronecker", {"dim": 4096, "side": 64}),
)


def llm(card: Card) -> None:
    """Engines beside a plain forward and backward pass of the same model, dtype and batch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    card.ceilings()
    for name, (sizes, dtype, batch, length) in card.in_time(MODELS.items()):
        if card.small:
            sizes, batch, length = {**TINY, "num_attention_heads": 4}, 2, 8
        torch.manual_seed(0)
        with card.device:
            config = LlamaConfig(**sizes, tie_word_embeddings=False)  # type: ignore[arg-type]
            model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
            ids = torch.randint(0, sizes["vocab_size"], (batch, length))
        model_figures(card, model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, name)
        del model
        gc.collect()


def model_figures(card: Card, model: nn.Module, inputs: Any, name: str) -> None:
    parameters, tokens = list(model.parameters()), inputs["input_ids"].numel()
    batch, count = len(inputs["input_ids"]), sum(p.numel() for p in parameters)
    dtype, output = parameters[0].dtype, as_output("causal_lm")

    def floor() -> None:
        torch.autograd.grad(output(model, inputs).loss.mean(), parameters)

    plain = card.seconds(floor, rounds=3)
    # Each parameter takes part in two operations a token forward, and in four backward.
    products = 6 * count * tokens
    rate = card.multiplied_exactly if dtype == torch.float32 else card.multiplied
    there = 2 * batch * count * dtype.itemsize / card.copied
    card.tell(
        f"llama {name} ({count:,} parameters), {dtype}, batch {batch} x {tokens // batch}: forward "
        f"and backward {1e3 * plain:.4g} ms, {card.launches(floor)} launches; its products alone "
        f"{1e3 * products / rate:.4g} ms; all per-sample gradients written and read "
        f"{1e3 * there:.4g} ms",
        model=name,
        plain=plain,
        products=products / rate,
        gradients=there,
    )
    for kind, how in card.in_time(KINDS):
        engine_figure(card, model, inputs, (kind, {**how, "dim": 64} if card.small else how), plain)
    for side in card.in_time((16, 64)):
        beside_bergson(card, model, inputs, 4 if card.small else side, plain)


def engine_figure(
    card: Card, model: nn.Module, inputs: Any, how: tuple[str, dict[str, int]], plain: float
) -> None:
    kind, sizes = how
    chosen = ts.ProjectionSpec(kind, **sizes)  # type: ignore[arg-type]
    selected = select_parameters(model, ("*",))
    projector = make_projector(chosen, parameter_spec(selected, ("*",)))
    with working_on(card.device):
        engine = FactorisedEngine(model, as_output("causal_lm"), selected, projector)

        def run() -> None:
            engine.rows(inputs)

        taken = card.seconds(run, rounds=3, warm=3)
        peak, launches = card.peak(run), card.launches(run)
    generic = len(engine.generic_parameters)
    card.tell(
        f"{kind} {sizes}: {1e3 * taken:.4g} ms, {taken / plain:.2f} x plain, "
        f"{inputs['input_ids'].numel() / taken:,.0f} tokens/s, {launches} launches, peak "
        f"{peak / 2**30:.1f} GiB, {generic} parameters by the generic engine",
        kind=kind,
        **sizes,
        seconds=taken,
        ratio=taken / plain,
        launches=launches,
        peak=peak,
    )


def beside_bergson(card: Card, model: nn.Module, inputs: Any, side: int, plain: float) -> None:
    """The same model by bergson, whose projections are of side x side a module; optional."""
    try:
        step = bergson_step(model, inputs, side)
        taken = card.seconds(step, rounds=3)
    except Exception as error:  # noqa: BLE001  (another library, which may raise anything)
        reason = (str(error).splitlines() or [""])[0][:120]
        card.tell(f"bergson is passed over: {type(error).__name__}: {reason}")
        return
    text = f"bergson {side} x {side} a module: {1e3 * taken:.4g} ms, {taken / plain:.2f} x plain"
    card.tell(text, side=side, seconds=taken, ratio=taken / plain)


def bergson_step(model: nn.Module, inputs: Any, side: int) -> Callable[[], None]:
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    linear = {
        name
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and name != "lm_head"
    }
    collector = InMemoryCollector(
        model=model,
        data=Dataset.from_dict({"i": list(range(len(inputs["input_ids"])))}),
        cfg=IndexConfig(run_path=tempfile.mkdtemp()),
        target_modules=linear,
        processor=GradientProcessor(projection_dim=side),
    )
    output = as_output("causal_lm")

    def step() -> None:
        with collector:
            output(model, inputs).loss.sum().backward()
        collector.mod_grads.clear()
        model.zero_grad()

    return step
