"""Which functions of Python's own library taught a small language model to go on as it does?

    python examples/language_model.py [--steps 1500]

Trains a causal transformer on the bytes of some modules of the standard library, function by
function, featurizes three checkpoints, and lists for a few prompts the functions that made them
likelier, and those that made them less so. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import CausalLM, Job, featurize_job

MODULES = """
    argparse bisect calendar collections configparser csv dataclasses datetime difflib fractions heapq
    html.parser inspect json.decoder json.encoder logging pathlib pprint random shlex shutil statistics
    string tarfile tempfile textwrap threading unittest.case urllib.parse zipfile
"""
PROMPTS = (
    "def __enter__(self):\n    return self\n",
    'raise ValueError("invalid ',
    "for i in range(len(",
    "self._lock.acquire()\n    try:\n",
)
LENGTH, WIDTH, LAYERS = 192, 128, 3


@dataclass(frozen=True)
class Function:
    """A function's name and its source, without what it is indented by."""

    name: str
    source: str


def functions() -> list[Function]:
    """All functions and methods of the modules that are longer than a line or two."""
    found = []
    for module in MODULES.split():
        path = Path(str(importlib.import_module(module).__file__))
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for name, node in _definitions(ast.parse(source), module):
            body = lines[node.lineno - 1 : node.end_lineno]
            text = "".join(line[node.col_offset :] for line in body)
            if len(text) > 80:
                found.append(Function(name, text))
    return found


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Any]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}.{node.name}")


class Texts:
    """Texts as padded bytes."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        raw = self.texts[index].encode()[:LENGTH]
        ids = torch.zeros(LENGTH, dtype=torch.long)
        ids[: len(raw)] = torch.tensor(list(raw))
        return {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < len(raw)).long()}


class Layer(nn.Module):
    """Attention to what came before, then a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (batch, time, width) -> the same."""
        batch, time, _ = x.shape
        heads = (
            self.qkv(self.norms[0](x)).view(batch, time, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, WIDTH))
        added: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return added


class Model(nn.Module):
    """A causal transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Logits; padding comes last, so that no byte that counts sees it."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        logits: Tensor = self.head(
            self.norm(self.layers(self.bytes(input_ids) + self.places(places)))
        )
        return logits


def train(data: Texts, steps: int) -> tuple[Model, dict[int | str, dict[str, Tensor]]]:
    """The model, and its weights after a quarter, a half and all of the steps."""
    torch.manual_seed(0)
    model, kept = Model(), {}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    everything = torch.stack([data[row]["input_ids"] for row in range(len(data))])
    mask = torch.stack([data[row]["attention_mask"] for row in range(len(data))])
    for step in range(1, steps + 1):
        rows = torch.randint(len(data), (32,))
        ids, wanted = everything[rows], everything[rows].masked_fill(mask[rows] == 0, -100)
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in (steps // 4, steps // 2, steps):
            kept[step] = {name: one.clone() for name, one in model.state_dict().items()}
            print(f"step {step}: {loss.item():.2f} nats a byte", flush=True)
    return model, kept


def show(prompt: str, names: list[str], scores: list[float]) -> None:
    """A prompt and its functions, readable."""
    print(f"\n{prompt!r}")
    for name, score in zip(names, scores, strict=True):
        print(f"   {score:+.3g}  {name}")


def main() -> None:
    """Train, featurize, ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--functions", type=int, default=None, help="of the library; else all")
    options = parser.parse_args()
    library = functions()[: options.functions]
    data = Texts([one.source for one in library])
    print(f"{len(library)} functions of {len(MODULES.split())} modules")
    model, checkpoints = train(data, max(4, options.steps))
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model,
            {"train": data, "test": Texts(list(PROMPTS))},
            output=CausalLM(),
            projector=ts.ProjectionSpec("sjlt", dim=1024),
            checkpoints=checkpoints,
            ids={"train": [f"{at} {one.name}" for at, one in enumerate(library)]},
            batch_size=32,
        )
        featurize_job(job, f"{folder}/run.zarr")
        scores = ts.trak_scores(ts.open_store(f"{folder}/run.zarr"))
        helpful, harmful = ts.top_k(scores, 5), ts.top_k(scores, 2, order="smallest")
    for row, prompt in enumerate(PROMPTS):
        names, values = [], []
        for top in (helpful, harmful):
            names += [library[at].name for at in top["position"].values[row]]
            values += top["score"].values[row].tolist()
        show(prompt, names, values)


if __name__ == "__main__":
    main()
