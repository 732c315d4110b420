"""Which functions did a Hugging Face model learn to write others from? With a Trainer, and with LoRA.

    python examples/huggingface.py [--out runs/huggingface] [--lora]

Trains a small Llama on functions of Python's standard library by ``transformers.Trainer``, which
saves checkpoints into a folder. Two processes of torchrun then featurize that folder; for a few prompts
the functions are listed that made them likelier, and a report shows them, as text by the collator's
tokenizer. With ``--lora`` the model is first trained on half of the functions, and then a LoRA adapter
of it on all, whose checkpoints are featurized. Needs transformers, accelerate and the report extra, for
LoRA also peft. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from language_model import PROMPTS, functions
from transformers import (
    ByT5Tokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import trakstore as ts
from trakstore.features import Job
from trakstore.report import write_report

# The environment tells the ranks where the runs are.
OUT, DEFAULT, LENGTH = "TRAKSTORE_EXAMPLE", "runs/huggingface", 192


@cache
def tokenizer() -> ByT5Tokenizer:
    """Bytes are tokens: nothing has to be downloaded."""
    return ByT5Tokenizer()


def rows(texts: list[str], whole: bool) -> list[dict[str, Any]]:
    """Tokens of each text, of its own length, for the collator pads them; an end behind whole ones."""
    cut = {"truncation": True, "max_length": LENGTH, "add_special_tokens": whole}
    return [dict(tokenizer()(text, **cut)) for text in texts]


def library(count: int | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and rows of the functions that are learned."""
    chosen = functions()[:count]
    names = [f"{at} {one.name}" for at, one in enumerate(chosen)]
    return names, rows([one.source for one in chosen], whole=True)


def new_model() -> LlamaForCausalLM:
    """Three layers of width 128; the embedding is the head, as in small Llamas."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer().vocab_size + 128,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
        )
    )


def with_adapter(base: Any) -> Any:
    """The model with a LoRA adapter, which alone is trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))


def train(model: Any, data: list[dict[str, Any]], out: Path, steps: int, rate: float) -> None:
    """Train by a Trainer that saves its checkpoints in ``out``, the last and two before."""
    arguments = TrainingArguments(
        str(out),
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=16,
        save_steps=max(1, steps // 3),
        logging_steps=max(1, steps // 12),
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(model, arguments, train_dataset=data, data_collator=collator()).train()


def collator() -> DataCollatorForLanguageModeling:
    """Pads a batch and makes its labels, -100 on the padding."""
    return DataCollatorForLanguageModeling(tokenizer(), mlm=False)


def job() -> Job:
    """The job that ``trakstore featurize examples/huggingface.py:job`` names."""
    out = Path(os.environ.get(OUT, DEFAULT))
    names, data = library(int((out / "functions").read_text()) or None)
    model: Any = new_model()
    if (out / "base").is_dir():
        model = with_adapter(LlamaForCausalLM.from_pretrained(out / "base"))
    return Job(
        model,
        {"train": data, "test": rows(list(PROMPTS), whole=False)},
        checkpoints=out / "trainer",
        projector=ts.ProjectionSpec("sjlt", dim=1024),
        collate=collator(),
        ids={"train": names, "test": list(PROMPTS)},
        batch_size=32,
    )


def featurize(out: Path) -> None:
    """Featurize every checkpoint of the Trainer's folder on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "trakstore", "featurize", f"{__file__}:job", "--store", str(out / "run.zarr")]
    subprocess.run(command, check=True)


def main() -> None:
    """Train, featurize, ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(DEFAULT))
    parser.add_argument("--lora", action="store_true", help="train an adapter of a trained model")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--functions", type=int, default=0, help="of the library; else all")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True)
    (out / "functions").write_text(str(options.functions))
    os.environ[OUT] = str(out)
    names, data = library(options.functions or None)
    print(f"{len(names)} functions")
    model: Any = new_model()
    if options.lora:
        train(model, data[::2], out / "before", options.steps, 1e-3)
        model.save_pretrained(out / "base")
        model = with_adapter(model)
    train(model, data, out / "trainer", options.steps, 1e-3)
    featurize(out)
    store = ts.open_store(out / "run.zarr")
    top = ts.top_k(ts.trak_scores(store), 5)
    for row, prompt in enumerate(PROMPTS):
        print(f"\n{prompt!r}")
        for at, score in zip(top["position"].values[row], top["score"].values[row], strict=True):
            print(f"   {score:+.3g}  {names[at].partition(' ')[2]}")
    write_report(store, out / "report.html", job=job())
    print(f"\nlook at {out / 'report.html'}")


if __name__ == "__main__":
    main()
